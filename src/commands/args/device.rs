//! Where and how an engine runs on a device.

use camino::Utf8PathBuf;
use clap::Args;

use crate::device::Device;

/// Options that some engines have; the others refuse them.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    #[arg(long, value_name = "DEVICE", help = crate::engines::device_help(), help_heading = "Engine")]
    pub(crate) device: Option<Device>,
    /// Record a CUDA graph for each shape and replay it, for --engine tensorrt
    #[arg(long, help_heading = "Engine")]
    pub(crate) cuda_graphs: bool,
    /// Folder for what TensorRT-RTX compiles for the device, kept for later runs, for --engine tensorrt
    #[arg(long, value_name = "DIR", help_heading = "Engine")]
    pub(crate) runtime_cache: Option<Utf8PathBuf>,
}
