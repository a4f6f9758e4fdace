//! Dense linear algebra on faer, every call on one thread (`Par::Seq`); parallelism is over panels of fixed
//! width, so results do not depend on the number of threads.

use crate::{Compute, MetricError};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, Spec};

/// Columns per parallel piece.
const PANEL: usize = 128;

/// Column-major matrix.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: Vec<f64>,
}

impl Matrix {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    pub(crate) fn view(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.data, self.rows, self.cols)
    }

    pub(crate) fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        out.view_mut().copy_from(self.view().transpose());
        out
    }

    fn view_mut(&mut self) -> MatMut<'_, f64> {
        MatMut::from_column_major_slice_mut(&mut self.data, self.rows, self.cols)
    }
}

/// `dst += lhs * rhs` on the calling thread.
pub(crate) fn add_product(dst: MatMut<'_, f64>, lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>) {
    matmul(dst, Accum::Add, lhs, rhs, 1.0, Par::Seq);
}

/// `dst = lhs * rhs` on the calling thread, in single or double precision.
pub(crate) fn set_product(dst: MatMut<'_, f64>, lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>) {
    matmul(dst, Accum::Replace, lhs, rhs, 1.0, Par::Seq);
}

/// `dst` [a, b] = `left` [a, width] times the transpose of `right` [b, width]; all row-major, single
/// precision, on the calling thread.
pub(crate) fn dots_f32(dst: &mut [f32], left: &[f32], right: &[f32], width: usize) {
    let (a, b) = (left.len() / width, right.len() / width);
    let dst = MatMut::from_row_major_slice_mut(dst, a, b);
    let left = MatRef::from_row_major_slice(left, a, width);
    let right = MatRef::from_row_major_slice(right, b, width);
    matmul(dst, Accum::Replace, left, right.transpose(), 1.0f32, Par::Seq);
}

/// The same in double precision.
pub(crate) fn dots_f64(dst: &mut [f64], left: &[f64], right: &[f64], width: usize) {
    let (a, b) = (left.len() / width, right.len() / width);
    let dst = MatMut::from_row_major_slice_mut(dst, a, b);
    let left = MatRef::from_row_major_slice(left, a, width);
    let right = MatRef::from_row_major_slice(right, b, width);
    set_product(dst, left, right.transpose());
}

/// `lhs * rhs`. With `lower`, `rhs` is square and zero above its diagonal.
pub(crate) fn product(lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>, lower: bool, compute: &Compute) -> Matrix {
    let (m, n, k) = (lhs.nrows(), rhs.ncols(), rhs.nrows());
    let mut out = Matrix::zeros(m, n);
    if m == 0 || n == 0 {
        return out;
    }
    compute.chunks_mut(&mut out.data, m * PANEL, |p, chunk| {
        let (j, w) = (p * PANEL, chunk.len() / m);
        let skip = if lower { j.min(k) } else { 0 };
        set_product(
            MatMut::from_column_major_slice_mut(chunk, m, w),
            lhs.subcols(skip, k - skip),
            rhs.subcols(j, w).subrows(skip, k - skip),
        );
    });
    out
}

/// Adds `factor * factorᵀ` to the lower triangle of the column-major `dst` [n, n] (its upper triangle is left
/// in an unspecified state within the diagonal panels).
pub(crate) fn add_gram(dst: &mut [f64], factor: MatRef<'_, f64>, compute: &Compute) {
    let n = factor.nrows();
    if n == 0 {
        return;
    }
    compute.chunks_mut(dst, n * PANEL, |p, chunk| {
        let (j, w) = (p * PANEL, chunk.len() / n);
        let dst = MatMut::from_column_major_slice_mut(chunk, n, w);
        let dst = dst.subrows_mut(j, n - j);
        add_product(dst, factor.subrows(j, n - j), factor.subrows(j, w).transpose());
    });
}

/// Copies the lower triangle onto the upper one.
pub(crate) fn mirror(data: &mut [f64], n: usize) {
    for j in 0..n {
        for i in 0..j {
            data[j * n + i] = data[i * n + j];
        }
    }
}

/// Orthonormal columns that span those of `a` [d, k], k ≤ d (by Householder reflections: orthonormal also
/// where `a` is not of full rank).
pub(crate) fn orthonormal(a: &Matrix) -> Matrix {
    let mut out = Matrix::zeros(a.rows, a.cols);
    out.view_mut().copy_from(a.view().qr().compute_thin_Q());
    out
}

/// Eigenvalues of a symmetric matrix in ascending order, and its eigenvectors as columns where asked for.
pub(crate) fn eigen(
    a: MatRef<'_, f64>,
    vectors: bool,
    what: &'static str,
) -> Result<(Vec<f64>, Option<Matrix>), MetricError> {
    let n = a.nrows();
    let mut values = Diag::<f64>::zeros(n);
    let mut basis = vectors.then(|| Matrix::zeros(n, n));
    if n > 0 {
        let wanted = if vectors { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
        let spec = Spec::default();
        let mut memory = MemBuffer::new(evd::self_adjoint_evd_scratch::<f64>(n, wanted, Par::Seq, spec));
        evd::self_adjoint_evd(
            a,
            values.as_mut(),
            basis.as_mut().map(Matrix::view_mut),
            Par::Seq,
            MemStack::new(&mut memory),
            spec,
        )
        .map_err(|_| MetricError::NoConvergence(what))?;
    }
    let values = values.column_vector().iter().copied().collect();
    Ok((values, basis))
}

/// F [d, rank] with F·Fᵀ = Σ.
pub(crate) struct Factor {
    pub(crate) matrix: Matrix,
    /// F is lower triangular of full rank (Cholesky).
    pub(crate) cholesky: bool,
}

/// Cholesky where Σ has full rank to rounding, otherwise the symmetric eigen-decomposition with eigenvalues
/// at or below `n · eps · λmax` taken as zero.
pub(crate) fn factor(sigma: &[f64], n: usize, what: &'static str) -> Result<Factor, MetricError> {
    let mut matrix = Matrix { rows: n, cols: n, data: sigma.to_vec() };
    let largest = (0..n).map(|i| sigma[i * n + i]).fold(0.0, f64::max);
    let spec = Spec::default();
    let mut memory = MemBuffer::new(llt::cholesky_in_place_scratch::<f64>(n, Par::Seq, spec));
    let done = llt::cholesky_in_place(
        matrix.view_mut(),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        spec,
    );
    if done.is_ok() {
        let low = (0..n).map(|i| matrix.data[i * n + i].powi(2)).fold(f64::MAX, f64::min);
        if low > n as f64 * f64::EPSILON * largest {
            for j in 1..n {
                matrix.data[j * n..j * n + j].fill(0.0);
            }
            return Ok(Factor { matrix, cholesky: true });
        }
    }
    let (values, basis) = eigen(MatRef::from_column_major_slice(sigma, n, n), true, what)?;
    let mut basis = basis.unwrap_or_else(|| Matrix::zeros(n, 0));
    let largest = values.last().copied().unwrap_or(0.0).max(0.0);
    let smallest = values.first().copied().unwrap_or(0.0);
    // Statistics that were stored in single precision have eigenvalues down to about -1e-7 of the largest.
    if smallest < -1e-5 * largest || (largest == 0.0 && smallest < 0.0) {
        return Err(MetricError::NotPositive { what, smallest, largest });
    }
    let cut = n as f64 * f64::EPSILON * largest;
    let zeros = values.iter().take_while(|&&v| v <= cut).count();
    basis.data.drain(..zeros * n);
    basis.cols = n - zeros;
    for (column, value) in basis.data.chunks_exact_mut(n).zip(&values[zeros..]) {
        let scale = value.sqrt();
        column.iter_mut().for_each(|v| *v *= scale);
    }
    Ok(Factor { matrix: basis, cholesky: false })
}

/// Eigenvalues of the symmetric tridiagonal matrix with this diagonal [n] and off-diagonal [n − 1].
pub(crate) fn tridiagonal_eigenvalues(
    diagonal: &[f64],
    off: &[f64],
    what: &'static str,
) -> Result<Vec<f64>, MetricError> {
    let n = diagonal.len();
    let mut padded = off.to_vec();
    padded.resize(n, 0.0);
    let mut values = vec![0.0; n];
    let mut memory = MemBuffer::new(faer::linalg::temp_mat_scratch::<f64>(n, 1).array(4));
    evd::tridiagonal_self_adjoint_evd(
        faer::diag::DiagRef::from_slice(diagonal),
        faer::diag::DiagRef::from_slice(&padded),
        faer::diag::DiagMut::from_slice_mut(&mut values),
        None,
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .map_err(|_| MetricError::NoConvergence(what))?;
    Ok(values)
}
