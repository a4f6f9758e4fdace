//! Precision and Recall with the half-precision arithmetic of the TF evaluator.

use crate::compute::ranges;
use crate::linalg::dots_f32;
use crate::manifold::{self, Distance, Manifolds, NEIGHBOURS, flags, half_distance, round};
use crate::screen::dot;
use crate::{Compute, Rows};
use std::sync::atomic::Ordering;

/// Side of the blocks that fall back to f32 as a whole.
const BLOCK: usize = 10_000;
const TILE: usize = 512;

/// Below this, no step of a distance in f16 overflows: 2|u||v| ≤ |u|² + |v|², so none exceeds twice their sum.
const SAFE: f32 = 60_000.0;
/// Half a unit in the last place of f16, relative.
const HALF_UNIT: f64 = 1.0 / 2048.0;

struct HalfPoints<'a> {
    full: &'a [f32],
    half: Vec<f32>,
    full_square: Vec<f32>,
    half_square: Vec<f32>,
    width: usize,
}

impl<'a> HalfPoints<'a> {
    fn new(rows: Rows<'a>, compute: &Compute) -> Self {
        let (full, width) = (rows.data(), rows.width());
        let mut half = full.to_vec();
        compute.chunks_mut(&mut half, 256 * width, |_, c| c.iter_mut().for_each(|v| *v = round(*v)));
        let sum = |rows: &[f32], square: fn(f32) -> f32| -> Vec<f32> {
            let row = |row: &[f32]| row.iter().map(|&v| f64::from(square(v))).sum::<f64>() as f32;
            rows.chunks_exact(width).map(row).collect()
        };
        let half_square = sum(&half, |v| round(v * v)).into_iter().map(round).collect();
        let full_square = sum(full, |v| v * v);
        Self { full, half, full_square, half_square, width }
    }

    fn count(&self) -> usize {
        self.full_square.len()
    }

    /// For distances in f16 throughout.
    fn halves(&self) -> Result<manifold::Points<'_>, crate::MetricError> {
        let rows = Rows::new("values in f16", &self.half, self.width)?;
        // Three roundings, of at most 2|u||v|, |u|² + 2|u||v| and |u|² + |v|² + 2|u||v|, and what subnormal
        // steps and single precision add.
        let slack = |i: usize| {
            let (row, square) = (rows.row(i), f64::from(self.half_square[i]));
            HALF_UNIT * (3.0 * dot(row, row) + 2.0 * square) * 1.01 + 1e-5
        };
        Ok(manifold::Points {
            rows,
            distance: Distance::Half,
            square: self.half_square.iter().map(|&v| f64::from(v)).collect(),
            slack: (0..self.count()).map(slack).collect(),
        })
    }

    fn largest(&self, (from, to): (usize, usize)) -> f32 {
        self.half_square[from..to].iter().fold(0.0, |a, &v| a.max(v))
    }
}

/// Distances of rows `a` of `u` to rows `b` of `v`, [a, b].
fn tile(
    u: &HalfPoints<'_>,
    a: (usize, usize),
    v: &HalfPoints<'_>,
    b: (usize, usize),
    half: bool,
) -> Vec<f32> {
    let d = u.width;
    let w = b.1 - b.0;
    let mut out = vec![0.0; (a.1 - a.0) * w];
    let (left, right) = if half { (&u.half[..], &v.half[..]) } else { (u.full, v.full) };
    dots_f32(&mut out, &left[a.0 * d..a.1 * d], &right[b.0 * d..b.1 * d], d);
    for (i, row) in (a.0..a.1).zip(out.chunks_exact_mut(w.max(1))) {
        for (j, value) in (b.0..b.1).zip(row) {
            *value = if half {
                half_distance(u.half_square[i], v.half_square[j], *value)
            } else {
                (u.full_square[i] - 2.0 * *value + v.full_square[j]).max(0.0)
            };
        }
    }
    out
}

/// Whether all f16 distances of the block are finite.
fn fits(
    u: &HalfPoints<'_>,
    a: (usize, usize),
    v: &HalfPoints<'_>,
    b: (usize, usize),
    compute: &Compute,
) -> bool {
    if 2.0 * (u.largest(a) + v.largest(b)) < SAFE {
        return true;
    }
    let rows: Vec<_> = ranges(a.1 - a.0, TILE).into_iter().map(|r| (a.0 + r.0, a.0 + r.1)).collect();
    let finite = compute.map(rows, |rows| tile(u, rows, v, b, true).iter().all(|v| v.is_finite()));
    finite.into_iter().all(|v| v)
}

/// For rows `a` of `u`, every tile of distances to all of `v`, in order.
fn visit(
    u: &HalfPoints<'_>,
    v: &HalfPoints<'_>,
    compute: &Compute,
    f: impl Fn((usize, usize), &[(usize, usize)], &[bool]) + Sync + Send,
) {
    let columns = ranges(v.count(), BLOCK);
    for block in ranges(u.count(), BLOCK) {
        let half: Vec<bool> = columns.iter().map(|&c| fits(u, block, v, c, compute)).collect();
        let rows: Vec<_> =
            ranges(block.1 - block.0, TILE).into_iter().map(|r| (block.0 + r.0, block.0 + r.1)).collect();
        compute.map(rows, |rows| f(rows, &columns, &half));
    }
}

fn tiles_of(columns: &[(usize, usize)], half: &[bool]) -> Vec<((usize, usize), bool)> {
    let split = |(&(from, to), &half): (&(usize, usize), &bool)| {
        ranges(to - from, TILE).into_iter().map(move |r| ((from + r.0, from + r.1), half))
    };
    columns.iter().zip(half).flat_map(split).collect()
}

fn radii(points: &HalfPoints<'_>, compute: &Compute) -> Vec<f32> {
    let out: Vec<std::sync::OnceLock<f32>> = (0..points.count()).map(|_| Default::default()).collect();
    visit(points, points, compute, |rows, columns, half| {
        let mut near = vec![[f32::INFINITY; NEIGHBOURS + 1]; rows.1 - rows.0];
        for (cols, half) in tiles_of(columns, half) {
            let w = cols.1 - cols.0;
            let distances = tile(points, rows, points, cols, half);
            for (near, row) in near.iter_mut().zip(distances.chunks_exact(w)) {
                for &d in row {
                    if d < near[NEIGHBOURS] {
                        let at = near.partition_point(|n| *n <= d);
                        near[at..].rotate_right(1);
                        near[at] = d;
                    }
                }
            }
        }
        for (slot, near) in out[rows.0..rows.1].iter().zip(&near) {
            slot.get_or_init(|| near[NEIGHBOURS]);
        }
    });
    out.into_iter().map(|slot| slot.into_inner().unwrap_or(f32::INFINITY)).collect()
}

/// Samples inside, reference inside, reference radii, sample radii.
///
/// The arithmetic that reproduces the recorded evaluator: values and their squares rounded to f16, sums in
/// single precision or better and rounded to f16, then |u|² − 2uv and + |v|² each rounded.
///
/// Where no block can overflow, pairs are decided as in the exact mode; else every distance is computed.
///
/// # Errors
/// [`crate::MetricError::NotFinite`] where a value exceeds the range of f16 and yet no square does: never.
pub(crate) fn manifolds(
    samples: Rows<'_>,
    reference: Rows<'_>,
    compute: &Compute,
) -> Result<Manifolds, crate::MetricError> {
    let (s, r) = (HalfPoints::new(samples, compute), HalfPoints::new(reference, compute));
    let largest = s.largest((0, s.count())).max(r.largest((0, r.count())));
    if 4.0 * largest < SAFE {
        return Ok(manifold::manifolds(&s.halves()?, &r.halves()?, compute));
    }
    let (s_radii, r_radii) = (radii(&s, compute), radii(&r, compute));
    let (s_in, r_in) = (flags(s.count()), flags(r.count()));
    // The evaluator calls the reference u and the samples v.
    visit(&r, &s, compute, |rows, columns, half| {
        for (cols, half) in tiles_of(columns, half) {
            let distances = tile(&r, rows, &s, cols, half);
            for (i, row) in (rows.0..rows.1).zip(distances.chunks_exact(cols.1 - cols.0)) {
                for (j, &d) in (cols.0..cols.1).zip(row) {
                    if d <= r_radii[i] {
                        s_in[j].store(true, Ordering::Relaxed);
                    }
                    if d <= s_radii[j] {
                        r_in[i].store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect();
    Ok((s_in, r_in, wide(r_radii), wide(s_radii)))
}
