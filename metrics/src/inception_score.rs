//! Inception Score.

use crate::compute::check_finite;
use crate::numpy_random::NumpyRandom;
use crate::{Compute, MetricError, Rows};

const WHAT: &str = "inception score accumulator";
/// Images per chunk in the evaluator of guided-diffusion.
pub const ADM_CHUNK: usize = 5000;

/// An Inception Score.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionScore {
    /// Mean of the scores of the splits.
    pub mean: f64,
    /// Standard deviation over the splits (ddof 0, as `numpy.std`).
    pub std: f64,
    /// Score of each split, in order.
    pub splits: Vec<f64>,
}

/// Streaming Inception Score (T. Salimans et al., "Improved techniques for training GANs", 2016) by the rule
/// of guided-diffusion's evaluator: exp(mean over images of KL(p ‖ mean p)) for each consecutive chunk of
/// 5000 images, a ragged last chunk counting equally, then the mean. **The order of the images matters.** How
/// they are cut into pushes does not, bit for bit.
///
/// Memory: 24·C bytes for C classes, and 8 for each finished chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionScoreAccumulator {
    classes: usize,
    chunk: u64,
    splits: Vec<f64>,
    /// Images of the current chunk.
    count: u64,
    /// Sum of p over them.
    sum: Vec<f64>,
    /// Sum of Σ p·ln p over them.
    negentropy: f64,
}

impl InceptionScoreAccumulator {
    /// `classes` logits an image (1008 for the TF graph), `chunk` images a split ([`ADM_CHUNK`]).
    ///
    /// # Errors
    /// [`MetricError::Parameter`] where either is 0.
    pub fn new(classes: usize, chunk: usize) -> Result<Self, MetricError> {
        if classes == 0 || chunk == 0 {
            return Err(MetricError::Parameter { what: "classes and images a split", rule: "at least 1" });
        }
        let sum = vec![0.0; classes];
        Ok(Self { classes, chunk: chunk as u64, splits: Vec::new(), count: 0, sum, negentropy: 0.0 })
    }

    /// Images so far.
    pub fn count(&self) -> u64 {
        self.splits.len() as u64 * self.chunk + self.count
    }

    /// Adds the logits of images, [N, C] (pool_3 · W without bias).
    ///
    /// # Errors
    /// [`MetricError::Width`]; the accumulator is then unchanged.
    pub fn push(&mut self, logits: Rows<'_>) -> Result<(), MetricError> {
        logits.same_width(WHAT, self.classes)?;
        let mut wide = vec![0.0; self.classes];
        for row in logits.data().chunks_exact(self.classes) {
            wide.iter_mut().zip(row).for_each(|(w, &v)| *w = f64::from(v));
            self.add(&wide);
        }
        Ok(())
    }

    /// Adds logits that were computed in double precision, row-major [N, C].
    ///
    /// # Errors
    /// [`MetricError::Shape`] unless they are whole rows, [`MetricError::NotFinite`]; the accumulator is then
    /// unchanged.
    pub fn push_f64(&mut self, logits: &[f64]) -> Result<(), MetricError> {
        if !logits.len().is_multiple_of(self.classes) {
            return Err(MetricError::Shape { what: "logits", len: logits.len(), width: self.classes });
        }
        check_finite("logits", logits.iter().copied())?;
        logits.chunks_exact(self.classes).for_each(|row| self.add(row));
        Ok(())
    }

    fn add(&mut self, logits: &[f64]) {
        let high = logits.iter().fold(f64::NEG_INFINITY, |a, &v| a.max(v));
        let total: f64 = logits.iter().map(|v| (v - high).exp()).sum();
        let log_total = total.ln();
        for (sum, v) in self.sum.iter_mut().zip(logits) {
            let log_p = *v - high - log_total;
            let p = log_p.exp();
            *sum += p;
            self.negentropy += p * log_p;
        }
        self.count += 1;
        if self.count == self.chunk {
            self.splits.push(self.score());
            self.count = 0;
            self.sum.fill(0.0);
            self.negentropy = 0.0;
        }
    }

    /// Score of the current chunk: exp((Σ Σ p·ln p)/n − Σ p̄·ln p̄).
    fn score(&self) -> f64 {
        let n = self.count as f64;
        let mean = self.sum.iter().map(|s| s / n).filter(|q| *q > 0.0);
        (self.negentropy / n - mean.map(|q| q * q.ln()).sum::<f64>()).exp()
    }

    /// The score of all images so far.
    ///
    /// # Errors
    /// [`MetricError::TooFew`] without any image.
    pub fn finish(&self) -> Result<InceptionScore, MetricError> {
        let mut splits = self.splits.clone();
        if self.count > 0 {
            splits.push(self.score());
        }
        summary(splits)
    }
}

fn summary(splits: Vec<f64>) -> Result<InceptionScore, MetricError> {
    if splits.is_empty() {
        return Err(MetricError::TooFew { what: "inception score", found: 0, needed: 1 });
    }
    let n = splits.len() as f64;
    let mean = splits.iter().sum::<f64>() / n;
    let std = (splits.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
    Ok(InceptionScore { mean, std, splits })
}

/// torch-fidelity's Inception Score: images shuffled by `numpy.random.RandomState(seed).permutation(N)`, then
/// `splits` parts from ⌊iN/splits⌋ on (its defaults: seed 2020, 10 splits). Logits [N, C], without bias. The
/// parts are computed in parallel.
///
/// # Errors
/// [`MetricError::TooFew`] with fewer images than splits, [`MetricError::Parameter`] for 0 splits or a seed
/// above 2³² − 1.
pub fn inception_score_torch_fidelity(
    logits: Rows<'_>,
    splits: usize,
    seed: u64,
    compute: &Compute,
) -> Result<InceptionScore, MetricError> {
    if splits == 0 {
        return Err(MetricError::Parameter { what: "splits", rule: "at least 1" });
    }
    let n = logits.count();
    logits.at_least("inception score", splits)?;
    let order = NumpyRandom::new(seed)?.permutation(n);
    let parts: Vec<_> = (0..splits).map(|i| (i * n / splits, (i + 1) * n / splits)).collect();
    let scores = compute.map(parts, |(from, to)| -> Result<f64, MetricError> {
        let mut part = InceptionScoreAccumulator::new(logits.width(), to - from + 1)?;
        let mut wide = vec![0.0; logits.width()];
        for &i in &order[from..to] {
            wide.iter_mut().zip(logits.row(i)).for_each(|(w, &v)| *w = f64::from(v));
            part.add(&wide);
        }
        Ok(part.score())
    });
    summary(scores.into_iter().collect::<Result<_, _>>()?)
}
