//! The one ONNX Runtime of the process.

use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineError;
use dpar_engine_api::places::Places;
use libloading::Library;
use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::{disable_telemetry, library, unavailable};

/// A started ONNX Runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) path: Utf8PathBuf,
    pub(crate) version: String,
    pub(crate) environment: Environment,
    /// Loaded for as long as the process runs.
    _library: Library,
}

/// Set once; a static is never dropped, so the environment outlives every session.
static RUNTIME: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);

/// Starts ONNX Runtime, or returns the one that runs if it is the one that is asked for.
pub(crate) fn start(library: Option<&Utf8Path>) -> Result<Arc<Runtime>, EngineError> {
    let choice = library::choose(library, &Places::here(library::VARIABLE));
    let mut running = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = running.as_ref() {
        if choice.resolve()? == runtime.path {
            return Ok(Arc::clone(runtime));
        }
        let message = format!(
            "this process already runs ONNX Runtime {} from `{}`; `{}` (from {}) cannot be loaded beside it",
            runtime.version, runtime.path, choice.path, choice.origin
        );
        return Err(EngineError {
            hint: Some("use one library in a process".to_owned()),
            ..unavailable(message)
        });
    }
    disable_telemetry()?;
    let checked = library::open(&choice)?;
    let refuse = |e: &dyn std::fmt::Display| unavailable(format!("`{}` does not start: {e}", checked.path));
    let environment = ort::init_from(&checked.path)
        .map_err(|e| refuse(&e))?
        .with_name("dpar-export")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|e| refuse(&e))?;
    environment.set_log_level(LogLevel::Warning);
    let runtime = Arc::new(Runtime {
        path: checked.path,
        version: checked.version,
        environment,
        _library: checked.handle,
    });
    Ok(Arc::clone(running.insert(runtime)))
}

/// ONNX Runtime's warnings and errors go where the program's own messages go.
fn log(level: LogLevel, category: &str, id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Fatal | LogLevel::Error => {
            tracing::error!(target: "onnxruntime", category, id, location, "{message}");
        }
        LogLevel::Warning => tracing::warn!(target: "onnxruntime", category, id, location, "{message}"),
        LogLevel::Info | LogLevel::Verbose => {}
    }
}
