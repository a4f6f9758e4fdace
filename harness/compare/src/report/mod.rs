//! Reports for people and CI systems: one offline HTML page, and JUnit XML.
//!
//! A [`Page`] is what both are made from: checks on any number of engines, samples with their patches and
//! entropies, and the provenance of the bundle. The page is one file that loads nothing: styles are inside, pictures
//! are `data:` URIs, there is no script. Every text from outside is escaped. The same content gives the same bytes.

mod chart;
mod html;
mod junit;
mod parity;
mod pixels;
mod samples;
mod sections;

use dpar_engine_api::EngineInfo;
use dpar_export_bundle::{Bundle, Provenance};
use dpar_export_metrics::Verdict;

use crate::check::{Check, Status};
use crate::decision::Decision;
use crate::verify::RecordedFile;

pub use html::html;
pub use junit::junit;
pub use samples::{DrawOptions, MOST_IMAGES, Sample, Samples};

/// Rows of the table of flips; more are counted.
const MOST_FLIPS: usize = 200;

/// One engine's results.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Name in headings, such as `ort 1.31.1`.
    pub label: String,
    /// What ran; `None` where the engine did not.
    pub engine: Option<EngineInfo>,
    /// What it computed graphs of this precision with, where that is known.
    pub arithmetic: Option<String>,
    /// Why the engine did not run.
    pub not_run: Option<String>,
    /// Whether that is a failure: it was asked for.
    pub required: bool,
    /// Its checks.
    pub checks: Vec<Check>,
}

impl Column {
    /// The results of an engine that ran.
    pub fn new(engine: EngineInfo, checks: Vec<Check>) -> Self {
        let label = format!("{} {}", engine.engine, engine.version);
        Self { label, engine: Some(engine), arithmetic: None, not_run: None, required: true, checks }
    }

    /// An engine that was asked for and did not run, and why.
    pub fn absent(name: &str, why: impl Into<String>) -> Self {
        let (label, not_run) = (name.to_owned(), Some(why.into()));
        Self { label, engine: None, arithmetic: None, not_run, required: true, checks: Vec::new() }
    }

    /// Whether it should have run and did not.
    fn missing(&self) -> bool {
        self.required && self.not_run.is_some()
    }
}

/// What a report says.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The job, such as `verify`.
    pub job: String,
    /// The outcome.
    pub verdict: Verdict,
    /// Results by engine.
    pub columns: Vec<Column>,
    /// Images drawn for this report.
    pub samples: Option<Samples>,
    /// SHA-256 of the bundle's manifest.
    pub bundle: String,
    /// Where the bundle came from.
    pub provenance: Provenance,
    /// Files that were compared with.
    pub compared: Vec<RecordedFile>,
}

impl Page {
    /// A page about a bundle. The verdict is that of the checks; an engine that was asked for and did not run leaves them
    /// incomplete.
    pub fn new(job: &str, bundle: &Bundle, columns: Vec<Column>) -> Self {
        let checks = Status::verdict(columns.iter().flat_map(|c| &c.checks).map(|c| c.status));
        let missing = columns.iter().any(Column::missing).then_some(Verdict::Incomplete);
        Self {
            job: job.to_owned(),
            verdict: Verdict::all([checks].into_iter().chain(missing)),
            columns,
            samples: None,
            bundle: bundle.manifest_sha256().to_owned(),
            provenance: bundle.provenance(),
            compared: Vec::new(),
        }
    }

    /// Number of checks with a status.
    fn count(&self, status: Status) -> usize {
        self.columns.iter().flat_map(|c| &c.checks).filter(|c| c.status == status).count()
    }

    /// Every differing decision with its engine and check.
    fn flips(&self) -> Vec<(&Column, &Check, &Decision)> {
        let checks = self.columns.iter().flat_map(|column| column.checks.iter().map(move |c| (column, c)));
        checks.flat_map(|(column, check)| check.flips.iter().map(move |f| (column, check, f))).collect()
    }

    /// Names of the checks in the order of their first appearance.
    fn check_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for check in self.columns.iter().flat_map(|c| &c.checks) {
            if !names.contains(&check.name.as_str()) {
                names.push(&check.name);
            }
        }
        names
    }
}

#[cfg(test)]
mod tests;
