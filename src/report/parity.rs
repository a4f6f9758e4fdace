//! A parity run as a page: a column for each engine, a row for each probe, check and comparison.

use super::{Column, Page, Verdict};
use crate::bundle::Bundle;
use crate::parity::report::{
    DecisionKind, Decisions, EngineResult, EngineStatus, JudgedFlip, Judgement, Mode, Pair, ParityReport,
};
use crate::parity::stats::TensorStats;
use crate::verify::{Check, Decision, Flip, Status};

impl Page {
    /// The page of a parity run. An engine that was asked for and did not run fails it, as its exit code says.
    pub fn of_parity(report: &ParityReport, bundle: &Bundle) -> Self {
        let columns = report.engines.iter().map(|e| column(e, &report.pairs)).collect();
        let mut page = Self::new("parity", bundle, columns);
        let pass = report.verdict == Status::Pass && !report.missing_engine();
        page.verdict = if pass { Verdict::Pass } else { Verdict::Fail };
        page
    }
}

fn column(engine: &EngineResult, pairs: &[Pair]) -> Column {
    let mut checks = Vec::new();
    for pair in pairs.iter().filter(|p| p.engine == engine.engine) {
        checks.extend(pair.decisions.iter().map(|d| decisions(pair, d)));
        checks.extend(tensors(pair));
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
        not_run: (engine.status != EngineStatus::Ran).then(reason),
        required: engine.asked_for || engine.status == EngineStatus::Failed,
        checks,
    }
}

/// The whole loop's outputs, the graph output that needs the largest tolerance, and every one out of tolerance.
fn tensors(pair: &Pair) -> Vec<Check> {
    let (graphs, whole): (Vec<_>, Vec<_>) = pair.tensors.iter().partition(|t| t.name.contains('/'));
    let failed: Vec<&TensorStats> = graphs.iter().copied().filter(|t| t.status == Status::Fail).collect();
    let share = |t: &TensorStats| if t.limit > 0.0 { t.max_abs / t.limit } else { f64::INFINITY };
    let worst = graphs.iter().copied().max_by(|a, b| share(a).total_cmp(&share(b)));
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
        max_abs: Some(stats.max_abs),
        limit: Some(stats.limit),
        detail: format!(
            "{} values, {} ULP, cosine {:.9}; would pass from {:.1e}",
            stats.elements, stats.max_ulp, stats.cosine, stats.smallest_tolerance
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
    let [baseline, steps] = found.mean_steps;
    Check {
        name: format!("{mode} against {}", pair.baseline),
        status: if defects { Status::Fail } else { Status::Pass },
        max_abs: None,
        limit: None,
        detail: format!(
            "{} of {} images equal, {} slots; mean steps {baseline:.4} and {steps:.4}",
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
            DecisionKind::Code => Decision::Code,
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
