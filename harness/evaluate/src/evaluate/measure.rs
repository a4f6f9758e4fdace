//! From features and statistics to a report.

use dpar_export_inputs::memory;
use dpar_export_metrics::{
    Compute, FrechetInfluence, InceptionScore, InceptionScoreAccumulator, InceptionScoreSplits, MetricError,
    Moments, PrMode, Rows, Variant, Z90, fraction_interval, frechet_distance, inception_score_torch_fidelity,
    kid, kid_subsets, mean_and_standard_error, precision_recall,
};
use serde_json::json;
use std::collections::BTreeMap;

use super::report::{Measured, Metric, MetricReport, MetricSettings, Network};
use super::{EvaluateError, InputKind};

/// What is known of a set of images.
#[derive(Debug, Clone, Copy, Default)]
pub struct Side<'a> {
    /// Mean and covariance of pooled features.
    pub pool_moments: Option<&'a Moments>,
    /// Mean and covariance of spatial features.
    pub spatial_moments: Option<&'a Moments>,
    /// Pooled features, [N, D].
    pub pool: Option<Rows<'a>>,
    /// Logits, [N, C].
    pub logits: Option<Rows<'a>>,
}

/// How many parts [`measure`] has.
pub const PARTS: usize = 4;

/// Computes what the two sides allow. `step` is told which of its parts comes next and returns false to stop.
///
/// # Errors
/// When the sides do not fit together, a metric refuses its input, or `step` says stop.
pub fn measure(
    samples: Side<'_>,
    reference: Side<'_>,
    network: &Network,
    settings: &MetricSettings,
    compute: &Compute,
    step: &mut dyn FnMut(&'static str) -> bool,
) -> Result<MetricReport, EvaluateError> {
    let mut next = |what: &'static str| if step(what) { Ok(()) } else { Err(EvaluateError::Interrupted) };
    let mut report = MetricReport::default();
    next("Fréchet distance")?;
    frechet(&mut report, samples, reference, network, settings, compute)?;
    next("Inception Score")?;
    inception_score(&mut report, samples, network, settings, compute)?;
    next("precision, recall")?;
    let (Some(x), Some(y)) = (samples.pool, reference.pool) else {
        let reason = "needs the features of every image on both sides";
        for metric in [Metric::Precision, Metric::Recall, Metric::Kid, Metric::KidSubsets] {
            report.skip(metric, reason);
        }
        return Ok(report);
    };
    manifolds(&mut report, (x, y), network, settings, compute)?;
    next("KID")?;
    kernel(&mut report, (x, y), network, settings, compute)?;
    Ok(report)
}

fn measured(name: impl Into<String>, definition: impl Into<String>, value: f64) -> Measured {
    Measured {
        name: name.into(),
        definition: definition.into(),
        value,
        standard_error: None,
        interval_90: None,
        details: BTreeMap::new(),
    }
}

impl Measured {
    /// A normal standard error, and the interval that follows.
    fn with_error(mut self, error: f64) -> Self {
        if error.is_finite() {
            self.standard_error = Some(error);
            self.interval_90 = Some([self.value - Z90 * error, self.value + Z90 * error]);
        }
        self
    }

    fn with(mut self, key: &str, value: serde_json::Value) -> Self {
        self.details.insert(key.to_owned(), value);
        self
    }
}

/// The name of a metric of FID-Inception, or of another network's features.
fn name(network: &Network, inception: &str, other: &str) -> String {
    if network.inception { inception.to_owned() } else { format!("{other} on {}", network.name) }
}

/// Whose Fréchet distance on Inception's features this is.
fn of_variant(base: &str, variant: Variant) -> String {
    match variant {
        Variant::GuidedDiffusion => base.to_owned(),
        other => format!("{base} ({other})"),
    }
}

fn frechet(
    report: &mut MetricReport,
    samples: Side<'_>,
    reference: Side<'_>,
    network: &Network,
    settings: &MetricSettings,
    compute: &Compute,
) -> Result<(), EvaluateError> {
    let metric = if network.inception { Metric::Fid } else { Metric::FrechetDistance };
    match (samples.pool_moments, reference.pool_moments) {
        (Some(a), Some(b)) => {
            let mut title = name(network, &of_variant("FID", settings.variant), "Fréchet distance");
            if network.inception && a.width() != 2048 {
                title += &format!(" on {} features", a.width());
            }
            let found = frechet_distance(a, b, compute).map_err(EvaluateError::metric(&title))?;
            let definition = "|μ1−μ2|² + tr Σ1 + tr Σ2 − 2·tr(Σ1Σ2)^½ of pooled features, ddof 1, f64";
            let mut entry = measured(&title, definition, found.distance)
                .with("mean_term", json!(found.mean_term))
                .with("full_rank", json!(found.full_rank));
            if let Some(rows) = samples.pool {
                let values = FrechetInfluence::new(a, b, compute).and_then(|f| f.rows(rows, compute));
                let error = values.and_then(|v| mean_and_standard_error(&v));
                entry = entry.with_error(error.map_err(EvaluateError::metric(&title))?.1);
            }
            report.add(metric, entry);
        }
        _ => report.skip(metric, "needs pooled features, or `mu` and `sigma`, on both sides"),
    }
    match (samples.spatial_moments, reference.spatial_moments) {
        (Some(a), Some(b)) => {
            let title = name(network, &of_variant("sFID", settings.variant), "spatial Fréchet distance");
            let found = frechet_distance(a, b, compute).map_err(EvaluateError::metric(&title))?;
            let definition =
                "Fréchet distance of the first 7 channels of Mixed_6d.branch1x1.conv (17 × 17 × 7)";
            report.add(
                Metric::Sfid,
                measured(title, definition, found.distance).with("full_rank", json!(found.full_rank)),
            );
        }
        _ => report.skip(Metric::Sfid, "needs `spatial`, or `mu_s` and `sigma_s`, on both sides"),
    }
    Ok(())
}

fn inception_score(
    report: &mut MetricReport,
    samples: Side<'_>,
    network: &Network,
    settings: &MetricSettings,
    compute: &Compute,
) -> Result<(), EvaluateError> {
    let Some(logits) = samples.logits else {
        report.skip(Metric::InceptionScore, "needs the samples' `logits`");
        return Ok(());
    };
    let title = name(network, &of_variant("Inception Score", settings.variant), "classifier score");
    let fail = || EvaluateError::metric(title.clone());
    let (found, definition): (InceptionScore, String) = match settings.variant.inception_score() {
        InceptionScoreSplits::Chunks(size) => {
            let score = InceptionScoreAccumulator::new(logits.width(), size).and_then(|mut all| {
                all.push(logits)?;
                all.finish()
            });
            let words = format!("exp(mean KL(p ‖ mean p)), mean over consecutive chunks of {size} images");
            (score.map_err(fail())?, words)
        }
        InceptionScoreSplits::Shuffled { splits, seed } => {
            let score = inception_score_torch_fidelity(logits, splits, seed, compute);
            let words = format!(
                "exp(mean KL(p ‖ mean p)), mean over {splits} splits shuffled by RandomState({seed})"
            );
            match score {
                Err(e @ MetricError::TooFew { .. }) => {
                    report.skip(Metric::InceptionScore, e.to_string());
                    return Ok(());
                }
                score => (score.map_err(fail())?, words),
            }
        }
    };
    let mut entry = measured(&title, definition, found.mean)
        .with("std_over_splits", json!(found.std))
        .with("splits", json!(found.splits));
    // With one split there is no spread to tell from.
    if let Ok((_, error)) = mean_and_standard_error(&found.splits) {
        entry.standard_error = Some(error);
    }
    report.add(Metric::InceptionScore, entry);
    Ok(())
}

fn manifolds(
    report: &mut MetricReport,
    (samples, reference): (Rows<'_>, Rows<'_>),
    network: &Network,
    settings: &MetricSettings,
    compute: &Compute,
) -> Result<(), EvaluateError> {
    let found = match precision_recall(samples, reference, settings.pr_mode, compute) {
        Err(e @ MetricError::TooFew { .. }) => {
            report.skip(Metric::Precision, e.to_string());
            report.skip(Metric::Recall, e.to_string());
            return Ok(());
        }
        found => found.map_err(EvaluateError::metric("Precision and Recall"))?,
    };
    let arithmetic = match settings.pr_mode {
        PrMode::F32 => "distances as in f64",
        PrMode::Adm => "the TF evaluator's f16 distances",
    };
    let entry = |title: &str, what: &str, value: f64, count: usize, n: usize, radii: f64| {
        let definition = format!("fraction of {what} (3 nearest neighbours, {arithmetic})");
        let mut entry = measured(name(network, title, title), definition, value)
            .with("count", json!(count))
            .with("squared_radii_sum", json!(radii));
        if let Ok((low, high)) = fraction_interval(count, n) {
            entry.interval_90 = Some([low, high]);
        }
        entry
    };
    let (p, r) = (found.precision_count, found.recall_count);
    let within = "samples inside the reference's manifold";
    let precision =
        entry("Precision", within, found.precision, p, samples.count(), found.reference_radii_sum);
    let within = "reference images inside the samples' manifold";
    let recall = entry("Recall", within, found.recall, r, reference.count(), found.sample_radii_sum);
    report.add(Metric::Precision, precision);
    report.add(Metric::Recall, recall);
    Ok(())
}

fn kernel(
    report: &mut MetricReport,
    (samples, reference): (Rows<'_>, Rows<'_>),
    network: &Network,
    settings: &MetricSettings,
    compute: &Compute,
) -> Result<(), EvaluateError> {
    let title = name(network, "KID", "kernel distance");
    let found = match kid(samples, reference, compute) {
        Err(e @ MetricError::TooFew { .. }) => {
            report.skip(Metric::Kid, e.to_string());
            report.skip(Metric::KidSubsets, e.to_string());
            return Ok(());
        }
        found => found.map_err(EvaluateError::metric(&title))?,
    };
    let definition = "unbiased MMD² with (xᵀy/d + 1)³, all images";
    report.add(Metric::Kid, measured(&title, definition, found.value).with_error(found.standard_error));
    let Some(protocol) = settings.kid else { return Ok(()) };
    let fewest = samples.count().min(reference.count());
    if fewest < protocol.size {
        let (size, fewest) = (protocol.size, fewest);
        report.skip(
            Metric::KidSubsets,
            format!("subsets of {size} images need as many; the smaller side has {fewest}"),
        );
        return Ok(());
    }
    // The rows of every subset are drawn first, 8 bytes each on both sides.
    let drawn = (protocol.subsets as u64).saturating_mul(16 * protocol.size as u64);
    memory::check("the subsets of KID", drawn).map_err(|e| {
        EvaluateError::input(
            InputKind::Request,
            e.to_string(),
            Some("ask for fewer or smaller --kid-subsets"),
        )
    })?;
    let found = kid_subsets(samples, reference, protocol, compute).map_err(EvaluateError::metric(&title))?;
    let (count, size, seed) = (protocol.subsets, protocol.size, protocol.seed);
    let definition = format!("mean of unbiased MMD² over {count} subsets of {size}, RandomState({seed})");
    let mut entry = measured(format!("{title} over subsets"), definition, found.mean)
        .with("std_over_subsets", json!(found.std));
    if found.standard_error.is_finite() {
        entry = entry.with("monte_carlo_error", json!(found.standard_error));
    }
    report.add(Metric::KidSubsets, entry);
    Ok(())
}
