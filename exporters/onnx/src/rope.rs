//! Rotary tables, one row per slot, as graph constants.
//!
//! Angles and their cosines are computed in float32 with `libm`, so that the tables (and with them the exported
//! files) are the same bytes on every machine.
//!
//! The blocks keep the pairs (2j, 2j + 1) of a head as halves (j, Dh/2 + j): the rows of wq and wk are permuted
//! once at export, which leaves q·k unchanged. A table has one column per pair.

/// Base of all rotary frequencies.
const BASE: f32 = 10_000.0;

/// `BASE^(-2k / dim)` for k = 0..n.
fn frequencies(n: usize, dim: usize) -> Vec<f32> {
    (0..n).map(|k| 1.0 / libm::powf(BASE, (2 * k) as f32 / dim as f32)).collect()
}

/// A position of row i, and the frequencies that it turns with.
type AngleColumns<'a> = (&'a dyn Fn(usize) -> f32, &'a [f32]);

/// Cosine and sine tables of the same shape `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RotaryTable {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl RotaryTable {
    /// Rows are `position * frequency` for the positions given; `None` is a zero slot: cos = sin = 0.
    fn new(parts: &[AngleColumns<'_>], tokens: usize, zero_slot: bool) -> Self {
        let columns = parts.iter().map(|(_, f)| f.len()).sum();
        let rows = tokens + usize::from(zero_slot);
        let zeros = if zero_slot { columns } else { 0 };
        let mut cos = vec![0.0; zeros];
        let mut sin = vec![0.0; zeros];
        for i in 0..tokens {
            for (position, freqs) in parts {
                for f in *freqs {
                    let angle = position(i) * f;
                    cos.push(libm::cosf(angle));
                    sin.push(libm::sinf(angle));
                }
            }
        }
        Self { rows, columns, cos, sin }
    }

    /// Token RoPE: Dh/4 pairs turn by the row, Dh/4 by the column of token i. With `zero_slot`, row 0 of the
    /// table is a class or start slot and row i + 1 is token i.
    pub(crate) fn token(grid: usize, head_dim: usize, zero_slot: bool) -> Self {
        let w = frequencies(head_dim / 4, head_dim / 2);
        Self::new(&[(&|i| (i / grid) as f32, &w), (&|i| (i % grid) as f32, &w)], grid * grid, zero_slot)
    }

    /// The row part of a patch's embedding, by the patch's first token; row 0 is the class slot.
    pub(crate) fn patch_row(grid: usize, head_dim: usize) -> Self {
        let w = frequencies(head_dim / 4, head_dim / 2);
        Self::new(&[(&|i| (i / grid) as f32, &w)], grid * grid, true)
    }

    /// The column part for a first or last token: `pairs` is Dh/16 (`dynamic_4d`) or Dh/8 (`dynamic_3d`).
    pub(crate) fn patch_column(grid: usize, pairs: usize) -> Self {
        let w = frequencies(pairs, 2 * pairs);
        Self::new(&[(&|i| (i % grid) as f32, &w)], grid * grid, true)
    }

    /// 1D over the patch index: row 0 is the class slot, row m + 1 is P_m at position m.
    pub(crate) fn patch_index(tokens: usize, head_dim: usize) -> Self {
        let w = frequencies(head_dim / 2, head_dim);
        Self::new(&[(&|m| m as f32, &w)], tokens, true)
    }

    /// Patches of a fractional size p: row 0 is the class slot, row k + 1 is patch `[k·p, (k + 1)·p − 1]` with its parts
    /// in the order of `dynamic_4d` or `dynamic_3d`. Rows beyond the last patch of an image repeat it.
    pub(crate) fn fractional(grid: usize, head_dim: usize, four: bool, size: f64) -> Self {
        let (width, tokens) = (grid as f64, grid * grid);
        let last = (tokens as f64 / size).ceil() as usize - 1;
        let start = move |k: usize| k.min(last) as f64 * size;
        let row = move |k: usize| (start(k) / width).floor() as f32;
        let a = move |k: usize| (start(k) % width) as f32;
        let b = move |k: usize| ((start(k) + size - 1.0) % width) as f32;
        let w = frequencies(head_dim / 4, head_dim / 2);
        let pairs = if four { head_dim / 16 } else { head_dim / 8 };
        let columns = frequencies(pairs, 2 * pairs);
        let (row, a, b): (AngleColumns<'_>, AngleColumns<'_>, AngleColumns<'_>) =
            ((&row, &w), (&a, &columns), (&b, &columns));
        if four { Self::new(&[row, a, b, b, a], tokens, true) } else { Self::new(&[row, a, b], tokens, true) }
    }
}

/// The order of head rows that turns adjacent pairs into halves: `[0, 2, .., 1, 3, ..]`.
pub(crate) fn half_split(head_dim: usize) -> impl Iterator<Item = usize> {
    (0..head_dim).step_by(2).chain((1..head_dim).step_by(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_slot_has_neither_cosine_nor_sine() {
        let t = RotaryTable::token(4, 8, true);
        assert_eq!((t.rows, t.columns), (17, 4));
        assert!(t.cos[..4].iter().chain(&t.sin[..4]).all(|v| *v == 0.0));
        // Token 0 is not turned.
        assert_eq!(t.cos[4..8], [1.0; 4]);
        // Token 5 is row 1, column 1; frequencies 1 and 10000^(-2/4).
        let row = &t.sin[6 * 4..7 * 4];
        assert_eq!(row[0], libm::sinf(1.0));
        assert_eq!(row[1], libm::sinf(1.0 / libm::powf(BASE, 0.5)));
        assert_eq!(row[..2], row[2..]);
    }

    #[test]
    fn a_fractional_patch_turns_by_fractions() {
        // p = 2.5, W = 8: patch 1 is [2.5, 4.0]; patch 4 is [10.0, 11.5], in row 1.
        let (grid, dh) = (8, 16);
        let t = RotaryTable::fractional(grid, dh, true, 2.5);
        assert_eq!((t.rows, t.columns), (65, 8));
        let sines = |row: usize| t.sin[row * 8..row * 8 + 8].to_vec();
        let turned = |r: f32, a: f32, b: f32| {
            let w = frequencies(4, 8);
            let row = w.iter().map(|w| libm::sinf(r * w));
            row.chain([a, b, b, a].map(libm::sinf)).collect::<Vec<f32>>()
        };
        assert!(sines(0).iter().all(|v| *v == 0.0));
        assert_eq!(sines(1), turned(0.0, 0.0, 1.5));
        assert_eq!(sines(2), turned(0.0, 2.5, 4.0));
        assert_eq!(sines(5), turned(1.0, 2.0, 3.5));
        // Whole sizes give what first and last token give.
        let whole = RotaryTable::fractional(grid, dh, false, 2.0);
        let (rows, columns) = (RotaryTable::patch_row(grid, dh), RotaryTable::patch_column(grid, dh / 8));
        for k in 0..32 {
            let (first, last) = (2 * k + 1, 2 * k + 2);
            let own = &whole.cos[(k + 1) * 8..(k + 2) * 8];
            assert_eq!(own[..4], rows.cos[first * 4..first * 4 + 4]);
            assert_eq!(own[4..6], columns.cos[first * 2..first * 2 + 2]);
            assert_eq!(own[6..], columns.cos[last * 2..last * 2 + 2]);
        }
        assert!(RotaryTable::fractional(2, dh, true, 1.0e300).cos.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn a_four_dimensional_patch_fills_the_head() {
        let dh = 32;
        let columns =
            RotaryTable::patch_row(4, dh).columns + 4 * RotaryTable::patch_column(4, dh / 16).columns;
        assert_eq!(columns, dh / 2);
        let columns =
            RotaryTable::patch_row(4, dh).columns + 2 * RotaryTable::patch_column(4, dh / 8).columns;
        assert_eq!(columns, dh / 2);
        assert_eq!(half_split(6).collect::<Vec<_>>(), [0, 2, 4, 1, 3, 5]);
    }
}
