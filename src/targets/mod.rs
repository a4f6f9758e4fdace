//! Targets beyond ONNX: engines that are built from a bundle's graphs.

pub mod engine_cache;
pub mod plan;
mod shell;
#[cfg(feature = "tensorrt")]
pub mod trt;
pub mod trtexec;
pub mod tuning;

/// What kind of failure it was; the command line maps it to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetErrorKind {
    /// A library or device is missing or does not fit, or this build does not have the target.
    Unavailable,
    /// A setting, a profile or a graph is refused.
    Refused,
    /// The caller stopped the build.
    Stopped,
}

/// Why engines could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TargetError {
    /// What kind.
    pub kind: TargetErrorKind,
    /// What failed.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl TargetError {
    /// A refused setting.
    pub fn refused(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self { kind: TargetErrorKind::Refused, message: message.into(), hint: hint.map(str::to_owned) }
    }
}
