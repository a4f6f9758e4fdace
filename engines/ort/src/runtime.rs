//! The one ONNX Runtime of the process.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineError;
use dpar_engine_api::library::OneInProcess;
use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::disable_telemetry;
use crate::library::{LIBRARY, version};

/// A started ONNX Runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) path: Utf8PathBuf,
    pub(crate) version: String,
    pub(crate) environment: Environment,
}

/// Set once; a static is never dropped, so the environment outlives every session.
static RUNTIME: OneInProcess<Arc<Runtime>> = OneInProcess::new();

/// Starts ONNX Runtime, or returns the one that runs if it is the one that is asked for.
pub(crate) fn start(library: Option<&Utf8Path>) -> Result<Arc<Runtime>, EngineError> {
    let choice = LIBRARY.choose(library);
    RUNTIME.start(&LIBRARY, &choice, || {
        disable_telemetry()?;
        let opened = LIBRARY.open(&choice)?;
        let version = version(&opened)?;
        let refuse = |e: &dyn std::fmt::Display| opened.refuse(format!("does not start: {e}"));
        let environment = ort::init_from(&opened.path)
            .map_err(|e| refuse(&e))?
            .with_name("dpar-export")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|e| refuse(&e))?;
        environment.set_log_level(LogLevel::Warning);
        let path = opened.path.clone();
        Ok((opened, Arc::new(Runtime { path, version, environment })))
    })
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
