//! Decision-level comparison: which slot decided otherwise, and whether rounding explains it.

use dpar_export_decode::generate::Stream;
use dpar_export_decode::generate::sampler::{Method, SampleError, Sampler, SamplerOptions, image_key};
use dpar_export_decode::replay::Replay;
use dpar_export_spec::PatchRule;

use super::report::{Decisions, Mode};
use crate::check::mean;
use crate::decision::{Decision, DecisionKind, Observed, Widths, first_apart, starts};
use crate::stats::Accumulator;
use crate::tolerance::{Limit, Quantity, Rounding, guidance_gain};

/// Largest errors between two sources that are no failure, |a − b|: the measure that the table has for them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairTolerance {
    pub(crate) entropy: Limit,
    /// Of the logits that are compared, guided or not.
    pub(crate) logits: Limit,
}

/// Sizes and rule of what is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComparedSizes<'a> {
    pub(crate) rule: &'a PatchRule,
    pub(crate) tokens: usize,
    pub(crate) vocab: usize,
    pub(crate) seed: u64,
    /// How tokens are drawn.
    pub(crate) sampler: SamplerOptions,
    /// How the two round.
    pub(crate) rounding: Rounding,
    /// Guidance of the logits that are compared; 1 for conditional ones.
    pub(crate) cfg_scale: f32,
}

impl ComparedSizes<'_> {
    pub(crate) fn tolerance(&self) -> PairTolerance {
        PairTolerance {
            entropy: self.rounding.limit(Quantity::Entropy),
            logits: self.rounding.limit(Quantity::Logits).scaled(guidance_gain(self.cfg_scale)),
        }
    }

    fn widths(&self, observed: Observed) -> Widths {
        Widths::new(self.rounding, self.rule, self.cfg_scale, observed).of_draws(&self.sampler)
    }
}

/// A teacher-forced comparison.
pub(crate) struct Compared {
    pub(crate) observed: Observed,
    pub(crate) entropy: Accumulator,
    pub(crate) logits: Accumulator,
    pub(crate) decisions: Decisions,
}

/// Compares two sources over the same tokens, each image up to its first boundary flip: what follows has other patches.
/// `guided`: compare the logits that decide, and not the conditional ones.
pub(crate) fn teacher_forced(
    sizes: ComparedSizes<'_>,
    a: &Replay,
    b: &Replay,
    guided: bool,
) -> Result<Compared, SampleError> {
    let tolerance = sizes.tolerance();
    let (t, vocab) = (sizes.tokens, sizes.vocab);
    let n = a.patch_lengths.len().min(b.patch_lengths.len());
    let pick = |r: &Replay| if guided { r.deciding().to_vec() } else { r.conditional.clone() };
    let (logits_a, logits_b) = (pick(a), pick(b));
    let mut entropy = Accumulator::default();
    let mut logits = Accumulator::default();
    let mut draw_error = None::<f64>;
    let mut entropy_error = None::<f64>;
    let mut logit_error = None::<f64>;
    let mut flips = Vec::new();
    let mut first_off = vec![None; n];
    let mut slots = 0;
    let mut draw = Draws::new(sizes)?;
    for (image, (x, y)) in a.patch_lengths.iter().zip(&b.patch_lengths).enumerate() {
        let starts = [starts(x), starts(y)];
        for slot in 0..t {
            let at = image * t + slot;
            let e = [a.entropy[at], b.entropy[at]];
            let mut off = false;
            if e.iter().all(|e| !e.is_nan()) {
                off |= !tolerance.entropy.holds(entropy.add(&e[..1], &e[1..]));
            }
            if starts[0].get(slot) != starts[1].get(slot) {
                let opens = starts[0].get(slot) == Some(&true);
                let entropy = [a, b].map(|r| &r.entropy[image * t..(image + 1) * t]);
                flips.push(Decision::boundary(sizes.rule, image, slot, opens, entropy));
                first_off[image].get_or_insert(slot);
                break;
            }
            slots += 1;
            if e.iter().all(|e| !e.is_nan()) {
                raise(&mut entropy_error, f64::from((e[0] - e[1]).abs()));
            }
            let range = at * vocab..(at + 1) * vocab;
            let (x, y) = (&logits_a[range.clone()], &logits_b[range]);
            off |= !tolerance.logits.holds(logits.add(x, y));
            if off {
                first_off[image].get_or_insert(slot);
            }
            let found = draw.both(x, y, image, slot)?;
            if found.flips.is_empty() {
                raise(&mut draw_error, found.error);
                raise(&mut logit_error, largest(x, y));
            }
            flips.extend(found.flips);
        }
    }
    let observed = Observed { entropy: entropy_error, logit: logit_error, draw: draw_error };
    let widths = sizes.widths(observed);
    let flips: Vec<Decision> = flips.into_iter().map(|f| f.judged(&widths)).collect();
    let parted: std::collections::BTreeSet<usize> = flips.iter().map(|f| f.image).collect();
    let steps = [a, b].map(|r| mean(r.patch_lengths[..n].iter().map(Vec::len)));
    let equal = n - parted.len();
    let mode = Mode::TeacherForced;
    let (ties_allowed, expected) = (None, None);
    let mut decisions = Decisions {
        mode,
        images: n,
        equal,
        slots,
        mean_steps: steps,
        first_off,
        ties_allowed,
        expected,
        flips,
    };
    if sizes.rule.mode.uses_entropy() {
        decisions.expected = sizes.rounding.boundaries_moved(decisions.compared());
    }
    Ok(Compared { observed, entropy, logits, decisions })
}

/// Compares two sets of free-running streams of the same requests, each image up to its first divergence.
/// `gap(image, slot, choices)`: the margin of a draw, see [`draw_gap`].
pub(crate) fn free_running(
    sizes: ComparedSizes<'_>,
    a: &[Stream],
    b: &[Stream],
    observed: &Observed,
    gap: &mut dyn FnMut(usize, usize, [u32; 2]) -> Option<f64>,
) -> Decisions {
    let widths = sizes.widths(*observed);
    let pairs = a.iter().zip(b).enumerate();
    let flips: Vec<Decision> = pairs
        .filter_map(|(image, (a, b))| {
            let margin = &mut |slot: usize, _| gap(image, slot, [a, b].map(|s| s.tokens[slot]));
            first_apart(sizes.rule, &widths, (image, DecisionKind::Draw), [&a.into(), &b.into()], margin)
        })
        .collect();
    let n = a.len().min(b.len());
    let mut first_off = vec![None; n];
    flips.iter().for_each(|flip| first_off[flip.image] = Some(flip.slot));
    let lengths = a[..n].iter().map(|s| s.tokens.len());
    let slots = lengths.zip(&first_off).map(|(all, off)| off.unwrap_or(all)).sum();
    let steps = [a, b].map(|s| mean(s[..n].iter().map(Stream::steps)));
    let (mode, equal, ties_allowed, expected) = (Mode::FreeRunning, n - flips.len(), None, None);
    Decisions { mode, images: n, equal, slots, mean_steps: steps, first_off, ties_allowed, expected, flips }
}

fn raise(largest: &mut Option<f64>, value: f64) {
    *largest = Some(largest.unwrap_or(0.0).max(value));
}

fn largest(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

/// Draws and arg-maxes of two sources at one slot.
struct Draws {
    sampled: Sampler,
    greedy: Sampler,
    seed: u64,
}

struct DrawFlips {
    flips: Vec<Decision>,
    /// Largest difference of what draws hang on: guided logits, or the cumulative distributions.
    error: f64,
}

impl Draws {
    fn new(sizes: ComparedSizes<'_>) -> Result<Self, SampleError> {
        Ok(Self {
            sampled: Sampler::new(sizes.sampler)?,
            greedy: Sampler::new(SamplerOptions { greedy: true, ..SamplerOptions::default() })?,
            seed: sizes.seed,
        })
    }

    fn both(&mut self, a: &[f32], b: &[f32], image: usize, slot: usize) -> Result<DrawFlips, SampleError> {
        let (key, at) = (image_key(self.seed, image as u64), slot as u64);
        let options = *self.sampled.options();
        let mut flips = Vec::new();
        for (sampler, kind) in
            [(&mut self.sampled, DecisionKind::Draw), (&mut self.greedy, DecisionKind::ArgMax)]
        {
            let (x, y) = (sampler.draw_at(a, key, at)?, sampler.draw_at(b, key, at)?);
            if x.token != y.token {
                let tokens = [x.token, y.token];
                let margin = draw_gap(sampler.options(), [a, b], tokens, (key, at))?;
                flips.push(Decision::open(kind, image, slot, tokens.map(i64::from), margin));
            }
        }
        let error = match options.method {
            Method::Gumbel => largest(a, b),
            Method::Cdf => {
                let sums = self.sampled.distribution(a)?.to_vec();
                let pairs = sums.iter().zip(self.sampled.distribution(b)?);
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
            }
        };
        Ok(DrawFlips { flips, error })
    }
}

/// How far two sources are from choosing each other's token at the slot of an image with that key, of both the larger: a third
/// token that ties with one of them explains nothing. `None` where no rounding could make it.
///
/// # Errors
/// When nothing can be drawn from the logits.
pub(crate) fn draw_gap(
    options: &SamplerOptions,
    [a, b]: [&[f32]; 2],
    [x, y]: [u32; 2],
    place: (u64, u64),
) -> Result<Option<f64>, SampleError> {
    let gap = options.distance(a, y, place)?.max(options.distance(b, x, place)?);
    Ok(gap.is_finite().then_some(gap))
}

#[cfg(test)]
mod tests {
    use dpar_export_spec::PatchMode;

    use super::*;

    fn rule() -> PatchRule {
        PatchRule { mode: PatchMode::Entropy, threshold: Some(2.0), ..PatchRule::per_token(4) }
    }

    fn replay(lengths: &[usize], entropy: &[f32], logits: &[f32]) -> Replay {
        Replay {
            patch_lengths: vec![lengths.to_vec()],
            entropy: entropy.to_vec(),
            conditional: logits.to_vec(),
            guided: None,
        }
    }

    fn cdf() -> SamplerOptions {
        SamplerOptions { method: Method::Cdf, ..SamplerOptions::default() }
    }

    fn sizes(rule: &PatchRule) -> ComparedSizes<'_> {
        let (rounding, sampler) = (Rounding::FP32, cdf());
        ComparedSizes { rule, tokens: 4, vocab: 2, seed: 0, sampler, rounding, cfg_scale: 1.0 }
    }

    fn compare(a: &Replay, b: &Replay) -> Compared {
        let rule = rule();
        teacher_forced(sizes(&rule), a, b, true).unwrap()
    }

    const EVEN: [f32; 8] = [0.0, 3.0, 0.0, 3.0, 0.0, 3.0, 0.0, 3.0];

    #[test]
    fn a_boundary_flip_is_held_against_the_errors_seen_elsewhere() {
        let a = replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.000_001], &EVEN);
        let near = replay(&[1, 1, 2], &[f32::NAN, 2.500_001, 2.5, 1.999_999], &EVEN);
        let compared = compare(&a, &near);
        let flip = &compared.decisions.flips[0];
        assert!((flip.slot, flip.reference, flip.found) == (3, 1, 0) && flip.near_tie, "{flip:?}");
        assert_eq!((compared.decisions.slots, compared.decisions.equal), (3, 0));
        // The same margin where all other entropies agree to the last bit.
        let exact = replay(&[1, 1, 2], &[f32::NAN, 2.5, 2.5, 1.999_999], &EVEN);
        assert!(!compare(&a, &exact).decisions.flips[0].near_tie);
        // Entropies on one side of the threshold: another rule was applied.
        let other = replay(&[1, 1, 2], &[f32::NAN, 2.500_001, 2.5, 2.000_001], &EVEN);
        let flip = compare(&a, &other).decisions.flips.remove(0);
        assert_eq!((flip.margin, flip.near_tie), (None, false));
    }

    /// As `verify` measures: an entropy of 4.3 may not be off by more than one of 0 may.
    #[test]
    fn a_slot_is_off_by_the_distance_alone() {
        let lengths = [1, 1, 1, 1];
        let a = replay(&lengths, &[f32::NAN, 4.3, 4.3, 4.3], &EVEN);
        let b = replay(&lengths, &[f32::NAN, 4.3, 4.3005, 4.3], &EVEN);
        let compared = compare(&a, &b);
        assert_eq!(compared.decisions.first_off, [Some(2)]);
        let limit = Rounding::FP32.limit(Quantity::Entropy);
        assert_eq!(compared.entropy.absolute("entropy", limit).status, crate::status::Status::Fail);
        let mut far = EVEN;
        far[1] = 3.0 + 4e-4;
        let compared = compare(&a, &replay(&lengths, &a.entropy, &far));
        assert_eq!(compared.decisions.first_off, [Some(0)]);
    }

    #[test]
    fn an_arg_max_far_from_a_tie_is_a_defect() {
        let a = replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.5], &EVEN);
        let mut swapped = EVEN;
        swapped[4..6].copy_from_slice(&[3.0, 0.0]);
        let b = replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.5], &swapped);
        let compared = compare(&a, &b);
        let flip = compared.decisions.flips.iter().find(|f| f.kind == DecisionKind::ArgMax).unwrap();
        assert_eq!((flip.slot, flip.reference, flip.found, flip.near_tie), (2, 1, 0, false));
        assert_eq!(compared.decisions.first_off, [Some(2)]);
        assert_eq!(compared.observed.logit, Some(0.0));
        let mut near = EVEN;
        near[0] = 1e-6;
        let compared = compare(&a, &replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.5], &near));
        assert!(compared.decisions.flips.is_empty() && compared.decisions.first_off == [None]);
        assert_eq!(compared.observed.logit, Some(f64::from(1e-6_f32)));
    }

    #[test]
    fn free_streams_are_compared_up_to_their_first_divergence() {
        let stream = |tokens: &[u32], lengths: &[usize], margin: f32| Stream {
            request: dpar_export_decode::generate::Request { index: 0, class: 0 },
            tokens: tokens.to_vec(),
            patch_lengths: lengths.to_vec(),
            entropy: vec![f32::NAN, 2.5, 2.5, 1.0],
            margin: vec![margin; 4],
        };
        let observed = Observed { entropy: Some(1e-6), logit: None, draw: Some(1e-7) };
        let a = [stream(&[0, 1, 0, 1], &[1, 1, 2], 1e-7)];
        let b = [stream(&[0, 1, 1, 0], &[1, 1, 2], 1e-3)];
        let with = |margin| {
            let gap = &mut |image, slot, tokens| {
                assert_eq!((image, slot, tokens), (0, 2, [0, 1]));
                margin
            };
            free_running(sizes(&rule()), &a, &b, &observed, gap)
        };
        let found = with(Some(1e-7));
        assert_eq!((found.flips.len(), found.slots), (1, 2));
        assert!(found.flips[0].near_tie);
        for margin in [Some(1e-3), None] {
            assert!(!with(margin).flips[0].near_tie);
        }
        let found = free_running(sizes(&rule()), &a, &a, &observed, &mut |_, _, _| None);
        assert_eq!((found.flips.len(), found.equal, found.slots), (0, 1, 4));
    }

    #[test]
    fn a_margin_is_between_the_two_chosen_tokens() {
        // 0 and 1 tie in both; one source chose 2, which is far behind.
        let (a, b) = ([3.0, 3.000_001, 0.0], [3.000_001, 3.0, 0.0]);
        let greedy = SamplerOptions { greedy: true, ..SamplerOptions::default() };
        let gap = |other: &[f32], tokens| draw_gap(&greedy, [&a, other], tokens, (0, 0)).unwrap().unwrap();
        assert!(gap(&b, [1, 0]) < 2e-6);
        assert_eq!(gap(&[3.0, 3.0, 3.5], [1, 2]), f64::from(3.000_001_f32));
    }
}
