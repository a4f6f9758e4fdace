//! The one TensorRT of the process.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineError;
use dpar_engine_api::library::{OneInProcess, Opened, SharedLibrary};

use crate::library::{CORE, PARSER, core_version, parser_version};

/// A loaded and checked TensorRT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) path: Utf8PathBuf,
    pub(crate) version: String,
}

static CORE_LIBRARY: OneInProcess<Started> = OneInProcess::new();
static PARSER_LIBRARY: OneInProcess<Started> = OneInProcess::new();

/// Loads the library that builds and runs engines, or returns the one that is loaded if it is the one asked for.
pub(crate) fn core(folder: Option<&Utf8Path>) -> Result<Started, EngineError> {
    start(&CORE_LIBRARY, &CORE, folder, core_version, |path| {
        trtx::dynamically_load_tensorrt(Some(path.as_std_path()))
    })
}

/// Loads the library that reads ONNX files, in the same way.
pub(crate) fn parser(folder: Option<&Utf8Path>) -> Result<Started, EngineError> {
    start(&PARSER_LIBRARY, &PARSER, folder, parser_version, |path| {
        trtx::dynamically_load_tensorrt_onnxparser(Some(path.as_std_path()))
    })
}

fn start(
    slot: &OneInProcess<Started>,
    library: &SharedLibrary,
    folder: Option<&Utf8Path>,
    version: impl FnOnce(&Opened) -> Result<String, EngineError>,
    load: impl FnOnce(&Utf8Path) -> trtx::Result<()>,
) -> Result<Started, EngineError> {
    let choice = CORE.choose(folder);
    slot.start(library, &choice, || {
        let opened = library.open(&choice)?;
        let version = version(&opened)?;
        load(&opened.path).map_err(|e| opened.refuse(format!("does not load: {e}")))?;
        let path = opened.path.clone();
        Ok((opened, Started { path, version }))
    })
}
