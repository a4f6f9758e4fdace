//! Metrics of image sets: what is measured, by whose definition, and how sure it is.
//!
//! [`images`] reads sets of images, [`store`] keeps their features so that interrupted work goes on, [`activations`]
//! reads features that others computed; [`measure`] turns them into numbers, which [`report`] names, [`protocol`] binds
//! to what they depend on, and [`compare`] judges.

pub mod activations;
pub mod compare;
pub mod images;
pub mod measure;
pub mod protocol;
pub mod report;
pub mod store;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_decode::runtime::RunError;
use dpar_export_files::arrays::ArrayError;
use dpar_export_metrics::MetricError;

/// Why metrics could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// An array file.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A bundle or an engine.
    #[error(transparent)]
    Run(#[from] RunError),
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
    /// Inputs that do not fit together, with the next step.
    #[error("{message}")]
    Input {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl EvaluateError {
    /// Inputs that do not fit together.
    pub fn input(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Input { message: message.into(), hint: hint.map(str::to_owned) }
    }

    /// The file system refused this file or folder.
    pub fn io(path: &Utf8Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// This metric, or a metric of this file, refused its input.
    pub fn metric(what: impl Into<String>) -> impl FnOnce(MetricError) -> Self {
        let what = what.into();
        move |source| Self::Metric { what, source }
    }
}

#[cfg(test)]
fn test_folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    (dir, path)
}
