//! What a target, such as TensorRT, says when it cannot add to a bundle.

use dpar_engine_api::EngineErrorKind;
use dpar_export_spec::{CapabilityError, Hinted, ProfileError};

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

impl From<EngineErrorKind> for TargetErrorKind {
    fn from(kind: EngineErrorKind) -> Self {
        match kind {
            EngineErrorKind::Unavailable => Self::Unavailable,
            EngineErrorKind::Setting
            | EngineErrorKind::Graph
            | EngineErrorKind::Damaged
            | EngineErrorKind::Input
            | EngineErrorKind::Run
            | EngineErrorKind::Output => Self::Refused,
        }
    }
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

impl Hinted for TargetError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

impl TargetError {
    /// A refused setting.
    pub fn refused(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self { kind: TargetErrorKind::Refused, message: message.into(), hint: hint.map(str::to_owned) }
    }
}

impl From<ProfileError> for TargetError {
    fn from(e: ProfileError) -> Self {
        Self::refused(e.to_string(), Some("change the shapes, or leave them to the ranges in the manifest"))
    }
}

impl From<CapabilityError> for TargetError {
    fn from(e: CapabilityError) -> Self {
        Self::refused(e.to_string(), Some(&e.hint()))
    }
}
