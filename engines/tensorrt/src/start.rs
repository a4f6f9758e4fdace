//! The one TensorRT of the process.

use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineError;
use dpar_engine_api::places::Places;
use libloading::Library;

use crate::flavour::{CORE, PARSER};
use crate::library::{self, Choice, VARIABLE};
use crate::unavailable;

/// A loaded and checked TensorRT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) path: Utf8PathBuf,
    pub(crate) version: String,
}

/// A library that the bindings hold. They keep the first one they are given, so this remembers which it is.
struct Loaded {
    started: Started,
    /// Loaded for as long as the process runs.
    _library: Library,
}

static CORE_LIBRARY: Mutex<Option<Loaded>> = Mutex::new(None);
static PARSER_LIBRARY: Mutex<Option<Loaded>> = Mutex::new(None);

/// Loads the library that builds and runs engines, or returns the one that is loaded if it is the one asked for.
pub(crate) fn core(folder: Option<&Utf8Path>) -> Result<Started, EngineError> {
    let choice = library::choose(folder, &Places::here(VARIABLE));
    start(&CORE_LIBRARY, &choice, CORE, Choice::open_core, |path| {
        trtx::dynamically_load_tensorrt(Some(path.as_std_path()))
    })
}

/// Loads the library that reads ONNX files, in the same way.
pub(crate) fn parser(folder: Option<&Utf8Path>) -> Result<Started, EngineError> {
    let choice = library::choose(folder, &Places::here(VARIABLE));
    start(&PARSER_LIBRARY, &choice, PARSER, Choice::open_parser, |path| {
        trtx::dynamically_load_tensorrt_onnxparser(Some(path.as_std_path()))
    })
}

fn start(
    slot: &Mutex<Option<Loaded>>,
    choice: &Choice,
    names: &[&str],
    open: impl FnOnce(&Choice) -> Result<library::Checked, EngineError>,
    load: impl FnOnce(&Utf8Path) -> trtx::Result<()>,
) -> Result<Started, EngineError> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = slot.as_ref() {
        let asked = choice.resolve(names)?;
        if asked == loaded.started.path {
            return Ok(loaded.started.clone());
        }
        let message = format!(
            "this process already has TensorRT from `{}`; `{asked}` (from {}) cannot be loaded beside it",
            loaded.started.path, choice.origin
        );
        return Err(EngineError {
            hint: Some("use one library in a process".to_owned()),
            ..unavailable(message)
        });
    }
    let checked = open(choice)?;
    load(&checked.path).map_err(|e| unavailable(format!("`{}` does not load: {e}", checked.path)))?;
    let started = Started { path: checked.path, version: checked.version };
    *slot = Some(Loaded { started: started.clone(), _library: checked.handle });
    Ok(started)
}
