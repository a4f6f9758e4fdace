//! A parity run as a page: a column for each engine, a row for each probe, check and comparison.

use dpar_export_bundle::Bundle;

use super::{Column, Page, Verdict};
use crate::check::{Check, Decision, Flip, Status};
use crate::parity::report::{
    DecisionKind, Decisions, EngineResult, EngineStatus, JudgedFlip, Judgement, Mode, Pair, ParityReport,
    Verdict as Found,
};
use crate::stats::TensorStats;

impl Page {
    /// The page of a parity run. An engine that was asked for and did not run fails it, as its exit code says, and so does
    /// a run without anything to compare with.
    pub fn of_parity(report: &ParityReport, bundle: &Bundle) -> Self {
        let mut columns: Vec<Column> = report.engines.iter().map(|e| column(e, &report.pairs)).collect();
        if !report.compared() {
            let detail = "fewer than two engines ran and there is no reference: nothing was compared";
            for column in columns.iter_mut().filter(|c| c.not_run.is_none()) {
                column.checks.insert(0, Check::failed("comparison", detail));
            }
        }
        let mut page = Self::new("parity", bundle, columns);
        page.verdict = if report.verdict == Found::Pass { Verdict::Pass } else { Verdict::Fail };
        page
    }
}

fn column(engine: &EngineResult, pairs: &[Pair]) -> Column {
    let mut checks = Vec::new();
    for pair in pairs.iter().filter(|p| p.engine == engine.engine) {
        checks.extend(pair.decisions.iter().map(|d| decisions(pair, d)));
        checks.extend(tensors(pair));
        if !pair.notes.is_empty() {
            let name = format!("notes against {}", pair.baseline);
            let note = Check::failed(&name, pair.notes.join("; "));
            // A pair that passes has only notes on what was not compared.
            checks.push(match pair.status {
                Status::Fail => note,
                _ => Check { status: Status::NotRun, ..note },
            });
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
        arithmetic: engine.arithmetic.as_ref().map(|a| a.text.clone()),
        // What failed while it ran is among the checks.
        not_run: (engine.status == EngineStatus::NotRun).then(reason),
        required: engine.asked_for,
        checks,
    }
}

/// The whole loop's outputs, the graph output that needs the largest tolerance, and every one out of tolerance.
fn tensors(pair: &Pair) -> Vec<Check> {
    let (graphs, whole): (Vec<_>, Vec<_>) = pair.tensors.iter().partition(|t| t.name.contains('/'));
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
    Check {
        name,
        status: stats.status,
        max_abs: Some(stats.measured),
        limit: Some(stats.limit),
        detail: format!(
            "{}; {} values, max abs {:.1e}, {} ULP, cosine {:.9}",
            stats.measure.text(),
            stats.elements,
            stats.max_abs,
            stats.max_ulp,
            stats.cosine
        ),
        flips: Vec::new(),
    }
}

fn decisions(pair: &Pair, found: &Decisions) -> Check {
    let mode = match found.mode {
        Mode::TeacherForced => "decisions on given tokens",
        Mode::FreeRunning => "decisions on its own tokens",
    };
    let defects = found.flips.iter().any(|f| f.judgement == Judgement::Defect);
    let allowed = found.ties_allowed.map(|n| format!("; {n} near-ties allowed")).unwrap_or_default();
    let [baseline, steps] = found.mean_steps;
    Check {
        name: format!("{mode} against {}", pair.baseline),
        status: if defects { Status::Fail } else { Status::Pass },
        max_abs: None,
        limit: None,
        detail: format!(
            "{} of {} images equal, {} slots; mean steps {baseline:.4} and {steps:.4}{allowed}",
            found.equal, found.images, found.slots
        ),
        flips: found.flips.iter().map(flip).collect(),
    }
}

fn flip(judged: &JudgedFlip) -> Flip {
    Flip {
        decision: match judged.decision {
            DecisionKind::Boundary => Decision::Boundary,
            DecisionKind::Draw | DecisionKind::ArgMax => Decision::Token,
        },
        image: judged.image,
        slot: judged.slot,
        reference: judged.choices[0],
        found: judged.choices[1],
        margin: judged.margin.map(|m| m as f32),
        limit: judged.limit as f32,
        near_tie: judged.judgement == Judgement::NearTie,
    }
}
