//! How many threads compute.

use clap::Args;

/// Threads of an engine, or of the metrics.
#[derive(Debug, Clone, Copy, Args)]
pub struct ThreadsArgs {
    /// Threads of one run [default: the engine's choice]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Engine")]
    threads: Option<u16>,
}

impl ThreadsArgs {
    /// The number that was asked for.
    pub fn given(self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// The number that was asked for, or as many as the machine has.
    pub fn or_all(self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.given().unwrap_or_else(all)
    }
}
