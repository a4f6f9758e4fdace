//! A decision that two sources make otherwise, and the one rule that says whether rounding explains it: its margin is known,
//! and within the width of near-ties, which the table of tolerances has for how the two round, and which is no more than
//! what the two were seen to differ by, where that was measured.

use std::borrow::Cow;

use dpar_export_decode::generate::Stream;
use dpar_export_decode::generate::sampler::{Method, SamplerOptions};
use dpar_export_spec::PatchRule;
use serde::Serialize;

use crate::status::Status;
use crate::tolerance::{Quantity, Rounding, guidance_width};

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// Whether a token opens a patch; choices are 1 and 0.
    Boundary,
    /// Which token is drawn.
    Draw,
    /// Which token has the largest guided logit.
    ArgMax,
    /// Which code an image region gets.
    Code,
}

impl std::fmt::Display for DecisionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Boundary => "boundary",
            Self::Draw => "draw",
            Self::ArgMax => "arg-max",
            Self::Code => "code",
        })
    }
}

/// A decision that differs, with what it hung on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Which decision.
    #[serde(rename = "decision")]
    pub kind: DecisionKind,
    /// Image, counted from 0.
    pub image: usize,
    /// Slot.
    pub slot: usize,
    /// Choice of the reference, or of the baseline.
    pub reference: i64,
    /// Choice of the engine.
    pub found: i64,
    /// The entropies of both that decided a boundary; null where one is not known.
    pub entropy: Option<[f32; 2]>,
    /// Threshold of a boundary.
    pub threshold: Option<f32>,
    /// Boundaries: distance of the entropy to the threshold in nats, of two the smaller. Tokens: how far a source is from the
    /// other's choice, in guided logits or probability, of two the larger ([`SamplerOptions::distance`]). Null where no rounding
    /// could change the decision, or nothing is known.
    pub margin: Option<f64>,
    /// A margin below this is a near-tie.
    pub limit: f64,
    /// Whether rounding explains it; else it is a defect.
    pub near_tie: bool,
}

impl Decision {
    /// One that is not judged yet; `choices` are those of the reference and of the engine.
    pub(crate) fn open(
        kind: DecisionKind,
        image: usize,
        slot: usize,
        choices: [i64; 2],
        margin: Option<f64>,
    ) -> Self {
        let [reference, found] = choices;
        let (entropy, threshold) = (None, None);
        Self { kind, image, slot, reference, found, entropy, threshold, margin, limit: 0.0, near_tie: false }
    }

    /// A boundary that only one source sees, `entropy[i]` holding e_t at t, empty where a source recorded none. It has a margin
    /// where each entropy is on that side of the threshold that its source says; where it is not, another rule or another
    /// patch length was applied, which no rounding explains.
    pub(crate) fn boundary(
        rule: &PatchRule,
        image: usize,
        slot: usize,
        reference_opens: bool,
        entropy: [&[f32]; 2],
    ) -> Self {
        let at = |e: &[f32], t: Option<usize>| t.and_then(|t| e.get(t)).copied().unwrap_or(f32::NAN);
        let opens = [reference_opens, !reference_opens];
        let mut margin: Option<f64> = None;
        let mut explained = true;
        for (entropy, opens) in entropy.iter().zip(opens) {
            let own = f64::from(rule.margin(slot, at(entropy, Some(slot)), at(entropy, slot.checked_sub(1))));
            if !own.is_nan() {
                explained &= own.is_finite() && (own > 0.0) == opens;
                margin = Some(margin.map_or(own.abs(), |other| other.min(own.abs())));
            }
        }
        let both = entropy.map(|e| at(e, Some(slot)));
        Self {
            entropy: both.iter().all(|e| e.is_finite()).then_some(both),
            threshold: rule.threshold,
            ..Self::open(
                DecisionKind::Boundary,
                image,
                slot,
                opens.map(i64::from),
                margin.filter(|_| explained),
            )
        }
    }

    /// Holds the margin against the width of near-ties.
    pub(crate) fn judged(mut self, widths: &Widths) -> Self {
        self.limit = match self.kind {
            DecisionKind::Boundary => widths.boundary,
            DecisionKind::Draw => widths.draw,
            DecisionKind::ArgMax => widths.arg_max,
            // No graph gives its margin: a share of codes may differ.
            DecisionKind::Code => 0.0,
        };
        self.near_tie = self.margin.is_some_and(|margin| margin.abs() < self.limit);
        self
    }

    /// What each of the two chose, in words.
    pub fn choices(&self) -> [String; 2] {
        let word = |choice: i64, entropy: Option<f32>| match self.kind {
            DecisionKind::Boundary => {
                let word = if choice == 1 { "opens" } else { "stays" };
                entropy.map_or_else(|| word.to_owned(), |e| format!("{word} (e = {e})"))
            }
            DecisionKind::Draw | DecisionKind::ArgMax | DecisionKind::Code => choice.to_string(),
        };
        [word(self.reference, self.entropy.map(|e| e[0])), word(self.found, self.entropy.map(|e| e[1]))]
    }

    /// The margin with the width of near-ties, in words.
    pub fn measured(&self) -> String {
        match self.margin {
            Some(margin) => format!("{margin:.2e}, near-tie below {:.1e}", self.limit),
            None => "none: no rounding explains it".to_owned(),
        }
    }

    /// What it is.
    pub fn word(&self) -> &'static str {
        if self.near_tie { "near-tie" } else { "DEFECT" }
    }
}

/// Largest numeric errors between two sources, at slots where they decided alike; null where nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Observed {
    /// Of an entropy, nats.
    pub entropy: Option<f64>,
    /// Of a guided logit.
    pub logit: Option<f64>,
    /// Of what a draw hangs on: a guided logit, with `--sampler cdf` a cumulative probability.
    pub draw: Option<f64>,
}

/// How wide near-ties are between two sources.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widths {
    boundary: f64,
    draw: f64,
    arg_max: f64,
}

impl Widths {
    /// For sources that round so, and were seen to differ so.
    pub(crate) fn new(rounding: Rounding, rule: &PatchRule, cfg_scale: f32, observed: Observed) -> Self {
        // A rise is a difference of two entropies.
        let terms = if rule.monotonicity { 2.0 } else { 1.0 };
        let width = |quantity, factor: f64, seen: Option<f64>| {
            rounding.limit(quantity).scaled(factor).seen(seen).value()
        };
        let guided = guidance_width(cfg_scale);
        Self {
            boundary: width(Quantity::Boundary, terms, observed.entropy.map(|e| e * terms)),
            draw: width(Quantity::Draw, guided, observed.draw),
            arg_max: width(Quantity::ArgMax, guided, observed.logit),
        }
    }

    /// For tokens that are drawn so. With noise a draw is the largest of sums with the same noise on both sides, and what is
    /// left is the gap of two logits over the temperature.
    pub(crate) fn of_draws(self, sampler: &SamplerOptions) -> Self {
        match sampler.method {
            Method::Cdf => self,
            Method::Gumbel => Self { draw: self.arg_max / f64::from(sampler.divisor()), ..self },
        }
    }
}

/// How two sources round, where tokens are drawn so: what says how many of the draws may be near-ties.
pub fn drawn_so(rounding: Rounding, sampler: &SamplerOptions) -> Rounding {
    match sampler.method {
        Method::Cdf if !sampler.greedy => rounding.of_running_sums(),
        _ => rounding,
    }
}

/// Two sources' decisions for one image.
pub(crate) struct Trace<'a> {
    pub(crate) tokens: Cow<'a, [i64]>,
    /// Patch lengths; `None` = as the other's.
    pub(crate) lengths: Option<&'a [usize]>,
    /// e_t at t; empty where none is known.
    pub(crate) entropy: &'a [f32],
}

impl<'a> From<&'a Stream> for Trace<'a> {
    fn from(stream: &'a Stream) -> Self {
        Self {
            tokens: stream.tokens.iter().map(|t| i64::from(*t)).collect(),
            lengths: Some(&stream.patch_lengths),
            entropy: &stream.entropy,
        }
    }
}

/// The first decision of an image in which two sources part, judged; everything later follows from it.
/// `margin(slot, choices)`: of a token.
pub(crate) fn first_apart(
    rule: &PatchRule,
    widths: &Widths,
    (image, kind): (usize, DecisionKind),
    [a, b]: [&Trace<'_>; 2],
    margin: &mut dyn FnMut(usize, [i64; 2]) -> Option<f64>,
) -> Option<Decision> {
    let starts = [a.lengths.or(b.lengths), b.lengths.or(a.lengths)].map(|l| starts(l.unwrap_or_default()));
    for (slot, (x, y)) in a.tokens.iter().zip(b.tokens.iter()).enumerate() {
        if starts[0].get(slot) != starts[1].get(slot) {
            let opens = starts[0].get(slot) == Some(&true);
            let flip = Decision::boundary(rule, image, slot, opens, [a.entropy, b.entropy]);
            return Some(flip.judged(widths));
        }
        if x != y {
            let choices = [*x, *y];
            let flip = Decision::open(kind, image, slot, choices, margin(slot, choices));
            return Some(flip.judged(widths));
        }
    }
    None
}

/// What the number of near-ties comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Ties {
    /// Pass where there are no more than rounding makes, and one image is compared to its end.
    pub status: Status,
    /// Decisions compared.
    pub compared: usize,
    /// How many may differ by the table; `None` = any number.
    pub allowed: Option<usize>,
    /// What is wrong.
    pub why: Option<String>,
}

impl Ties {
    /// Of `images` streams of `slots` slots, each compared up to its first decision that differs, one of `flips`: a defect
    /// among them counts like a near-tie.
    pub fn of_streams(rounding: Rounding, flips: &[Decision], (images, slots): (usize, usize)) -> Self {
        let skipped: usize = flips.iter().map(|f| slots.saturating_sub(f.slot + 1)).sum();
        let compared = (images * slots).saturating_sub(skipped);
        Self::count(rounding, (flips.len(), images), (flips.len(), compared))
    }

    /// Of `compared` decisions `ties` differ by rounding, and the comparison of `ended` of `images` images ended at one.
    pub(crate) fn count(
        rounding: Rounding,
        (ended, images): (usize, usize),
        (ties, compared): (usize, usize),
    ) -> Self {
        let allowed = rounding.ties(compared);
        let (status, why) = match allowed {
            Some(allowed) if ties > allowed => (
                Status::Fail,
                Some(format!(
                    "{ties} near-ties in {compared} decisions are more than the {allowed} that rounding explains"
                )),
            ),
            _ if images > 0 && ended >= images => (
                Status::Inconclusive,
                Some(
                    "no image is compared to its end: every one parts at a near-tie; take more images"
                        .to_owned(),
                ),
            ),
            _ => (Status::Pass, None),
        };
        Self { status, compared, allowed, why }
    }
}

/// Whether each token opens a patch.
pub(crate) fn starts(lengths: &[usize]) -> Vec<bool> {
    lengths.iter().flat_map(|l| (0..*l).map(|k| k == 0)).collect()
}

#[cfg(test)]
mod tests {
    use dpar_export_spec::{PatchMode, Precision};

    use super::*;

    fn rule() -> PatchRule {
        PatchRule { mode: PatchMode::Entropy, threshold: Some(2.0), ..PatchRule::per_token(4) }
    }

    #[test]
    fn a_decision_is_a_near_tie_only_below_its_limit() {
        let widths = Widths { boundary: 0.0, draw: 1e-5, arg_max: 0.0 };
        let near = |kind, margin| Decision::open(kind, 0, 3, [1, 2], margin).judged(&widths).near_tie;
        assert!(near(DecisionKind::Draw, Some(9e-6)) && near(DecisionKind::Draw, Some(-9e-6)));
        for margin in [Some(1e-5), None, Some(f64::NAN)] {
            assert!(!near(DecisionKind::Draw, margin), "{margin:?}");
        }
        // Sources that agree to the last bit have none.
        assert!(!near(DecisionKind::ArgMax, Some(0.0)));
    }

    #[test]
    fn one_rule_takes_the_table_and_what_was_seen() {
        let rising = PatchRule { monotonicity: true, ..rule() };
        let seen = Observed { entropy: Some(1e-6), logit: Some(1.0), draw: None };
        let widths = Widths::new(Rounding::FP32, &rule(), 2.0, seen);
        assert_eq!((widths.boundary, widths.arg_max, widths.draw), (4e-6, 5e-5, 1e-5));
        assert_eq!(Widths::new(Rounding::FP32, &rising, 2.0, seen).boundary, 8e-6);
        assert_eq!(Widths::new(Rounding::FP32, &rising, 2.0, Observed::default()).boundary, 4e-5);
        assert_eq!(Widths::new(Rounding::FP32, &rule(), 3.5, seen).arg_max, 1e-4);
        let sampler = SamplerOptions { temperature: 0.5, ..SamplerOptions::default() };
        assert_eq!(widths.of_draws(&sampler).draw, 1e-4);
        let cdf = SamplerOptions { method: Method::Cdf, ..sampler };
        assert_eq!(widths.of_draws(&cdf).draw, 1e-5);
    }

    #[test]
    fn a_boundary_is_explained_where_each_entropy_says_what_its_source_says() {
        let nan = f32::NAN;
        let margin = |a: &[f32], b: &[f32]| Decision::boundary(&rule(), 0, 3, true, [a, b]).margin;
        let (above, below) = ([nan, 2.5, 2.5, 2.25], [nan, 2.5, 2.5, 1.875]);
        assert_eq!(margin(&above, &below), Some(0.125));
        assert_eq!((margin(&[], &below), margin(&above, &[])), (Some(0.125), Some(0.25)));
        assert_eq!((margin(&above, &above), margin(&[], &above), margin(&[], &[])), (None, None, None));
        let flip = Decision::boundary(&rule(), 0, 3, true, [&above, &below]);
        assert_eq!((flip.entropy, flip.threshold), (Some([2.25, 1.875]), Some(2.0)));
        assert_eq!(flip.choices(), ["opens (e = 2.25)", "stays (e = 1.875)"]);
    }

    #[test]
    fn more_near_ties_than_the_precision_allows_fail_and_none_to_the_end_is_inconclusive() {
        let fp16 =
            Rounding::between(Precision::Fp32, Precision::Fp16, dpar_engine_api::ArithmeticKind::AsGraph);
        // 2 % of 100 decisions.
        let count = |rounding, ended, ties| Ties::count(rounding, (ended, 4), (ties, 100));
        assert_eq!((count(fp16, 3, 2).status, count(fp16, 3, 2).allowed), (Status::Pass, Some(2)));
        // So few may be near-ties; but nobody saw how an image ends.
        assert_eq!(count(fp16, 4, 2).status, Status::Inconclusive);
        let three = count(fp16, 3, 3);
        assert_eq!(three.status, Status::Fail);
        assert!(
            three.why.is_some_and(|why| why.contains("3 near-ties in 100 decisions are more than the 2"))
        );
        assert_eq!(count(Rounding::FP32, 3, 50).status, Status::Pass);
        let none = count(Rounding::FP32, 4, 4);
        assert_eq!((none.status, none.allowed), (Status::Inconclusive, None));
        assert_eq!(Ties::count(Rounding::FP32, (0, 0), (0, 0)).status, Status::Pass, "nothing ended");
        assert!(none.why.is_some_and(|why| why.contains("take more images")));
    }
}
