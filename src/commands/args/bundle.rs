//! The bundle that a command reads.

use camino::Utf8PathBuf;
use clap::Args;

/// What a command runs, or looks at.
#[derive(Debug, Clone, Args)]
pub(crate) struct BundleArgs {
    /// Bundle folder
    pub(crate) bundle: Utf8PathBuf,
}
