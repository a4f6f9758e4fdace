//! Sum of singular values, without the vectors, in two stages: blocked reduction to a band, which runs at the
//! speed of matrix products, then the band to a bidiagonal by chasing bulges (B. Großer, B. Lang, "Efficient
//! parallel reduction to bidiagonal form", 1999). Orthogonal transformations throughout: each singular value
//! has an absolute error of a few eps·σmax, which squaring the matrix would not give.

use crate::linalg::{Matrix, tridiagonal_eigenvalues};
use crate::{Compute, MetricError};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder as reflect;
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Conj, Mat, MatMut, MatRef, Par, Spec};

/// Upper bandwidth of the intermediate form.
const BAND: usize = 32;
/// Columns per parallel piece.
const PANEL: usize = 256;

/// Nuclear norm of `k` [m, n].
pub(crate) fn nuclear_norm(k: Matrix, compute: &Compute) -> Result<f64, MetricError> {
    let k = if k.rows < k.cols { k.transposed() } else { k };
    let n = k.cols;
    if n == 0 {
        return Ok(0.0);
    }
    let (diagonal, above) = Band::of(k, compute).bidiagonal();
    // The Golub–Kahan form: a zero diagonal, off it d1 e1 d2 e2 …; its eigenvalues are ±σ.
    let mut off = Vec::with_capacity(2 * n - 1);
    for (i, d) in diagonal.iter().enumerate() {
        off.push(*d);
        off.extend(above.get(i));
    }
    let values = tridiagonal_eigenvalues(&vec![0.0; 2 * n], &off, "covariance product")?;
    Ok(0.5 * values.iter().map(|v| v.abs()).sum::<f64>())
}

/// QR of `panel` in place (R above, reflectors below); returns the reflectors' block factor.
fn factor(panel: MatMut<'_, f64>) -> Mat<f64> {
    let (m, n) = panel.shape();
    let size = m.min(n);
    let mut blocks = Mat::zeros(size, size);
    let mut memory = MemBuffer::new(qr::qr_in_place_scratch::<f64>(m, n, size, Par::Seq, Spec::default()));
    qr::qr_in_place(panel, blocks.as_mut(), Par::Seq, MemStack::new(&mut memory), Spec::default());
    blocks
}

/// Applies the transpose of Q from the left to `dst`.
fn apply_left(basis: MatRef<'_, f64>, blocks: MatRef<'_, f64>, dst: MatMut<'_, f64>) {
    let size = reflect::apply_block_householder_sequence_transpose_on_the_left_in_place_scratch::<f64>(
        basis.nrows(),
        blocks.nrows(),
        dst.ncols(),
    );
    let mut memory = MemBuffer::new(size);
    reflect::apply_block_householder_sequence_transpose_on_the_left_in_place_with_conj(
        basis,
        blocks,
        Conj::No,
        dst,
        Par::Seq,
        MemStack::new(&mut memory),
    );
}

/// An upper band of width [`BAND`] with room for the bulges: column j holds rows j − 2·BAND + 1 to j + BAND −
/// 1.
struct Band {
    n: usize,
    data: Vec<f64>,
}

const ABOVE: usize = 2 * BAND;
const LEADING: usize = 3 * BAND + 1;

impl Band {
    /// Reduces `k` [m, n], m ≥ n: QR of a block of columns, then LQ of the block of rows right of it, and so
    /// on.
    fn of(mut k: Matrix, compute: &Compute) -> Self {
        let (m, n) = (k.rows, k.cols);
        for at in (0..n).step_by(BAND) {
            let next = (at + BAND).min(n);
            let (left, right) = k.data.split_at_mut(next * m);
            let mut panel = MatMut::from_column_major_slice_mut(&mut left[at * m..], m, next - at)
                .subrows_mut(at, m - at);
            let blocks = factor(panel.rb_mut());
            if next == n {
                break;
            }
            let (basis, blocks) = (panel.rb(), blocks.as_ref());
            compute.chunks_mut(right, PANEL * m, |_, part| {
                let width = part.len() / m;
                let part = MatMut::from_column_major_slice_mut(part, m, width).subrows_mut(at, m - at);
                apply_left(basis, blocks, part);
            });
            let width = n - next;
            let mut trailing = MatMut::from_column_major_slice_mut(right, m, width).subrows_mut(at, m - at);
            let mut rows = trailing.rb().subrows(0, next - at).transpose().to_owned();
            let blocks = factor(rows.as_mut());
            for (i, mut row) in trailing.rb_mut().subrows_mut(0, next - at).row_iter_mut().enumerate() {
                for j in 0..width {
                    row[j] = if j <= i { rows[(j, i)] } else { 0.0 };
                }
            }
            // From the right on the rows below, in parallel over pieces of rows, which are gathered and put
            // back.
            let below: Vec<(usize, usize)> = crate::compute::ranges(m - next, PANEL);
            let source = trailing.rb().subrows(next - at, m - next);
            let (basis, blocks) = (rows.as_ref().subcols(0, blocks.ncols()), blocks.as_ref());
            let pieces = compute.map(below, |(from, to)| {
                let mut piece = source.subrows(from, to - from).to_owned();
                let size = reflect::apply_block_householder_sequence_on_the_right_in_place_scratch::<f64>(
                    basis.nrows(),
                    blocks.nrows(),
                    to - from,
                );
                let mut memory = MemBuffer::new(size);
                reflect::apply_block_householder_sequence_on_the_right_in_place_with_conj(
                    basis,
                    blocks,
                    Conj::No,
                    piece.as_mut(),
                    Par::Seq,
                    MemStack::new(&mut memory),
                );
                (from, piece)
            });
            for (from, piece) in pieces {
                trailing.rb_mut().subrows_mut(next - at + from, piece.nrows()).copy_from(piece);
            }
        }
        let mut band = Self { n, data: vec![0.0; n * LEADING] };
        for j in 0..n {
            for i in j.saturating_sub(BAND)..=j {
                band.data[j * LEADING + i + ABOVE - j] = k.data[j * m + i];
            }
        }
        band
    }

    /// Rows `from..=to` of column `j`.
    fn column(&mut self, j: usize, from: usize, to: usize) -> &mut [f64] {
        let start = j * LEADING + ABOVE - j;
        &mut self.data[start + from..=start + to]
    }

    /// Diagonal and superdiagonal of an equivalent bidiagonal matrix.
    fn bidiagonal(mut self) -> (Vec<f64>, Vec<f64>) {
        let last = self.n - 1;
        let (mut v, mut sums) = (Vec::new(), vec![0.0; 3 * BAND]);
        for i in 0..last {
            // Row `row` is cleared right of column `from`; then column `from` below its diagonal; and on to
            // where the fill went.
            let (mut row, mut from) = (i, i + 1);
            while from <= last {
                let to = (from + BAND - 1).min(last);
                if from == to && row == i {
                    break;
                }
                v.clear();
                v.extend((from..=to).map(|j| self.data[j * LEADING + row + ABOVE - j]));
                let tau = reflector(&mut v);
                if tau != 0.0 {
                    let sums = &mut sums[..to - row + 1];
                    sums.fill(0.0);
                    for (j, v) in (from..=to).zip(&v) {
                        sums.iter_mut().zip(&*self.column(j, row, to)).for_each(|(s, a)| *s += a * v);
                    }
                    for (j, v) in (from..=to).zip(&v) {
                        let scale = tau * v;
                        self.column(j, row, to).iter_mut().zip(&*sums).for_each(|(a, s)| *a -= s * scale);
                    }
                }
                for j in from + 1..=to {
                    self.column(j, row, row)[0] = 0.0;
                }
                if from == to {
                    break;
                }
                v.clear();
                v.extend_from_slice(self.column(from, from, to));
                let tau = reflector(&mut v);
                let reach = (to + BAND).min(last);
                if tau != 0.0 {
                    for j in from..=reach {
                        let column = self.column(j, from, to);
                        let scale = tau * column.iter().zip(&v).map(|(a, v)| a * v).sum::<f64>();
                        column.iter_mut().zip(&v).for_each(|(a, v)| *a -= scale * v);
                    }
                }
                self.column(from, from + 1, to).fill(0.0);
                (row, from) = (from, to + 1);
            }
        }
        let diagonal = (0..=last).map(|j| self.data[j * LEADING + ABOVE]).collect();
        let above = (1..=last).map(|j| self.data[j * LEADING + ABOVE - 1]).collect();
        (diagonal, above)
    }
}

/// Replaces x by v, v₁ = 1, such that (I − τ·v·vᵀ)·x is zero past its first entry; returns τ (0: nothing to
/// do).
fn reflector(x: &mut [f64]) -> f64 {
    let Some((first, rest)) = x.split_first_mut() else { return 0.0 };
    let largest = rest.iter().fold(0.0f64, |a, v| a.max(v.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    // Scaled, so that tiny values do not underflow when squared.
    let scale = largest.max(first.abs());
    let tail: f64 = rest.iter().map(|v| (v / scale) * (v / scale)).sum();
    let head = *first / scale;
    let norm = (head * head + tail).sqrt();
    let pivot = head + norm.copysign(head);
    rest.iter_mut().for_each(|v| *v = *v / scale / pivot);
    *first = 1.0;
    pivot.abs() / norm
}
