//! Counter-based random numbers: no state, so any order of evaluation gives the same ones. SplitMix64 (G. L. Steele, D. Lea,
//! C. H. Flood, "Fast splittable pseudorandom number generators", 2014), whose sequence from a seed can be entered anywhere.

/// SplitMix64's increment: 2⁶⁴ / golden ratio.
pub const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
#[inline(always)]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Number `index` of the sequence from `seed`, counted from 0: mix(seed + G·(index + 1)).
#[inline(always)]
pub fn nth(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(INCREMENT.wrapping_mul(index.wrapping_add(1))))
}

/// Word `index` of stream `stream` of `seed`.
pub(crate) fn word(seed: u64, stream: u64, index: u64) -> u64 {
    nth(nth(seed, stream), index)
}

/// `n` indices drawn with replacement from `0..n`. The bias of the multiply-and-shift is below n·2⁻⁶⁴.
pub(crate) fn resample(seed: u64, stream: u64, n: usize) -> Vec<usize> {
    let draw = |i| ((u128::from(word(seed, stream, i as u64)) * n as u128) >> 64) as usize;
    (0..n).map(draw).collect()
}
