//! Targets beyond ONNX: engines that are built from a bundle's graphs.

pub mod engine_cache;
pub mod plan;
mod shell;
#[cfg(feature = "tensorrt")]
pub mod trt;
pub mod trtexec;
pub mod tuning;

pub use shell::literal as shell_word;
