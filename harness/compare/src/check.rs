//! One comparison: a check with its verdict, and decisions that differ, each judged by its margin.

use dpar_export_decode::runtime::RunError;
use dpar_export_spec::PatchRule;
use serde::Serialize;

use crate::tolerance::Limits;

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

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Boundary => "boundary",
            Self::Token => "token",
            Self::Code => "code",
        })
    }
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
    pub(crate) fn judged(mut self) -> Self {
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
    pub(crate) fn not_run(name: &str, why: impl Into<String>) -> Self {
        let (status, detail) = (Status::NotRun, why.into());
        Self { name: name.to_owned(), status, max_abs: None, limit: None, detail, flips: Vec::new() }
    }

    /// Compares floats of shape `shape` element by element.
    pub(crate) fn tensor(name: &str, shape: &[usize], reference: &[f32], found: &[f32], limit: f32) -> Self {
        let mut all = Differences::default();
        all.add(reference, found);
        all.check(name, shape, limit, None)
    }

    /// The reference holds what this bundle cannot compute: no pass.
    pub(crate) fn impossible(name: &str, why: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::not_run(name, why) }
    }

    /// A check that did not come to an end, and why.
    pub fn failed(name: &str, why: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::not_run(name, why) }
    }

    /// A check of mean steps over all images. They must be equal, unless an image parts from the reference at a
    /// near-tie: then only the images that do not part can be compared, and were.
    pub(crate) fn mean_steps(name: &str, reference: f64, found: f64, flips: &[Flip]) -> Self {
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
    pub(crate) fn streams(
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
    pub(crate) fn codes(
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
    pub(crate) fn decisions(name: &str, detail: String, flips: Vec<Flip>, otherwise_equal: bool) -> Self {
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

/// Differences of two tensors that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// Elements of the reference and of what was found.
    counts: [usize; 2],
    worst: f64,
    /// Of all distances.
    sum: f64,
    /// Place and values of the worst, the first of all where none differs.
    at: Option<(usize, f32, f32)>,
    /// The first difference that is no number.
    bad: Option<(usize, f32, f32)>,
}

impl Differences {
    /// Adds the next elements of both.
    pub(crate) fn add(&mut self, reference: &[f32], found: &[f32]) {
        for (i, (r, f)) in reference.iter().zip(found).enumerate() {
            let place = (self.counts[0] + i, *r, *f);
            let d = f64::from((r - f).abs());
            self.sum += d;
            if !d.is_finite() && self.bad.is_none() && !(r.is_nan() && f.is_nan()) {
                self.bad = Some(place);
            }
            if d > self.worst || self.at.is_none() {
                self.at = Some(place);
                self.worst = self.worst.max(d);
            }
        }
        self.counts[0] += reference.len();
        self.counts[1] += found.len();
    }

    /// The check of tensors of shape `shape`: no element further away than `limit`, and on average no further than `mean`,
    /// where that is given.
    pub(crate) fn check(&self, name: &str, shape: &[usize], limit: f32, mean: Option<f32>) -> Check {
        let [reference, found] = self.counts;
        let mut detail = if reference == found {
            let (at, values) = match self.bad.or(self.at) {
                Some((at, r, f)) => (at, format!(": reference {r}, found {f}")),
                None => (0, String::new()),
            };
            format!("{found} values; largest difference at {:?}{values}", unravel(at, shape))
        } else {
            format!("{found} values, the reference has {reference}")
        };
        let mut pass = reference == found && self.bad.is_none() && self.worst <= f64::from(limit);
        if let Some(limit) = mean {
            let mean = self.sum / found.max(1) as f64;
            detail += &format!("; mean difference {mean:.2e}, allowed {limit:.2e}");
            pass &= mean <= f64::from(limit);
        }
        Check {
            name: name.to_owned(),
            status: if pass { Status::Pass } else { Status::Fail },
            max_abs: Some(if self.bad.is_some() { f64::INFINITY } else { self.worst }),
            limit: Some(f64::from(limit)),
            detail,
            flips: Vec::new(),
        }
    }
}

/// The checks of one job; a graph that fails, or whose outputs cannot be (NaN), is what it found and no reason to stop: a
/// failed check with the engine's words, so that every report is written.
pub(crate) fn or_failed(name: &str, result: Result<Vec<Check>, RunError>) -> Result<Vec<Check>, RunError> {
    match result {
        Err(e) if e.went_wrong() => Ok(vec![Check::failed(name, e.to_string())]),
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
pub(crate) fn mean(values: impl ExactSizeIterator<Item = usize>) -> f64 {
    let n = values.len().max(1);
    values.sum::<usize>() as f64 / n as f64
}

/// 1 where a token opens a patch.
pub(crate) fn starts(lengths: &[usize]) -> Vec<bool> {
    lengths.iter().flat_map(|l| (0..*l).map(|k| k == 0)).collect()
}

/// A patch boundary that differs, with the distance of its entropy (`entropy[t]` = e_t) to the threshold.
pub(crate) fn boundary_flip(
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

#[cfg(test)]
mod tests {
    use dpar_export_spec::Precision;

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
    fn pieces_of_a_tensor_are_compared_as_the_whole() {
        let found: Vec<f32> = (0..24).map(|i| (i * 7 % 5) as f32 * 1e-3).collect();
        for nan in [None, Some(3), Some(17)] {
            let mut reference = vec![1e-3; 24];
            if let Some(at) = nan {
                reference[at] = f32::NAN;
            }
            let whole = Check::tensor("x", &[6, 4], &reference, &found, 2e-3);
            for rows in [1, 2, 4] {
                let mut pieces = Differences::default();
                reference.chunks(rows * 4).zip(found.chunks(rows * 4)).for_each(|(r, f)| pieces.add(r, f));
                assert_eq!(pieces.check("x", &[6, 4], 2e-3, None), whole, "{rows} rows at a time");
            }
            assert_eq!(whole.status == Status::Fail, nan.is_some() || whole.max_abs > Some(2e-3_f32.into()));
        }
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
    fn what_goes_wrong_is_a_failed_check_and_other_errors_stop() {
        use dpar_engine_api::{EngineError, EngineErrorKind};
        let after = |kind| {
            let e = EngineError::new(kind, "runtime", "output `image` holds NaN").in_graph("vq_decode");
            or_failed("images", Err(e.into()))
        };
        let checks = after(EngineErrorKind::Output).unwrap();
        assert_eq!((checks.len(), checks[0].status, &*checks[0].name), (1, Status::Fail, "images"));
        assert!(checks[0].detail.contains("holds NaN"), "{}", checks[0].detail);
        assert_eq!(after(EngineErrorKind::Run).unwrap()[0].status, Status::Fail);
        assert!(after(EngineErrorKind::Graph).is_err());
        assert!(or_failed("images", Err(RunError::Interrupted)).is_err());
        assert!(or_failed("images", Ok(Vec::new())).unwrap().is_empty());
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
