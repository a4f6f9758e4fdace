//! candle-onnx behind the engine contract: pure Rust, compiled in.
//!
//! candle-onnx evaluates a graph node by node. This engine gives it one node at a time, which it can name when it
//! fails, and drops a value after its last use. Initializers are read once, external ones out of a mapped file, and
//! nodes that depend on nothing but initializers are evaluated once: a step copies no weight. What candle-onnx
//! evaluates wrongly, or not at all, is refused when the graph is prepared.

mod plan;
mod session;
mod support;
mod weights;

use std::sync::{Arc, OnceLock};

use candle_core::utils::{barrier_pool, get_num_threads};
use dpar_engine_api::{
    Arithmetic, ArithmeticKind, Engine, EngineDescriptor, EngineError, EngineErrorKind, EngineInfo,
    GraphFile, Session, check_graph, no_precision, panics, threads,
};
use dpar_export_spec::Precision;
use rayon::ThreadPool;

use session::CandleSession;

/// Name as given to `--engine`.
const NAME: &str = "candle";

/// candle, for the table of engines.
pub const ENGINE: EngineDescriptor =
    EngineDescriptor::new(NAME, |options| Box::new(CandleEngine::new(options.threads)));

/// The exact version in the workspace's `Cargo.toml`; a test compares them.
const VERSION: &str = "0.11.1";

/// The candle engine, on the CPU.
#[derive(Debug)]
pub struct CandleEngine {
    /// Threads asked for; `None` = candle's number.
    threads: Option<usize>,
    /// Started by the first probe or graph; the sessions of this engine share it.
    pool: OnceLock<Result<Arc<ThreadPool>, EngineError>>,
}

impl CandleEngine {
    /// An engine whose runs use `threads` threads, or candle's number.
    ///
    /// candle takes its number from the environment, once in a process (`RAYON_NUM_THREADS`, or one per physical
    /// core); an engine that is asked for another number is refused, and its probe says so.
    pub fn new(threads: Option<usize>) -> Self {
        Self { threads, pool: OnceLock::new() }
    }

    fn pool(&self) -> Result<Arc<ThreadPool>, EngineError> {
        let start = || {
            // candle starts its threads at the first question about them, and ends the process where it cannot.
            threads::try_start(2 * asked_of_candle(), STACK).map_err(|e| no_threads(&e))?;
            let own = threads_of_candle();
            if let Some(asked) = self.threads.filter(|asked| *asked != own) {
                let message = format!(
                    "{asked} threads were asked for, but this process runs candle with {own}: it takes the number \
                     from the environment, once"
                );
                return Err(EngineError::new(EngineErrorKind::Setting, NAME, message)
                    .hint(format!("set RAYON_NUM_THREADS={asked} (and no CANDLE_NUM_THREADS)")));
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(own);
            pool.thread_name(|i| panics::worker(NAME, i)).build().map(Arc::new).map_err(|e| no_threads(&e))
        };
        self.pool.get_or_init(start).clone()
    }

    fn load(&self, graph: GraphFile<'_>) -> Result<CandleSession, EngineError> {
        let pool = self.pool()?;
        let model = candle_onnx::read_file(graph.path).map_err(|e| refusal(graph, e.to_string()))?;
        let plan = pool.install(|| plan::ExecutionPlan::new(graph, model))?;
        Ok(CandleSession::new(graph.spec.clone(), plan, pool))
    }
}

/// Stack of a thread of Rust's.
const STACK: usize = 2 << 20;

/// Threads that each of candle's two pools will have, without starting them.
fn asked_of_candle() -> usize {
    let named = std::env::var("CANDLE_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    get_num_threads().max(named.unwrap_or(0))
}

/// The system refuses candle's threads.
fn no_threads(why: &dyn std::fmt::Display) -> EngineError {
    EngineError::new(EngineErrorKind::Setting, NAME, format!("its threads could not be started: {why}"))
        .hint("set RAYON_NUM_THREADS to a smaller number")
}

/// Threads that candle uses in this process: for matrix products and convolutions, and for large element-wise
/// operators, which have a pool of their own.
fn threads_of_candle() -> usize {
    get_num_threads().max(barrier_pool().n_workers() + 1)
}

impl Engine for CandleEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        let threads = self.pool()?.current_num_threads();
        Ok(EngineInfo {
            engine: NAME.to_owned(),
            version: VERSION.to_owned(),
            device: "cpu".to_owned(),
            provider: "candle-onnx on candle-core with gemm".to_owned(),
            library: None,
            threads: Some(threads),
            caches: None,
        })
    }

    fn arithmetic(&self, precision: Precision) -> Result<Arithmetic, EngineError> {
        match precision {
            Precision::Fp32 => Ok(Arithmetic::float32()),
            Precision::Bf16AutocastExplicit => Ok(Arithmetic::explicit()),
            Precision::Fp16 | Precision::Fp16Autocast => {
                let text = "fp16 as in the graph, sums of products of single rows in fp16 too";
                Ok(Arithmetic::new(ArithmeticKind::NarrowSums, text))
            }
            Precision::Bf16 | Precision::Bf16Autocast => {
                let why = "candle has no bfloat16 kernels for matrix products on the CPU";
                Err(no_precision(NAME, precision, why))
            }
        }
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        check_graph(NAME, graph)?;
        // candle-onnx asserts and indexes in places: a graph it cannot take is refused, not a crash.
        match panics::guard(|| self.load(graph)) {
            Ok(session) => Ok(Box::new(session?)),
            Err(panic) => Err(refusal(graph, format!("candle gave up on the graph: {panic}"))),
        }
    }
}

/// A refused graph.
fn refusal(graph: GraphFile<'_>, message: impl std::fmt::Display) -> EngineError {
    EngineError::refused(NAME, graph, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reported_version_is_the_pinned_one() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("candle-onnx = {{ version = \"={VERSION}\"")), "update VERSION");
    }

    #[test]
    fn another_number_of_threads_than_candles_is_refused_with_the_way_to_get_it() {
        let own = CandleEngine::new(None).probe().unwrap().threads.unwrap();
        assert_eq!(own, threads_of_candle());
        assert_eq!(CandleEngine::new(Some(own)).probe().unwrap().threads, Some(own));
        let e = CandleEngine::new(Some(own + 1)).probe().unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Setting);
        assert!(e.hint.unwrap().contains(&format!("RAYON_NUM_THREADS={}", own + 1)));
    }
}
