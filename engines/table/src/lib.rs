//! The engines this build has, by name.

pub mod device;

use camino::Utf8PathBuf;
use dpar_engine_api::{Engine, EngineError, EngineErrorKind};
use dpar_export_spec::text;

use crate::device::Device;

/// Engine used when none is asked for: embedded, nothing to install.
pub const DEFAULT_ENGINE: &str = "tract";

/// What every engine can be told.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Threads of one run; `None` = the engine's choice.
    pub threads: Option<usize>,
    /// Path of the ONNX Runtime library; `None` = search.
    pub ort_library: Option<Utf8PathBuf>,
    /// Folder of the TensorRT libraries; `None` = search.
    pub trt_library: Option<Utf8PathBuf>,
    /// Where to run; `None` = the engine's first device.
    pub device: Option<Device>,
    /// Record a CUDA graph for each shape and replay it.
    pub cuda_graphs: bool,
    /// Folder for what is compiled for the device at run time.
    pub runtime_cache: Option<Utf8PathBuf>,
}

/// What a program does once, first, while it has one thread: engines' libraries that send telemetry are told not to. Where
/// that cannot be done here, the engine says so and does not load its library.
pub fn before_threads() {
    #[cfg(feature = "ort")]
    let _ = dpar_engine_ort::disable_telemetry();
}

/// Warns of more threads than there are processors: they are what was asked for, and slower.
pub fn warn_threads(threads: usize) {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if threads > processors {
        tracing::warn!(
            "{threads} threads on {processors} processors: more threads than processors are slower"
        );
    }
}

/// Makes an engine, or says which Cargo feature it needs.
type Make = fn(&EngineOptions) -> Result<Box<dyn Engine>, EngineError>;

/// The one table of engines.
const ENGINES: &[(&str, Make)] =
    &[("tract", tract), ("ort", ort), ("candle", candle), ("tensorrt", tensorrt)];

/// Names of the engines that are compiled in.
pub fn built() -> impl Iterator<Item = &'static str> {
    let features = [
        ("tract", cfg!(feature = "tract")),
        ("ort", cfg!(feature = "ort")),
        ("candle", cfg!(feature = "candle")),
        ("tensorrt", cfg!(feature = "tensorrt")),
    ];
    names().filter(move |name| features.contains(&(name, true)))
}

/// Names that `--engine` knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENGINES.iter().map(|(name, _)| *name)
}

#[cfg(feature = "tract")]
fn tract(options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(dpar_engine_tract::TractEngine::new(options.threads)))
}

#[cfg(not(feature = "tract"))]
fn tract(_: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built("tract"))
}

#[cfg(feature = "ort")]
fn ort(options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    use dpar_engine_ort::{OrtDevice, OrtEngine, OrtOptions};
    let device = match options.device {
        None | Some(Device::Cpu | Device::Index(_)) => OrtDevice::Cpu,
        Some(Device::Cuda(index)) => OrtDevice::Cuda(index),
        Some(Device::TensorRt(index)) => OrtDevice::TensorRt(index),
        Some(Device::NvRtx(index)) => OrtDevice::NvRtx(index),
    };
    let library = options.ort_library.clone();
    Ok(Box::new(OrtEngine::new(OrtOptions { library, threads: options.threads, device })))
}

#[cfg(not(feature = "ort"))]
fn ort(_: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built("ort"))
}

#[cfg(feature = "candle")]
fn candle(options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(dpar_engine_candle::CandleEngine::new(options.threads)))
}

#[cfg(not(feature = "candle"))]
fn candle(_: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built("candle"))
}

#[cfg(feature = "tensorrt")]
fn tensorrt(options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    use dpar_engine_tensorrt::{TensorRtEngine, TensorRtOptions};
    let device = match options.device {
        Some(Device::Index(index) | Device::Cuda(index)) => usize::from(index),
        _ => 0,
    };
    Ok(Box::new(TensorRtEngine::new(TensorRtOptions {
        library_dir: options.trt_library.clone(),
        device,
        cuda_graphs: options.cuda_graphs,
        runtime_cache_dir: options.runtime_cache.clone(),
        ..TensorRtOptions::default()
    })))
}

#[cfg(not(feature = "tensorrt"))]
fn tensorrt(_: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built("tensorrt"))
}

#[cfg(not(all(feature = "tract", feature = "ort", feature = "candle", feature = "tensorrt")))]
fn not_built(name: &str) -> EngineError {
    EngineError::new(EngineErrorKind::Unavailable, name, "this build does not have it")
        .hint(format!("build with the Cargo feature `{name}`"))
}

/// Refuses what an engine cannot be told: nothing is passed over in silence.
fn check(name: &str, options: &EngineOptions) -> Result<(), EngineError> {
    let refuse = |message: String, hint: &str| {
        Err(EngineError::new(EngineErrorKind::Setting, name, message).hint(hint.to_owned()))
    };
    let here = match (name, options.device) {
        (_, None) => true,
        ("ort", Some(device)) => !matches!(device, Device::Index(_)),
        ("tensorrt", Some(device)) => matches!(device, Device::Index(_) | Device::Cuda(_)),
        (_, Some(device)) => device == Device::Cpu,
    };
    if let Some(device) = options.device.filter(|_| !here) {
        let hint = match name {
            "ort" => "say cpu, or cuda:N, tensorrt:N or nvrtx:N for its execution providers",
            "tensorrt" => "say the index of a CUDA device",
            _ => "leave --device out, or take --engine ort or --engine tensorrt",
        };
        return refuse(format!("it does not run on `--device {device}`"), hint);
    }
    if name != "tensorrt" {
        let hint = "leave it out, or take --engine tensorrt";
        if options.cuda_graphs {
            return refuse("it has no --cuda-graphs".to_owned(), hint);
        }
        if options.runtime_cache.is_some() {
            return refuse("it has no --runtime-cache".to_owned(), hint);
        }
    } else if options.threads.is_some() {
        return refuse("it has no --threads: it runs on a GPU".to_owned(), "leave it out");
    }
    Ok(())
}

/// Makes the engine of that name.
///
/// # Errors
/// [`EngineErrorKind::Unavailable`] when its feature is not built in; [`EngineErrorKind::Setting`] when the name is unknown, and
/// for an option that the engine does not have.
pub fn create(name: &str, options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    check(name, options)?;
    options.threads.into_iter().for_each(warn_threads);
    match ENGINES.iter().find(|(n, _)| *n == name) {
        Some((_, make)) => make(options),
        None => {
            let message = format!("no such engine; this version knows {}", text::names(names()));
            Err(EngineError::new(EngineErrorKind::Setting, name, message))
        }
    }
}
