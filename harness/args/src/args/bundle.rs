//! The bundle that a command reads.

use camino::Utf8PathBuf;
use clap::Args;

/// What a command runs, or looks at.
#[derive(Debug, Clone, Args)]
pub struct BundleArgs {
    /// Bundle folder
    pub bundle: Utf8PathBuf,
}
