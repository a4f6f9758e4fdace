//! Cases of one machine.

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::measure::Measurement;

/// Of the report's JSON.
pub const SCHEMA_VERSION: u32 = 1;

/// What the cases ran on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name, where the system says it.
    pub cpu: Option<String>,
    /// Processors that this process may use.
    pub cores: usize,
    /// Threads with which the bandwidth was measured.
    pub threads: usize,
    /// Bytes per second that they read from memory: [`read_bandwidth`](crate::read_bandwidth).
    pub read_bytes_per_second: f64,
}

impl Machine {
    /// This machine, read with so many threads.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn here(threads: usize) -> Result<Self, BenchError> {
        let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
        Ok(Self {
            cpu: cpu.map(|(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            read_bytes_per_second: crate::read_bandwidth(threads)?,
        })
    }
}

/// Everything that was measured in one go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of this tool.
    pub tool: String,
    /// Where.
    pub machine: Machine,
    /// The cases, in the order in which they were measured.
    pub cases: Vec<Measurement>,
}

impl BenchReport {
    /// Of these cases.
    pub fn new(machine: Machine, cases: Vec<Measurement>) -> Self {
        Self { schema_version: SCHEMA_VERSION, tool: env!("CARGO_PKG_VERSION").to_owned(), machine, cases }
    }

    /// Part of the machine's read bandwidth that a case's weights take, in percent.
    pub fn bandwidth_percent(&self, case: &Measurement) -> f64 {
        100.0 * case.weight_bytes_per_second / self.machine.read_bytes_per_second
    }
}
