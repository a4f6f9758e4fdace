//! Entropies around the threshold.
//!
//! The logits of the entropy model are a·x·z_v (and a little noise): z_v is fixed for token v, uniform with variance 1, and x is
//! the component of the last, normalised state along a fixed direction, about N(0, 1) over tokens whose embeddings are
//! random. So the entropy falls from ln V as |x| grows, and crosses the threshold at some |a·x|: `gain` a sets how often.

use dpar_export_spec::PatchRule;

use super::{Synth, problem};
use crate::CheckpointError;

/// How the output weights of an entropy model spread its entropies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// a.
    pub(super) gain: f64,
}

/// Bisection steps: intervals of 100 shrink below f64's precision.
const HALVINGS: usize = 64;
/// No threshold lies where logits of this deviation are needed.
const WIDEST: f64 = 1e6;

impl Spread {
    /// The gain at which images need `synth.steps` patches on average.
    pub(super) fn solve(synth: &Synth) -> Result<Self, CheckpointError> {
        let (rule, grid) = (synth.rule(), synth.grid());
        rule.validate().map_err(|e| problem(e.to_string()))?;
        let tokens = grid * grid;
        let (fewest, most) = (mean_patches(&rule, tokens, 0.0), mean_patches(&rule, tokens, 1.0));
        if !(fewest < synth.steps && synth.steps < most) {
            return Err(problem(format!(
                "{} steps cannot come out: {tokens} tokens make {fewest} to {most} patches of at most {} tokens",
                synth.steps, synth.max_patch_length
            )));
        }
        let nats = f64::from(synth.threshold);
        let top = (synth.vocab as f64).ln();
        if !(0.0 < nats && nats < top) {
            return Err(problem(format!(
                "a threshold of {nats} nats is not below the largest entropy of {} codes, {top:.3}",
                synth.vocab
            )));
        }
        let open = bisect(0.0, 1.0, |p| mean_patches(&rule, tokens, p) < synth.steps);
        // The deviation of the logits at the threshold, and the |x| that it shall lie at.
        let deviation = bisect(0.0, WIDEST, |s| top - loss(s) > nats);
        let x = bisect(0.0, 40.0, |x| libm::erf(x / std::f64::consts::SQRT_2) < open);
        Ok(Self { gain: deviation / x })
    }
}

/// Where an increasing condition turns false.
fn bisect(mut low: f64, mut high: f64, below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if below(middle) { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Nats that the entropy of softmax(s·z) lies below its maximum, z uniform with variance 1 (the density of many codes):
/// s·(ln Z)' − ln Z with Z = sinh(√3 s)/(√3 s).
fn loss(s: f64) -> f64 {
    let w = 3.0_f64.sqrt() * s;
    if w < 1e-3 {
        return 0.5 * s * s;
    }
    // ln sinh w and w coth w without overflow.
    let e = (-2.0 * w).exp();
    let ln_sinh = w + (-e).ln_1p() - std::f64::consts::LN_2;
    w * (1.0 + e) / (1.0 - e) - 1.0 - (ln_sinh - w.ln())
}

/// The mean number of patches where each token's entropy lies above the threshold with probability `open`, independently.
fn mean_patches(rule: &PatchRule, tokens: usize, open: f64) -> f64 {
    let longest = rule.longest_patch(tokens);
    // Probability that the open patch holds so many tokens, index 0: none yet.
    let mut lengths = vec![0.0; longest + 1];
    lengths[0] = 1.0;
    let mut patches = 0.0;
    for t in 0..tokens {
        let mut next = vec![0.0; longest + 1];
        for (length, weight) in lengths.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            // An entropy above any threshold, and one below: the rule itself says what follows.
            let opens = |e: f32| rule.opens(t, length, e, f32::NAN) || length == 0;
            let probability = match (opens(f32::INFINITY), opens(f32::NEG_INFINITY)) {
                (true, true) => 1.0,
                (true, false) => open,
                _ => 0.0,
            };
            patches += weight * probability;
            next[1] += weight * probability;
            if let Some(longer) = next.get_mut(length + 1) {
                *longer += weight * (1.0 - probability);
            }
        }
        lengths = next;
    }
    patches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_that_of_a_softmax_over_uniform_logits() {
        for s in [0.3, 1.0, 4.0, 9.0] {
            let n = 100_000;
            let logits: Vec<f64> =
                (0..n).map(|i| s * 12.0_f64.sqrt() * ((f64::from(i) + 0.5) / f64::from(n) - 0.5)).collect();
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            let entropy: f64 = logits.iter().map(|l| -(l.exp() / sum) * (l - sum.ln())).sum();
            let expected = f64::from(n).ln() - entropy;
            assert!((loss(s) - expected).abs() < 1e-6, "{s}: {} {expected}", loss(s));
        }
    }

    #[test]
    fn patches_are_counted_as_the_rule_opens_them() {
        let synth = Synth::published(dpar_export_spec::SystemKind::Dpar, "B", 256, 142.0).unwrap();
        let rule = synth.rule();
        // Tokens 0 and 1 open a patch, then every fourth and every row; or all.
        assert_eq!(mean_patches(&rule, 256, 0.0), 65.0);
        assert_eq!(mean_patches(&rule, 256, 1.0), 256.0);
        // A row of 16 tokens between its first and the next row's: simulated.
        let mut random = fastrand::Rng::with_seed(1);
        let images = 2000;
        let mut patches = 0;
        for _ in 0..images {
            let mut open = 0;
            for t in 0..256 {
                let e = if random.f64() < 0.4 { f32::INFINITY } else { f32::NEG_INFINITY };
                if open == 0 || rule.opens(t, open, e, f32::NAN) {
                    patches += 1;
                    open = 0;
                }
                open += 1;
            }
        }
        let simulated = f64::from(patches) / f64::from(images);
        assert!((mean_patches(&rule, 256, 0.4) - simulated).abs() < 0.5, "{simulated}");
    }
}
