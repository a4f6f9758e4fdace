//! The Gumbel-max draw: the token whose logit plus noise is the largest, with noise that depends on (seed, image, slot,
//! token) alone. No token's chance lies beside another's in a running sum, so that rounding moves a draw only where the two
//! best of V sums are as near as the rounding itself.

use dpar_export_metrics::random::{INCREMENT, mix, nth};

/// Tokens that are looked at before the bound below is made sharper.
const CHUNK: usize = 64;
/// Covers the rounding of [`above_exp`], which is below 1/512 and 1e-4.
const SLACK: f32 = 1.0025;

/// The noise of a token: −ln(−ln u), u from the slot's key and the token.
pub(crate) fn noise(slot_key: u64, token: u64) -> f64 {
    of_bits(nth(slot_key, token))
}

/// The token of the largest l + noise among those above −∞, the lowest on ties, and its distance to the next: ∞ for one token.
///
/// −ln(−ln u) exceeds d exactly where −ln u < e^−d, and −ln u is at least 1 − u: most tokens are ruled out without a
/// logarithm, in the widest vectors of the machine, by 1 − u against an upper bound of e^(l − second best).
pub(crate) fn draw(logits: &[f32], slot_key: u64) -> (usize, f64) {
    struct Draw<'a>(&'a [f32], u64);
    impl pulp::WithSimd for Draw<'_> {
        type Output = (usize, f64);

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> (usize, f64) {
            let Self(logits, slot_key) = self;
            let mut best = Best { token: 0, best: f64::NEG_INFINITY, second: f64::NEG_INFINITY };
            let (chunks, rest) = logits.as_chunks::<CHUNK>();
            for (chunk, values) in chunks.iter().enumerate() {
                best.look(chunk * CHUNK, values, slot_key);
            }
            let mut last = [f32::NEG_INFINITY; CHUNK];
            last[..rest.len()].copy_from_slice(rest);
            best.look(chunks.len() * CHUNK, &last, slot_key);
            (best.token, best.best - best.second)
        }
    }
    pulp::Arch::new().dispatch(Draw(logits, slot_key))
}

/// The two largest sums so far.
struct Best {
    token: usize,
    best: f64,
    second: f64,
}

impl Best {
    /// Looks at the tokens from `at` on.
    #[inline(always)]
    fn look(&mut self, at: usize, logits: &[f32; CHUNK], slot_key: u64) {
        let state = slot_key.wrapping_add(INCREMENT.wrapping_mul(at as u64));
        let mut bits = [0; CHUNK];
        for (i, bits) in bits.iter_mut().enumerate() {
            *bits = mix(state.wrapping_add(INCREMENT.wrapping_mul(i as u64 + 1)));
        }
        let below = (self.second as f32).next_down();
        let mut near = [false; CHUNK];
        for ((near, &bits), &logit) in near.iter_mut().zip(&bits).zip(logits) {
            // The upper 24 bits of 1 − u, which float32 holds exactly.
            let least = (!bits >> 40) as i32 as f32 * (1.0 / (1_u32 << 24) as f32);
            *near = least <= above_exp(logit - below) * SLACK;
        }
        if near == [false; CHUNK] {
            return;
        }
        for i in (0..CHUNK).filter(|i| near[*i] && logits[*i] > f32::NEG_INFINITY) {
            let sum = f64::from(logits[i]) + of_bits(bits[i]);
            if sum > self.best {
                (self.token, self.second, self.best) = (at + i, self.best, sum);
            } else if sum > self.second {
                self.second = sum;
            }
        }
    }
}

/// The noise of 64 random bits.
fn of_bits(bits: u64) -> f64 {
    -(-open_unit(bits).ln()).ln()
}

/// The number in (0, 1) of 64 random bits: the middle of one of 2⁵³ equal parts.
fn open_unit(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) * (1.0 / (1_u64 << 53) as f64)
}

/// Not below e^x but for rounding, and at most 6.4 % above it: 2^(n + f) ≤ 2^n·(1 + f), whose bits are those of a number
/// with exponent n and mantissa f, here of 8 bits: adding 2²³ leaves them at the end of a float32. NaN gives the smallest bound.
#[inline(always)]
#[allow(clippy::manual_clamp, reason = "of NaN it makes a number")]
fn above_exp(x: f32) -> f32 {
    let binary = (x * std::f32::consts::LOG2_E).max(-126.0).min(126.0);
    let fixed = (binary + 127.0) * 256.0 + (1_u32 << 23) as f32;
    f32::from_bits(fixed.to_bits() << 15)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::{Method, Sampler, SamplerOptions, image_key};

    /// The same by the definition.
    fn plain(logits: &[f32], slot_key: u64) -> (usize, f64) {
        let mut sums: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, l)| **l > f32::NEG_INFINITY)
            .map(|(v, l)| (v, f64::from(*l) + noise(slot_key, v as u64)))
            .collect();
        sums.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        (sums[0].0, sums.get(1).map_or(f64::INFINITY, |s| sums[0].1 - s.1))
    }

    #[test]
    fn what_is_skipped_could_not_have_won() {
        for key in 0..2_000_u64 {
            let n = 1 + (mix(key) % 700) as usize;
            let scale = [0.0, 1.0, 20.0, 3e4][key as usize % 4];
            let logit = |v: usize| (open_unit(mix(key ^ (v as u64) << 20)) as f32 - 0.5) * scale;
            let mut logits: Vec<f32> = (0..n).map(logit).collect();
            match key % 3 {
                0 => logits.sort_by(f32::total_cmp),
                1 => logits.iter_mut().step_by(2).skip(1).for_each(|l| *l = f32::NEG_INFINITY),
                _ => {}
            }
            assert_eq!(draw(&logits, mix(!key)), plain(&logits, mix(!key)), "{key}");
        }
    }

    #[test]
    fn the_bound_lies_above_the_exponential() {
        for i in -3_000..3_000 {
            let x = i as f32 * 0.029;
            let (bound, exp) = (f64::from(above_exp(x) * SLACK), f64::from(x).exp());
            assert!(exp <= bound && bound < exp * 1.07, "{x}: {bound} {exp}");
        }
        assert!(above_exp(f32::NAN) < 1e-37 && above_exp(f32::INFINITY) > 1e37);
    }

    /// `gumbel.py`'s draws from the trained model's recorded logits.
    #[test]
    fn gumbel_draws_are_those_of_the_reference() {
        #[derive(Deserialize)]
        struct Case {
            seed: u64,
            #[serde(default = "one")]
            temperature: f32,
            #[serde(default)]
            top_k: usize,
            #[serde(default = "whole")]
            top_p: f64,
            tokens: Vec<Vec<u32>>,
            smallest_margin: f64,
        }
        #[derive(Deserialize)]
        struct Expected {
            cases: Vec<Case>,
        }
        fn one() -> f32 {
            1.0
        }
        fn whole() -> f64 {
            1.0
        }
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
        let bytes = fs_err::read(format!("{fixtures}/emoji32/golden.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let logits = file.tensor("logits").unwrap();
        let &[images, slots, vocab] = logits.shape() else { panic!("{:?}", logits.shape()) };
        let values: Vec<f32> =
            logits.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let text = fs_err::read_to_string(format!("{fixtures}/sampler/expected.json")).unwrap();
        let expected: Expected = serde_json::from_str(&text).unwrap();
        assert_eq!(expected.cases.len(), 6);
        for case in expected.cases {
            let Case { seed, temperature, top_k, top_p, .. } = case;
            let options = SamplerOptions { method: Method::Gumbel, temperature, top_k, top_p, greedy: false };
            let mut sampler = Sampler::new(options).unwrap();
            let mut smallest = f32::INFINITY;
            for (at, row) in values.chunks(vocab).enumerate() {
                let (image, slot) = (at / slots, at % slots);
                let draw = sampler.draw_at(row, image_key(seed, image as u64), slot as u64).unwrap();
                assert_eq!(draw.token, case.tokens[image][slot], "seed {seed}, image {image}, slot {slot}");
                smallest = smallest.min(draw.margin);
            }
            assert_eq!(case.tokens.len(), images);
            assert!((f64::from(smallest) - case.smallest_margin).abs() < 1e-9, "{smallest}");
        }
    }

    /// 20,000 draws of each method from one distribution: counts within five standard deviations of what it says.
    #[test]
    fn both_methods_draw_from_the_same_distribution() {
        let p = [0.5, 0.25, 0.15, 0.1];
        for method in [Method::Cdf, Method::Gumbel] {
            let mut s = Sampler::new(SamplerOptions { method, ..SamplerOptions::default() }).unwrap();
            let mut counts = [0_u32; 4];
            for image in 0..20_000 {
                counts[s.draw_at(&p.map(f32::ln), image_key(9, image), 3).unwrap().token as usize] += 1;
            }
            for (count, p) in counts.into_iter().zip(p) {
                let (mean, deviation) = (20_000.0 * p, (20_000.0 * p * (1.0 - p)).sqrt());
                assert!((count as f32 - mean).abs() < 5.0 * deviation, "{method:?}: {counts:?}");
            }
        }
    }
}
