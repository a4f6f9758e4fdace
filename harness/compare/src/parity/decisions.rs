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
mod tests;
