//! Patch outlines as SVG paths, and bins of a histogram.

use std::fmt::Write;

/// The boundaries of patches over a grid of tokens with `columns` a row, as SVG path data in units of a token: every
/// line between two tokens of different patches, and the frame.
pub(super) fn outline(lengths: &[usize], columns: usize) -> String {
    let patch_of: Vec<usize> =
        lengths.iter().enumerate().flat_map(|(patch, &n)| std::iter::repeat_n(patch, n)).collect();
    let rows = patch_of.len() / columns.max(1);
    let at = |row: usize, column: usize| patch_of.get(row * columns + column);
    let mut path = format!("M0 0h{columns}v{rows}h-{columns}z");
    for row in 1..rows {
        let closed = |column: &usize| at(row - 1, *column) != at(row, *column);
        for (start, length) in runs((0..columns).map(|c| closed(&c))) {
            let _ = write!(path, "M{start} {row}h{length}");
        }
    }
    for column in 1..columns {
        for (start, length) in runs((0..rows).map(|r| at(r, column - 1) != at(r, column))) {
            let _ = write!(path, "M{column} {start}v{length}");
        }
    }
    path
}

/// Start and length of each run of `true`.
fn runs(values: impl Iterator<Item = bool>) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, _) in values.enumerate().filter(|(_, v)| *v) {
        match runs.last_mut() {
            Some((start, length)) if *start + *length == i => *length += 1,
            _ => runs.push((i, 1)),
        }
    }
    runs
}

/// A bin of whole numbers from `first` to `last` inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HistogramBar {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) count: usize,
}

/// At most `most` bins of equal width over the values' range.
pub(super) fn histogram(values: &[usize], most: usize) -> Vec<HistogramBar> {
    let (Some(&low), Some(&high)) = (values.iter().min(), values.iter().max()) else { return Vec::new() };
    let width = (high - low + 1).div_ceil(most.max(1));
    let bins = (high - low) / width + 1;
    let bin = |i: usize| {
        let (first, last) = (low + i * width, low + (i + 1) * width - 1);
        let count = values.iter().filter(|v| (first..=last).contains(*v)).count();
        HistogramBar { first, last, count }
    };
    (0..bins).map(bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_have_the_lines_between_patches_only() {
        // 2 rows of 4: patches of 1 + 3, then 2 + 2.
        assert_eq!(outline(&[1, 3, 2, 2], 4), "M0 0h4v2h-4zM0 1h4M1 0v1M2 1v1");
        // The patch of tokens 3 and 4 goes on in the next row; its cells do not touch.
        assert_eq!(outline(&[3, 2, 3], 4), "M0 0h4v2h-4zM0 1h4M1 1v1M3 0v1");
        // A patch longer than a row has no line across.
        assert_eq!(outline(&[8], 4), "M0 0h4v2h-4z");
        assert_eq!(outline(&[], 0), "M0 0h0v0h-0z");
    }

    #[test]
    fn every_value_is_in_one_bin() {
        let values = [3, 9, 9, 10, 40];
        for most in 1..50 {
            let bins = histogram(&values, most);
            assert!(bins.len() <= most && bins.iter().map(|b| b.count).sum::<usize>() == 5, "{bins:?}");
            assert!(bins[0].first == 3 && bins.last().unwrap().last >= 40);
        }
        assert_eq!(histogram(&[7, 7], 20), [HistogramBar { first: 7, last: 7, count: 2 }]);
        assert!(histogram(&[], 20).is_empty());
    }
}
