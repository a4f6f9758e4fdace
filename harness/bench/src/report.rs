//! Cases of one machine.

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::measure::{Measurement, Round};

/// Of the report's JSON.
pub const SCHEMA_VERSION: u32 = 2;

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
    /// Places that each thread read from in turns then; reports of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_streams: Option<usize>,
}

impl Machine {
    /// This machine, read with so many threads.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn here(threads: usize) -> Result<Self, BenchError> {
        let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let read = crate::read_bandwidth(threads)?;
        Ok(Self {
            cpu: name(&info),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            read_bytes_per_second: read.bytes_per_second,
            read_streams: Some(read.streams),
        })
    }
}

/// The processor's name in Linux's `/proc/cpuinfo`; on Arm the numbers that stand for it.
fn name(info: &str) -> Option<String> {
    let value = |key: &str| {
        let (_, value) = info.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.trim() == key))?;
        Some(value.trim()).filter(|v| !v.is_empty())
    };
    let numbers = || Some(format!("implementer {}, part {}", value("CPU implementer")?, value("CPU part")?));
    value("model name").map(str::to_owned).or_else(numbers)
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

    /// Reads a report, and checks that something was measured.
    ///
    /// # Errors
    /// [`BenchError::Version`], [`BenchError::NoReport`].
    pub fn parse(text: &str) -> Result<Self, BenchError> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u64,
        }
        let no_report = |e: serde_json::Error| BenchError::NoReport(e.to_string());
        let Version { schema_version: found } = serde_json::from_str(text).map_err(no_report)?;
        if found != u64::from(SCHEMA_VERSION) {
            return Err(BenchError::Version { found, read: SCHEMA_VERSION });
        }
        let report: Self = serde_json::from_str(text).map_err(no_report)?;
        for case in &report.cases {
            let wrong = |what: &str| Err(BenchError::NoReport(format!("`{}` has {what}", case.name())));
            if case.rounds.is_empty() {
                return wrong("no rounds");
            }
            let time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
            let round =
                |r: &Round| r.seconds > 0.0 && time(r.seconds) && r.graphs.values().all(|g| time(g.seconds));
            if !case.rounds.iter().all(round) {
                return wrong("a round whose time is none");
            }
        }
        Ok(report)
    }

    /// Part of the machine's read bandwidth that a case's weights take, in percent.
    pub fn bandwidth_percent(&self, case: &Measurement) -> f64 {
        100.0 * case.weight_bytes_per_second / self.machine.read_bytes_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_have_a_name_or_numbers() {
        let x86 = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel\t\t: 1\n";
        assert_eq!(name(x86).as_deref(), Some("Some CPU @ 2 GHz"));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n";
        assert_eq!(name(arm).as_deref(), Some("implementer 0x41, part 0xd0c"));
        assert_eq!((name(""), name("CPU part\t: 1\n")), (None, None));
    }
}
