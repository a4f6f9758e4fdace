//! The comparisons and their margins.

use dpar_export_compare::decision::{Decision, Ties, drawn_so};
use dpar_export_compare::tolerance::{Quantity, Rounding};
use dpar_export_compare::verify::{Check, Status};
use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_metrics::{
    Compute, Equivalence, FrechetInfluence, MetricError, Verdict, equivalence, equivalence_margin,
    kid_influence, kid_margin, mean_and_standard_error, paired_standard_error, relative_margin,
};

use super::{Gate, ImageMetrics, PairedActivations, Real, moments, rows};
use crate::evaluate::report::Network;
use crate::features::Activations;

/// How the streams part.
#[derive(Debug, Clone, Copy)]
pub(super) struct DivergedStreams<'a> {
    /// The first decision that differs, of every stream that parts.
    pub(super) flips: &'a [Decision],
    /// Streams.
    pub(super) of: usize,
    /// Slots of a stream.
    pub(super) slots: usize,
    /// How reference and bundle round.
    pub(super) rounding: Rounding,
    /// How tokens are drawn.
    pub(super) sampler: SamplerOptions,
}

impl DivergedStreams<'_> {
    /// Whether near-ties explain that the images differ: float32 on both sides, few streams, and a near-tie in each of them.
    fn explains(&self) -> bool {
        let share = self.rounding.limit(Quantity::PartedStreams).value();
        // One stream always may, so that a few images can pass.
        let most = ((share * self.of as f64) as usize).max(1);
        share > 0.0 && (1..=most).contains(&self.flips.len()) && self.flips.iter().all(|f| f.near_tie)
    }
}

/// Classes follow from the seed.
pub(super) fn labels(differ: usize, n: usize) -> Gate {
    let mut gate = Gate::new("classes", if differ == 0 { Verdict::Pass } else { Verdict::Fail });
    gate.detail = format!("{} of {n} equal", n - differ);
    gate
}

/// Token streams: equal up to as many near-ties as `verify --streams` allows. In float32 on both sides any other difference is
/// a defect. A lower precision may part where that does not explain it: then the `distances` that follow decide, and without any
/// nothing does.
pub(super) fn streams(parted: DivergedStreams<'_>, distances: &[Gate]) -> Gate {
    let DivergedStreams { flips, of: n, slots, rounding, sampler } = parted;
    let defects = flips.iter().filter(|f| !f.near_tie).count();
    let ties = Ties::of_streams(drawn_so(rounding, &sampler), flips, (n, slots));
    let mut detail =
        format!("{} of {n} equal, {} part at a near-tie", n - flips.len(), flips.len() - defects);
    if defects > 0 {
        detail += &format!(", {defects} at a decision that rounding does not explain");
    }
    if let Some(why) = ties.why {
        detail += &format!("; {why}");
    }
    let verdict = match (defects, ties.status, rounding == Rounding::FP32) {
        (0, Status::Pass, _) => Verdict::Pass,
        (0, _, true) => Verdict::Inconclusive,
        (_, _, true) => Verdict::Fail,
        (_, _, false) if distances.is_empty() => {
            detail += "; no distance says whether the images are as good: give an --extractor";
            Verdict::Inconclusive
        }
        (_, _, false) => {
            detail += "; the distances decide";
            Verdict::all(distances.iter().map(|g| g.verdict))
        }
    };
    let mut gate = Gate::new("streams", verdict);
    gate.detail = detail;
    gate
}

/// Where the few streams that part in float32 do so at near-ties, the images behind them are other draws of the
/// same distribution: a difference that the statistics cannot settle is explained by them, and is no reason to ask for more
/// images.
fn explained(mut gate: Gate, parted: DivergedStreams<'_>) -> Gate {
    if parted.explains() && gate.verdict == Verdict::Inconclusive {
        gate.verdict = Verdict::Pass;
        let (n, of) = (parted.flips.len(), parted.of);
        gate.detail = format!("only the {n} of {of} images that part at a near-tie differ");
    }
    gate
}

/// What a bundle with quantized weights decides on the reference's tokens.
pub(super) fn given(check: Check) -> Gate {
    let verdict = match check.status {
        Status::Pass => Verdict::Pass,
        Status::Fail => Verdict::Fail,
        // Nothing that says how good the weights are.
        Status::Inconclusive | Status::NotRun => Verdict::Inconclusive,
    };
    let mut gate = Gate::new(&format!("{}, given tokens", check.name), verdict);
    (gate.reference, gate.found) = check.means.map(|[reference, found]| (reference, found)).unzip();
    gate.difference = check.means.map(|[reference, found]| found - reference);
    gate.detail = match (check.max_abs, check.limit) {
        (Some(found), Some(limit)) => format!("largest {found:.2e} of {limit:.2e}; {}", check.detail),
        _ => check.detail,
    };
    gate
}

/// Mean steps, paired image by image.
pub(super) fn steps(
    found: &[usize],
    reference: &[usize],
    parted: DivergedStreams<'_>,
) -> Result<Gate, MetricError> {
    let wide = |v: &[usize]| v.iter().map(|s| *s as f64).collect::<Vec<f64>>();
    let (found, reference) = (wide(found), wide(reference));
    let error = paired_standard_error(&found, &reference)?;
    let (found, _) = mean_and_standard_error(&found)?;
    let (reference, _) = mean_and_standard_error(&reference)?;
    let test = equivalence(found - reference, error, equivalence_margin(reference))?;
    Ok(explained(tested("mean steps", reference, found, test), parted))
}

/// Distance and KID to the real images, of the generated and of the reference's images: on FID-Inception (`network`), or on
/// features of another scale.
pub(super) fn distances(
    (name, network): (&str, &Network),
    pair: &PairedActivations,
    real: &Real,
    (found, wanted): (&ImageMetrics, &ImageMetrics),
    parted: DivergedStreams<'_>,
    compute: &Compute,
) -> Result<Vec<Gate>, MetricError> {
    let mut gates = Vec::new();
    // Equal activations: every metric is equal, and so is every influence.
    let same = pair.found.features == pair.reference.features;
    if let (Some(a), Some(b)) = (found.distance, wanted.distance) {
        let error = if same { 0.0 } else { distance_error(pair, real, compute)? };
        let margin = if network.inception { equivalence_margin(b) } else { relative_margin(b) };
        let gate = tested(name, b, a, equivalence(a - b, error, margin)?);
        gates.push(explained(gate, parted));
    }
    if let (Some(a), Some(b)) = (found.kid, wanted.kid) {
        let error = if same { 0.0 } else { kid_error(pair, &real.seen, compute)? };
        let margin = if network.inception { kid_margin(b) } else { relative_margin(b) };
        gates.push(explained(tested("KID", b, a, equivalence(a - b, error, margin)?), parted));
    }
    Ok(gates)
}

/// Standard error of the difference of two distances to the same real images, from their influence functions.
fn distance_error(pair: &PairedActivations, real: &Real, compute: &Compute) -> Result<f64, MetricError> {
    let influence = |set: &Activations| -> Result<Vec<f64>, MetricError> {
        let influence = FrechetInfluence::new(&moments(set, compute)?, &real.moments, compute)?;
        influence.rows(rows(set)?, compute)
    };
    paired_standard_error(&influence(&pair.found)?, &influence(&pair.reference)?)
}

fn kid_error(pair: &PairedActivations, real: &Activations, compute: &Compute) -> Result<f64, MetricError> {
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
    use dpar_engine_api::ArithmeticKind;
    use dpar_export_compare::decision::DecisionKind;
    use dpar_export_spec::Precision;

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

    fn half() -> Rounding {
        Rounding::between(Precision::Fp32, Precision::Fp16, ArithmeticKind::AsGraph)
    }

    fn parted(flips: &[Decision], of: usize, rounding: Rounding) -> DivergedStreams<'_> {
        DivergedStreams { flips, of, slots: 64, rounding, sampler: SamplerOptions::default() }
    }

    #[test]
    fn a_defect_fails_float32_and_leaves_lower_precisions_to_the_distances() {
        let verdict = |flips: &[Decision], of, rounding, distances: &[Gate]| {
            streams(parted(flips, of, rounding), distances).verdict
        };
        let exact = |flips: &[Decision]| verdict(flips, 4, Rounding::FP32, &[]);
        assert_eq!((exact(&[]), exact(&[flip(true)])), (Verdict::Pass, Verdict::Pass));
        assert_eq!(exact(&[flip(true), flip(false)]), Verdict::Fail);
        assert_eq!(exact(&[(); 4].map(|()| flip(true))), Verdict::Inconclusive, "no stream is whole");
        // Without distances nothing decides, and no verdict is a pass.
        let gate = streams(parted(&[flip(false)], 16, half()), &[]);
        assert!(gate.verdict == Verdict::Inconclusive && gate.detail.contains("--extractor"), "{gate:?}");
        for decided in [Verdict::Pass, Verdict::Inconclusive, Verdict::Fail] {
            let distance = [Gate::new("FID", decided)];
            assert_eq!(verdict(&[flip(false)], 16, half(), &distance), decided);
            assert_eq!(verdict(&[flip(true)], 16, half(), &distance), Verdict::Pass);
            assert_eq!(verdict(&[flip(false)], 16, Rounding::FP32, &distance), Verdict::Fail);
        }
        // 2 % of the decisions up to slot 3 of 16 streams are 2: so many near-ties are not explained either.
        let all: Vec<Decision> = (0..16).map(|_| flip(true)).collect();
        let gate = |distances: &[Gate]| streams(parted(&all, 16, half()), distances);
        assert!(gate(&[]).verdict == Verdict::Inconclusive && gate(&[]).detail.contains("more than the 2"));
        assert_eq!(gate(&[Gate::new("FID", Verdict::Pass)]).verdict, Verdict::Pass);
        assert_eq!(labels(1, 4).verdict, Verdict::Fail);
    }

    #[test]
    fn steps_are_tested_in_pairs() {
        let reference: Vec<usize> = (0..64).map(|i| 30 + i % 13).collect();
        let steps = |found: &[usize]| steps(found, &reference, parted(&[], 64, Rounding::FP32)).unwrap();
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
        let by = |found: &[usize], flips: &[Decision], rounding| {
            super::steps(found, &reference, parted(flips, 64, rounding)).unwrap().verdict
        };
        let exact = Rounding::FP32;
        let with = |found: &[usize], near_tie| by(found, &[flip(near_tie)], exact);
        assert_eq!((with(&noisy, true), with(&noisy, false)), (Verdict::Pass, Verdict::Inconclusive));
        assert_eq!(with(&fewer, true), Verdict::Fail);
        // Three of 64 streams are 5 %; four are more than rounding does, and a half type's near-ties explain anything.
        let ties = |n: usize| (0..n).map(|_| flip(true)).collect::<Vec<_>>();
        assert_eq!(
            (by(&noisy, &ties(3), exact), by(&noisy, &ties(4), exact)),
            (Verdict::Pass, Verdict::Inconclusive)
        );
        assert_eq!(by(&noisy, &ties(1), half()), Verdict::Inconclusive);
        let few = |flips: &[Decision], of| parted(flips, of, exact).explains();
        assert!(few(&ties(1), 8) && !few(&ties(2), 8), "one stream may part however few there are");
        assert!(!few(&[], 8));
    }
}
