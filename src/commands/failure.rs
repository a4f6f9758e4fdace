//! Errors as users see them: what failed, the next step, the exit code.

use dpar_engine_api::EngineError;
use dpar_export_checkpoint::CheckpointError;
use dpar_export_inputs::memory;
use dpar_export_onnx::ExportError;
use dpar_export_spec::Precision;
use dpar_export_spec::text::{LONGEST_TEXT, cut};

pub(crate) use super::cause::Exit;
use super::cause::{Cause, Caused};
use crate::arrays::{ArrayError, ArrayErrorKind};
use crate::attest::AttestError;
use crate::bundle::{BundleError, TargetError};
use crate::evaluate::EvaluateError;
use crate::generate::DecodeError;
use crate::picture::PictureError;
use crate::runtime::RunError;
use crate::staging::StagingError;

/// An error with its cause, from which the exit code follows, and the next step.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What it means.
    pub(crate) cause: Cause,
    /// What failed, in one line.
    pub(crate) error: anyhow::Error,
    /// Further lines, such as the names that do not match.
    pub(crate) details: Vec<String>,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Bad input with a hint.
    pub(crate) fn usage(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            cause: Cause::Input,
            error: anyhow::Error::msg(message.into()),
            details: Vec::new(),
            hint: hint.map(str::to_owned),
        }
    }

    /// With the next step where the user interrupted.
    pub(crate) fn when_interrupted(mut self, hint: &str) -> Self {
        if self.cause == Cause::Stopped {
            self.hint = Some(hint.to_owned());
        }
        self
    }

    /// What failed, in words, however long what a file says about itself is.
    pub(crate) fn text(&self) -> String {
        cut(&self.error.to_string(), LONGEST_TEXT).into_owned()
    }

    fn new(error: impl Caused + Into<anyhow::Error>, hint: Option<String>) -> Self {
        Self { cause: error.cause(), error: error.into(), details: Vec::new(), hint }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        let hint = e.hint.clone();
        Self::new(e, hint)
    }
}

impl From<CheckpointError> for Failure {
    fn from(e: CheckpointError) -> Self {
        let (hint, details) = (e.hint(), e.details());
        Self { details, ..Self::new(e, hint) }
    }
}

impl From<StagingError> for Failure {
    fn from(e: StagingError) -> Self {
        let hint = match &e {
            StagingError::Exists(_) => {
                Some("choose another --output, or replace an earlier output of this tool with --force")
            }
            StagingError::Busy(_) => Some("wait for it to end, or choose another --output"),
            StagingError::Conflict { .. } => Some("it is whole: keep the one that you need"),
            StagingError::NotAFile(_) | StagingError::Io { .. } => None,
        };
        Self::new(e, hint.map(str::to_owned))
    }
}

impl From<TargetError> for Failure {
    fn from(e: TargetError) -> Self {
        let hint = e.hint.clone();
        Self::new(e, hint)
    }
}

impl From<BundleError> for Failure {
    fn from(e: BundleError) -> Self {
        let hint = match &e {
            BundleError::Checkpoint(_) | BundleError::Staging(_) | BundleError::Target(_) => None,
            BundleError::Export(ExportError::Overflow { precision: Precision::Fp16, .. }) => {
                Some("use --precision bf16, which has the range of fp32")
            }
            BundleError::Export(ExportError::Overflow { precision: Precision::Fp16Autocast, .. }) => {
                Some("use --precision bf16-autocast, which has the range of fp32")
            }
            BundleError::Export(ExportError::Overflow { .. }) => Some("use --precision fp32"),
            BundleError::Integrity { .. } => {
                Some("the bundle was changed after it was written: export it again")
            }
            BundleError::Changed { .. } => {
                Some("another program wrote it or put another in its place: run again when it is done")
            }
            BundleError::Manifest { source, .. } if source.is_tampering() => {
                Some("no version of this tool wrote this manifest: export the checkpoint again")
            }
            BundleError::Precision { .. } => {
                Some("a graph and the manifest are not of the same export: export again")
            }
            BundleError::NotABundle(_) => Some("make one with `dpar-export --target onnx CHECKPOINT -o OUT`"),
            BundleError::Extractor(_) => {
                Some("extractors serve `evaluate`, `metrics` and `reproduce`: give it there with --extractor")
            }
            BundleError::NotAnExtractor(_) => {
                Some("make an extractor with `dpar-export --component inception WEIGHTS.pth -o OUT`")
            }
            BundleError::NoGraph { graph, .. } if graph.starts_with("vq_") => {
                Some("the bundle was exported without a tokenizer: export again with --vq FILE")
            }
            BundleError::Io { .. }
            | BundleError::Foreign { .. }
            | BundleError::Manifest { .. }
            | BundleError::Config { .. }
            | BundleError::NoGraph { .. }
            | BundleError::Export(_) => None,
        };
        match e {
            BundleError::Checkpoint(e) => e.into(),
            BundleError::Staging(e) => e.into(),
            BundleError::Target(e) => e.into(),
            e => Self::new(e, hint.map(str::to_owned)),
        }
    }
}

impl From<AttestError> for Failure {
    fn from(e: AttestError) -> Self {
        let hint = match &e {
            AttestError::Rejected { .. } => Some(
                "do not use these files: get the bundle and its attestation from their maker again".into(),
            ),
            AttestError::Key { hint, .. } => Some(hint.clone()),
            AttestError::Input { .. }
            | AttestError::Report { .. }
            | AttestError::TooLarge { .. }
            | AttestError::Statement(_)
            | AttestError::Bundle(_) => None,
        };
        match e {
            AttestError::Bundle(e) => e.into(),
            e => Self::new(e, hint),
        }
    }
}

impl From<RunError> for Failure {
    fn from(e: RunError) -> Self {
        let hint = matches!(e, RunError::Integrity { .. }).then(|| {
            "the file was changed after it was recorded: record it again, or get the original".to_owned()
        });
        match e {
            RunError::Bundle(e) => e.into(),
            RunError::Engine(e) | RunError::Decode(DecodeError::Engine(e)) => e.into(),
            RunError::Array(e) => e.into(),
            e => Self::new(e, hint),
        }
    }
}

impl From<ArrayError> for Failure {
    fn from(e: ArrayError) -> Self {
        let hint = matches!(e.kind, ArrayErrorKind::Memory(_)).then(|| memory::HINT.to_owned());
        Self::new(e, hint)
    }
}

impl From<PictureError> for Failure {
    fn from(e: PictureError) -> Self {
        let hint = matches!(e, PictureError::Memory { .. }).then(|| memory::HINT.to_owned());
        Self::new(e, hint)
    }
}

impl From<EvaluateError> for Failure {
    fn from(e: EvaluateError) -> Self {
        let cause = e.cause();
        match e {
            EvaluateError::Extractor(e) => Self { cause, ..e.into() },
            EvaluateError::Array(e) => e.into(),
            EvaluateError::Run(e) => e.into(),
            EvaluateError::Picture(e) => e.into(),
            EvaluateError::Staging(e) => e.into(),
            EvaluateError::Input { ref hint, .. } => {
                let hint = hint.clone();
                Self::new(e, hint)
            }
            e => Self::new(e, None),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self::new(e, None)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Self::new(e, None)
    }
}

impl From<dpar_export_metrics::Verdict> for Exit {
    fn from(verdict: dpar_export_metrics::Verdict) -> Self {
        match verdict {
            dpar_export_metrics::Verdict::Pass => Self::Pass,
            dpar_export_metrics::Verdict::Fail => Self::Failed,
            dpar_export_metrics::Verdict::Inconclusive => Self::Inconclusive,
            // What was to be compared is not in what was given.
            dpar_export_metrics::Verdict::Incomplete => Self::Usage,
        }
    }
}
