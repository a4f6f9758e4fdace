//! Radii of manifolds and membership in them, for any definition of a distance that has lower bounds.

use crate::compute::ranges;
use crate::linalg::dots_f32;
use crate::screen::{Projection, Shadow, dot, dot_f32, hits};
use crate::{Compute, Rows};
use half::f16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Candidates kept of a row for the first bound of its radius.
const KEPT: usize = 16;
/// Rows per tile of the distance matrix.
const TILE: usize = 512;
/// Above one open pair in this many, the tile's full product is cheaper than theirs.
const DENSE: usize = 8;

/// Neighbours of the manifold.
pub(crate) const NEIGHBOURS: usize = 3;
/// A radius is this smallest (counted from 1) squared distance of a row, the distance to itself included.
pub(crate) const RANK: usize = NEIGHBOURS + 1;

/// A definition of the squared distance of rows u and v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distance {
    /// |u|² + |v|² − 2uᵀv in f64.
    Wide,
    /// The same by the evaluator's steps in f16.
    Half,
}

/// To the nearest f16.
pub(crate) fn round(v: f32) -> f32 {
    f16::from_f32(v).to_f32()
}

/// The evaluator's steps from |u|², |v|² and uᵀv.
pub(crate) fn half_distance(u: f32, v: f32, product: f32) -> f32 {
    let twice = round(2.0 * round(product));
    let d = round(round(u - twice) + v);
    // Keeps NaN, which must be seen as an overflow.
    if d < 0.0 { 0.0 } else { d }
}

/// Rows with what their distances need.
pub(crate) struct Points<'a> {
    pub(crate) rows: Rows<'a>,
    pub(crate) distance: Distance,
    /// |u|² by the definition.
    pub(crate) square: Vec<f64>,
    /// A distance is at least square i + square j − 2·product − slack i − slack j.
    pub(crate) slack: Vec<f64>,
}

/// Samples inside, reference inside, reference radii, sample radii.
pub(crate) type Manifolds = (Vec<AtomicBool>, Vec<AtomicBool>, Vec<f64>, Vec<f64>);

pub(crate) fn flags(n: usize) -> Vec<AtomicBool> {
    (0..n).map(|_| AtomicBool::new(false)).collect()
}

/// Squared norms in f64.
pub(crate) fn squares(rows: Rows<'_>, compute: &Compute) -> Vec<f64> {
    let mut square = vec![0.0; rows.count()];
    compute.chunks_mut(&mut square, 256, |b, out| {
        for (i, v) in out.iter_mut().enumerate() {
            let row = rows.row(b * 256 + i);
            *v = dot(row, row);
        }
    });
    square
}

impl<'a> Points<'a> {
    pub(crate) fn new(rows: Rows<'a>, compute: &Compute) -> Self {
        let slack = vec![0.0; rows.count()];
        Self { rows, distance: Distance::Wide, square: squares(rows, compute), slack }
    }

    /// Bounds of the distance, from a product in f32; none where that overflowed.
    fn between(&self, i: usize, other: &Points<'_>, j: usize, product: f32) -> (f64, f64) {
        // Error of 2·product: (d + 2)·2⁻²⁴ of |u|² + |v|², with room for the second order and for underflow.
        if !product.is_finite() {
            return (f64::NEG_INFINITY, f64::INFINITY);
        }
        let d = self.rows.width() as f64;
        let both = self.square[i] + other.square[j];
        let error = (d + 2.0) * f64::from(f32::EPSILON) / 2.0 * 1.01;
        let slack = self.slack[i] + other.slack[j] + both * error + d * 1e-44;
        let middle = both - 2.0 * f64::from(product);
        (middle - slack, (middle + slack).max(0.0))
    }

    /// [`between`](Self::between) of one pair.
    fn near(&self, i: usize, other: &Points<'_>, j: usize) -> (f64, f64) {
        self.between(i, other, j, dot_f32(self.rows.row(i), other.rows.row(j)))
    }

    fn product(&self, i: usize, other: &Points<'_>, j: usize) -> f64 {
        dot(self.rows.row(i), other.rows.row(j))
    }

    /// The distance of row i to row j of `other`. `Wide` is symmetric, and 0 for equal rows.
    fn distance(&self, i: usize, other: &Points<'_>, j: usize, product: f64) -> f64 {
        match self.distance {
            Distance::Wide => (self.square[i] + other.square[j] - 2.0 * product).max(0.0),
            Distance::Half => {
                let (u, v) = (self.square[i] as f32, other.square[j] as f32);
                f64::from(half_distance(u, v, product as f32))
            }
        }
    }
}

/// A set with its shadow.
struct Set<'a> {
    points: &'a Points<'a>,
    shadow: Shadow,
}

impl<'a> Set<'a> {
    fn new(points: &'a Points<'a>, projection: &Projection, compute: &Compute) -> Self {
        let shadow = Shadow::new(points.rows, &points.square, &points.slack, projection, compute);
        Self { points, shadow }
    }
}

/// A tile of pairs that the shadows leave open, as offsets in it.
struct Open {
    pairs: Vec<(u32, u32)>,
    products: Vec<f32>,
    row: Vec<u32>,
}

impl Open {
    fn new() -> Self {
        Self { pairs: Vec::new(), products: Vec::new(), row: Vec::new() }
    }

    /// Pairs of rows `a` of `u` and `b` of `v` whose bound does not exceed what `first` or `second` of either
    /// row allow: `(x of row i) + first j` or `(y of row i) + second j`.
    fn find(
        &mut self,
        (u, a): (&Set<'_>, (usize, usize)),
        (v, b): (&Set<'_>, (usize, usize)),
        bounds: impl Fn(usize) -> (f32, f32),
        first: &[f32],
        second: &[f32],
    ) {
        u.shadow.products(a, &v.shadow, b, &mut self.products);
        self.pairs.clear();
        for (i, products) in self.products.chunks_exact(b.1 - b.0).enumerate() {
            let (x, y) = bounds(i);
            self.row.clear();
            hits(products, x, first, y, second, &mut self.row);
            self.pairs.extend(self.row.iter().map(|&j| (i as u32, j)));
        }
    }

    /// Where many pairs are open, drops those that the full f32 product shows to be farther apart than
    /// `reach`.
    fn narrow(
        &mut self,
        (u, a): (&Points<'_>, (usize, usize)),
        (v, b): (&Points<'_>, (usize, usize)),
        reach: impl Fn(usize, usize) -> f64,
    ) {
        let (h, w) = (a.1 - a.0, b.1 - b.0);
        if self.pairs.len() * DENSE <= h * w {
            return;
        }
        let d = u.rows.width();
        self.products.clear();
        self.products.resize(h * w, 0.0);
        dots_f32(&mut self.products, u.rows.slice(a.0, a.1), v.rows.slice(b.0, b.1), d);
        let products = &self.products;
        self.pairs.retain(|&(i, j)| {
            let product = products[i as usize * w + j as usize];
            let (i, j) = (a.0 + i as usize, b.0 + j as usize);
            u.between(i, v, j, product).0 <= reach(i, j)
        });
    }
}

/// The [`KEPT`] rows with the smallest bounds, ascending by (bound, index).
#[derive(Clone)]
struct Nearest {
    kept: [(f32, u32); KEPT],
}

impl Nearest {
    const EMPTY: Self = Self { kept: [(f32::INFINITY, u32::MAX); KEPT] };

    fn worst(&self) -> f32 {
        self.kept[KEPT - 1].0
    }

    fn offer(&mut self, bound: f32, j: u32) {
        if (bound, j) >= self.kept[KEPT - 1] {
            return;
        }
        let at = self.kept.partition_point(|k| *k < (bound, j));
        self.kept[at..].rotate_right(1);
        self.kept[at] = (bound, j);
    }
}

fn locked<T>(slot: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tiles on and above the diagonal, those on it first.
fn triangle(blocks: usize) -> Vec<(usize, usize)> {
    let above = (0..blocks).flat_map(|a| (a + 1..blocks).map(move |b| (a, b)));
    (0..blocks).map(|a| (a, a)).chain(above).collect()
}

fn per_block<T: Clone>(blocks: &[(usize, usize)], value: T) -> Vec<Mutex<Vec<T>>> {
    blocks.iter().map(|(a, b)| Mutex::new(vec![value.clone(); b - a])).collect()
}

fn unlocked<T>(slots: Vec<Mutex<Vec<T>>>) -> Vec<T> {
    slots.into_iter().flat_map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// For every row, a distance that at least [`RANK`] rows do not exceed.
fn reaches(set: &Set<'_>, compute: &Compute) -> Vec<f64> {
    let (points, low) = (set.points, &set.shadow.low);
    let n = points.rows.count();
    let blocks = ranges(n, TILE);
    let lists = per_block(&blocks, Nearest::EMPTY);
    compute.map(triangle(blocks.len()), |(a, b)| {
        let (rows, cols) = (blocks[a], blocks[b]);
        // A bound is low i + low j − product; in a row's own list low i does not matter.
        let worst = |block: usize| -> Vec<f32> { locked(&lists[block]).iter().map(|l| -l.worst()).collect() };
        let mine = worst(a);
        let theirs = if a == b { vec![f32::INFINITY; mine.len()] } else { worst(b) };
        let mut open = Open::new();
        open.find((set, rows), (set, cols), |i| (mine[i], low[rows.0 + i]), &low[cols.0..cols.1], &theirs);
        let product = |i: u32, j: u32| open.products[i as usize * (cols.1 - cols.0) + j as usize];
        let mut list = locked(&lists[a]);
        for &(i, j) in &open.pairs {
            let at = cols.0 + j as usize;
            list[i as usize].offer(low[at] - product(i, j), at as u32);
        }
        drop(list);
        if a != b {
            let mut list = locked(&lists[b]);
            for &(i, j) in &open.pairs {
                let at = rows.0 + i as usize;
                list[j as usize].offer(low[at] - product(i, j), at as u32);
            }
        }
    });
    let lists = unlocked(lists);
    let mut out = vec![f64::INFINITY; n];
    compute.chunks_mut(&mut out, 64, |block, out| {
        for (i, reach) in out.iter_mut().enumerate() {
            let i = block * 64 + i;
            let there = lists[i].kept.iter().filter(|k| k.1 != u32::MAX);
            let mut near: Vec<f64> = there.map(|k| points.near(i, points, k.1 as usize).1).collect();
            near.sort_by(f64::total_cmp);
            *reach = near.get(RANK - 1).copied().unwrap_or(f64::INFINITY);
        }
    });
    out
}

/// The [`RANK`]-th smallest distance of every row.
fn radii(set: &Set<'_>, compute: &Compute) -> Vec<f64> {
    let (points, low) = (set.points, &set.shadow.low);
    let reach = reaches(set, compute);
    let n = points.rows.count();
    let blocks = ranges(n, TILE);
    let inner: Vec<f32> = (0..n).map(|i| set.shadow.within(i, reach[i])).collect();
    let lists = per_block(&blocks, [f64::INFINITY; RANK]);
    let offer = |list: &mut [f64; RANK], d: f64| {
        if d < list[RANK - 1] {
            let at = list.partition_point(|v| *v <= d);
            list[at..].rotate_right(1);
            list[at] = d;
        }
    };
    compute.map(triangle(blocks.len()), |(a, b)| {
        let (rows, cols) = (blocks[a], blocks[b]);
        let nobody = vec![f32::INFINITY; cols.1 - cols.0];
        let second = if a == b { &nobody[..] } else { &inner[cols.0..cols.1] };
        let mut open = Open::new();
        let bounds = |i: usize| (inner[rows.0 + i], low[rows.0 + i]);
        open.find((set, rows), (set, cols), bounds, &low[cols.0..cols.1], second);
        open.narrow((points, rows), (points, cols), |i, j| reach[i].max(reach[j]));
        let found = open.pairs.iter().filter_map(|&(i, j)| {
            let (at, to) = (rows.0 + i as usize, cols.0 + j as usize);
            if points.near(at, points, to).0 > reach[at].max(reach[to]) {
                return None;
            }
            let product = points.product(at, points, to);
            let there = points.distance(at, points, to, product);
            Some((i, j, there, points.distance(to, points, at, product)))
        });
        let found: Vec<_> = found.collect();
        let mut list = locked(&lists[a]);
        found.iter().for_each(|f| offer(&mut list[f.0 as usize], f.2));
        drop(list);
        if a != b {
            let mut list = locked(&lists[b]);
            found.iter().for_each(|f| offer(&mut list[f.1 as usize], f.3));
        }
    });
    unlocked(lists).into_iter().map(|l| l[RANK - 1]).collect()
}

/// Radii of both sets, and which rows lie in the other's manifold. Distances across are from the reference to
/// the samples.
pub(crate) fn manifolds(samples: &Points<'_>, reference: &Points<'_>, compute: &Compute) -> Manifolds {
    let projection = Projection::new(samples.rows, reference.rows, compute);
    let (s, r) = (Set::new(samples, &projection, compute), Set::new(reference, &projection, compute));
    let (s_radii, r_radii) = (radii(&s, compute), radii(&r, compute));
    let inner = |set: &Set<'_>, radii: &[f64]| -> Vec<f32> {
        radii.iter().enumerate().map(|(i, radius)| set.shadow.within(i, *radius)).collect()
    };
    let (s_inner, r_inner) = (inner(&s, &s_radii), inner(&r, &r_radii));
    let (s_in, r_in) = (flags(s_radii.len()), flags(r_radii.len()));
    // A row that is known to be inside asks no more.
    let asks = |flags: &[AtomicBool], i: usize, v: f32| {
        if flags[i].load(Ordering::Relaxed) { f32::INFINITY } else { v }
    };
    let across: Vec<_> = ranges(r_radii.len(), TILE)
        .into_iter()
        .flat_map(|a| ranges(s_radii.len(), TILE).into_iter().map(move |b| (a, b)))
        .collect();
    compute.map(across, |(rows, cols)| {
        // By the reference's radius for the sample, by the sample's for the reference.
        let first: Vec<f32> = (cols.0..cols.1).map(|j| asks(&s_in, j, s.shadow.low[j])).collect();
        let bounds = |i: usize| (r_inner[rows.0 + i], asks(&r_in, rows.0 + i, r.shadow.low[rows.0 + i]));
        let mut open = Open::new();
        open.find((&r, rows), (&s, cols), bounds, &first, &s_inner[cols.0..cols.1]);
        open.narrow((reference, rows), (samples, cols), |i, j| r_radii[i].max(s_radii[j]));
        // Only true is ever stored, and only where it holds: the order of tiles cannot matter.
        for &(i, j) in &open.pairs {
            let (i, j) = (rows.0 + i as usize, cols.0 + j as usize);
            if s_in[j].load(Ordering::Relaxed) && r_in[i].load(Ordering::Relaxed) {
                continue;
            }
            let (least, most) = reference.near(i, samples, j);
            if least > r_radii[i].max(s_radii[j]) {
                continue;
            }
            // Inside both for certain, or outside one: only the rest needs f64.
            let sure = |radius: f64| most <= radius || least > radius;
            let d = if sure(r_radii[i]) && sure(s_radii[j]) {
                most
            } else {
                reference.distance(i, samples, j, reference.product(i, samples, j))
            };
            if d <= r_radii[i] {
                s_in[j].store(true, Ordering::Relaxed);
            }
            if d <= s_radii[j] {
                r_in[i].store(true, Ordering::Relaxed);
            }
        }
    });
    (s_in, r_in, r_radii, s_radii)
}
