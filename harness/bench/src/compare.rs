//! Two reports of one machine: what got slower.

use dpar_export_metrics::Verdict;
use serde::Serialize;

use crate::error::BenchError;
use crate::measure::{Measurement, Round};
use crate::report::BenchReport;

/// A case, or a graph of it, that is slower by less than this is as before: clocks, other processes and the placement of
/// memory move medians so far on a quiet machine.
const AS_BEFORE: f64 = 1.05;
/// A graph with less than this part of a round's time is shown and does not decide.
const COUNTS: f64 = 0.05;

/// How one thing changed: times are seconds a round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The case, in words.
    pub case: String,
    /// The graph, or `loop`; `None` for the whole.
    pub graph: Option<String>,
    /// Median of the earlier rounds.
    pub earlier: f64,
    /// Median of the new rounds.
    pub now: f64,
    /// `now / earlier`.
    pub ratio: f64,
    /// Whether it decides: the whole, and what had 5 % of its time.
    pub counts: bool,
    /// Pass: as before or faster. Fail: slower, and no new round is as fast as the slowest earlier one. Inconclusive: the
    /// median is slower, the rounds overlap.
    pub verdict: Verdict,
}

/// How two reports differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Of all changes that count.
    pub verdict: Verdict,
    /// Whole cases and their graphs, in the order of the new report.
    pub changes: Vec<Change>,
    /// Cases that only one of them has.
    pub alone: Vec<String>,
}

/// Holds a report against an earlier one. Cases are the same when system, precision, engine, device, what was said of caches,
/// batch, schedule, images, threshold, threads, guidance and seed are; of several such the bundle decides.
///
/// # Errors
/// When they are not of one machine, have no case in common, or one of several such.
pub fn compare(earlier: &BenchReport, now: &BenchReport) -> Result<Comparison, BenchError> {
    let words = |r: &BenchReport| {
        let cpu = r.machine.cpu.as_deref().unwrap_or("a processor without a name");
        format!("{cpu}, {} cores", r.machine.cores)
    };
    if words(earlier) != words(now) {
        return Err(BenchError::Machine { earlier: words(earlier), now: words(now) });
    }
    let mut changes = Vec::new();
    let mut alone = Vec::new();
    for case in &now.cases {
        match before(case, earlier, now)? {
            Some(before) => changes.extend(of_case(before, case)),
            None => alone.push(case.name()),
        }
    }
    alone.extend(
        earlier.cases.iter().filter(|c| !now.cases.iter().any(|n| same(c, n))).map(Measurement::name),
    );
    if changes.is_empty() {
        return Err(BenchError::NoCase(
            earlier.cases.iter().map(Measurement::name).collect::<Vec<_>>().join("; "),
        ));
    }
    let verdict = Verdict::all(changes.iter().filter(|c| c.counts).map(|c| c.verdict));
    Ok(Comparison { verdict, changes, alone })
}

fn same(a: &Measurement, b: &Measurement) -> bool {
    a.name() == b.name() && a.threads == b.threads && a.cfg_scale == b.cfg_scale && a.seed == b.seed
}

/// The case of the earlier report that was measured again.
fn before<'a>(
    case: &Measurement,
    earlier: &'a BenchReport,
    now: &BenchReport,
) -> Result<Option<&'a Measurement>, BenchError> {
    let alike: Vec<&Measurement> = earlier.cases.iter().filter(|c| same(c, case)).collect();
    let again = now.cases.iter().filter(|c| same(c, case));
    match alike[..] {
        [] => Ok(None),
        [one] if again.clone().count() == 1 => Ok(Some(one)),
        // Two bundles of one system.
        _ => {
            let of_bundle: Vec<_> = alike.into_iter().filter(|c| c.bundle == case.bundle).collect();
            match of_bundle[..] {
                [one] if again.filter(|c| c.bundle == case.bundle).count() == 1 => Ok(Some(one)),
                _ => Err(BenchError::Several(case.name())),
            }
        }
    }
}

fn of_case(earlier: &Measurement, now: &Measurement) -> Vec<Change> {
    let whole = rounds(earlier, |r| r.seconds);
    let counts = COUNTS * median(&whole);
    let outside = |r: &Round| r.seconds - r.graphs.values().map(|g| g.seconds).sum::<f64>();
    let mut changes = vec![
        change(now, None, whole, rounds(now, |r| r.seconds), counts),
        change(now, Some("loop"), rounds(earlier, outside), rounds(now, outside), counts),
    ];
    for graph in now.graphs.keys().filter(|g| earlier.graphs.contains_key(*g)) {
        let of = |r: &Round| r.graphs.get(graph).map_or(0.0, |g| g.seconds);
        changes.push(change(now, Some(graph), rounds(earlier, of), rounds(now, of), counts));
    }
    changes
}

fn rounds(case: &Measurement, of: impl Fn(&Round) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = case.rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values.
fn median(values: &[f64]) -> f64 {
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn change(case: &Measurement, graph: Option<&str>, earlier: Vec<f64>, now: Vec<f64>, least: f64) -> Change {
    let (before, after) = (median(&earlier), median(&now));
    let slower = after > before * AS_BEFORE;
    let apart = now.first().zip(earlier.last()).is_some_and(|(fastest, slowest)| fastest > slowest);
    let verdict = match (slower, apart) {
        (false, _) => Verdict::Pass,
        (true, true) => Verdict::Fail,
        (true, false) => Verdict::Inconclusive,
    };
    Change {
        case: case.name(),
        graph: graph.map(str::to_owned),
        earlier: before,
        now: after,
        ratio: after / before,
        counts: before >= least,
        verdict,
    }
}

#[cfg(test)]
mod tests;
