//! Lower bounds on squared distances from a few coordinates, so that most pairs of rows are decided without
//! their full product.

use crate::compute::ranges;
use crate::linalg::{Matrix, dots_f32, orthonormal, product, set_product};
use crate::random::word;
use crate::{Compute, Rows};
use faer::{MatMut, MatRef};

/// Coordinates of a shadow, the last one being what the others leave out.
const WIDTH: usize = 256;
/// Rows of each set that the coordinates are fitted to.
const FITTED: usize = 1024;
/// Rounds of subspace iteration.
const ROUNDS: usize = 2;
/// Rows projected at a time.
const BLOCK: usize = 256;
/// Relative error of a bound, in units of |u|² + |v|² of the centred rows. A product of w f32 values in any
/// order is off by less than (w + 2)·2⁻²⁴ of |u|·|v| ≤ (|u|² + |v|²)/2 (N. J. Higham, "Accuracy and stability
/// of numerical algorithms", §3.1); the rounding of the coordinates and of the comparison take less than 32
/// units more, and the factor 2 is room.
const ERROR: f64 = 2.0 * (WIDTH + 32) as f64 / (1u64 << 24) as f64;
/// Relative error of f64 distances of rows that were not centred, in units of their squared norms: 8192 sums.
const WIDE_ERROR: f64 = 1.0 / (1u64 << 40) as f64;
/// Lengths are scaled below 1: what f32 products may lose by underflow, with much room.
const UNDERFLOW: f64 = 1e-30;

/// Orthonormal directions that carry most of the variance of two sets.
pub(crate) struct Projection {
    centre: Vec<f64>,
    /// [d, k]; `None` takes the coordinates as they are.
    basis: Option<Matrix>,
    /// Power of two that brings lengths below 1, so that nothing overflows.
    scale: f64,
}

impl Projection {
    /// Fits the leading principal directions of a fixed subset of both sets by subspace iteration (N. Halko, P.
    /// G. Martinsson, J. A. Tropp, "Finding structure with randomness", 2011). Any directions give valid
    /// bounds; these make them tight.
    pub(crate) fn new(a: Rows<'_>, b: Rows<'_>, compute: &Compute) -> Self {
        let d = a.width();
        let mut chosen = Vec::new();
        for rows in [a, b] {
            let step = rows.count().div_ceil(FITTED).max(1);
            (0..rows.count()).step_by(step).for_each(|i| chosen.extend(rows.widen(i, i + 1)));
        }
        let n = chosen.len() / d;
        let mut centre = vec![0.0; d];
        for row in chosen.chunks_exact(d) {
            centre.iter_mut().zip(row).for_each(|(c, v)| *c += v / n as f64);
        }
        for row in chosen.chunks_exact_mut(d) {
            row.iter_mut().zip(&centre).for_each(|(v, c)| *v -= c);
        }
        let largest = [a, b].map(|rows| rows.data().iter().fold(0.0f32, |m, v| m.max(v.abs())));
        let longest = 2.0 * f64::from(largest[0].max(largest[1])) * (d as f64).sqrt();
        let scale = if longest > 0.0 { (-longest.log2().ceil()).exp2() } else { 1.0 };
        let basis = (d >= WIDTH).then(|| {
            let fitted = MatRef::from_row_major_slice(&chosen, n, d);
            let mut basis = Matrix::zeros(d, WIDTH - 1);
            for (i, v) in basis.data.iter_mut().enumerate() {
                *v = (word(0, 0, i as u64) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
            }
            for _ in 0..ROUNDS {
                let moved = product(fitted, basis.view(), false, compute);
                basis = product(fitted.transpose(), moved.view(), false, compute);
                for column in basis.data.chunks_exact_mut(d) {
                    let length = column.iter().map(|v| v * v).sum::<f64>().sqrt();
                    column.iter_mut().for_each(|v| *v = if length > 0.0 { *v / length } else { 0.0 });
                }
            }
            orthonormal(&basis)
        });
        Self { centre, basis, scale }
    }

    /// Squares of lengths in units of a shadow.
    fn unit(&self) -> f64 {
        self.scale * self.scale
    }
}

/// The coordinates of a set's rows in f32, and half their squared lengths, less all errors: half the squared
/// distance of rows i and j is at least low i + low j − the product of their shadows.
pub(crate) struct Shadow {
    width: usize,
    data: Vec<f32>,
    pub(crate) low: Vec<f32>,
    unit: f64,
}

impl Shadow {
    /// Projects `rows`. The squared distances that are to be bounded are `square` i + `square` j − 2·product,
    /// less `slack` i + `slack` j at most.
    pub(crate) fn new(
        rows: Rows<'_>,
        square: &[f64],
        slack: &[f64],
        projection: &Projection,
        compute: &Compute,
    ) -> Self {
        let (n, d) = (rows.count(), rows.width());
        let k = projection.basis.as_ref().map_or(d, |b| b.cols);
        let width = projection.basis.as_ref().map_or(d, |b| b.cols + 1);
        let mut data = vec![0.0f32; n * width];
        let lengths: Vec<std::sync::OnceLock<Vec<f64>>> =
            ranges(n, BLOCK).iter().map(|_| Default::default()).collect();
        compute.chunks_mut(&mut data, BLOCK * width, |b, out| {
            let count = out.len() / width;
            let mut centred = rows.widen(b * BLOCK, b * BLOCK + count);
            let mut squares = Vec::with_capacity(count);
            for row in centred.chunks_exact_mut(d) {
                row.iter_mut().zip(&projection.centre).for_each(|(v, c)| *v -= c);
                squares.push(row.iter().map(|v| v * v).sum::<f64>());
            }
            let moved = match &projection.basis {
                None => centred,
                Some(basis) => {
                    let mut moved = vec![0.0; count * k];
                    set_product(
                        MatMut::from_row_major_slice_mut(&mut moved, count, k),
                        MatRef::from_row_major_slice(&centred, count, d),
                        basis.view(),
                    );
                    moved
                }
            };
            for ((out, moved), square) in out.chunks_exact_mut(width).zip(moved.chunks_exact(k)).zip(&squares)
            {
                out.iter_mut().zip(moved).for_each(|(o, v)| *o = (v * projection.scale) as f32);
                if projection.basis.is_some() {
                    let kept: f64 = moved.iter().map(|v| v * v).sum();
                    out[k] = ((square - kept).max(0.0).sqrt() * projection.scale) as f32;
                }
            }
            lengths[b].get_or_init(|| squares);
        });
        let lengths = lengths.into_iter().flat_map(|l| l.into_inner().unwrap_or_default());
        let unit = projection.unit();
        let low = lengths.enumerate().map(|(i, length)| {
            let row = rows.row(i);
            let own: f64 = dot(row, row);
            let low = length * (1.0 - ERROR) + (square[i] - own) - slack[i] - own * WIDE_ERROR;
            down(0.5 * low * unit - UNDERFLOW)
        });
        Self { low: low.collect(), width, data, unit }
    }

    /// What to subtract from `low` for pairs within the squared distance `reach`.
    pub(crate) fn within(&self, i: usize, reach: f64) -> f32 {
        down(f64::from(self.low[i]) - 0.5 * reach * self.unit * (1.0 + ERROR))
    }

    /// Products of shadows of rows `a` with rows `b` of `other`, row-major.
    pub(crate) fn products(&self, a: (usize, usize), other: &Self, b: (usize, usize), out: &mut Vec<f32>) {
        out.clear();
        out.resize((a.1 - a.0) * (b.1 - b.0), 0.0);
        let (left, right) = (&self.data[a.0 * self.width..a.1 * self.width], other.width);
        dots_f32(out, left, &other.data[b.0 * right..b.1 * right], right);
    }
}

/// The next f32 at or below.
fn down(v: f64) -> f32 {
    let near = v as f32;
    if f64::from(near) > v { near.next_down() } else { near }
}

/// Appends every j with `products[j] ≥ min(x + first[j], y + second[j])`.
pub(crate) fn hits(products: &[f32], x: f32, first: &[f32], y: f32, second: &[f32], out: &mut Vec<u32>) {
    const LANES: usize = 32;
    struct Scan<'a>(&'a [f32], f32, &'a [f32], f32, &'a [f32], &'a mut Vec<u32>);
    impl pulp::WithSimd for Scan<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) {
            let Self(products, x, first, y, second, out) = self;
            let (heads, tail) = products.as_chunks::<LANES>();
            let (firsts, _) = first.as_chunks::<LANES>();
            let (seconds, _) = second.as_chunks::<LANES>();
            for (c, ((p, f), s)) in heads.iter().zip(firsts).zip(seconds).enumerate() {
                let mut any = 0u32;
                for l in 0..LANES {
                    any |= u32::from(p[l] >= x + f[l]) | u32::from(p[l] >= y + s[l]);
                }
                if any != 0 {
                    let found = (0..LANES).filter(|&l| p[l] >= x + f[l] || p[l] >= y + s[l]);
                    out.extend(found.map(|l| (c * LANES + l) as u32));
                }
            }
            let from = heads.len() * LANES;
            let rest = tail.iter().zip(&first[from..]).zip(&second[from..]).enumerate();
            out.extend(
                rest.filter(|(_, ((p, f), s))| **p >= x + **f || **p >= y + **s)
                    .map(|(l, _)| (from + l) as u32),
            );
        }
    }
    pulp::Arch::new().dispatch(Scan(products, x, first, y, second, out));
}

/// In f32: off by less than (d + 2)·2⁻²⁴ of |u|·|v|, in any order of summation.
pub(crate) fn dot_f32(u: &[f32], v: &[f32]) -> f32 {
    const LANES: usize = 64;
    struct Dot<'a>(&'a [f32], &'a [f32]);
    impl pulp::WithSimd for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> f32 {
            let mut lanes = [0.0f32; LANES];
            let (us, ur) = self.0.as_chunks::<LANES>();
            let (vs, vr) = self.1.as_chunks::<LANES>();
            for (a, b) in us.iter().zip(vs) {
                for i in 0..LANES {
                    lanes[i] += a[i] * b[i];
                }
            }
            let rest: f32 = ur.iter().zip(vr).map(|(a, b)| a * b).sum();
            lanes.iter().sum::<f32>() + rest
        }
    }
    pulp::Arch::new().dispatch(Dot(u, v))
}

/// In f64, in a fixed order of summation that is symmetric in its arguments, so that equal pairs have equal
/// products on every processor.
pub(crate) fn dot(u: &[f32], v: &[f32]) -> f64 {
    const LANES: usize = 32;
    struct Dot<'a>(&'a [f32], &'a [f32]);
    impl pulp::WithSimd for Dot<'_> {
        type Output = f64;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
            let mut lanes = [0.0f64; LANES];
            let (us, ur) = self.0.as_chunks::<LANES>();
            let (vs, vr) = self.1.as_chunks::<LANES>();
            for (a, b) in us.iter().zip(vs) {
                for i in 0..LANES {
                    lanes[i] += f64::from(a[i]) * f64::from(b[i]);
                }
            }
            let rest: f64 = ur.iter().zip(vr).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let mut half = LANES / 2;
            while half > 0 {
                for i in 0..half {
                    lanes[i] += lanes[i + half];
                }
                half /= 2;
            }
            lanes[0] + rest
        }
    }
    pulp::Arch::new().dispatch(Dot(u, v))
}
