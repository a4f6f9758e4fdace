//! Why features could not be taken, or numbers not be computed.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_compare::CompareError;
use dpar_export_decode::loaded::RunError;
use dpar_export_files::arrays::ArrayError;
use dpar_export_files::picture::PictureError;
use dpar_export_files::staging::StagingError;
use dpar_export_metrics::MetricError;
use dpar_export_spec::Hinted;

/// What an input that cannot be used is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// A set of images.
    Images,
    /// An array file of activations or statistics.
    Activations,
    /// The feature network: it does not fit the reference, the table or what is asked of it.
    Network,
    /// An output folder, or a store of features: this evaluation's, another's, a shard's.
    Store,
    /// A report of another evaluation.
    Report,
    /// A number or name that was asked for.
    Request,
    /// A recorded run.
    Recording,
    /// The published table.
    Table,
}

/// Why metrics could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// An array file.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// An image.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A bundle that draws images, or its engine.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Recorded streams.
    #[error(transparent)]
    Recorded(#[from] CompareError),
    /// The feature network, or the engine that it runs on. A network that runs wrong is an input that cannot be used,
    /// whatever its features were to be compared with.
    #[error("{0}")]
    Extractor(#[source] RunError),
    /// A metric refused its input.
    #[error("{what}: {source}")]
    Metric {
        /// Which file or metric.
        what: String,
        /// The reason.
        source: MetricError,
    },
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: Utf8PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The output folder.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A report that cannot be written as JSON.
    #[error("{what}: {source}")]
    Json {
        /// The report.
        what: &'static str,
        /// The reason.
        source: serde_json::Error,
    },
    /// Inputs that cannot be used, or do not fit together, with the next step.
    #[error("{message}")]
    Input {
        /// What they are of.
        kind: InputKind,
        /// Which one, and what is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The work ended without a result: its thread is gone.
    #[error("the computation ended without a result")]
    Lost,
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Hinted for EvaluateError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Array(e) => e.hint(),
            Self::Picture(e) => e.hint(),
            Self::Run(e) | Self::Extractor(e) => e.hint(),
            Self::Recorded(e) => e.hint(),
            Self::Staging(e) => e.hint(),
            Self::Input { hint, .. } => hint.clone(),
            Self::Metric { .. } | Self::Io { .. } | Self::Json { .. } | Self::Lost | Self::Interrupted => {
                None
            }
        }
    }
}

impl EvaluateError {
    /// An input that cannot be used.
    pub(crate) fn input(kind: InputKind, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Input { kind, message: message.into(), hint: hint.map(str::to_owned) }
    }

    /// The file system refused this file or folder.
    pub(crate) fn io(path: &Utf8Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// This metric, or a metric of this file, refused its input.
    pub fn metric(what: impl Into<String>) -> impl FnOnce(MetricError) -> Self {
        let what = what.into();
        move |source| Self::Metric { what, source }
    }

    /// This report cannot be written.
    pub(crate) fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what, source }
    }
}
