//! How the tool talks.

use clap::{Args, ValueEnum};

/// The form of what is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines and progress bars, for people
    Text,
    /// One JSON object a line: log, progress, error
    Json,
}

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
    /// Form of what is said on stderr; what is wrong with the command line itself is always text
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value = "text",
        global = true,
        help_heading = "Output"
    )]
    pub log_format: LogFormat,
}
