//! TensorRT-RTX behind the engine contract: [`EngineBuilder`] builds engines on a machine without a GPU,
//! [`TensorRtEngine`] runs them where one is.
//!
//! The two shared libraries are loaded at run time and checked before the bindings touch them: a missing, damaged or
//! different one is an error that says what to do. Where the folder they are in is looked for: `SharedLibrary::search` in
//! `engines/api`, with [`TensorRtOptions::library_dir`], then the environment variable `DPAR_TRT_LIB`.
//!
//! With the feature `enterprise` the crate is for full TensorRT 11 (`libnvinfer`) instead, which builds on the GPU that
//! it builds for. That flavour has only been compiled.
//!
//! # What has been run
//!
//! Building, and everything that is refused without a GPU, is tested. The session's device code was compiled and its
//! bookkeeping tested on a stand-in for the driver, but it has not run on a GPU where it was written: `tests/gpu.rs`
//! is for that.

mod buffers;
mod build;
mod cache_file;
mod cached;
mod capability;
mod cuda;
mod descriptor;
mod device_cache;
mod error;
mod flavour;
mod library;
mod log;
mod padded;
mod parse_log;
mod plan;
mod ports;
mod profile;
mod session;
mod start;
mod survey;

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{
    Arithmetic, ArithmeticKind, CachedSession, Engine, EngineError, EngineErrorKind, EngineFile, EngineInfo,
    GraphFile, Session, no_precision, no_weights,
};
use dpar_export_spec::{AccuracyLevel, Precision, WeightBits};

pub use build::{BuildProgress, BuildRequest, BuildSettings, BuiltEngine, EngineBuilder};
pub use capability::{Capability, CapabilityError};
pub use descriptor::ENGINE;
pub use error::{BuildError, ParseFault};
pub use plan::{PlanFault, PlanHeader, read_plan_header};
pub use profile::{Override, Point, Profile, ProfileError};

/// Why graphs with explicit rounding are refused.
const EXPLICIT: &str = "its builder may simplify the roundings, and has bfloat16 itself";

/// The refusal of graphs with quantized weights, to build and to run.
pub fn no_quantized(weights: WeightBits) -> EngineError {
    let why = match weights {
        WeightBits::Int8 => "its parser takes no DequantizeLinear of uint8",
        WeightBits::Int4 => "its parser takes no weights of uint4",
    };
    no_weights(NAME, weights, why)
}

/// Name as given to `--engine`.
const NAME: &str = "tensorrt";

/// Where a bundle has the engine of a graph: `../trt/<graph>.engine` as seen from the graph's folder, profiles unknown.
pub fn engine_in_bundle(graph: GraphFile<'_>) -> EngineFile {
    let folder = graph.path.parent().and_then(Utf8Path::parent).unwrap_or(Utf8Path::new(".."));
    let path = folder.join("trt").join(format!("{}.engine", graph.spec.name));
    EngineFile { path, profiles: Vec::new() }
}

/// Which kernels TensorRT-RTX runs a shape with; it compiles them at run time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ShapeKernels {
    /// The same ones for every shape of a profile: a run repeats exactly, and nothing is compiled while decoding,
    /// where each step has a shape of its own.
    #[default]
    General,
    /// Special ones for each new shape, compiled beside the runs and taken when they are ready: the library's own
    /// default. The last bits of a result depend on when that is.
    SpecialLater,
    /// Special ones for each new shape, compiled before its first run. For few shapes that come often.
    SpecialFirst,
}

/// What may be chosen about the engine.
#[derive(Debug, Clone, Default)]
pub struct TensorRtOptions {
    /// Folder of the shared libraries; `None` = search.
    pub library_dir: Option<Utf8PathBuf>,
    /// Index of the CUDA device.
    pub device: usize,
    /// Record a CUDA graph per shape and replay it. Pays where shapes repeat; a decoding step has a new past length
    /// each time.
    pub cuda_graphs: bool,
    /// Which kernels run a shape.
    pub kernels: ShapeKernels,
    /// Folder for what is compiled for the device at run time, one file per graph; `None` = compiled again by every
    /// process.
    pub runtime_cache_dir: Option<Utf8PathBuf>,
}

/// Runs engines that [`EngineBuilder`] built.
#[derive(Debug, Clone, Default)]
pub struct TensorRtEngine {
    options: TensorRtOptions,
}

impl TensorRtEngine {
    /// An engine; nothing is loaded until it is probed or a graph is prepared.
    ///
    /// A process can hold one TensorRT: once a library has been loaded, a folder with another is unavailable.
    pub fn new(options: TensorRtOptions) -> Self {
        Self { options }
    }

    /// Layers of an engine file in JSON, as TensorRT's inspector gives them. Needs a GPU, and an engine built with
    /// [`BuildSettings::detailed`] for more than names.
    ///
    /// # Errors
    /// When the file is not an engine, and when this machine cannot load it.
    pub fn inspect(&self, path: &Utf8Path) -> Result<String, EngineError> {
        let bytes = read_engine(path)?;
        let (device, _) = self.start()?;
        session::inspect(&device, path, &bytes)
    }

    /// Bytes of device memory that are free now.
    ///
    /// # Errors
    /// When the engine cannot run here.
    pub fn free_memory(&self) -> Result<usize, EngineError> {
        let device = cuda::CudaDevice::open(cuda::driver()?, self.options.device)?;
        let free = device.make_current().and_then(|()| device.free_memory());
        free.map_err(|e| EngineError::new(EngineErrorKind::Run, NAME, e.to_string()))
    }

    /// Driver and device first: without them the library is of no use.
    fn start(&self) -> Result<(Arc<cuda::CudaDevice>, start::Started), EngineError> {
        flavour::check_run(&self.options)?;
        let device = cuda::CudaDevice::open(cuda::driver()?, self.options.device)?;
        Ok((device, start::core(self.options.library_dir.as_deref())?))
    }
}

impl TensorRtEngine {
    /// Deserialises the engine of a graph.
    fn load(&self, graph: GraphFile<'_>) -> Result<session::TrtSession, EngineError> {
        let file = graph.engine.cloned().unwrap_or_else(|| engine_in_bundle(graph));
        for profile in &file.profiles {
            profile.check(graph.spec).map_err(BuildError::Profile)?;
        }
        // What is wrong with the file is said also where it could not run.
        let bytes = read_engine(&file.path).map_err(|e| e.in_graph(&graph.spec.name))?;
        let (device, _) = self.start().map_err(|e| e.in_graph(&graph.spec.name))?;
        let options = session::SessionOptions {
            cuda_graphs: self.options.cuda_graphs,
            kernels: self.options.kernels,
            cache_dir: self.options.runtime_cache_dir.as_deref(),
        };
        session::TrtSession::load(graph, &file, &bytes, &device, &options)
    }
}

impl Engine for TensorRtEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn arithmetic(&self, precision: Precision) -> Result<Arithmetic, EngineError> {
        // The network is strongly typed: every tensor has the type that the graph gives it.
        let text = match precision {
            Precision::Fp32 => "float32 without TF32".to_owned(),
            Precision::Bf16AutocastExplicit => return Err(no_precision(NAME, precision, EXPLICIT)),
            half => format!("{half} as in the graph"),
        };
        Ok(Arithmetic::new(ArithmeticKind::AsGraph, text))
    }

    fn quantized(&self, weights: WeightBits, _: AccuracyLevel) -> Result<Arithmetic, EngineError> {
        Err(no_quantized(weights))
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        let (device, started) = self.start()?;
        Ok(EngineInfo {
            engine: NAME.to_owned(),
            version: started.version,
            device: format!("cuda:{} {} ({})", device.ordinal, device.name, device.capability),
            provider: flavour::PRODUCT.to_owned(),
            library: Some(started.path.to_string()),
            threads: None,
            caches: None,
        })
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(self.load(graph)?))
    }

    fn prepare_cached(&self, graph: GraphFile<'_>) -> Result<Box<dyn CachedSession>, EngineError> {
        Ok(Box::new(cached::TrtCached::new(self.load(graph)?)?))
    }
}

/// An engine file that is whole, and of a version that this build runs. Neither a library nor a device is needed.
fn read_engine(path: &Utf8Path) -> Result<Vec<u8>, EngineError> {
    let refuse = |kind, message: String| {
        EngineError::new(kind, NAME, message).hint("build the engines with `dpar-export --target trt BUNDLE`")
    };
    // `fs_err` names the path.
    let bytes = fs_err::read(path).map_err(|e| refuse(EngineErrorKind::Graph, e.to_string()))?;
    let fault = |e: PlanFault| {
        let kind = match e {
            PlanFault::NotAnEngine => EngineErrorKind::Graph,
            PlanFault::Size { .. } => EngineErrorKind::Damaged,
        };
        refuse(kind, format!("{path}: {e}"))
    };
    if let Some(header) = flavour::check_plan(&bytes).map_err(fault)? {
        library::check_plan_version(&header.version).map_err(|reason| {
            let message = format!("{path}: {reason}");
            EngineError::new(EngineErrorKind::Unavailable, NAME, message)
                .hint("build the engines again with `dpar-export --target trt BUNDLE`, or use the version that built them")
        })?;
    }
    Ok(bytes)
}
