//! `verify`: the comparison as a table, and the exit code a CI gates on.

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Arg, Args};
use dpar_export_metrics::Verdict;
use dpar_export_spec::Precision;
use serde_json::json;

use super::args::{BundleArgs, ENGINE, EngineArgs, OnEngine, RULE, RuleArgs};
use super::attest::AttestedArgs;
use super::cause::Cause;
use super::failure::{Exit, Failure};
use super::github::{self, Finding};
use super::printer::{Printer, Text, table};
use super::report::{ReportArgs, ReportFiles};
use crate::attest::Attested;
use crate::check::SCHEMA_VERSION;
use crate::loaded::computed;
use crate::report::{Column, Page};
use crate::verify::{
    Check, CheckId, Decision, GOLDEN_JSON, RecordedFile, Status, VerifyReport, array_file, guidance_of,
    own_folder, probe, verify_golden, verify_streams,
};

#[derive(Debug, Args)]
#[command(
    group(clap::ArgGroup::new("what").required(true).multiple(true).args(["reference", "streams", "attestation"])),
    group(clap::ArgGroup::new("compared").multiple(true).args(["reference", "streams"])),
    mut_args(of_a_comparison),
    mut_arg("bundle", |a| a.help("Bundle folder; with --attestation also a file that was attested"))
)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Folder with golden.safetensors or golden.npz, and golden.json
    #[arg(long, value_name = "DIR")]
    reference: Option<Utf8PathBuf>,
    /// Sampled reference streams, with reference.json beside the file
    #[arg(long, value_name = "FILE")]
    streams: Option<Utf8PathBuf>,
    /// Leave out the probes that need no reference
    #[arg(long)]
    no_probes: bool,
    /// Compare only the first N streams
    #[arg(long, value_name = "N", requires = "streams", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    attested: AttestedArgs,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// An attestation alone runs nothing.
fn of_a_comparison(arg: Arg) -> Arg {
    let id = arg.get_id().as_str();
    match id == "no_probes" || ENGINE.iter().chain(&RULE).any(|name| *name == id) {
        true => arg.requires("compared"),
        false => arg,
    }
}

/// What to check of a bundle.
pub(super) struct Plan {
    bundle: Utf8PathBuf,
    attested: AttestedArgs,
    /// `None`: the attestation alone.
    comparison: Option<RecordedComparison>,
}

/// A bundle against recorded outputs, on an engine.
struct RecordedComparison {
    reference: Option<Utf8PathBuf>,
    streams: Option<Utf8PathBuf>,
    limit: Option<usize>,
    probes: bool,
    reports: ReportArgs,
    files: ReportFiles,
    on: OnEngine,
}

impl VerifyArgs {
    /// Takes the names of the reports and chooses the engine, where something is compared.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let compares = self.reference.is_some() || self.streams.is_some();
        if self.reports.any() && !compares {
            let message = "--report and --junit report a comparison";
            return Err(Failure::usage(message, Some("add --reference DIR or --streams FILE")));
        }
        let bundle = self.bundle.bundle;
        let comparison = match compares {
            false => None,
            true => Some(RecordedComparison {
                files: self.reports.take()?,
                on: self.engine.on(&bundle)?.with_rule(self.rule),
                reference: self.reference,
                streams: self.streams,
                limit: self.limit.map(|n| n as usize),
                probes: !self.no_probes,
                reports: self.reports,
            }),
        };
        Ok(Plan { bundle, attested: self.attested, comparison })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let attested = plan.attested.check(&plan.bundle)?;
    let Some(comparison) = plan.comparison else {
        // Without a comparison the parser asks for an attestation.
        let Some(attested) = &attested else { return Err(Failure::usage("nothing to verify with", None)) };
        let text = || attested_text(attested);
        let value = json!({
            "schema_version": SCHEMA_VERSION, "verdict": Status::Pass, "attestation": attested,
        });
        printer.result(text, &value)?;
        return Ok(Exit::Pass);
    };
    let RecordedComparison { reference, streams, limit, probes, reports, files, on } = comparison;
    let batch = on.batch;
    on.run(|runtime| {
        if let Some(attested) = &attested {
            plan.attested.check_opened(attested, runtime.bundle())?;
        }
        let mut checks: Vec<Check> = attested.as_ref().map(attested_check).into_iter().collect();
        let precision = runtime.bundle().manifest().precisions().one();
        let references = references(reference.as_deref(), streams.as_deref(), precision)?;
        let bar = printer.progress("verifying", "units");
        if let Some(folder) = &reference {
            checks
                .extend(verify_golden(runtime, folder, batch, &mut |done, total| bar.advance(done, total))?);
        }
        if probes {
            checks.extend(probe(runtime, batch, &mut |done, total| bar.advance(done, total))?);
        }
        if let Some(file) = &streams {
            let progress = &mut |done, total| bar.advance(done, total);
            checks.extend(verify_streams(runtime, file, limit, batch, progress)?);
        }
        drop(bar);
        let mut samples = None;
        if reports.any() {
            let guidance = reference.as_deref().map(guidance_of).transpose()?.flatten();
            samples = match reports.samples(runtime, guidance.unwrap_or(1.0), batch, printer) {
                Ok(samples) => samples,
                // Outputs that cannot be: the report says so, without them.
                Err(e) if e.cause == Cause::Run => {
                    checks.push(Check::failed(CheckId::SampleImages, e.error.to_string()));
                    None
                }
                Err(e) => return Err(e),
            };
        }
        // What failed may be what somebody put in a file's place.
        runtime.bundle().unchanged()?;
        let report = VerifyReport::new(runtime, checks).compared_with(references);
        if reports.any() {
            let mut column = Column::new(report.engine.clone(), report.checks.clone());
            column.arithmetic = Some(computed(&report.arithmetic, &report.caches));
            let mut page = Page::new("verify", runtime.bundle(), vec![column]);
            page.samples = samples;
            page.compared.clone_from(&report.references);
            files.write(&page)?;
        }
        printer.result(|| render(&report), &report)?;
        let failed = report.checks.iter().filter(|c| c.status == Status::Fail);
        let findings: Vec<Finding> = failed.map(Finding::from).collect();
        github::say("verify", report.verdict, &findings, || render(&report), printer);
        Ok(report.verdict.into())
    })
}

/// The files that are compared with, by name and digest; those in the sub-folder of the bundle's precision with its name.
fn references(
    reference: Option<&Utf8Path>,
    streams: Option<&Utf8Path>,
    precision: Option<Precision>,
) -> Result<Vec<RecordedFile>, Failure> {
    let mut files = Vec::new();
    let mut paths = Vec::new();
    if let Some(folder) = reference {
        paths.push(array_file(folder)?);
        paths.push(folder.join(GOLDEN_JSON));
        if let Some((own, precision)) = own_folder(folder, precision) {
            files = super::report::compared(&[array_file(&own)?, own.join(GOLDEN_JSON)])?;
            for file in &mut files {
                file.name = format!("{}/{}", precision.numbers(), file.name);
            }
        }
    }
    if let Some(file) = streams {
        paths.push(file.to_owned());
        paths.push(file.with_file_name("reference.json"));
    }
    let mut all = super::report::compared(&paths)?;
    all.append(&mut files);
    Ok(all)
}

fn attested_text(attested: &Attested) -> String {
    let noun = if attested.subjects == 1 { "file is" } else { "files are" };
    format!("pass: {} {noun} what the key {} signed", attested.subjects, attested.key_id)
}

fn attested_check(attested: &Attested) -> Check {
    let detail = format!("{} files signed by {}", attested.subjects, attested.key_id);
    Check::new(CheckId::Attestation, Status::Pass, detail)
}

/// A verdict in words.
pub(super) fn word(verdict: Verdict) -> String {
    if verdict == Verdict::Fail { "FAIL".to_owned() } else { verdict.to_string() }
}

fn render(report: &VerifyReport) -> Text {
    let number = |v: Option<f64>| v.map(|v| format!("{v:.2e}")).unwrap_or_default();
    let rows: Vec<Vec<String>> = report
        .checks
        .iter()
        .map(|c| {
            let status = c.status.word().to_owned();
            vec![c.name.clone(), status, number(c.max_abs), number(c.limit), c.detail.clone()]
        })
        .collect();
    let mut text = table(&["check", "result", "max abs", "limit", "detail"], &rows);
    for check in report.checks.iter().filter(|c| !c.flips.is_empty()) {
        text.gap();
        text.line(format_args!("{}: differing decisions (of a stream, the first)", check.name));
        let rows: Vec<Vec<String>> = check.flips.iter().map(flip_row).collect();
        text += table(&["image", "slot", "decision", "reference", "found", "margin", "verdict"], &rows);
    }
    let e = &report.engine;
    text.gap();
    text.line(format_args!(
        "{}: {} {} on {} ({}); {} graphs, computed in {}",
        word(report.verdict),
        e.engine,
        e.version,
        e.device,
        e.provider,
        report.precision,
        computed(&report.arithmetic, &report.caches)
    ));
    text
}

/// A decision that differs as a line of a table: image, slot, decision, both choices, margin, what it is.
pub(super) fn flip_row(flip: &Decision) -> Vec<String> {
    let [reference, found] = flip.choices();
    vec![
        flip.image.to_string(),
        flip.slot.to_string(),
        flip.kind.to_string(),
        reference,
        found,
        flip.measured(),
        flip.word().to_owned(),
    ]
}
