//! The one table of exit codes: what every kind of every error of the workspace's libraries means. No arm is a wildcard, so
//! a new kind does not compile before it has a place here.

use dpar_engine_api::{EngineError, EngineErrorKind};
use dpar_export_bench::BenchError;
use dpar_export_card::CardError;
use dpar_export_checkpoint::{CheckpointError, ErrorKind};
use dpar_export_metrics::MetricError;
use dpar_export_onnx::ExportError;

use crate::CompareError;
use crate::arrays::{ArrayError, ArrayErrorKind};
use crate::attest::AttestError;
use crate::bundle::oci::OciError;
use crate::bundle::{BundleError, ManifestError, TargetError, TargetErrorKind};
use crate::deploy::DeploymentError;
use crate::evaluate::EvaluateError;
use crate::generate::DecodeError;
use crate::generate::sampler::SampleError;
use crate::loaded::RunError;
use crate::picture::PictureError;
use crate::samples::ResumeError;
use crate::staging::StagingError;

/// Exit codes, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
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

/// Why a command ended without its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Usage, an input, a setting or a place that cannot be used.
    Input,
    /// A graph was run and it failed, or gave what cannot be.
    Run,
    /// This machine, or this build, lacks something.
    Absent,
    /// A file is not the one that was recorded.
    Integrity,
    /// The user asked to stop.
    Stopped,
}

impl Cause {
    /// Its word in records.
    pub fn word(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Run => "run",
            Self::Absent => "absent",
            Self::Integrity => "integrity",
            Self::Stopped => "stopped",
        }
    }

    /// The exit code. A graph that runs wrong is a failed check where a comparison was asked for, and elsewhere an input
    /// that cannot be used.
    pub fn exit(self, compares: bool) -> Exit {
        match self {
            Self::Run if compares => Exit::Failed,
            Self::Run | Self::Input => Exit::Usage,
            Self::Absent => Exit::Unavailable,
            Self::Integrity => Exit::Integrity,
            Self::Stopped => Exit::Interrupted,
        }
    }
}

/// An error with its line in the table.
pub trait Caused {
    /// What it means.
    fn cause(&self) -> Cause;
}

impl Caused for EngineError {
    fn cause(&self) -> Cause {
        match self.kind {
            EngineErrorKind::Unavailable => Cause::Absent,
            EngineErrorKind::Setting | EngineErrorKind::Graph | EngineErrorKind::Input => Cause::Input,
            EngineErrorKind::Damaged => Cause::Integrity,
            EngineErrorKind::Run | EngineErrorKind::Output => Cause::Run,
        }
    }
}

impl Caused for RunError {
    fn cause(&self) -> Cause {
        match self {
            Self::Bundle(e) => e.cause(),
            Self::Engine(e) => e.cause(),
            Self::Decode(e) => e.cause(),
            Self::Array(e) => e.cause(),
            Self::Metric(e) => e.cause(),
            Self::Integrity { .. } => Cause::Integrity,
            Self::Request(_) => Cause::Input,
            Self::Interrupted => Cause::Stopped,
        }
    }
}

impl Caused for CompareError {
    fn cause(&self) -> Cause {
        match self {
            Self::Run(e) => e.cause(),
            Self::Draw(e) => e.cause(),
            Self::Reference(_)
            | Self::Io { .. }
            | Self::Json { .. }
            | Self::Systems
            | Self::Precisions { .. }
            | Self::NoReference(_)
            | Self::Derive { .. } => Cause::Input,
        }
    }
}

impl Caused for DecodeError {
    fn cause(&self) -> Cause {
        match self {
            Self::Engine(e) => e.cause(),
            Self::Sample { source, .. } => source.cause(),
            Self::Entropy { .. } => Cause::Run,
            Self::NoNullClass => Cause::Input,
            Self::Interrupted => Cause::Stopped,
        }
    }
}

impl Caused for SampleError {
    fn cause(&self) -> Cause {
        if self.is_of_logits() { Cause::Run } else { Cause::Input }
    }
}

impl Caused for BenchError {
    fn cause(&self) -> Cause {
        match self {
            Self::Threads(_)
            | Self::NoReport(_)
            | Self::Version { .. }
            | Self::Machine { .. }
            | Self::NoCase(_)
            | Self::Several(_) => Cause::Input,
        }
    }
}

impl Caused for BundleError {
    fn cause(&self) -> Cause {
        match self {
            Self::Io { .. }
            | Self::NotABundle(_)
            | Self::Extractor(_)
            | Self::NotAnExtractor(_)
            | Self::Foreign { .. }
            | Self::Config { .. }
            | Self::Rule(_)
            | Self::OtherGraphs { .. }
            | Self::NoGraph { .. } => Cause::Input,
            Self::Manifest { source, .. } => source.cause(),
            Self::Integrity { .. } | Self::Linked { .. } | Self::Changed { .. } | Self::Precision { .. } => {
                Cause::Integrity
            }
            Self::Staging(e) => e.cause(),
            Self::Export(e) => e.cause(),
            Self::Target(e) => e.cause(),
            Self::Checkpoint(e) => e.cause(),
        }
    }
}

impl Caused for ManifestError {
    fn cause(&self) -> Cause {
        if self.is_tampering() { Cause::Integrity } else { Cause::Input }
    }
}

impl Caused for AttestError {
    fn cause(&self) -> Cause {
        match self {
            Self::Key { .. }
            | Self::Input { .. }
            | Self::Report { .. }
            | Self::TooLarge { .. }
            | Self::Statement(_) => Cause::Input,
            Self::Bundle(e) => e.cause(),
            Self::Rejected { .. } => Cause::Integrity,
        }
    }
}

impl Caused for CardError {
    fn cause(&self) -> Cause {
        match self {
            Self::Report { .. } | Self::Twice(_) | Self::Json(_) => Cause::Input,
            Self::OtherBundle { .. } | Self::Changed { .. } | Self::Differs(_) => Cause::Integrity,
        }
    }
}

impl Caused for OciError {
    fn cause(&self) -> Cause {
        match self {
            Self::Bundle(e) => e.cause(),
            Self::Staging(e) => e.cause(),
            Self::Layout { .. } | Self::Tag(_) | Self::NoModel { .. } => Cause::Input,
            Self::Blob { .. } => Cause::Integrity,
            Self::Stopped => Cause::Stopped,
        }
    }
}

impl Caused for TargetError {
    fn cause(&self) -> Cause {
        match self.kind {
            TargetErrorKind::Unavailable => Cause::Absent,
            TargetErrorKind::Refused => Cause::Input,
            TargetErrorKind::Stopped => Cause::Stopped,
        }
    }
}

impl Caused for StagingError {
    fn cause(&self) -> Cause {
        match self {
            Self::Exists(_)
            | Self::Foreign { .. }
            | Self::NotAFile(_)
            | Self::Io { .. }
            | Self::Busy(_)
            | Self::Conflict { .. } => Cause::Input,
        }
    }
}

impl Caused for ResumeError {
    fn cause(&self) -> Cause {
        match self {
            Self::Staging(e) => e.cause(),
            Self::Array(e) => e.cause(),
            Self::Picture(e) => e.cause(),
            Self::OtherRun { .. } => Cause::Input,
            Self::Damaged { .. } => Cause::Integrity,
        }
    }
}

impl Caused for ExportError {
    fn cause(&self) -> Cause {
        match self {
            Self::Weight { .. }
            | Self::Shape { .. }
            | Self::Overflow { .. }
            | Self::NotFinite { .. }
            | Self::QuantizedPrecision { .. }
            | Self::Spec { .. }
            | Self::Write { .. } => Cause::Input,
            Self::Interrupted => Cause::Stopped,
        }
    }
}

impl Caused for CheckpointError {
    fn cause(&self) -> Cause {
        match self.kind() {
            ErrorKind::Interrupted => Cause::Stopped,
            ErrorKind::Io(_)
            | ErrorKind::NotFound { .. }
            | ErrorKind::Layout(_)
            | ErrorKind::Synth(_)
            | ErrorKind::Option { .. }
            | ErrorKind::Truncated { .. }
            | ErrorKind::Malformed { .. }
            | ErrorKind::LegacyTorch
            | ErrorKind::UnsupportedFile(_)
            | ErrorKind::OtherFormat { .. }
            | ErrorKind::NoStateDict { .. }
            | ErrorKind::UnreadTensor(_)
            | ErrorKind::HostilePickle { .. }
            | ErrorKind::MalformedTensor(_)
            | ErrorKind::NoSuchTensor
            | ErrorKind::UnknownModel { .. }
            | ErrorKind::WrongComponent { .. }
            | ErrorKind::Names(_)
            | ErrorKind::Shape { .. }
            | ErrorKind::Rank { .. }
            | ErrorKind::NotFloat(_)
            | ErrorKind::NonFinite { .. }
            | ErrorKind::Sizes(_)
            | ErrorKind::Config { .. }
            | ErrorKind::UnsupportedConfig { .. }
            | ErrorKind::Disagreement { .. }
            | ErrorKind::PatchRule(_)
            | ErrorKind::MissingComponent { .. }
            | ErrorKind::Rule { .. }
            | ErrorKind::RuleCollision { .. } => Cause::Input,
        }
    }
}

impl Caused for ArrayError {
    fn cause(&self) -> Cause {
        match &self.kind {
            ArrayErrorKind::Io(_)
            | ArrayErrorKind::UnknownFormat
            | ArrayErrorKind::Missing { .. }
            | ArrayErrorKind::UnsupportedDtype { .. }
            | ArrayErrorKind::Dtype { .. }
            | ArrayErrorKind::Shape { .. }
            | ArrayErrorKind::Truncated { .. }
            | ArrayErrorKind::TooLarge(_)
            | ArrayErrorKind::Memory(_)
            | ArrayErrorKind::Malformed(_)
            | ArrayErrorKind::Content(_)
            | ArrayErrorKind::Write(_) => Cause::Input,
        }
    }
}

impl Caused for PictureError {
    fn cause(&self) -> Cause {
        match self {
            Self::Size { .. }
            | Self::Memory { .. }
            | Self::Grid(_)
            | Self::File { .. }
            | Self::Pixels { .. }
            | Self::Encode(_) => Cause::Input,
        }
    }
}

impl Caused for EvaluateError {
    fn cause(&self) -> Cause {
        match self {
            Self::Array(e) => e.cause(),
            Self::Picture(e) => e.cause(),
            Self::Run(e) => e.cause(),
            Self::Recorded(e) => e.cause(),
            // What is compared are the images: the network that looks at them is an input.
            Self::Extractor(e) => match e.cause() {
                Cause::Run => Cause::Input,
                other => other,
            },
            Self::Metric { source, .. } => source.cause(),
            Self::Staging(e) => e.cause(),
            Self::Io { .. } | Self::Json { .. } | Self::Input { .. } | Self::Lost => Cause::Input,
            Self::Interrupted => Cause::Stopped,
        }
    }
}

impl Caused for MetricError {
    fn cause(&self) -> Cause {
        match self {
            Self::Shape { .. }
            | Self::Width { .. }
            | Self::UnequalCounts { .. }
            | Self::TooFew { .. }
            | Self::NotFinite { .. }
            | Self::NotSymmetric { .. }
            | Self::NotPositive { .. }
            | Self::Parameter { .. }
            | Self::State { .. }
            | Self::NoConvergence(_)
            | Self::Threads { .. } => Cause::Input,
        }
    }
}

#[cfg(feature = "serve")]
impl Caused for crate::serve::http::ServiceError {
    fn cause(&self) -> Cause {
        match self {
            Self::Run(e) => e.cause(),
            Self::SelfTest { source, .. } => source.cause(),
            Self::Twice(_)
            | Self::Name(_)
            | Self::ClassNames { .. }
            | Self::Token { .. }
            | Self::Open(_)
            | Self::Listen { .. }
            | Self::Tls(_)
            | Self::Io(_) => Cause::Input,
        }
    }
}

#[cfg(feature = "serve")]
impl Caused for crate::serve::JobError {
    fn cause(&self) -> Cause {
        match self {
            Self::Refused(e) | Self::Run(e) | Self::Changed(e) => e.cause(),
            Self::Nothing
            | Self::TooMany { .. }
            | Self::Guidance { .. }
            | Self::Full { .. }
            | Self::QueueTime(_)
            | Self::DecodeTime(_) => Cause::Input,
            Self::Diverged | Self::Ended => Cause::Run,
        }
    }
}

impl Caused for DeploymentError {
    fn cause(&self) -> Cause {
        match self {
            Self::Folder(_) | Self::Image(_) => Cause::Input,
        }
    }
}

impl Caused for std::io::Error {
    fn cause(&self) -> Cause {
        Cause::Input
    }
}

#[cfg(test)]
mod tests;
