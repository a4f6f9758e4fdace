//! Parity with reference outputs: tensors within named tolerances, decisions equal, every flip judged by its
//! margin.

mod golden;
mod probes;
mod record;
mod reference;
mod streams;
pub mod tolerance;

use dpar_engine_api::{Arithmetic, EngineInfo};
use dpar_export_spec::{PatchRule, Precision};
use serde::Serialize;

use crate::bundle::ToolEntry;
use crate::parity::replay::is_bad_output;
use crate::runtime::{RunError, Runtime};
use tolerance::Limits;

pub(crate) use golden::own_folder;
pub use golden::verify_golden;
pub use probes::{PREFIX_BF16, PREFIX_F16, PREFIX_F32, probe};
pub use record::{Golden, Provenance, Recording, record};
pub(crate) use reference::open;
pub use reference::{ARRAYS, ArithmeticWord, GOLDEN_JSON, RecordedFile, array_file, guidance_of};
pub use streams::{ReferenceStreams, verify_streams};

/// Result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Within the tolerance, or equal.
    Pass,
    /// Out of tolerance, or a decision differs that is no near-tie.
    Fail,
    /// The reference or the bundle does not hold what this check compares.
    NotRun,
}

/// What differed at a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Whether a token opens a patch.
    Boundary,
    /// Which token is drawn.
    Token,
    /// Which code an image region gets.
    Code,
}

/// A decision that differs from the reference: the first of its image, since everything later follows from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flip {
    /// What differed.
    pub decision: Decision,
    /// Image in the reference.
    pub image: usize,
    /// Slot.
    pub slot: usize,
    /// The reference's token or patch start (1 or 0).
    pub reference: i64,
    /// This engine's.
    pub found: i64,
    /// Distance to the tie: nats, logits or probability; `null` where none is known.
    pub margin: Option<f32>,
    /// A margin below this is a near-tie.
    pub limit: f32,
    /// Whether rounding explains it.
    pub near_tie: bool,
}

impl Flip {
    fn judged(mut self) -> Self {
        self.near_tie = self.margin.is_some_and(|m| m.abs() < self.limit);
        self
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// Verdict.
    pub status: Status,
    /// Largest absolute difference, for tensors.
    pub max_abs: Option<f64>,
    /// Tolerance it was held against.
    pub limit: Option<f64>,
    /// Shapes, counts, or the place of the worst difference.
    pub detail: String,
    /// Decisions that differ.
    pub flips: Vec<Flip>,
}

impl Check {
    fn not_run(name: &str, why: impl Into<String>) -> Self {
        let (status, detail) = (Status::NotRun, why.into());
        Self { name: name.to_owned(), status, max_abs: None, limit: None, detail, flips: Vec::new() }
    }

    /// Compares floats of shape `shape` element by element.
    fn tensor(name: &str, shape: &[usize], reference: &[f32], found: &[f32], limit: f32) -> Self {
        let mut worst = (0.0_f64, 0);
        let mut bad_value = None;
        for (i, (r, f)) in reference.iter().zip(found).enumerate() {
            let d = f64::from((r - f).abs());
            if !d.is_finite() && bad_value.is_none() && !(r.is_nan() && f.is_nan()) {
                bad_value = Some(i);
            }
            if d > worst.0 {
                worst = (d, i);
            }
        }
        let same = reference.len() == found.len();
        let at = bad_value.unwrap_or(worst.1);
        let place = unravel(at, shape);
        let detail = if same {
            let values = reference.get(at).zip(found.get(at));
            let values = values.map(|(r, f)| format!(": reference {r}, found {f}")).unwrap_or_default();
            format!("{} values; largest difference at {place:?}{values}", found.len())
        } else {
            format!("{} values, the reference has {}", found.len(), reference.len())
        };
        let pass = same && bad_value.is_none() && worst.0 <= f64::from(limit);
        Self {
            name: name.to_owned(),
            status: if pass { Status::Pass } else { Status::Fail },
            max_abs: Some(if bad_value.is_some() { f64::INFINITY } else { worst.0 }),
            limit: Some(f64::from(limit)),
            detail,
            flips: Vec::new(),
        }
    }

    /// Holds the mean distance of the same values against a limit too, where there is one.
    fn mean_within(mut self, reference: &[f32], found: &[f32], limit: Option<f32>) -> Self {
        let Some(limit) = limit else { return self };
        let sum: f64 = reference.iter().zip(found).map(|(r, f)| f64::from((r - f).abs())).sum();
        let mean = sum / found.len().max(1) as f64;
        self.detail += &format!("; mean difference {mean:.2e}, allowed {limit:.2e}");
        if mean.is_nan() || mean > f64::from(limit) {
            self.status = Status::Fail;
        }
        self
    }

    /// The reference holds what this bundle cannot compute: no pass.
    fn impossible(name: &str, why: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::not_run(name, why) }
    }

    /// A check that did not come to an end, and why.
    pub(crate) fn failed(name: &str, why: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::not_run(name, why) }
    }

    /// A check of mean steps over all images. They must be equal, unless an image parts from the reference at a
    /// near-tie: then only the images that do not part can be compared, and were.
    fn mean_steps(name: &str, reference: f64, found: f64, flips: &[Flip]) -> Self {
        let parted = flips.len();
        let mut detail = format!("reference {reference:.4}, found {found:.4}");
        if parted > 0 {
            detail += &format!(" ({parted} images part at a flip)");
        }
        let tied = parted > 0 && flips.iter().all(|f| f.near_tie);
        // Both are sums of integers over the same count: equal numbers are equal to the last bit.
        Self::decisions(name, detail, Vec::new(), reference == found || tied)
    }

    /// A check of the decisions of `images` streams of `slots` slots, each compared up to its first flip: every flip is a
    /// near-tie, and there are no more of them than the precision allows.
    fn streams(
        name: &str,
        mut detail: String,
        flips: Vec<Flip>,
        images: usize,
        slots: usize,
        limits: &Limits,
    ) -> Self {
        if limits.tie_rate.is_none() {
            let equal = images > flips.len();
            return Self::decisions(name, detail, flips, equal);
        }
        let skipped: usize = flips.iter().map(|f| slots.saturating_sub(f.slot + 1)).sum();
        let compared = (images * slots).saturating_sub(skipped);
        let allowed = limits.ties(compared);
        if !flips.is_empty() {
            detail +=
                &format!(", {} flips in {compared} decisions ({allowed} near-ties allowed)", flips.len());
        }
        let few = flips.len() <= allowed;
        Self::decisions(name, detail, flips, few)
    }

    /// A check of codes, whose margins no graph gives: in a half type a named share of them may differ.
    fn codes(
        name: &str,
        mut detail: String,
        flips: Vec<Flip>,
        count: usize,
        same: bool,
        limits: &Limits,
    ) -> Self {
        let allowed = (count as f64 * limits.code_rate).floor() as usize;
        if !flips.is_empty() && allowed > 0 {
            detail += &format!(", {allowed} may differ by rounding");
        }
        let few = flips.len() <= allowed;
        let mut check = Self::decisions(name, detail, Vec::new(), same && few);
        check.flips = flips;
        for flip in &mut check.flips {
            flip.near_tie = few;
        }
        check
    }

    /// A check of decisions: passes when every flip is a near-tie and nothing else is wrong.
    fn decisions(name: &str, detail: String, flips: Vec<Flip>, otherwise_equal: bool) -> Self {
        let pass = otherwise_equal && flips.iter().all(|f| f.near_tie);
        Self {
            name: name.to_owned(),
            status: if pass { Status::Pass } else { Status::Fail },
            max_abs: None,
            limit: None,
            detail,
            flips,
        }
    }
}

/// The checks of one job; outputs that cannot be, such as NaN, are what it found and no reason to stop: a failed check with
/// the engine's words, so that every report is written.
fn or_bad_output(name: &str, result: Result<Vec<Check>, RunError>) -> Result<Vec<Check>, RunError> {
    match result {
        Err(e) if is_bad_output(&e) => Ok(vec![Check::failed(name, e.to_string())]),
        result => result,
    }
}

/// Index of element `at` along each axis of a row-major shape.
fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, size) in shape.iter().enumerate().rev() {
        index[i] = at % size.max(&1);
        at /= size.max(&1);
    }
    index
}

/// Mean of whole numbers; 0 for none.
fn mean(values: impl ExactSizeIterator<Item = usize>) -> f64 {
    let n = values.len().max(1);
    values.sum::<usize>() as f64 / n as f64
}

/// 1 where a token opens a patch.
pub(crate) fn starts(lengths: &[usize]) -> Vec<bool> {
    lengths.iter().flat_map(|l| (0..*l).map(|k| k == 0)).collect()
}

/// A patch boundary that differs, with the distance of its entropy (`entropy[t]` = e_t) to the threshold.
fn boundary_flip(
    rule: &PatchRule,
    image: usize,
    slot: usize,
    reference_opens: bool,
    entropy: &[f32],
    limit: f32,
) -> Flip {
    let at = |t: usize| entropy.get(t).copied().unwrap_or(f32::NAN);
    let margin = rule.margin(slot, at(slot), at(slot.wrapping_sub(1)));
    Flip {
        decision: Decision::Boundary,
        image,
        slot,
        reference: i64::from(reference_opens),
        found: i64::from(!reference_opens),
        margin: margin.is_finite().then_some(margin),
        limit,
        near_tie: false,
    }
    .judged()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_located_and_nan_never_passes() {
        let c = Check::tensor("x", &[2, 3], &[0.0; 6], &[0.0, 0.0, 0.0, 0.0, 0.5, 0.0], 0.1);
        assert_eq!((c.status, c.max_abs), (Status::Fail, Some(0.5)));
        assert!(c.detail.contains("[1, 1]: reference 0, found 0.5"), "{}", c.detail);
        let c = Check::tensor("x", &[1], &[0.0], &[f32::NAN], 0.1);
        assert_eq!(c.status, Status::Fail);
        let c = Check::tensor("x", &[2], &[0.0, 0.0], &[0.0], 0.1);
        assert_eq!(c.status, Status::Fail);
        let c = Check::tensor("x", &[1], &[1.0], &[1.05], 0.1);
        assert_eq!(c.status, Status::Pass);
    }

    #[test]
    fn too_many_near_ties_fail_in_a_half_type() {
        let limits =
            Limits::between(Precision::Fp32, Precision::Fp16, dpar_engine_api::ArithmeticKind::AsGraph);
        let flip = |image| {
            let (decision, margin, limit) = (Decision::Token, Some(1e-3), limits.greedy_tie);
            Flip { decision, image, slot: 24, reference: 1, found: 2, margin, limit, near_tie: false }
                .judged()
        };
        let check = |n: usize| Check::streams("x", String::new(), (0..n).map(flip).collect(), 4, 50, &limits);
        // Of four images of 50 slots, those with a flip are compared over 25: 2 % of 150 decisions, then of 125.
        assert_eq!(check(2).status, Status::Pass);
        assert_eq!(check(3).status, Status::Pass);
        let four = check(4);
        assert_eq!(four.status, Status::Fail);
        assert!(four.detail.contains("4 flips in 100 decisions (2 near-ties allowed)"), "{}", four.detail);
        let codes =
            |n: usize| Check::codes("x", String::new(), (0..n).map(flip).collect(), 100, true, &limits);
        assert_eq!((codes(4).status, codes(5).status), (Status::Pass, Status::Fail));
    }

    #[test]
    fn outputs_that_cannot_be_are_a_failed_check_and_other_errors_stop() {
        use dpar_engine_api::{EngineError, EngineErrorKind};
        let after = |kind| {
            let e = EngineError::new(kind, "runtime", "output `image` holds NaN").in_graph("vq_decode");
            or_bad_output("images", Err(e.into()))
        };
        let checks = after(EngineErrorKind::Output).unwrap();
        assert_eq!((checks.len(), checks[0].status, &*checks[0].name), (1, Status::Fail, "images"));
        assert!(checks[0].detail.contains("holds NaN"), "{}", checks[0].detail);
        assert!(after(EngineErrorKind::Graph).is_err());
        assert!(or_bad_output("images", Err(RunError::Interrupted)).is_err());
        assert!(or_bad_output("images", Ok(Vec::new())).unwrap().is_empty());
    }

    #[test]
    fn a_flip_is_a_near_tie_only_below_its_limit() {
        let flip = |margin| {
            Flip {
                decision: Decision::Token,
                image: 0,
                slot: 3,
                reference: 1,
                found: 2,
                margin,
                limit: 1e-5,
                near_tie: false,
            }
            .judged()
        };
        assert!(flip(Some(9e-6)).near_tie && flip(Some(-9e-6)).near_tie);
        assert!(!flip(Some(1e-5)).near_tie && !flip(None).near_tie && !flip(Some(f32::NAN)).near_tie);
        let check = Check::decisions("x", String::new(), vec![flip(None)], true);
        assert_eq!(check.status, Status::Fail);
    }
}
