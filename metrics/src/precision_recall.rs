//! Precision and Recall of k-nearest-neighbour manifolds.

use crate::manifold::{Points, RANK, manifolds};
use crate::{Compute, MetricError, Rows};
use std::sync::atomic::{AtomicBool, Ordering};

/// How distances are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrMode {
    /// Bounds in f32, and every comparison that they leave open in f64: the counts are those of f64
    /// arithmetic. The default.
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
/// Pairs are decided by rigorous lower bounds from the leading principal directions where those suffice, and
/// by their full product where not; the result is that of computing all of them.
///
/// Memory beyond the inputs: 1 KB a row for the bounds, 60 MB to fit and make them, and about 4 MB for each thread; `Adm` adds 4·(N + M)·d for
/// the values rounded to f16. 10000 × 10000 × 2048 thus takes 164 MB for the inputs and about 100 MB (`Adm` 260 MB)
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
        PrMode::F32 => {
            let (s, r) = (Points::new(samples, compute), Points::new(reference, compute));
            manifolds(&s, &r, compute)
        }
        PrMode::Adm => crate::adm::manifolds(samples, reference, compute)?,
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
