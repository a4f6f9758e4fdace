//! A part of the samples.

/// Most parts.
const MOST: usize = 10_000;

/// Part `index` of `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// Part `index`, from 1, of `count`, at most 10,000; `None` where there is no such part.
    pub fn new(index: usize, count: usize) -> Option<Self> {
        ((1..=count).contains(&index) && count <= MOST).then_some(Self { index, count })
    }

    /// Which, from 1.
    pub fn index(self) -> usize {
        self.index
    }

    /// Number of parts.
    pub fn count(self) -> usize {
        self.count
    }

    /// Its images of `total`: whole chunks, so that every shard looks at the batches that the whole would.
    pub(super) fn range(self, total: usize, chunk: usize) -> (usize, usize) {
        let blocks = total.div_ceil(chunk);
        let at = |i: usize| (i * blocks / self.count * chunk).min(total);
        (at(self.index - 1), at(self.index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_everything_once_in_whole_chunks() {
        for (total, chunk, count) in [(50_000, 256, 8), (10, 4, 3), (3, 256, 2), (1024, 256, 4)] {
            let mut at = 0;
            for index in 1..=count {
                let (from, to) = Shard::new(index, count).unwrap().range(total, chunk);
                assert!(from == at && to >= from && from % chunk == 0);
                at = to;
            }
            assert_eq!(at, total);
        }
        for (index, count) in [(0, 2), (3, 2), (1, 0), (1, MOST + 1)] {
            assert_eq!(Shard::new(index, count), None);
        }
    }
}
