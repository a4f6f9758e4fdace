//! `verify`: the comparison as a table, and the exit code a CI gates on.

use dpar_export_metrics::Verdict;
use dpar_export_spec::Precision;
use serde_json::json;

use super::args::VerifyArgs;
use super::cause::Cause;
use super::failure::{Exit, Failure};
use super::printer::{Printer, Text, table};
use super::with_runtime;
use crate::attest::Attested;
use crate::report::{Column, Page};
use crate::verify::{
    Check, CheckId, Decision, GOLDEN_JSON, RecordedFile, Report, Status, array_file, guidance_of, own_folder,
    probe, verify_golden, verify_streams,
};

pub(super) fn run(args: &VerifyArgs, printer: Printer) -> Result<Exit, Failure> {
    let compares = args.reference.is_some() || args.streams.is_some();
    if args.reports.any() && !compares {
        let message = "--report and --junit report a comparison";
        return Err(Failure::usage(message, Some("add --reference DIR or --streams FILE")));
    }
    let files = args.reports.take()?;
    let attested = args.attested.check(&args.bundle)?;
    if let (Some(attested), false) = (&attested, compares) {
        let text = || attested_text(attested);
        printer.result(text, &json!({ "verdict": Status::Pass, "attestation": attested }))?;
        return Ok(Exit::Pass);
    }
    with_runtime(&args.bundle, &args.engine, |runtime| {
        if let Some(attested) = &attested {
            args.attested.check_opened(attested, runtime.bundle())?;
        }
        let batch = usize::from(args.engine.batch);
        let mut checks: Vec<Check> = attested.as_ref().map(attested_check).into_iter().collect();
        let references = references(args, runtime.bundle().manifest().precision)?;
        let bar = printer.progress("verifying", "units");
        if let Some(folder) = &args.reference {
            checks
                .extend(verify_golden(runtime, folder, batch, &mut |done, total| bar.advance(done, total))?);
        }
        if !args.no_probes {
            checks.extend(probe(runtime, batch, &mut |done, total| bar.advance(done, total))?);
        }
        if let Some(file) = &args.streams {
            let progress = &mut |done, total| bar.advance(done, total);
            checks.extend(verify_streams(runtime, file, args.limit, batch, progress)?);
        }
        drop(bar);
        let mut samples = None;
        if args.reports.any() {
            let guidance = args.reference.as_deref().map(guidance_of).transpose()?.flatten();
            samples = match args.reports.samples(runtime, guidance.unwrap_or(1.0), batch, printer) {
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
        let report = Report::new(runtime, checks).compared_with(references);
        if args.reports.any() {
            let column = Column::new(report.engine.clone(), report.checks.clone());
            let mut page = Page::new("verify", runtime.bundle(), vec![column]);
            page.samples = samples;
            page.compared.clone_from(&report.references);
            files.write(&page)?;
        }
        printer.result(|| render(&report), &report)?;
        Ok(report.verdict.into())
    })
}

/// The files that are compared with, by name and digest; those in the sub-folder of the bundle's precision with its name.
fn references(args: &VerifyArgs, precision: Precision) -> Result<Vec<RecordedFile>, Failure> {
    let mut files = Vec::new();
    let mut paths = Vec::new();
    if let Some(folder) = &args.reference {
        paths.push(array_file(folder)?);
        paths.push(folder.join(GOLDEN_JSON));
        if let Some(own) = own_folder(folder, precision) {
            files = super::report::compared(&[array_file(&own)?, own.join(GOLDEN_JSON)])?;
            for file in &mut files {
                file.name = format!("{}/{}", precision.numbers(), file.name);
            }
        }
    }
    if let Some(file) = &args.streams {
        paths.push(file.clone());
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

fn render(report: &Report) -> Text {
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
        report.arithmetic.text
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
