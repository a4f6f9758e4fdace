//! Where the shared libraries of engines are.

use camino::Utf8PathBuf;
use clap::Args;

/// The libraries of all engines that have one.
#[derive(Debug, Clone, Args)]
pub struct LibraryArgs {
    /// ONNX Runtime library [default: $ORT_DYLIB_PATH, then what `cargo xtask setup` fetched, then the system's]
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    pub ort_lib: Option<Utf8PathBuf>,
    /// Library with an execution provider that ONNX Runtime loads, such as OpenVINO's, for --engine ort; --device says which of its
    /// devices [default: its first]
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    pub ep_lib: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub trt: TrtLibraryArgs,
}

/// Of TensorRT alone.
#[derive(Debug, Clone, Args)]
pub struct TrtLibraryArgs {
    /// Folder of the TensorRT libraries [default: $DPAR_TRT_LIB, then what `cargo xtask setup` fetched, then the system's]
    #[arg(long, value_name = "DIR", help_heading = "Engine")]
    pub trt_lib: Option<Utf8PathBuf>,
}
