//! How the tool talks.

use clap::Args;

/// How the tool talks.
#[derive(Debug, Clone, Args)]
pub struct TalkArgs {
    /// Print one JSON document on stdout
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// More talk on stderr (-vv for traces); RUST_LOG overrides
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Output")]
    pub verbose: u8,
    /// No progress bars and notes on stderr
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
}
