//! Why nothing was measured, or two reports cannot be compared.

use dpar_export_spec::Hinted;

/// Why nothing was measured, or two reports cannot be compared. What goes wrong while images are decoded is a
/// [`RunError`](dpar_export_decode::loaded::RunError).
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The threads that read memory could not be started.
    #[error("the read bandwidth cannot be measured: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// No report.
    #[error("it is no report of a measurement: {0}")]
    NoReport(String),
    /// Another version of the format.
    #[error("the report has schema version {found}, this program reads {read}")]
    Version {
        /// Of the report.
        found: u64,
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
    /// Which one is meant is not known.
    #[error("several cases are `{0}`, of bundles of which not each was measured once before and once now")]
    Several(String),
}

impl Hinted for BenchError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Threads(_) => None,
            Self::NoReport(_) => Some("give the file that -o wrote".to_owned()),
            Self::Version { .. } => Some("measure again with both versions of the program".to_owned()),
            Self::Machine { .. } => Some("run the earlier version of the program on this machine".to_owned()),
            Self::NoCase(_) => {
                let hint =
                    "give the same bundle, --engines, --device, --batch, --threads, --cfg-scale and --seed";
                Some(hint.to_owned())
            }
            Self::Several(_) => Some("compare one bundle at a time".to_owned()),
        }
    }
}
