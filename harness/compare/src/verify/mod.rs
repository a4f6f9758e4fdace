//! Parity with reference outputs: tensors within named tolerances, decisions equal, every flip judged by its
//! margin.

mod golden;
mod probes;
mod record;
mod reference;
mod streams;

use dpar_engine_api::{Arithmetic, EngineInfo};
use dpar_export_bundle::ToolEntry;
use dpar_export_decode::runtime::Runtime;
use dpar_export_spec::Precision;
use serde::Serialize;

pub use crate::check::{Check, Decision, Flip, Status};
pub use crate::tolerance;
pub use golden::{own_folder, verify_golden};
pub use probes::{PREFIX_BF16, PREFIX_F16, PREFIX_F32, probe};
pub use record::{Golden, Provenance, Recording, record};
pub use reference::{ARRAYS, ArithmeticWord, GOLDEN_JSON, RecordedFile, array_file, guidance_of};
pub(crate) use reference::{not_compared, open};
pub use streams::{ReferenceStreams, verify_streams};

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// `pass` or `fail`.
    pub verdict: Status,
    /// What ran.
    pub engine: EngineInfo,
    /// Precision of the bundle's graphs.
    pub precision: Precision,
    /// What the engine computed them with.
    pub arithmetic: Arithmetic,
    /// SHA-256 of the bundle's manifest.
    pub bundle: String,
    /// The program that compared.
    pub tool: ToolEntry,
    /// Files that were compared with.
    pub references: Vec<RecordedFile>,
    /// Every check.
    pub checks: Vec<Check>,
}

impl Report {
    /// The verdict over `checks`: a failure fails, and so does a report in which nothing ran.
    pub fn new(runtime: &Runtime<'_>, checks: Vec<Check>) -> Self {
        let bundle = runtime.bundle().manifest_sha256().to_owned();
        let precision = runtime.bundle().manifest().precision;
        let (engine, arithmetic) = (runtime.info().clone(), runtime.arithmetic().clone());
        let failed = checks.iter().any(|c| c.status == Status::Fail);
        let ran = checks.iter().any(|c| c.status == Status::Pass);
        let verdict = if failed || !ran { Status::Fail } else { Status::Pass };
        Self {
            verdict,
            engine,
            precision,
            arithmetic,
            bundle,
            tool: ToolEntry::this(),
            references: Vec::new(),
            checks,
        }
    }

    /// Names the files that were compared with.
    #[must_use]
    pub fn compared_with(mut self, references: Vec<RecordedFile>) -> Self {
        self.references = references;
        self
    }
}
