//! Kernel Inception Distance.

use crate::compute::ranges;
use crate::linalg::dots_f64;
use crate::numpy_random::NumpyRandom;
use crate::{Compute, MetricError, Rows};

/// Rows per tile of the kernel matrix.
const TILE: usize = 512;

/// KID over all images, with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kid {
    /// Unbiased estimate of MMD²; may be negative.
    pub value: f64,
    /// Standard error over both samples, from the Hoeffding decomposition of the statistic (W. Hoeffding, "A
    /// class of statistics with asymptotically normal distribution", 1948): the variance of its linear part
    /// (of order 1/N) plus that of its degenerate part (1/N², what is left where the distributions agree).
    pub standard_error: f64,
}

/// KID over random subsets.
#[derive(Debug, Clone, PartialEq)]
pub struct KidSubsets {
    /// Mean over the subsets.
    pub mean: f64,
    /// Standard deviation over the subsets (ddof 0, as torch-fidelity prints): the spread of a KID of
    /// subset-size samples, not the uncertainty of the mean.
    pub std: f64,
    /// std (ddof 1) / √subsets: the Monte Carlo error of the mean over the choice of subsets, given the
    /// images. For the error over images see [`Kid::standard_error`].
    pub standard_error: f64,
    /// Value of every subset, in order.
    pub values: Vec<f64>,
}

/// The subsets of [`kid_subsets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KidProtocol {
    /// Number of subsets.
    pub subsets: usize,
    /// Images of each sample in a subset.
    pub size: usize,
    /// Seed of `numpy.random.RandomState`.
    pub seed: u64,
}

impl Default for KidProtocol {
    /// torch-fidelity's: 100 subsets of 1000, seed 2020.
    fn default() -> Self {
        Self { subsets: 100, size: 1000, seed: 2020 }
    }
}

/// (xᵀy/d + 1)³ applied in place to dot products.
fn kernel(dots: &mut [f64], width: usize) {
    let scale = 1.0 / width as f64;
    for v in dots {
        let base = *v * scale + 1.0;
        *v = base * base * base;
    }
}

/// Sums over one kernel matrix.
struct KernelSums {
    /// Row sums, without the diagonal where the samples are the same.
    rows: Vec<f64>,
    /// Column sums, likewise.
    cols: Vec<f64>,
    /// Sum of squares, likewise.
    squares: f64,
}

/// All of k(x, y), tile by tile; with `same`, x = y, and only tiles on and above the diagonal are computed.
fn sums(x: Rows<'_>, y: Rows<'_>, same: bool, compute: Option<&Compute>) -> KernelSums {
    let (n, m, width) = (x.count(), y.count(), x.width());
    let tiles: Vec<_> = ranges(n, TILE)
        .into_iter()
        .flat_map(|a| ranges(m, TILE).into_iter().map(move |b| (a, b)))
        .filter(|(a, b)| !same || b.0 >= a.0)
        .collect();
    let tile = |((a0, a1), (b0, b1)): ((usize, usize), (usize, usize))| {
        let (h, w) = (a1 - a0, b1 - b0);
        let mut k = vec![0.0; h * w];
        dots_f64(&mut k, &x.widen(a0, a1), &y.widen(b0, b1), width);
        kernel(&mut k, width);
        let diagonal = same && a0 == b0;
        let (mut rows, mut cols, mut squares) = (vec![0.0; h], vec![0.0; w], 0.0);
        for (i, row) in k.chunks_exact_mut(w).enumerate() {
            if diagonal {
                row[i] = 0.0;
            }
            rows[i] = row.iter().sum();
            squares += row.iter().map(|v| v * v).sum::<f64>();
            cols.iter_mut().zip(row.iter()).for_each(|(c, v)| *c += v);
        }
        (a0, b0, diagonal, rows, cols, squares)
    };
    let parts = match compute {
        Some(compute) => compute.map(tiles, tile),
        None => tiles.into_iter().map(tile).collect(),
    };
    let mut out = KernelSums { rows: vec![0.0; n], cols: vec![0.0; m], squares: 0.0 };
    for (a0, b0, diagonal, rows, cols, squares) in parts {
        out.rows[a0..].iter_mut().zip(&rows).for_each(|(a, v)| *a += v);
        out.cols[b0..].iter_mut().zip(&cols).for_each(|(a, v)| *a += v);
        if same && !diagonal {
            out.rows[b0..].iter_mut().zip(&cols).for_each(|(a, v)| *a += v);
        }
        out.squares += if same && !diagonal { 2.0 * squares } else { squares };
    }
    out
}

fn total(v: &[f64]) -> f64 {
    v.iter().sum()
}

fn check(samples: Rows<'_>, reference: Rows<'_>, needed: usize) -> Result<(), MetricError> {
    reference.same_width("reference", samples.width())?;
    samples.at_least("KID samples", needed)?;
    reference.at_least("KID reference", needed)
}

/// KID of all images: the unbiased estimate of MMD² with the kernel (xᵀy/d + 1)³ (M. Bińkowski et al.,
/// "Demystifying MMD GANs", 2018; A. Gretton et al., "A kernel two-sample test", 2012, lemma 6), for samples
/// [N, d] and reference [M, d] of any sizes from 2 on. All in f64.
///
/// Memory beyond the inputs: 8·(512 + 2·d)·512 bytes a thread (d = 2048: 19 MB), and 16·(N + M)²/512 for partial
/// sums (60,000 images: 113 MB).
///
/// # Errors
/// [`MetricError::Width`], [`MetricError::TooFew`].
pub fn kid(samples: Rows<'_>, reference: Rows<'_>, compute: &Compute) -> Result<Kid, MetricError> {
    check(samples, reference, 2)?;
    let (n, m) = (samples.count(), reference.count());
    let xx = sums(samples, samples, true, Some(compute));
    let yy = sums(reference, reference, true, Some(compute));
    let xy = sums(samples, reference, false, Some(compute));
    let (nf, mf) = (n as f64, m as f64);
    let (pxx, pyy, pxy) = (nf * (nf - 1.0), mf * (mf - 1.0), nf * mf);
    let value = total(&xx.rows) / pxx + total(&yy.rows) / pyy - 2.0 * total(&xy.rows) / pxy;
    let linear = |own: &[f64], cross: &[f64], n: f64, m: f64| variance(&linear_part(own, cross, n, m)) / n;
    let first = linear(&xx.rows, &xy.rows, nf, mf) + linear(&yy.rows, &xy.cols, mf, nf);
    // Degenerate part: E k² − E a(x)² − E b(y)² + (E k)², a and b the conditional means.
    let rest = |squares: f64, pairs: f64, a: &[f64], na: f64, b: &[f64], nb: f64| {
        let square = |v: &[f64], n: f64| v.iter().map(|v| (v / n) * (v / n)).sum::<f64>() / v.len() as f64;
        let mean = total(a) / pairs;
        (squares / pairs - square(a, na) - square(b, nb) + mean * mean).max(0.0)
    };
    let second = 2.0 * rest(xx.squares, pxx, &xx.rows, nf - 1.0, &xx.rows, nf - 1.0) / pxx
        + 2.0 * rest(yy.squares, pyy, &yy.rows, mf - 1.0, &yy.rows, mf - 1.0) / pyy
        + 4.0 * rest(xy.squares, pxy, &xy.rows, mf, &xy.cols, nf) / pxy;
    // The observed spread of the linear part holds the degenerate part twice over, through its finite means.
    Ok(Kid { value, standard_error: ((first - 2.0 * second).max(0.0) + second).sqrt() })
}

/// Influence of each sample on the unbiased KID against `reference`: 2·(mean_j k(x_i, x_j) − mean_j k(x_i, y_j)), the
/// linear part of its Hoeffding decomposition over the samples. For samples of the same classes and seeds, the spread of the
/// differences of two sets is the standard error of the difference of their KIDs.
///
/// # Errors
/// As [`kid`].
pub fn kid_influence(
    samples: Rows<'_>,
    reference: Rows<'_>,
    compute: &Compute,
) -> Result<Vec<f64>, MetricError> {
    check(samples, reference, 2)?;
    let xx = sums(samples, samples, true, Some(compute));
    let xy = sums(samples, reference, false, Some(compute));
    Ok(linear_part(&xx.rows, &xy.rows, samples.count() as f64, reference.count() as f64))
}

/// 2·(mean_j k(x_i, x_j) − mean_j k(x_i, y_j)) from the sums over j, of `n` samples and `m` others.
fn linear_part(own: &[f64], cross: &[f64], n: f64, m: f64) -> Vec<f64> {
    own.iter().zip(cross).map(|(a, b)| 2.0 * (a / (n - 1.0) - b / m)).collect()
}

/// Variance with ddof 1.
fn variance(v: &[f64]) -> f64 {
    let n = v.len() as f64;
    let mean = total(v) / n;
    v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0)
}

/// KID over random subsets by torch-fidelity's rule: for each subset in turn, `RandomState.choice(N, size,
/// replace=False)` of the samples, then of the reference, from one generator. Subsets run in parallel.
///
/// Memory: 8·size·d + 8·(512 + 2·d)·512 bytes a thread, and 16·size for each subset.
///
/// # Errors
/// [`MetricError::Width`]; [`MetricError::TooFew`] with fewer images than a subset takes;
/// [`MetricError::Parameter`] for no subset, a subset size below 2, or a seed above 2³² − 1.
pub fn kid_subsets(
    samples: Rows<'_>,
    reference: Rows<'_>,
    protocol: KidProtocol,
    compute: &Compute,
) -> Result<KidSubsets, MetricError> {
    if protocol.subsets == 0 || protocol.size < 2 {
        return Err(MetricError::Parameter { what: "KID subsets", rule: "at least 1, of at least 2 images" });
    }
    check(samples, reference, protocol.size)?;
    let size = protocol.size;
    let mut random = NumpyRandom::new(protocol.seed)?;
    let mut choose = |n: usize| {
        let mut order = random.permutation(n);
        order.truncate(size);
        order
    };
    let chosen: Vec<_> =
        (0..protocol.subsets).map(|_| (choose(samples.count()), choose(reference.count()))).collect();
    let gather = |rows: Rows<'_>, chosen: &[usize]| -> Vec<f32> {
        chosen.iter().flat_map(|&i| rows.row(i)).copied().collect()
    };
    let values = compute.map(chosen, |(a, b)| {
        let (x, y) = (gather(samples, &a), gather(reference, &b));
        let (x, y) = (samples.like(&x), reference.like(&y));
        let within = total(&sums(x, x, true, None).rows) + total(&sums(y, y, true, None).rows);
        let across = total(&sums(x, y, false, None).rows);
        let s = size as f64;
        within / (s * (s - 1.0)) - 2.0 * across / (s * s)
    });
    let count = values.len() as f64;
    let mean = total(&values) / count;
    let spread: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    let standard_error = if values.len() > 1 { (spread / (count - 1.0) / count).sqrt() } else { f64::NAN };
    Ok(KidSubsets { mean, std: (spread / count).sqrt(), standard_error, values })
}
