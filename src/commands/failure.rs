//! Errors as users see them: what failed, the next step, the exit code.

use dpar_engine_api::{EngineError, EngineErrorKind};
use dpar_export_checkpoint::CheckpointError;
use dpar_export_onnx::ExportError;
use dpar_export_spec::Precision;

use crate::arrays::ArrayError;
use crate::attest::AttestError;
use crate::bundle::BundleError;
use crate::evaluate::EvaluateError;
use crate::generate::DecodeError;
use crate::picture::PictureError;
use crate::runtime::RunError;
use crate::staging::StagingError;
use crate::targets::{TargetError, TargetErrorKind};

/// Exit codes, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything asked for was done and every check passed.
    Pass = 0,
    /// A gate or parity check failed.
    Failed = 1,
    /// Usage, or bad input.
    Usage = 2,
    /// An engine, library or device is not available.
    Unavailable = 3,
    /// The statistics decide nothing: more images or seeds are needed.
    Inconclusive = 4,
    /// A file does not match its recorded hash.
    Integrity = 5,
    /// Interrupted by the user (128 + SIGINT).
    Interrupted = 130,
}

/// An error with its exit code and the next step.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) exit: Exit,
    /// What failed.
    pub(crate) error: anyhow::Error,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Bad input with a hint.
    pub(crate) fn usage(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::new(Exit::Usage, anyhow::Error::msg(message.into()), hint.map(str::to_owned))
    }

    /// With the next step where the user interrupted.
    pub(crate) fn when_interrupted(mut self, hint: &str) -> Self {
        if self.exit == Exit::Interrupted {
            self.hint = Some(hint.to_owned());
        }
        self
    }

    fn new(exit: Exit, error: impl Into<anyhow::Error>, hint: Option<String>) -> Self {
        Self { exit, error: error.into(), hint }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        let exit = match e.kind {
            EngineErrorKind::Input | EngineErrorKind::Graph => Exit::Usage,
            EngineErrorKind::Output => Exit::Failed,
            _ => Exit::Unavailable,
        };
        let hint = e.hint.clone();
        Self::new(exit, e, hint)
    }
}

impl From<CheckpointError> for Failure {
    fn from(e: CheckpointError) -> Self {
        let hint = e.hint();
        Self::new(Exit::Usage, e, hint)
    }
}

impl From<StagingError> for Failure {
    fn from(e: StagingError) -> Self {
        let hint = matches!(e, StagingError::Exists(_)).then(|| {
            "choose another --output, or replace an earlier output of this tool with --force".to_owned()
        });
        Self::new(Exit::Usage, e, hint)
    }
}

impl From<TargetError> for Failure {
    fn from(e: TargetError) -> Self {
        let exit = match e.kind {
            TargetErrorKind::Unavailable => Exit::Unavailable,
            TargetErrorKind::Refused => Exit::Usage,
            TargetErrorKind::Stopped => Exit::Interrupted,
        };
        let hint = e.hint.clone();
        Self::new(exit, e, hint)
    }
}

impl From<BundleError> for Failure {
    fn from(e: BundleError) -> Self {
        match e {
            BundleError::Checkpoint(e) => e.into(),
            BundleError::Staging(e) => e.into(),
            BundleError::Target(e) => e.into(),
            BundleError::Export(ExportError::Overflow { precision, .. }) => {
                let wider = match precision {
                    Precision::Fp16 => "bf16, which has the range of fp32",
                    Precision::Fp16Autocast => "bf16-autocast, which has the range of fp32",
                    _ => "fp32",
                };
                Self::new(Exit::Usage, e, Some(format!("use --precision {wider}")))
            }
            BundleError::Export(ExportError::Interrupted) => Self::new(Exit::Interrupted, e, None),
            BundleError::Integrity { .. } => {
                let hint = "the bundle was changed after it was written: export it again";
                Self::new(Exit::Integrity, e, Some(hint.to_owned()))
            }
            BundleError::Manifest { ref source, .. } if source.is_tampering() => {
                let hint = "no version of this tool wrote this manifest: export the checkpoint again";
                Self::new(Exit::Integrity, e, Some(hint.to_owned()))
            }
            BundleError::Precision { .. } => {
                let hint = "a graph and the manifest are not of the same export: export again";
                Self::new(Exit::Integrity, e, Some(hint.to_owned()))
            }
            BundleError::NotABundle(_) => {
                let hint = "make one with `dpar-export --target onnx CHECKPOINT -o OUT`";
                Self::new(Exit::Usage, e, Some(hint.to_owned()))
            }
            BundleError::Extractor(_) => {
                let hint =
                    "extractors serve `evaluate`, `metrics` and `reproduce`: give it there with --extractor";
                Self::new(Exit::Usage, e, Some(hint.to_owned()))
            }
            BundleError::NotAnExtractor(_) => {
                let hint = "make an extractor with `dpar-export --component inception WEIGHTS.pth -o OUT`";
                Self::new(Exit::Usage, e, Some(hint.to_owned()))
            }
            BundleError::NoGraph { ref graph, .. } if graph.starts_with("vq_") => {
                let hint = "the bundle was exported without a tokenizer: export again with --vq FILE";
                Self::new(Exit::Usage, e, Some(hint.to_owned()))
            }
            e => Self::new(Exit::Usage, e, None),
        }
    }
}

impl From<AttestError> for Failure {
    fn from(e: AttestError) -> Self {
        let e = match e {
            AttestError::Bundle(e) => return e.into(),
            e => e,
        };
        let (exit, hint) = match &e {
            AttestError::Rejected { .. } => {
                let hint =
                    "do not use these files: get the bundle and its attestation from their maker again";
                (Exit::Integrity, Some(hint.to_owned()))
            }
            AttestError::Key { hint, .. } => (Exit::Usage, Some(hint.clone())),
            _ => (Exit::Usage, None),
        };
        Self::new(exit, e, hint)
    }
}

impl From<RunError> for Failure {
    fn from(e: RunError) -> Self {
        match e {
            RunError::Bundle(e) => e.into(),
            RunError::Engine(e) | RunError::Decode(DecodeError::Engine(e)) => e.into(),
            RunError::Array(e) => e.into(),
            RunError::Interrupted | RunError::Decode(DecodeError::Interrupted) => {
                Self::new(Exit::Interrupted, e, None)
            }
            RunError::Integrity { .. } => {
                let hint = "the file was changed after it was recorded: record it again, or get the original";
                Self::new(Exit::Integrity, e, Some(hint.to_owned()))
            }
            RunError::Decode(_) => Self::new(Exit::Failed, e, None),
            e => Self::new(Exit::Usage, e, None),
        }
    }
}

impl From<ArrayError> for Failure {
    fn from(e: ArrayError) -> Self {
        Self::new(Exit::Usage, e, None)
    }
}

impl From<PictureError> for Failure {
    fn from(e: PictureError) -> Self {
        Self::new(Exit::Usage, e, None)
    }
}

impl From<dpar_export_metrics::Verdict> for Exit {
    fn from(verdict: dpar_export_metrics::Verdict) -> Self {
        match verdict {
            dpar_export_metrics::Verdict::Pass => Self::Pass,
            dpar_export_metrics::Verdict::Fail => Self::Failed,
            dpar_export_metrics::Verdict::Inconclusive => Self::Inconclusive,
        }
    }
}

impl From<EvaluateError> for Failure {
    fn from(e: EvaluateError) -> Self {
        match e {
            EvaluateError::Array(e) => e.into(),
            EvaluateError::Run(e) => e.into(),
            EvaluateError::Interrupted => Self::new(Exit::Interrupted, e, None),
            EvaluateError::Input { ref hint, .. } => {
                let hint = hint.clone();
                Self::new(Exit::Usage, e, hint)
            }
            e => Self::new(Exit::Usage, e, None),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self::new(Exit::Usage, e, None)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Self::new(Exit::Usage, e, None)
    }
}
