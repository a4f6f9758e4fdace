//! How fast this machine reads memory: the bound of decoding with few rows, which reads all weights at each step.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::error::BenchError;

/// Elements of the buffer: 512 MiB, larger than any cache.
const WORDS: usize = 1 << 26;
/// What one task reads, in elements.
const PART: usize = 1 << 18;
/// Sums that are kept apart, so that no addition waits for the one before.
const LANES: usize = 32;
/// The first pass also brings the pages in; the best of the others counts.
const PASSES: usize = 6;

/// Bytes per second at which `threads` threads read memory.
///
/// # Errors
/// When the threads cannot be started.
pub fn read_bandwidth(threads: usize) -> Result<f64, BenchError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let words: Vec<u64> = (0..WORDS as u64).collect();
    let pass = || {
        let started = Instant::now();
        let sum = words.par_chunks(PART).map(sum).reduce(|| 0, u64::wrapping_add);
        black_box(sum);
        started.elapsed().as_secs_f64()
    };
    let best = pool.install(|| (0..PASSES).map(|_| pass()).skip(1).fold(f64::INFINITY, f64::min));
    Ok(size_of_val(&words[..]) as f64 / best)
}

fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0_u64; LANES];
    let (whole, rest) = words.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..1000).collect();
        assert_eq!(sum(&words), 499_500);
    }
}
