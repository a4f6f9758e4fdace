//! Fréchet distance and the standard error of it.

use crate::linalg::{Matrix, eigen, factor, product};
use crate::singular::nuclear_norm;
use crate::{Compute, MetricError, Moments, Rows};

/// Fréchet distance of two normal distributions and its parts, in squared units of the activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frechet {
    /// |μ1 − μ2|² + tr Σ1 + tr Σ2 − 2·tr(Σ1Σ2)^½. May be a tiny negative number for equal inputs.
    pub distance: f64,
    /// |μ1 − μ2|².
    pub mean_term: f64,
    /// tr Σ1.
    pub trace1: f64,
    /// tr Σ2.
    pub trace2: f64,
    /// tr(Σ1Σ2)^½.
    pub trace_sqrt: f64,
    /// Both covariances had full rank (Cholesky); otherwise by symmetric eigen-decomposition.
    pub full_rank: bool,
}

/// Fréchet distance (D. C. Dowson, B. V. Landau, "The Fréchet distance between multivariate normal
/// distributions", 1982; as FID: M. Heusel et al., "GANs trained by a two time-scale update rule", 2017). On
/// `pool_3` moments this is FID, on the spatial features sFID.
///
/// With Σi = Fi·Fiᵀ, tr(Σ1Σ2)^½ is the nuclear norm of F1ᵀ·F2; no general matrix square root is taken. Fi is
/// the Cholesky factor at full rank and V·√Λ otherwise, eigenvalues at or below D·eps·λmax taken as zero.
///
/// Memory: at most about 12·8·D² bytes beyond the inputs (D = 2048: 400 MB), half of it at full rank.
///
/// # Errors
/// [`MetricError::Width`]; [`MetricError::NotPositive`] where a stored covariance is not one;
/// [`MetricError::NoConvergence`].
pub fn frechet_distance(a: &Moments, b: &Moments, compute: &Compute) -> Result<Frechet, MetricError> {
    let d = a.width();
    if b.width() != d {
        return Err(MetricError::Width { what: "reference moments", found: b.width(), expected: d });
    }
    let (fa, fb) = compute.join(
        || factor(a.covariance(), d, "first covariance"),
        || factor(b.covariance(), d, "second covariance"),
    );
    let (fa, fb) = (fa?, fb?);
    let full_rank = fa.cholesky && fb.cholesky;
    let k = product(fa.matrix.view().transpose(), fb.matrix.view(), fb.cholesky, compute);
    drop((fa, fb));
    let trace_sqrt = nuclear_norm(k, compute)?;
    let mean_term = a.mean().iter().zip(b.mean()).map(|(x, y)| (x - y) * (x - y)).sum::<f64>();
    let (trace1, trace2) = (a.trace(), b.trace());
    let distance = mean_term + trace1 + trace2 - 2.0 * trace_sqrt;
    Ok(Frechet { distance, mean_term, trace1, trace2, trace_sqrt, full_rank })
}

/// Influence function of the Fréchet distance from a sample to a fixed reference: how much one image moves
/// it.
///
/// With y = x − μ and T the optimal transport map from N(μ, Σ) to N(μr, Σr), IF(x) = 2(μ − μr)·y + |y|² −
/// yᵀTy − tr Σ + tr(ΣΣr)^½, from the derivative of tr(ΣΣr)^½ with respect to Σ being T/2 (C. R. Givens, R. M.
/// Shortt, "A class of Wasserstein metrics for probability distributions", 1984). The distance of the sample
/// is, to first order, the true one plus the mean of IF over its images; hence the standard error sd(IF)/√N,
/// and for paired samples against one reference sd(IF_a − IF_b)/√N ([`crate::paired_standard_error`]). It
/// does not see the bias, about 4·10⁴/N for FID.
///
/// Memory: 8·D² bytes kept, about 6·8·D² while it is made.
#[derive(Debug, Clone)]
pub struct FrechetInfluence {
    mean: Vec<f64>,
    shift: Vec<f64>,
    /// H [D, rank] with T = H·Hᵀ.
    root: Matrix,
    constant: f64,
}

impl FrechetInfluence {
    /// The influence function at `sample`, towards `reference`. Directions in which the sample does not vary
    /// (or the reference does not) take no part in T.
    ///
    /// # Errors
    /// As [`frechet_distance`].
    pub fn new(sample: &Moments, reference: &Moments, compute: &Compute) -> Result<Self, MetricError> {
        let d = sample.width();
        if reference.width() != d {
            return Err(MetricError::Width {
                what: "reference moments",
                found: reference.width(),
                expected: d,
            });
        }
        // G·Gᵀ = Σr; GᵀΣG = V·S²·Vᵀ; T = G·V·S⁻¹·Vᵀ·Gᵀ.
        let g = factor(reference.covariance(), d, "reference covariance")?.matrix;
        let sigma = faer::MatRef::from_column_major_slice(sample.covariance(), d, d);
        let inner = product(sigma, g.view(), false, compute);
        let inner = product(g.view().transpose(), inner.view(), false, compute);
        let (values, basis) = eigen(inner.view(), true, "covariance product")?;
        drop(inner);
        let basis = basis.unwrap_or_else(|| Matrix::zeros(g.cols, 0));
        let largest = values.last().copied().unwrap_or(0.0).max(0.0);
        let cut = d as f64 * f64::EPSILON * largest;
        let zeros = values.iter().take_while(|&&v| v <= cut).count();
        let mut root = product(g.view(), basis.view().subcols(zeros, basis.cols - zeros), false, compute);
        for (column, value) in root.data.chunks_exact_mut(d).zip(&values[zeros..]) {
            let scale = value.powf(-0.25);
            column.iter_mut().for_each(|v| *v *= scale);
        }
        let trace_sqrt: f64 = values[zeros..].iter().map(|v| v.sqrt()).sum();
        let shift = sample.mean().iter().zip(reference.mean()).map(|(a, b)| 2.0 * (a - b)).collect();
        let constant = trace_sqrt - sample.trace();
        Ok(Self { mean: sample.mean().to_vec(), shift, root, constant })
    }

    /// IF of every row, `[N]`, in the units of the distance. Rows can be given in chunks of any size; memory is
    /// 24·256·D bytes a thread.
    ///
    /// # Errors
    /// [`MetricError::Width`].
    pub fn rows(&self, rows: Rows<'_>, compute: &Compute) -> Result<Vec<f64>, MetricError> {
        const BLOCK: usize = 256;
        let d = self.mean.len();
        rows.same_width("activations", d)?;
        let mut out = vec![0.0; rows.count()];
        compute.chunks_mut(&mut out, BLOCK, |b, out| {
            let mut y = rows.widen(b * BLOCK, b * BLOCK + out.len());
            for row in y.chunks_exact_mut(d) {
                row.iter_mut().zip(&self.mean).for_each(|(v, m)| *v -= m);
            }
            // Column-major [rank, rows]: Hᵀy of one image is contiguous.
            let mut image = Matrix::zeros(self.root.cols, out.len());
            if self.root.cols > 0 {
                crate::linalg::set_product(
                    faer::MatMut::from_column_major_slice_mut(&mut image.data, image.rows, image.cols),
                    self.root.view().transpose(),
                    faer::MatRef::from_column_major_slice(&y, d, out.len()),
                );
            }
            for (i, (value, y)) in out.iter_mut().zip(y.chunks_exact(d)).enumerate() {
                let moved = &image.data[i * image.rows..(i + 1) * image.rows];
                let linear: f64 = y.iter().zip(&self.shift).map(|(y, s)| y * s).sum();
                let square: f64 = y.iter().map(|y| y * y).sum();
                let carried: f64 = moved.iter().map(|v| v * v).sum();
                *value = linear + square - carried + self.constant;
            }
        });
        Ok(out)
    }
}
