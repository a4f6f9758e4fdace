//! Parity with reference outputs: tensors within named tolerances, decisions equal, every flip judged by its
//! margin.

mod drawing;
mod given;
mod golden;
mod logits;
mod probes;
mod record;
mod recorded_streams;
mod reference;
mod streams;

use dpar_engine_api::{Arithmetic, EngineInfo};
use dpar_export_bundle::ToolEntry;
use dpar_export_decode::loaded::{Forms, LoadedBundle};
use dpar_export_metrics::Verdict;
use dpar_export_spec::{PatchRule, Precisions};
use serde::Serialize;

use crate::check::SCHEMA_VERSION;
pub use crate::check::{Check, CheckId, Status};
pub use crate::decision::{Decision, DecisionKind};
pub use crate::names::{ARRAYS, GOLDEN_JSON};
pub use crate::tolerance;
pub use drawing::Drawing;
pub use given::given_streams;
pub use golden::{own_folder, verify_golden};
pub use probes::probe;
pub use record::{Golden, Recording, ReferenceProvenance, record};
pub use recorded_streams::ReferenceStreams;
pub use reference::{ArithmeticWord, RecordedFile, array_file, guidance_of};
pub(crate) use reference::{conclusion, logits_shape, not_compared, open, own_columns};
pub use streams::verify_streams;

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `incomplete` where nothing was compared.
    pub verdict: Verdict,
    /// What ran.
    pub engine: EngineInfo,
    /// Precision of the bundle's graphs, component by component.
    #[serde(flatten)]
    pub precision: Precisions,
    /// What the engine computed them with.
    pub arithmetic: Arithmetic,
    /// How the caches of its graphs reached their steps.
    pub caches: Forms,
    /// SHA-256 of the bundle's manifest.
    pub bundle: String,
    /// The patch rule that ran: the manifest's, but for numbers that it was told.
    pub patch_rule: PatchRule,
    /// The program that compared.
    pub tool: ToolEntry,
    /// Files that were compared with.
    pub references: Vec<RecordedFile>,
    /// Every check.
    pub checks: Vec<Check>,
}

impl VerifyReport {
    /// The verdict is that of the checks.
    pub fn new(runtime: &LoadedBundle<'_>, checks: Vec<Check>) -> Self {
        let bundle = runtime.bundle().manifest_sha256().to_owned();
        let precision = runtime.bundle().manifest().precisions();
        let (engine, arithmetic) = (runtime.info().clone(), runtime.arithmetic().clone());
        Self {
            schema_version: SCHEMA_VERSION,
            verdict: Status::verdict(checks.iter().map(|c| c.status)),
            engine,
            precision,
            arithmetic,
            caches: runtime.caches(),
            bundle,
            patch_rule: runtime.bundle().patch_rule().clone(),
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
