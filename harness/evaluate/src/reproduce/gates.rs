//! The comparisons and their margins.

use dpar_export_compare::decision::Decision;
use dpar_export_compare::tolerance::{Quantity, Rounding};
use dpar_export_metrics::{
    Compute, Equivalence, FrechetInfluence, MetricError, Verdict, equivalence, equivalence_margin,
    kid_influence, kid_margin, mean_and_standard_error, paired_standard_error,
};

use super::{Gate, ImageMetrics, Pair, Real, moments, rows};
use crate::features::Activations;

/// How the streams part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parted<'a> {
    /// The first decision that differs, of every stream that parts.
    pub(super) flips: &'a [Decision],
    /// Streams.
    pub(super) of: usize,
    /// Whether the bundle is float32. Near-ties of lower precisions are so wide that they explain any difference.
    pub(super) exact: bool,
}

impl Parted<'_> {
    /// Whether near-ties explain that the images differ: float32, few streams, and a near-tie in each of them.
    fn explains(&self) -> bool {
        // One stream always may, so that a few images can pass.
        let share = Rounding::FP32.limit(Quantity::PartedStreams).value();
        let most = ((share * self.of as f64) as usize).max(1);
        self.exact && (1..=most).contains(&self.flips.len()) && self.flips.iter().all(|f| f.near_tie)
    }
}

/// Classes follow from the seed.
pub(super) fn labels(differ: usize, n: usize) -> Gate {
    let mut gate = Gate::new("classes", if differ == 0 { Verdict::Pass } else { Verdict::Fail });
    gate.detail = format!("{} of {n} equal", n - differ);
    gate
}

/// Token streams. In float32 they are equal up to near-ties: anything else is a defect. Lower precisions part earlier, and
/// the distances below decide alone.
pub(super) fn streams(parted: Parted<'_>) -> Option<Gate> {
    let Parted { flips, of: n, exact } = parted;
    let defects = flips.iter().filter(|f| !f.near_tie).count();
    let verdict = if defects == 0 { Verdict::Pass } else { Verdict::Fail };
    let mut gate = Gate::new("streams", verdict);
    gate.detail = format!("{} of {n} equal, {} part at a near-tie", n - flips.len(), flips.len() - defects);
    if defects > 0 {
        gate.detail += &format!(", {defects} at a decision that rounding does not explain");
    }
    (exact || defects == 0).then_some(gate)
}

/// Where the few streams of a float32 bundle that part do so at near-ties, the images behind them are other draws of the
/// same distribution: a difference that the statistics cannot settle is explained by them, and is no reason to ask for more
/// images.
fn explained(mut gate: Gate, parted: Parted<'_>) -> Gate {
    if parted.explains() && gate.verdict == Verdict::Inconclusive {
        gate.verdict = Verdict::Pass;
        let (n, of) = (parted.flips.len(), parted.of);
        gate.detail = format!("only the {n} of {of} images that part at a near-tie differ");
    }
    gate
}

/// Mean steps, paired image by image.
pub(super) fn steps(found: &[usize], reference: &[usize], parted: Parted<'_>) -> Result<Gate, MetricError> {
    let wide = |v: &[usize]| v.iter().map(|s| *s as f64).collect::<Vec<f64>>();
    let (found, reference) = (wide(found), wide(reference));
    let error = paired_standard_error(&found, &reference)?;
    let (found, _) = mean_and_standard_error(&found)?;
    let (reference, _) = mean_and_standard_error(&reference)?;
    let test = equivalence(found - reference, error, equivalence_margin(reference))?;
    Ok(explained(tested("mean steps", reference, found, test), parted))
}

/// Distance and KID to the real images, of the generated and of the reference's images.
pub(super) fn distances(
    name: &str,
    pair: &Pair,
    real: &Real,
    (found, wanted): (&ImageMetrics, &ImageMetrics),
    parted: Parted<'_>,
    compute: &Compute,
) -> Result<Vec<Gate>, MetricError> {
    let mut gates = Vec::new();
    // Equal activations: every metric is equal, and so is every influence.
    let same = pair.found.features == pair.reference.features;
    if let (Some(a), Some(b)) = (found.distance, wanted.distance) {
        let error = if same { 0.0 } else { distance_error(pair, real, compute)? };
        let gate = tested(name, b, a, equivalence(a - b, error, equivalence_margin(b))?);
        gates.push(explained(gate, parted));
    }
    if let (Some(a), Some(b)) = (found.kid, wanted.kid) {
        let error = if same { 0.0 } else { kid_error(pair, &real.seen, compute)? };
        gates.push(explained(tested("KID", b, a, equivalence(a - b, error, kid_margin(b))?), parted));
    }
    Ok(gates)
}

/// Standard error of the difference of two distances to the same real images, from their influence functions.
fn distance_error(pair: &Pair, real: &Real, compute: &Compute) -> Result<f64, MetricError> {
    let influence = |set: &Activations| -> Result<Vec<f64>, MetricError> {
        let influence = FrechetInfluence::new(&moments(set, compute)?, &real.moments, compute)?;
        influence.rows(rows(set)?, compute)
    };
    paired_standard_error(&influence(&pair.found)?, &influence(&pair.reference)?)
}

fn kid_error(pair: &Pair, real: &Activations, compute: &Compute) -> Result<f64, MetricError> {
    let influence = |set| kid_influence(rows(set)?, rows(real)?, compute);
    paired_standard_error(&influence(&pair.found)?, &influence(&pair.reference)?)
}

fn tested(name: &str, reference: f64, found: f64, test: Equivalence) -> Gate {
    let mut gate = Gate::new(name, test.verdict);
    gate.reference = Some(reference);
    gate.found = Some(found);
    gate.difference = Some(test.difference);
    gate.standard_error = Some(test.standard_error);
    gate.interval_90 = Some([test.low, test.high]);
    gate.margin = Some(test.margin);
    gate
}

#[cfg(test)]
mod tests {
    use dpar_export_compare::decision::DecisionKind;

    use super::*;

    fn flip(near_tie: bool) -> Decision {
        Decision {
            kind: DecisionKind::Draw,
            image: 0,
            slot: 3,
            reference: 1,
            found: 2,
            entropy: None,
            threshold: None,
            margin: Some(0.0),
            limit: 1e-5,
            near_tie,
        }
    }

    fn parted(flips: &[Decision], of: usize, exact: bool) -> Parted<'_> {
        Parted { flips, of, exact }
    }

    #[test]
    fn a_defect_fails_float32_and_leaves_lower_precisions_to_the_distances() {
        assert_eq!(streams(parted(&[flip(true)], 4, true)).unwrap().verdict, Verdict::Pass);
        assert_eq!(streams(parted(&[flip(true), flip(false)], 4, true)).unwrap().verdict, Verdict::Fail);
        assert_eq!(streams(parted(&[flip(false)], 4, false)), None);
        assert_eq!(labels(1, 4).verdict, Verdict::Fail);
    }

    #[test]
    fn steps_are_tested_in_pairs() {
        let reference: Vec<usize> = (0..64).map(|i| 30 + i % 13).collect();
        let steps = |found: &[usize]| steps(found, &reference, parted(&[], 64, true)).unwrap();
        let gate = steps(&reference);
        assert_eq!(
            (gate.verdict, gate.difference, gate.standard_error),
            (Verdict::Pass, Some(0.0), Some(0.0))
        );
        let mut one = reference.clone();
        one[7] += 4;
        assert_eq!(steps(&one).verdict, Verdict::Pass, "one image parted");
        let fewer: Vec<usize> = reference.iter().map(|s| s - 2).collect();
        assert_eq!(steps(&fewer).verdict, Verdict::Fail);
        let noisy: Vec<usize> = reference.iter().enumerate().map(|(i, s)| s + i % 7).map(|s| s - 3).collect();
        assert_eq!(steps(&noisy).verdict, Verdict::Inconclusive);
        // Near-ties explain what is undecided, never what fails; defects explain nothing.
        let by = |found: &[usize], flips: &[Decision], exact| {
            super::steps(found, &reference, parted(flips, 64, exact)).unwrap().verdict
        };
        let with = |found: &[usize], near_tie| by(found, &[flip(near_tie)], true);
        assert_eq!((with(&noisy, true), with(&noisy, false)), (Verdict::Pass, Verdict::Inconclusive));
        assert_eq!(with(&fewer, true), Verdict::Fail);
        // Three of 64 streams are 5 %; four are more than rounding does, and a half type's near-ties explain anything.
        let ties = |n: usize| (0..n).map(|_| flip(true)).collect::<Vec<_>>();
        assert_eq!(
            (by(&noisy, &ties(3), true), by(&noisy, &ties(4), true)),
            (Verdict::Pass, Verdict::Inconclusive)
        );
        assert_eq!(by(&noisy, &ties(1), false), Verdict::Inconclusive);
        let few = |flips: &[Decision], of| parted(flips, of, true).explains();
        assert!(few(&ties(1), 8) && !few(&ties(2), 8), "one stream may part however few there are");
        assert!(!few(&[], 8));
    }
}
