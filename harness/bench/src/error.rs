//! Why nothing was measured, or two reports cannot be compared.

use dpar_export_spec::Hinted;

/// Why nothing was measured, or two reports cannot be compared. What goes wrong while images are decoded is a
/// [`RunError`](dpar_export_decode::loaded::RunError).
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The threads that read memory could not be started.
    #[error("the read bandwidth cannot be measured: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// Another version of the format.
    #[error("the earlier report has schema version {found}, this program reads {read}")]
    Version {
        /// Of the report.
        found: u32,
        /// What this program reads.
        read: u32,
    },
    /// Times of different machines say nothing about the program.
    #[error("the earlier report is from another machine: {earlier}, here {now}")]
    Machine {
        /// Of the earlier report.
        earlier: String,
        /// Here.
        now: String,
    },
    /// Nothing to hold against each other.
    #[error("no case of the earlier report was measured again: it has {0}")]
    NoCase(String),
}

impl Hinted for BenchError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Threads(_) => None,
            Self::Version { .. } => Some("measure again with both versions of the program".to_owned()),
            Self::Machine { .. } => Some("run the earlier version of the program on this machine".to_owned()),
            Self::NoCase(_) => {
                Some("give the same bundle, --engines, --batch, --threads and --cfg-scale".to_owned())
            }
        }
    }
}
