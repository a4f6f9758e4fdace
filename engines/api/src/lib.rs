//! The engine contract, in three levels:
//!
//! 1. [`Engine::probe`]: can this engine run here, and what exactly would run;
//! 2. [`Engine::prepare`]: load one graph and make it ready, or refuse it with a reason;
//! 3. [`Session::run`]: named inputs in, outputs in graph order out.
//!
//! For graphs with a KV cache, [`Engine::prepare_cached`] and [`CachedSession::step`] take the places of 2 and 3: keys
//! and values stay with the engine between calls.
//!
//! An engine sees a graph file and its [`GraphSpec`]; it never sees a checkpoint.

mod cached;
mod descriptor;
pub mod device;
mod error;
mod graph;
mod host_cache;
pub mod library;
mod options;
pub mod panics;
mod ports;
mod tensor;
pub mod threads;
mod validate;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{AccuracyLevel, Dialect, GraphSpec, Precision, Profile, WeightBits};
use serde::Serialize;

pub use cached::{
    CacheForm, CachePort, CacheState, CachedSession, CallRow, CheckedStep, MASKED, Outputs, call_rows,
};
pub use descriptor::{BuiltFile, Devices, Driver, EngineDescriptor, EngineFiles, Gpu, LibraryFound, Survey};
pub use error::{EngineError, EngineErrorKind, GraphFault};
pub use graph::{check_graph, graph_bytes};
pub use host_cache::HostCache;
pub use options::{EngineOption, EngineOptions};
pub use ports::{FilePort, check_ports};
pub use tensor::{Tensor, TensorData, TensorSlice, TensorView};
pub use validate::{bind_axes, check_outputs};

/// What would run here: the proof that goes into reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineInfo {
    /// Engine name as given to `--engine`.
    pub engine: String,
    /// Version of the library that runs the graph.
    pub version: String,
    /// Device, e.g. `cpu`.
    pub device: String,
    /// Execution provider or kernel set, e.g. `CPUExecutionProvider`.
    pub provider: String,
    /// Path of a library loaded at run time.
    pub library: Option<String>,
    /// Threads used for one run; `None` = the library's choice.
    pub threads: Option<usize>,
    /// How it was told to keep caches; `None` = its choice, graph by graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caches: Option<CacheForm>,
}

/// How an engine computes graphs of one precision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arithmetic {
    /// In words, for reports.
    pub text: String,
    /// How it relates to the types of the graph.
    pub kind: ArithmeticKind,
}

/// How an engine's arithmetic relates to the types of a graph, the closest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArithmeticKind {
    /// Every operator rounds its result where the graph does.
    AsGraph,
    /// As the graph says, and the partial sums of products are kept in the same narrow type.
    NarrowSums,
    /// Operators compute in a wider type, and results that only other operators see are not rounded.
    Wider,
    /// As the graph says, but for products with quantized weights, whose other factor is rounded to 8 bits.
    NarrowActivations,
}

impl Arithmetic {
    /// From its parts.
    pub fn new(kind: ArithmeticKind, text: impl Into<String>) -> Self {
        Self { text: text.into(), kind }
    }

    /// fp32 graphs in float32.
    pub fn float32() -> Self {
        Self::new(ArithmeticKind::AsGraph, "float32")
    }

    /// Graphs with explicit rounding in float32.
    pub fn explicit() -> Self {
        Self::new(ArithmeticKind::AsGraph, "float32 with every rounding of bf16 autocast")
    }
}

/// A graph on disk together with its interface.
#[derive(Debug, Clone, Copy)]
pub struct GraphFile<'a> {
    /// Ports and axis ranges.
    pub spec: &'a GraphSpec,
    /// The `.onnx` file; its external data lies beside it.
    pub path: &'a Utf8Path,
    /// The form that it is in.
    pub dialect: Dialect,
    /// What was built from it, where it was and for engines that run nothing else.
    pub engine: Option<&'a EngineFile>,
}

impl<'a> GraphFile<'a> {
    /// A portable graph from which nothing was built.
    pub fn new(spec: &'a GraphSpec, path: &'a Utf8Path) -> Self {
        Self { spec, path, dialect: Dialect::Portable, engine: None }
    }
}

/// What was built from a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFile {
    /// The `.engine` file.
    pub path: Utf8PathBuf,
    /// Its profiles in the order of the build. TensorRT does not keep their names, and the bindings do not read their
    /// ranges: where none are given, each profile is tried, and buffers grow as needed instead of being allocated once.
    /// The first profile that takes a call is used, so narrow ones come first.
    pub profiles: Vec<Profile>,
}

/// An inference engine.
pub trait Engine: Send + Sync {
    /// Name as given to `--engine`.
    fn name(&self) -> &'static str;

    /// Level 1: whether the engine can run on this machine, and what would run.
    ///
    /// # Errors
    /// [`EngineErrorKind::Unavailable`] with what is missing and how to get it; [`EngineErrorKind::Setting`] for what it
    /// was told and cannot honour.
    fn probe(&self) -> Result<EngineInfo, EngineError>;

    /// What the engine really computes with in graphs of a precision. Without an implementation: fp32 graphs in float32.
    ///
    /// # Errors
    /// [`EngineErrorKind::Unavailable`] when it cannot compute them, with what to use instead.
    fn arithmetic(&self, precision: Precision) -> Result<Arithmetic, EngineError> {
        match precision {
            Precision::Fp32 => Ok(Arithmetic::float32()),
            _ => Err(no_precision(self.name(), precision, "it has no arithmetic of that type")),
        }
    }

    /// The forms of a graph that the engine takes rather than the portable one, the best first.
    fn dialects(&self) -> &'static [Dialect] {
        &[]
    }

    /// What the engine really computes products with quantized weights with, whose graphs let it round as much as
    /// the level says.
    /// Without an implementation it cannot.
    ///
    /// # Errors
    /// [`EngineErrorKind::Unavailable`] when it cannot compute with such weights, with what to use instead.
    fn quantized(&self, weights: WeightBits, _: AccuracyLevel) -> Result<Arithmetic, EngineError> {
        Err(no_weights(self.name(), weights, "it has no operator for them"))
    }

    /// Level 2: loads a graph. One session serves every shape within the graph's axis ranges.
    ///
    /// # Errors
    /// When the file cannot be read, the graph is refused, or its ports are not those of the spec.
    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError>;

    /// Level 2 for a graph whose cache stays with the engine: in host memory unless the engine has its own.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); when the graph's cache ports do not come in matching pairs.
    fn prepare_cached(&self, graph: GraphFile<'_>) -> Result<Box<dyn CachedSession>, EngineError> {
        Ok(Box::new(HostCache::new(self.prepare(graph)?)?))
    }
}

/// The refusal of an engine that cannot compute graphs of a precision.
pub fn no_precision(engine: &str, precision: Precision, why: &str) -> EngineError {
    let instead = match precision {
        Precision::Fp16 | Precision::Fp16Autocast => "run it on another engine (tract and ort take fp16)",
        Precision::Bf16Autocast => {
            "export the checkpoint with --target onnx, whose graphs do every rounding of bf16-autocast in float32"
        }
        Precision::Bf16AutocastExplicit => "run it on another engine (tract and ort take it)",
        Precision::Fp32 | Precision::Bf16 => "build TensorRT engines from it (--target trt)",
    };
    EngineError::new(EngineErrorKind::Unavailable, engine, format!("cannot run {precision} graphs: {why}"))
        .hint(format!("{instead}, or export the checkpoint with --precision fp32"))
}

/// The refusal of an engine that cannot compute with quantized weights.
pub fn no_weights(engine: &str, weights: WeightBits, why: &str) -> EngineError {
    EngineError::new(
        EngineErrorKind::Unavailable,
        engine,
        format!("cannot run graphs with {weights} weights: {why}"),
    )
    .hint("run it on another engine (tract and ort take quantized weights), or export without --quantize")
}

/// A prepared graph.
pub trait Session: Send {
    /// The interface of the graph.
    fn spec(&self) -> &GraphSpec;

    /// Runs without checking the inputs. Call [`Session::run`].
    ///
    /// # Errors
    /// When the engine fails.
    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError>;

    /// Level 3: runs the graph; outputs come in the order of `spec().outputs`.
    ///
    /// # Errors
    /// When an input is missing, unknown or given twice, has the wrong dtype or a shape that contradicts the
    /// ports or the axis ranges; when the engine fails; when an output's shape is not the one the ports promise.
    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let axes = validate::check_inputs(self.spec(), inputs)?;
        let outputs = self.run_unchecked(inputs)?;
        check_outputs(self.spec(), &axes, &outputs)?;
        Ok(outputs)
    }
}
