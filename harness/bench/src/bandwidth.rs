//! How fast this machine reads memory: the bound of decoding with few rows, which reads all weights at each step.

use std::array;
use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::error::BenchError;

/// Elements of a cache line.
const LINE: usize = 8;
/// What one task reads, in elements.
const PART: usize = 1 << 18;
/// The smallest and the largest buffer, in bytes; between them four times the processor's last cache, so that little of it is
/// still there when it is read again.
const BYTES: [usize; 2] = [512 << 20, 1 << 30];
/// Passes over the buffer in each pattern, of which the best counts.
const PASSES: usize = 4;

/// How fast memory was read, and how it was read then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadBandwidth {
    /// Bytes per second, of all threads.
    pub bytes_per_second: f64,
    /// Places that each thread read from in turns, a cache line of each. Prefetchers of processors follow a place up to the end of
    /// its page, so that one place alone is not the fastest.
    pub streams: usize,
}

/// Reads all words.
type Pattern = fn(&[u64]) -> u64;

/// The fastest of several patterns in which `threads` threads read memory.
///
/// # Errors
/// When the threads cannot be started.
pub fn read_bandwidth(threads: usize) -> Result<ReadBandwidth, BenchError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let bytes = last_cache().map_or(0, |bytes| bytes.saturating_mul(4)).clamp(BYTES[0], BYTES[1]);
    let words: Vec<u64> = (0..(bytes / size_of::<u64>()) as u64).collect();
    let patterns: [(usize, Pattern); 5] =
        [(1, sum::<1>), (2, sum::<2>), (4, sum::<4>), (8, sum::<8>), (16, sum::<16>)];
    let pass = |sum: Pattern| {
        let started = Instant::now();
        black_box(words.par_chunks(PART).map(sum).reduce(|| 0, u64::wrapping_add));
        started.elapsed().as_secs_f64()
    };
    let best = pool.install(|| {
        // In turns, so that a busy moment meets all of them.
        let passes = (0..PASSES).flat_map(|_| patterns).map(|(streams, sum)| (pass(sum), streams));
        passes.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 1))
    });
    Ok(ReadBandwidth { bytes_per_second: size_of_val(&words[..]) as f64 / best.0, streams: best.1 })
}

/// Bytes of the processor's largest cache, where Linux says it.
fn last_cache() -> Option<usize> {
    let folders = fs_err::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = folders.filter_map(|folder| {
        let text = fs_err::read_to_string(folder.ok()?.path().join("size")).ok()?;
        kibibytes(text.trim())
    });
    sizes.max()
}

/// Bytes of `32K`.
fn kibibytes(text: &str) -> Option<usize> {
    text.strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1 << 10)
}

/// The sum of all words, read from so many places in turns.
fn sum<const STREAMS: usize>(words: &[u64]) -> u64 {
    let (lines, rest) = words.as_chunks::<LINE>();
    let each = lines.len() / STREAMS;
    let streams: [&[[u64; LINE]]; STREAMS] = array::from_fn(|i| &lines[i * each..(i + 1) * each]);
    let mut lanes = [0_u64; LINE];
    for at in 0..each {
        for stream in &streams {
            add(&mut lanes, &stream[at]);
        }
    }
    lines[STREAMS * each..].iter().for_each(|line| add(&mut lanes, line));
    lanes.into_iter().chain(rest.iter().copied()).fold(0, u64::wrapping_add)
}

fn add(lanes: &mut [u64; LINE], line: &[u64; LINE]) {
    for (lane, word) in lanes.iter_mut().zip(line) {
        *lane = lane.wrapping_add(*word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_in_every_pattern() {
        let words: Vec<u64> = (0..1003).collect();
        let sums =
            [sum::<1>, sum::<2>, sum::<4>, sum::<8>, sum::<16>].map(|sum: fn(&[u64]) -> u64| sum(&words));
        assert_eq!(sums, [502_503; 5]);
    }

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(
            ["48K", "266240K", "", "1M"].map(kibibytes),
            [Some(49_152), Some(272_629_760), None, None]
        );
    }
}
