//! `verify`: the comparison as a table, and the exit code a CI gates on.

use std::fmt::Write;

use super::args::VerifyArgs;
use super::failure::{Exit, Failure};
use super::printer::{Printer, table};
use super::with_runtime;
use crate::verify::{Flip, Report, Status, probe, verify_golden, verify_streams};

pub(super) fn run(args: &VerifyArgs, printer: Printer) -> Result<Exit, Failure> {
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let batch = usize::from(args.engine.batch);
        let mut checks = Vec::new();
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
        let bundle = runtime.bundle().manifest_sha256().to_owned();
        let report = Report::new(runtime.info().clone(), bundle, checks);
        printer.result(|| render(&report), &report)?;
        Ok(if report.verdict == Status::Pass { Exit::Pass } else { Exit::Failed })
    })
}

pub(super) fn word(status: Status) -> &'static str {
    match status {
        Status::Pass => "pass",
        Status::Fail => "FAIL",
        Status::NotRun => "not run",
    }
}

fn render(report: &Report) -> String {
    let number = |v: Option<f64>| v.map(|v| format!("{v:.2e}")).unwrap_or_default();
    let rows: Vec<Vec<String>> = report
        .checks
        .iter()
        .map(|c| {
            let status = word(c.status).to_owned();
            vec![c.name.clone(), status, number(c.max_abs), number(c.limit), c.detail.clone()]
        })
        .collect();
    let mut text = table(&["check", "result", "max abs", "limit", "detail"], &rows);
    for check in report.checks.iter().filter(|c| !c.flips.is_empty()) {
        let _ = writeln!(text, "\n{}: differing decisions (of a stream, the first)", check.name);
        let rows: Vec<Vec<String>> = check.flips.iter().map(flip_row).collect();
        text += &table(&["image", "slot", "decision", "reference", "found", "margin", "verdict"], &rows);
    }
    let e = &report.engine;
    let _ = writeln!(
        text,
        "\n{}: {} {} on {} ({})",
        word(report.verdict),
        e.engine,
        e.version,
        e.device,
        e.provider
    );
    text
}

fn flip_row(flip: &Flip) -> Vec<String> {
    let margin = flip.margin.map(|m| format!("{m:.2e} (limit {:.0e})", flip.limit));
    vec![
        flip.image.to_string(),
        flip.slot.to_string(),
        format!("{:?}", flip.decision).to_lowercase(),
        flip.reference.to_string(),
        flip.found.to_string(),
        margin.unwrap_or_else(|| "unknown".to_owned()),
        if flip.near_tie { "near-tie" } else { "DEFECT" }.to_owned(),
    ]
}
