//! tract behind the engine contract: the embedded default engine, nothing to install.
//!
//! One optimised plan with symbolic axes serves every shape. External data is mapped and each tensor's bytes are
//! copied once out of the map, so loading a graph costs what its own weights weigh, however large the data file
//! it shares with other graphs is.

mod attention;
mod file;
mod nbits;
mod session;

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use dpar_engine_api::{
    Arithmetic, ArithmeticKind, CacheForm, CachedSession, Engine, EngineDescriptor, EngineError,
    EngineErrorKind, EngineInfo, EngineOption, GraphFile, Session, check_graph, no_precision, panics,
};
use dpar_engine_kv::{Derived, cached};
use dpar_export_spec::{AccuracyLevel, Dialect, Precision, WeightBits};
use tract_linalg::isa;
use tract_linalg::multithread::Executor;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::runtime::RunOptions;

use session::TractSession;

/// Name as given to `--engine`.
const NAME: &str = "tract";

/// tract, for the table of engines.
pub const ENGINE: EngineDescriptor = EngineDescriptor {
    options: &[EngineOption::Threads, EngineOption::Caches],
    ..EngineDescriptor::new(NAME, |options| {
        Box::new(TractEngine::new(options.threads).with_caches(options.caches))
    })
};

/// The exact version in the workspace's `Cargo.toml`; a test compares them.
const VERSION: &str = "0.23.9";

/// Why bf16 graphs are refused.
const NO_BFLOAT16: &str = "tract has no bfloat16";

/// The tract engine.
#[derive(Debug)]
pub struct TractEngine {
    threads: usize,
    /// How caches are kept, where it was told.
    caches: Option<CacheForm>,
    /// Started by the first graph that is prepared; the sessions of this engine share it.
    executor: OnceLock<Result<Executor, EngineError>>,
}

impl TractEngine {
    /// An engine whose runs use `threads` threads, or one per available core.
    ///
    /// tract divides matrix products, convolutions and row-wise operators between threads, each output element
    /// staying with one thread: the number of threads does not change a single bit of the result.
    pub fn new(threads: Option<usize>) -> Self {
        let available = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = threads.unwrap_or_else(available).max(1);
        Self { threads, caches: None, executor: OnceLock::new() }
    }

    /// The same, with caches that are kept so; `None` = in place where that can be.
    #[must_use]
    pub fn with_caches(self, caches: Option<CacheForm>) -> Self {
        Self { caches, ..self }
    }

    fn executor(&self) -> Result<Executor, EngineError> {
        let start = || {
            if self.threads == 1 {
                return Ok(Executor::SingleThread);
            }
            rayon::ThreadPoolBuilder::new()
                .num_threads(self.threads)
                .thread_name(|i| panics::worker(NAME, i))
                .build()
                .map(|pool| Executor::MultiThread(Arc::new(pool)))
                .map_err(|e| {
                    let message = format!("{} threads could not be started: {e}", self.threads);
                    EngineError::new(EngineErrorKind::Setting, NAME, message).hint("ask for fewer threads")
                })
        };
        self.executor.get_or_init(start).clone()
    }

    /// Loads a graph, or what was derived from it with the caches that its operators use.
    fn load(&self, graph: GraphFile<'_>, derived: Option<Derived<'_>>) -> Result<TractSession, EngineError> {
        let graph =
            GraphFile { spec: derived.as_ref().map_or(graph.spec, |(edited, _)| &edited.spec), ..graph };
        let refuse = |what: &str, e: &TractError| refusal(graph, format!("{what}: {e:#}"));
        let executor = self.executor()?;
        let mut onnx = file::reader();
        if derived.is_some() {
            attention::register(&mut onnx);
        }
        let proto = file::read(graph, derived.as_ref().map(|(edited, _)| *edited))?;
        let folder = graph.path.parent().map_or("", |p| p.as_str());
        nbits::register(&mut onnx, &proto).map_err(|e| refuse("the graph could not be read", &e))?;
        let mut parsed =
            onnx.parse(&proto, Some(folder)).map_err(|e| refuse("the graph could not be loaded", &e))?;
        if let [first, ..] = parsed.unresolved_inputs.as_slice() {
            return Err(refusal(graph, format!("no node, input or initializer makes `{first}`")));
        }
        let inputs = file::take_inputs(graph, &mut parsed.model)?;
        let outputs = file::output_order(graph, &proto)?;
        drop(proto);
        let model = parsed.model.into_optimized().map_err(|e| refuse("tract refuses the graph", &e))?;
        let options = RunOptions { executor: Some(executor), ..RunOptions::default() };
        let plan = TypedSimplePlan::new_with_options(model, &options)
            .map_err(|e| refuse("tract made no plan", &e))?;
        let caches = derived.map(|(_, cache)| attention::Caches(cache));
        TractSession::new(graph.spec.clone(), &plan, inputs, outputs, caches)
            .map_err(|e| refuse("the plan cannot be run", &e))
    }

    /// tract's readers and rewrites assert in places: a graph it cannot take is refused, not a crash.
    fn open(
        &self,
        graph: GraphFile<'_>,
        derived: Option<Derived<'_>>,
    ) -> Result<Box<dyn Session>, EngineError> {
        match panics::guard(|| self.load(graph, derived)) {
            Ok(session) => Ok(Box::new(session?)),
            Err(panic) => Err(refusal(graph, format!("tract gave up on the graph: {panic}"))),
        }
    }
}

impl Engine for TractEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        self.executor()?;
        let kernels: Vec<&str> = isa::native().iter().map(|i| i.name()).collect();
        Ok(EngineInfo {
            engine: NAME.to_owned(),
            version: VERSION.to_owned(),
            device: "cpu".to_owned(),
            provider: if kernels.is_empty() {
                "tract-linalg generic".to_owned()
            } else {
                format!("tract-linalg {}", kernels.join("+"))
            },
            library: None,
            threads: Some(self.threads),
            caches: self.caches,
        })
    }

    fn arithmetic(&self, precision: Precision) -> Result<Arithmetic, EngineError> {
        match precision {
            Precision::Fp32 => Ok(Arithmetic::float32()),
            // Its fp16 kernels for this architecture round every partial sum of a matrix product or convolution.
            Precision::Fp16 | Precision::Fp16Autocast => Ok(Arithmetic::new(
                ArithmeticKind::NarrowSums,
                "fp16 as in the graph, sums of products in fp16 too",
            )),
            Precision::Bf16AutocastExplicit => Ok(Arithmetic::explicit()),
            Precision::Bf16 | Precision::Bf16Autocast => Err(no_precision(NAME, precision, NO_BFLOAT16)),
        }
    }

    fn dialects(&self) -> &'static [Dialect] {
        &[Dialect::Packed]
    }

    /// It rounds nothing at any level.
    fn quantized(&self, weights: WeightBits, _: AccuracyLevel) -> Result<Arithmetic, EngineError> {
        let text = match weights {
            WeightBits::Int8 => "float32 matrices, made of them when a graph is loaded",
            WeightBits::Int4 => {
                "blocks of 32 stay packed and become float32 as a product reads them, others when a graph is loaded"
            }
        };
        Ok(Arithmetic::new(ArithmeticKind::AsGraph, text))
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        check_graph(NAME, graph)?;
        self.open(graph, None)
    }

    /// With its caches in place, where the graph is one that this can be derived from and nothing else is asked for.
    fn prepare_cached(&self, graph: GraphFile<'_>) -> Result<Box<dyn CachedSession>, EngineError> {
        check_graph(NAME, graph)?;
        cached(NAME, graph, self.caches, |derived| self.open(graph, derived))
    }
}

/// A refused graph.
fn refusal(graph: GraphFile<'_>, message: String) -> EngineError {
    EngineError::refused(NAME, graph, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reported_version_is_the_pinned_one() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("tract-onnx = {{ version = \"={VERSION}\"")), "update VERSION");
    }

    #[test]
    fn the_probe_reports_threads_and_kernels() {
        let info = TractEngine::new(Some(2)).probe().unwrap();
        assert_eq!((info.engine.as_str(), info.device.as_str(), info.threads), ("tract", "cpu", Some(2)));
        assert!(info.provider.starts_with("tract-linalg "), "{}", info.provider);
        assert_eq!(TractEngine::new(Some(0)).probe().unwrap().threads, Some(1));
    }
}
