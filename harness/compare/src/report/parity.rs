//! A parity run as a page: a column for each engine, a row for each probe, check and comparison.

use dpar_export_bundle::Bundle;

use super::{Column, Page};
use crate::check::{Check, CheckId, Status};
use crate::parity::report::{Decisions, EngineResult, EngineStatus, Mode, Pair, ParityReport};
use crate::stats::TensorStats;

impl Page {
    /// The page of a parity run, with its verdict.
    pub fn of_parity(report: &ParityReport, bundle: &Bundle) -> Self {
        let mut columns: Vec<Column> = report.engines.iter().map(|e| column(e, &report.pairs)).collect();
        if !report.compared() {
            let detail = "fewer than two engines ran and there is no reference: nothing was compared";
            for column in columns.iter_mut().filter(|c| c.not_run.is_none()) {
                column.checks.insert(0, Check::failed(CheckId::Comparison, detail));
            }
        }
        Self { verdict: report.verdict, ..Self::new("parity", bundle, columns) }
    }
}

fn column(engine: &EngineResult, pairs: &[Pair]) -> Column {
    let mut checks = Vec::new();
    for pair in pairs.iter().filter(|p| p.engine == engine.engine) {
        checks.extend(pair.decisions.iter().map(|d| decisions(pair, d)));
        checks.extend(tensors(pair));
        if !pair.notes.is_empty() {
            // A pair that passes has only notes on what was not compared.
            let status = if pair.status == Status::Pass { Status::NotRun } else { pair.status };
            let notes = Check::new(CheckId::Notes, status, pair.notes.join("; "));
            checks.push(notes.named(format!("notes against {}", pair.baseline)));
        }
    }
    checks.extend(engine.checks.iter().chain(&engine.probes).cloned());
    let label = match &engine.info {
        Some(info) => format!("{} {}", info.engine, info.version),
        None => engine.engine.clone(),
    };
    let reason = || engine.reason.clone().unwrap_or_else(|| "no reason was given".to_owned());
    Column {
        label,
        engine: engine.info.clone(),
        arithmetic: engine.computed(),
        // What failed while it ran is among the checks.
        not_run: (engine.status == EngineStatus::NotRun).then(reason),
        required: engine.asked_for,
        checks,
    }
}

/// The whole loop's outputs, the graph output that needs the largest tolerance, and every one out of tolerance.
fn tensors(pair: &Pair) -> Vec<Check> {
    let (graphs, whole): (Vec<_>, Vec<_>) = pair.tensors.iter().partition(|t| t.graph.is_some());
    let failed: Vec<&TensorStats> = graphs.iter().copied().filter(|t| t.status == Status::Fail).collect();
    let worst = graphs.iter().copied().max_by(|a, b| a.used().total_cmp(&b.used()));
    let mut checks: Vec<Check> =
        whole.iter().map(|t| tensor(t, format!("{} against {}", t.name, pair.baseline))).collect();
    match (failed.as_slice(), worst) {
        ([], Some(worst)) => {
            let name = format!("all {} graph outputs against {}", graphs.len(), pair.baseline);
            let check = tensor(worst, name);
            let detail = format!("the worst is {}: {}", worst.name, check.detail);
            checks.push(Check { detail, ..check });
        }
        _ => checks.extend(failed.iter().map(|t| tensor(t, format!("{} against {}", t.name, pair.baseline)))),
    }
    checks
}

fn tensor(stats: &TensorStats, name: String) -> Check {
    let id = match (&stats.graph, stats.name.as_str()) {
        (Some(_), _) => CheckId::GraphOutputs,
        (None, "entropy") => CheckId::Entropy,
        (None, _) => CheckId::Logits,
    };
    let detail = format!(
        "{}; {} values, max abs {:.1e}, {} ULP, cosine {:.9}",
        stats.measure.text(),
        stats.elements,
        stats.max_abs,
        stats.max_ulp,
        stats.cosine
    );
    let (max_abs, limit) = (Some(stats.measured), Some(stats.limit));
    Check { name, max_abs, limit, ..Check::new(id, stats.status, detail) }
}

fn decisions(pair: &Pair, found: &Decisions) -> Check {
    let id = match found.mode {
        Mode::TeacherForced => CheckId::GivenDecisions,
        Mode::FreeRunning => CheckId::OwnDecisions,
    };
    let defects = found.flips.iter().any(|f| !f.near_tie);
    let allowed = found.ties_allowed.map(|n| format!("; {n} near-ties allowed")).unwrap_or_default();
    let expected = found
        .expected
        .map(|n| format!("; {n:.1} boundaries expected to flip by rounding"))
        .unwrap_or_default();
    let [baseline, steps] = found.mean_steps;
    let detail = format!(
        "{} of {} images equal, {} slots; mean steps {baseline:.4} and {steps:.4}{expected}{allowed}",
        found.equal, found.images, found.slots
    );
    Check {
        name: format!("{} against {}", id.name(), pair.baseline),
        equal: Some([found.equal, found.images]),
        expected: found.expected,
        flips: found.flips.clone(),
        ..Check::holds(id, detail, !defects)
    }
}
