//! The engines this build has, by name.

use camino::Utf8PathBuf;
use dpar_engine_api::{Engine, EngineError, EngineErrorKind};

use crate::bundle::Bundle;

/// Engine used when none is asked for: embedded, nothing to install.
pub const DEFAULT_ENGINE: &str = "tract";

/// What every engine can be told.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions<'a> {
    /// Threads of one run; `None` = the engine's choice.
    pub threads: Option<usize>,
    /// Path of the ONNX Runtime library; `None` = search.
    pub ort_library: Option<Utf8PathBuf>,
    /// Folder of the TensorRT libraries; `None` = search.
    pub trt_library: Option<Utf8PathBuf>,
    /// The bundle that will run: where an engine that needs built files finds them.
    pub bundle: Option<&'a Bundle>,
}

/// Makes an engine, or says which Cargo feature it needs.
type Make = fn(&EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError>;

/// The one table of engines.
const ENGINES: &[(&str, Make)] = &[("tract", tract), ("ort", ort), ("tensorrt", tensorrt)];

/// Names that `--engine` knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENGINES.iter().map(|(name, _)| *name)
}

#[cfg(feature = "tract")]
fn tract(options: &EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(dpar_engine_tract::TractEngine::new(options.threads)))
}

#[cfg(not(feature = "tract"))]
fn tract(_: &EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built("tract"))
}

#[cfg(feature = "ort")]
fn ort(options: &EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(dpar_engine_ort::OrtEngine::new(dpar_engine_ort::OrtOptions {
        library: options.ort_library.clone(),
        threads: options.threads,
    })))
}

#[cfg(not(feature = "ort"))]
fn ort(_: &EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built("ort"))
}

#[cfg(feature = "tensorrt")]
fn tensorrt(options: &EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError> {
    use dpar_engine_tensorrt::{Locate, TensorRtEngine, TensorRtOptions};
    let bundle = options.bundle.cloned();
    let locate: Option<Locate> = bundle.map(|bundle| -> Locate {
        std::sync::Arc::new(move |graph: dpar_engine_api::GraphFile<'_>| {
            crate::targets::trt::engine_file(&bundle, graph)
        })
    });
    let library_dir = options.trt_library.clone();
    Ok(Box::new(TensorRtEngine::new(TensorRtOptions { library_dir, locate, ..TensorRtOptions::default() })))
}

#[cfg(not(feature = "tensorrt"))]
fn tensorrt(_: &EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built("tensorrt"))
}

#[cfg(not(all(feature = "tract", feature = "ort", feature = "tensorrt")))]
fn not_built(name: &str) -> EngineError {
    EngineError::new(EngineErrorKind::Unavailable, name, "this build does not have it")
        .hint(format!("build with the Cargo feature `{name}`"))
}

/// Makes the engine of that name.
///
/// # Errors
/// [`EngineErrorKind::Unavailable`] when the name is unknown or its feature is not built in.
pub fn create(name: &str, options: &EngineOptions<'_>) -> Result<Box<dyn Engine>, EngineError> {
    match ENGINES.iter().find(|(n, _)| *n == name) {
        Some((_, make)) => make(options),
        None => {
            let known: Vec<&str> = names().collect();
            let message = format!("no such engine; this version knows {}", known.join(", "));
            Err(EngineError::new(EngineErrorKind::Unavailable, name, message))
        }
    }
}
