//! What an engine's crate says of it: one constant, `ENGINE`, that the table of engines lists.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::device::Device;
use crate::library::SearchedPlace;
use crate::{Engine, EngineError, EngineOption, EngineOptions};

/// An engine, as its crate describes it.
#[derive(Debug, Clone, Copy)]
pub struct EngineDescriptor {
    /// Name as given to `--engine`, and of the Cargo feature that compiles it.
    pub name: &'static str,
    /// The options that it has.
    pub options: &'static [EngineOption],
    /// Where it runs.
    pub devices: Devices,
    /// Whether options that it has go together.
    pub check: fn(&EngineOptions) -> Result<(), EngineError>,
    /// Makes it. Nothing is loaded yet; options that it does not have, or that do not go together, were refused.
    pub open: fn(&EngineOptions) -> Box<dyn Engine>,
    /// Looks for what it needs beyond this program, whether it works or not.
    pub survey: fn(&EngineOptions) -> Survey,
    /// What a program does for it once, first, while it has one thread.
    pub before_threads: fn(),
    /// For an engine that runs what was built from graphs, and no graph.
    pub files: Option<EngineFiles>,
}

impl EngineDescriptor {
    /// An engine that is compiled in, runs on the processor and can be told a number of threads.
    pub const fn new(name: &'static str, open: fn(&EngineOptions) -> Box<dyn Engine>) -> Self {
        Self {
            name,
            options: &[EngineOption::Threads],
            devices: Devices { runs_on: |device| matches!(device, Device::Cpu), words: "cpu" },
            check: |_| Ok(()),
            open,
            survey: |_| Survey::default(),
            before_threads: || {},
            files: None,
        }
    }
}

/// Where an engine runs.
#[derive(Debug, Clone, Copy)]
pub struct Devices {
    /// Whether `--device` may be this one.
    pub runs_on: fn(Device) -> bool,
    /// What can be said, for help and hints.
    pub words: &'static str,
}

/// What an engine does with files that were built from graphs, beside running them.
#[derive(Debug, Clone, Copy)]
pub struct EngineFiles {
    /// Holds a file against what [`EngineDescriptor::survey`] found, without loading it.
    pub judge: fn(&BuiltFile<'_>, &Survey) -> Result<(), EngineError>,
    /// Its layers, in JSON where the library gives JSON. May need a device.
    pub layers: fn(&Utf8Path, &EngineOptions) -> Result<String, EngineError>,
}

/// A file that was built from a graph, and what is recorded of it.
#[derive(Debug, Clone, Copy)]
pub struct BuiltFile<'a> {
    /// The graph's name.
    pub graph: &'a str,
    /// The file.
    pub path: &'a Utf8Path,
    /// What built it.
    pub builder: &'a str,
    /// Its version.
    pub version: &'a str,
    /// Compute capabilities that it was built for; empty = all that the builder knows.
    pub compute_capabilities: &'a [String],
}

/// What was found on this machine.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Libraries that were found and fit; the one that runs graphs is the first, unless it is [`missing`](Self::missing).
    pub libraries: Vec<LibraryFound>,
    /// Why the library that runs graphs is not there, if it is not.
    pub missing: Option<EngineError>,
    /// Where it was looked for, the place that was taken last.
    pub searched: Vec<SearchedPlace>,
    /// Execution providers that it was built with.
    pub providers: Vec<String>,
    /// The driver, for an engine that needs one.
    pub driver: Option<Driver>,
}

/// A library that was found and fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LibraryFound {
    /// Where it is.
    pub path: Utf8PathBuf,
    /// What it says it is.
    pub version: String,
}

/// A driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// The newest CUDA version that it supports, e.g. `12.8`.
    pub cuda: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
    /// Its devices.
    pub gpus: Vec<Gpu>,
}

/// A CUDA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Index, as in `cuda:0`.
    pub ordinal: usize,
    /// Product name.
    pub name: String,
    /// Compute capability, e.g. `8.9`.
    pub compute_capability: String,
    /// Bytes of its memory.
    pub memory: u64,
}
