//! softmax(q·K)·V of one head of one row, float32.

use pulp::{Arch, Simd, WithSimd};

use crate::ahead::prefetch;

/// Lanes of an accumulator: two vectors of AVX2.
const LANES: usize = 16;
/// Slots whose products run together.
const SLOTS: usize = 4;
/// Numbers that memory is asked for ahead of their use: a page. The processor's own prefetchers stop at the end of a page, and
/// a head's keys are sixteen.
const AHEAD: usize = 1024;

/// Attention of one query over `keys` and `values`, `[slots, head_dim]` each with q's width, into `out`. `weights` is
/// scratch memory.
///
/// Products are summed in [`LANES`] partial sums, whatever the number of slots: a result depends on its own slots only.
pub(crate) fn attend(
    arch: Arch,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    weights: &mut Vec<f32>,
    out: &mut [f32],
) {
    weights.clear();
    weights.resize(keys.len() / q.len().max(1), 0.0);
    arch.dispatch(Attend { q, keys, values, weights, out });
}

/// A type of its own and not a closure: the call of a closure is not inlined into the function that has the processor's
/// instructions, and fused products become calls of a library.
struct Attend<'a> {
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    weights: &'a mut [f32],
    out: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { q, keys, values, weights, out } = self;
        scores(q, keys, weights);
        softmax(weights);
        let width = q.len();
        let mut done = 0;
        while done + 4 * LANES <= width {
            weigh::<{ 4 * LANES }>(weights, values, width, done, out);
            done += 4 * LANES;
        }
        while done + LANES <= width {
            weigh::<LANES>(weights, values, width, done, out);
            done += LANES;
        }
        while done < width {
            weigh::<1>(weights, values, width, done, out);
            done += 1;
        }
    }
}

/// q·k of each slot.
#[inline(always)]
fn scores(q: &[f32], keys: &[f32], into: &mut [f32]) {
    let width = q.len();
    let mut blocks = keys.chunks_exact(SLOTS * width);
    let mut places = into.chunks_exact_mut(SLOTS);
    for (at, (block, place)) in blocks.by_ref().zip(places.by_ref()).enumerate() {
        prefetch(keys, at * SLOTS * width + AHEAD, SLOTS * width);
        place.copy_from_slice(&dots::<SLOTS>(q, block));
    }
    for (key, place) in blocks.remainder().chunks_exact(width).zip(places.into_remainder()) {
        [*place] = dots::<1>(q, key);
    }
}

/// q·k of N slots, each summed as if it were alone.
#[inline(always)]
fn dots<const N: usize>(q: &[f32], keys: &[f32]) -> [f32; N] {
    let width = q.len();
    let whole = width - width % LANES;
    let mut sums = [[0.0_f32; LANES]; N];
    let mut at = 0;
    while at < whole {
        let q = &q[at..at + LANES];
        for (n, sum) in sums.iter_mut().enumerate() {
            let key = &keys[n * width + at..n * width + at + LANES];
            for lane in 0..LANES {
                sum[lane] = q[lane].mul_add(key[lane], sum[lane]);
            }
        }
        at += LANES;
    }
    let mut dots = [0.0; N];
    for (n, (dot, sum)) in dots.iter_mut().zip(&sums).enumerate() {
        *dot = total(sum);
        for at in whole..width {
            *dot = q[at].mul_add(keys[n * width + at], *dot);
        }
    }
    dots
}

/// The sum of the lanes, in halves.
#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f32 {
    let mut sums = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Scores become weights that sum to 1.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let mut chunks = scores.chunks_exact(LANES);
    for chunk in chunks.by_ref() {
        for lane in 0..LANES {
            tops[lane] = if chunk[lane] > tops[lane] { chunk[lane] } else { tops[lane] };
        }
    }
    let top = tops.iter().chain(chunks.remainder()).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0_f32; LANES];
    let mut chunks = scores.chunks_exact_mut(LANES);
    for chunk in chunks.by_ref() {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - top);
            sums[lane] += chunk[lane];
        }
    }
    let mut sum = total(&sums);
    for score in chunks.into_remainder() {
        *score = exp(*score - top);
        sum += *score;
    }
    let scale = 1.0 / sum;
    for score in scores {
        *score *= scale;
    }
}

/// e^x for x ≤ 0: 2^n · e^r with r in ±ln 2 / 2, e^r by its Taylor polynomial of degree 7 (error below 2⁻²⁷ there). 0 below
/// the smallest normal number; NaN stays.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Added and taken away again, it leaves the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let inside = if x < -87.0 { -87.0 } else { x };
    let n = inside.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, inside));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    // n is in -126..=0: the exponent of a normal number.
    let power = f32::from_bits(((n + ROUND).to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

/// Adds the weighted values of N columns from `from` on.
#[inline(always)]
fn weigh<const N: usize>(weights: &[f32], values: &[f32], width: usize, from: usize, out: &mut [f32]) {
    let mut sums = [0.0_f32; N];
    for (at, (weight, value)) in weights.iter().zip(values.chunks_exact(width)).enumerate() {
        prefetch(values, at * width + from + AHEAD, N);
        let value = &value[from..from + N];
        for lane in 0..N {
            sums[lane] = weight.mul_add(value[lane], sums[lane]);
        }
    }
    out[from..from + N].copy_from_slice(&sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers in ±1.
    fn numbers(n: usize, mut seed: u32) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn exponentials_are_as_exact_as_their_type() {
        for i in 0..200_000 {
            let x = -(i as f32) * 0.000_43;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found - expected).abs() <= 1.5e-7 * expected, "exp({x}) = {found}, not {expected}");
        }
        assert_eq!((exp(0.0), exp(-87.5), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn attention_is_that_of_its_formula_in_double_precision() {
        for (width, slots) in [(64, 1), (64, 2), (64, 67), (8, 5), (24, 33), (80, 16), (100, 9), (3, 4)] {
            let (q, k, v) = (numbers(width, 1), numbers(width * slots, 2), numbers(width * slots, 3));
            let dots =
                k.chunks(width).map(|k| k.iter().zip(&q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum());
            let e: Vec<f64> = dots.map(f64::exp).collect();
            let sum: f64 = e.iter().sum();
            let mut out = vec![f32::NAN; width];
            attend(Arch::new(), &q, &k, &v, &mut Vec::new(), &mut out);
            for (c, found) in out.iter().enumerate() {
                let expected: f64 =
                    e.iter().zip(v.chunks(width)).map(|(e, v)| e / sum * f64::from(v[c])).sum();
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{width} {slots}: {found} {expected}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_seen() {
        let mut out = [0.0; 16];
        for bad in [f32::NAN, f32::INFINITY] {
            let mut keys = vec![0.5; 3 * 16];
            keys[20] = bad;
            attend(Arch::new(), &[1.0; 16], &keys, &[1.0; 48], &mut Vec::new(), &mut out);
            assert!(out.iter().all(|v| v.is_nan()), "{bad}: {out:?}");
        }
    }
}
