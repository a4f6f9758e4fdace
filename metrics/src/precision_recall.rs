//! Precision and Recall of k-nearest-neighbour manifolds.

use crate::compute::ranges;
use crate::linalg::dots_f32;
use crate::{Compute, MetricError, Rows};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Neighbours of the manifold.
pub const NEIGHBOURS: usize = 3;
/// A radius is this smallest (counted from 1) squared distance of a row, the distance to itself included.
const RANK: usize = NEIGHBOURS + 1;
/// Candidates kept for a radius before they are computed exactly.
const KEPT: usize = 16;
/// Rows per tile of the distance matrix.
const TILE: usize = 1024;

/// How distances are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrMode {
    /// Products in f32, and every comparison that their rounding could decide again in f64: the counts are
    /// those of f64 arithmetic. The default.
    #[default]
    F32,
    /// As the TF evaluator: f16 in blocks of 10000 × 10000, f32 where a block overflows. Inflates both by
    /// about 0.001 to 0.003.
    Adm,
}

/// Precision and Recall, with what they were computed from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionRecall {
    /// Fraction of the samples inside the reference manifold.
    pub precision: f64,
    /// Fraction of the reference inside the sample manifold.
    pub recall: f64,
    /// Samples inside the reference manifold.
    pub precision_count: usize,
    /// Reference images inside the sample manifold.
    pub recall_count: usize,
    /// Sum of the squared radii of the reference.
    pub reference_radii_sum: f64,
    /// Sum of the squared radii of the samples.
    pub sample_radii_sum: f64,
}

/// Precision and Recall (T. Kynkäänniemi et al., "Improved precision and recall metric for assessing
/// generative models", 2019) of `samples` [N, d] against `reference` [M, d], k = 3, as guided-diffusion's
/// evaluator: squared distances max(|u|² + |v|² − 2uᵀv, 0), radius = the 4th smallest of a row including
/// itself, inside = d ≤ r for any.
///
/// Memory beyond the inputs: 4·1024² bytes for each thread and about 300·(N + M); `Adm` adds 4·(N + M)·d for
/// the values rounded to f16. 10000 × 10000 × 2048 thus takes 164 MB for the inputs and 20 MB (`Adm` 180 MB)
/// more.
///
/// # Errors
/// [`MetricError::Width`]; [`MetricError::TooFew`] below 4 rows.
pub fn precision_recall(
    samples: Rows<'_>,
    reference: Rows<'_>,
    mode: PrMode,
    compute: &Compute,
) -> Result<PrecisionRecall, MetricError> {
    reference.same_width("reference", samples.width())?;
    samples.at_least("samples", RANK)?;
    reference.at_least("reference", RANK)?;
    let (inside, outside, reference_radii, sample_radii) = match mode {
        PrMode::F32 => exact(samples, reference, compute),
        PrMode::Adm => crate::adm::manifolds(samples, reference, compute),
    };
    let count = |flags: &[AtomicBool]| flags.iter().filter(|f| f.load(Ordering::Relaxed)).count();
    let (precision_count, recall_count) = (count(&inside), count(&outside));
    Ok(PrecisionRecall {
        precision: precision_count as f64 / samples.count() as f64,
        recall: recall_count as f64 / reference.count() as f64,
        precision_count,
        recall_count,
        reference_radii_sum: reference_radii.iter().sum(),
        sample_radii_sum: sample_radii.iter().sum(),
    })
}

/// Samples inside, reference inside, reference radii, sample radii.
pub(crate) type Manifolds = (Vec<AtomicBool>, Vec<AtomicBool>, Vec<f64>, Vec<f64>);

pub(crate) fn flags(n: usize) -> Vec<AtomicBool> {
    (0..n).map(|_| AtomicBool::new(false)).collect()
}

/// Rows with their squared norms.
struct Points<'a> {
    rows: Rows<'a>,
    square: Vec<f64>,
    /// Largest error of an f32 product of row i with row j, divided by |row i|·|row j|, both with the factor
    /// 2 of the distance: (d + 2)·2⁻²⁴, the bound of a sum of d products in any order (N. J. Higham,
    /// "Accuracy and stability of numerical algorithms", §3.1, with room for the second order).
    norm: Vec<f64>,
}

/// In a fixed order of summation that is symmetric in its arguments, so that equal pairs have equal
/// distances.
fn dot(u: &[f32], v: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (us, ur) = u.as_chunks::<8>();
    let (vs, vr) = v.as_chunks::<8>();
    for (a, b) in us.iter().zip(vs) {
        for i in 0..8 {
            lanes[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    let rest: f64 = ur.iter().zip(vr).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    lanes.iter().sum::<f64>() + rest
}

impl<'a> Points<'a> {
    fn new(rows: Rows<'a>, compute: &Compute) -> Self {
        let mut square = vec![0.0; rows.count()];
        compute.chunks_mut(&mut square, 256, |b, out| {
            for (i, v) in out.iter_mut().enumerate() {
                let row = rows.row(b * 256 + i);
                *v = dot(row, row);
            }
        });
        let bound = 2.0 * (rows.width() + 2) as f64 * f64::from(f32::EPSILON) / 2.0 * 1.001;
        // The bound is split evenly between both factors of the product.
        let norm = square.iter().map(|v| (v * bound).sqrt()).collect();
        Self { rows, square, norm }
    }

    /// Squared distance in f64; symmetric, and 0 for equal rows.
    fn distance(&self, i: usize, other: &Points<'_>, j: usize) -> f64 {
        let product = dot(self.rows.row(i), other.rows.row(j));
        (self.square[i] + other.square[j] - 2.0 * product).max(0.0)
    }
}

/// The [`KEPT`] smallest approximate distances of a row, ascending by (distance, index): independent of the
/// order in which they were offered.
#[derive(Clone)]
struct Nearest {
    kept: [(f64, u32); KEPT],
}

impl Nearest {
    const EMPTY: Self = Self { kept: [(f64::INFINITY, u32::MAX); KEPT] };

    fn offer(&mut self, d: f64, j: u32) {
        if d > self.kept[KEPT - 1].0 || (d, j) >= self.kept[KEPT - 1] {
            return;
        }
        let at = self.kept.partition_point(|k| *k < (d, j));
        self.kept[at..].rotate_right(1);
        self.kept[at] = (d, j);
    }
}

/// f64 radii of all rows.
fn radii(points: &Points<'_>, compute: &Compute) -> Vec<f64> {
    let n = points.rows.count();
    let blocks = ranges(n, TILE);
    let lists: Vec<Mutex<Vec<Nearest>>> =
        blocks.iter().map(|(a, b)| Mutex::new(vec![Nearest::EMPTY; b - a])).collect();
    let count = blocks.len();
    let tiles: Vec<_> = (0..count).flat_map(|a| (a..count).map(move |b| (a, b))).collect();
    compute.map(tiles, |(a, b)| {
        let ((a0, a1), (b0, b1)) = (blocks[a], blocks[b]);
        let (h, w) = (a1 - a0, b1 - b0);
        let mut dots = vec![0.0f32; h * w];
        dots_f32(&mut dots, points.rows.slice(a0, a1), points.rows.slice(b0, b1), points.rows.width());
        let lock = |i: usize| lists[i].lock().unwrap_or_else(PoisonError::into_inner);
        let distance = |i: usize, j: usize| {
            points.square[a0 + i] + points.square[b0 + j] - 2.0 * f64::from(dots[i * w + j])
        };
        {
            let mut list = lock(a);
            for (i, row) in list.iter_mut().enumerate() {
                (0..w).for_each(|j| row.offer(distance(i, j), (b0 + j) as u32));
            }
        }
        if a != b {
            let mut list = lock(b);
            for i in 0..h {
                list.iter_mut().enumerate().for_each(|(j, row)| row.offer(distance(i, j), (a0 + i) as u32));
            }
        }
    });
    let lists: Vec<Nearest> =
        lists.into_iter().flat_map(|l| l.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    let widest = points.norm.iter().fold(0.0f64, |a, &v| a.max(v));
    let mut out = vec![0.0; n];
    compute.chunks_mut(&mut out, 64, |b, out| {
        for (i, radius) in out.iter_mut().enumerate() {
            let i = b * 64 + i;
            let kept = &lists[i].kept;
            // The true 4th smallest is at most the 4th smallest approximation plus its error; a row left out
            // of the list is at least the last kept one minus its own.
            let slack = 2.0 * points.norm[i] * widest;
            let safe = kept[KEPT - 1].0 > kept[RANK - 1].0 + slack;
            let mut exact: Vec<f64> = if safe {
                let near = kept.iter().take_while(|k| k.0 <= kept[RANK - 1].0 + slack);
                near.map(|k| points.distance(i, points, k.1 as usize)).collect()
            } else {
                (0..n).map(|j| points.distance(i, points, j)).collect()
            };
            exact.sort_by(f64::total_cmp);
            *radius = exact[RANK - 1];
        }
    });
    out
}

fn exact(samples: Rows<'_>, reference: Rows<'_>, compute: &Compute) -> Manifolds {
    let s = Points::new(samples, compute);
    let r = Points::new(reference, compute);
    let (s_radii, r_radii) = (radii(&s, compute), radii(&r, compute));
    let (s_in, r_in) = (flags(samples.count()), flags(reference.count()));
    let tiles: Vec<_> = ranges(samples.count(), TILE)
        .into_iter()
        .flat_map(|a| ranges(reference.count(), TILE).into_iter().map(move |b| (a, b)))
        .collect();
    compute.map(tiles, |((a0, a1), (b0, b1))| {
        let w = b1 - b0;
        let mut dots = vec![0.0f32; (a1 - a0) * w];
        dots_f32(&mut dots, samples.slice(a0, a1), reference.slice(b0, b1), samples.width());
        let mut open = Vec::new();
        let reach = &r_radii[b0..b1];
        for (i, row) in (a0..a1).zip(dots.chunks_exact(w)) {
            for (j, product) in (b0..b1).zip(row) {
                let d = s.square[i] + r.square[j] - 2.0 * f64::from(*product);
                let error = s.norm[i] * r.norm[j];
                let (low, high) = (d - error, d + error);
                if low > reach[j - b0].max(s_radii[i]) {
                    continue;
                }
                let decide = |radius: f64, inside: &AtomicBool| {
                    if high <= radius {
                        inside.store(true, Ordering::Relaxed);
                    }
                    low <= radius && high > radius
                };
                let unsure = decide(r_radii[j], &s_in[i]);
                if decide(s_radii[i], &r_in[j]) || unsure {
                    open.push((i, j));
                }
            }
        }
        // Only true is ever stored, and only where it holds: the order of tiles cannot matter.
        for (i, j) in open {
            if s_in[i].load(Ordering::Relaxed) && r_in[j].load(Ordering::Relaxed) {
                continue;
            }
            let d = s.distance(i, &r, j);
            if d <= r_radii[j] {
                s_in[i].store(true, Ordering::Relaxed);
            }
            if d <= s_radii[i] {
                r_in[j].store(true, Ordering::Relaxed);
            }
        }
    });
    (s_in, r_in, r_radii, s_radii)
}
