//! Statistics of the gate: standard errors, bootstrap, equivalence test, verdicts.

use crate::random::resample;
use crate::{Compute, MetricError};

/// 95 % quantile of the normal distribution: the half-width, in standard errors, of a two-sided 90 %
/// interval.
pub const Z90: f64 = 1.644_853_626_951_472_7;
/// Smallest margin of the equivalence test, in units of the metric: of an FID, or of steps.
pub(crate) const MARGIN_FLOOR: f64 = 0.03;
/// Margin of the equivalence test as a fraction of the reference value.
pub const MARGIN_FRACTION: f64 = 0.01;
/// Smallest margin of KID, where the floor of distances would let anything pass, since a KID is a few thousandths: the last
/// digit that is usually printed (KID·10³ with one decimal).
pub(crate) const KID_MARGIN_FLOOR: f64 = 1e-4;
/// Tolerance against a printed number, as a fraction of it.
pub(crate) const PRINTED_FRACTION: f64 = 0.02;
/// Tolerance against a printed number, in standard errors of the mean over seeds.
pub(crate) const PRINTED_ERRORS: f64 = 3.0;
/// Seeds needed to compare with a printed number.
pub const PRINTED_SEEDS: usize = 3;
/// Fewer seeds than [`PRINTED_SEEDS`] that are off by less than this fraction decide nothing.
pub(crate) const SINGLE_RUN_FRACTION: f64 = 0.013;

/// Outcome of a gate, or of a whole run of comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Shown to agree.
    Pass,
    /// Shown to differ.
    Fail,
    /// Too little data to tell.
    Inconclusive,
    /// Nothing failed, but not all that was asked for was compared.
    Incomplete,
}

impl Verdict {
    /// The verdict of several gates together: a failure fails, otherwise anything incomplete is incomplete, and
    /// anything inconclusive inconclusive. None at all is inconclusive.
    pub fn all(verdicts: impl IntoIterator<Item = Self>) -> Self {
        let rank = |verdict: &Self| match verdict {
            Self::Pass => 0,
            Self::Inconclusive => 1,
            Self::Incomplete => 2,
            Self::Fail => 3,
        };
        verdicts.into_iter().max_by_key(rank).unwrap_or(Self::Inconclusive)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::Incomplete => "incomplete",
        })
    }
}

fn check(what: &'static str, values: &[f64]) -> Result<(), MetricError> {
    if values.len() < 2 {
        return Err(MetricError::TooFew { what, found: values.len(), needed: 2 });
    }
    crate::compute::check_finite(what, values.iter().copied())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean and its standard error s/√n (s with ddof 1). For values of an influence function the second is the
/// standard error of the metric.
///
/// # Errors
/// [`MetricError::TooFew`] below two values, [`MetricError::NotFinite`].
pub fn mean_and_standard_error(values: &[f64]) -> Result<(f64, f64), MetricError> {
    check("values", values)?;
    let (n, m) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|v| (v - m) * (v - m)).sum();
    Ok((m, (squares / (n - 1.0) / n).sqrt()))
}

/// Standard error of the difference of two paired metrics: that of the mean of aᵢ − bᵢ, where aᵢ and bᵢ are
/// the values (of the quantity itself, or of the metric's influence function) for the same class and seed.
///
/// # Errors
/// [`MetricError::UnequalCounts`] where they are not pairs, [`MetricError::TooFew`],
/// [`MetricError::NotFinite`].
pub fn paired_standard_error(a: &[f64], b: &[f64]) -> Result<f64, MetricError> {
    Ok(mean_and_standard_error(&differences(a, b)?)?.1)
}

fn differences(a: &[f64], b: &[f64]) -> Result<Vec<f64>, MetricError> {
    if a.len() != b.len() {
        return Err(MetricError::UnequalCounts { what: "paired values", left: a.len(), right: b.len() });
    }
    Ok(a.iter().zip(b).map(|(a, b)| a - b).collect())
}

/// Settings of a bootstrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bootstrap {
    /// Number of resamples, at least 2.
    pub resamples: usize,
    /// Seed; resample r draws stream r of it, so results depend on nothing else.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 2000 resamples, seed 0.
    fn default() -> Self {
        Self { resamples: 2000, seed: 0 }
    }
}

/// Distribution of a bootstrapped statistic.
#[derive(Debug, Clone, PartialEq)]
pub struct BootstrapResult {
    /// Mean over the resamples.
    pub mean: f64,
    /// Standard deviation over the resamples (ddof 1): the standard error of the statistic.
    pub standard_error: f64,
    /// 5 % quantile.
    pub low: f64,
    /// 95 % quantile.
    pub high: f64,
}

impl Bootstrap {
    /// Bootstrap (B. Efron, 1979) of any statistic of `n` images: `statistic` is given the indices of a
    /// resample, and takes **the same images of both sets**, so that a difference of metrics is resampled in
    /// pairs (a bootstrap of each alone would count the bias of FID twice). Resamples run in parallel.
    ///
    /// Memory: 8·n bytes a thread beside what `statistic` takes.
    ///
    /// # Errors
    /// [`MetricError::TooFew`] below two images, [`MetricError::Parameter`] below two resamples,
    /// [`MetricError::NotFinite`] where the statistic is, and whatever it returns.
    pub fn of(
        self,
        n: usize,
        statistic: impl Fn(&[usize]) -> Result<f64, MetricError> + Sync + Send,
        compute: &Compute,
    ) -> Result<BootstrapResult, MetricError> {
        self.check(n)?;
        let streams: Vec<u64> = (0..self.resamples as u64).collect();
        let values = compute.map(streams, |r| statistic(&resample(self.seed, r, n)));
        Self::result(values.into_iter().collect::<Result<_, _>>()?)
    }

    /// The same, one resample after the other: for a statistic that computes in parallel itself.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn one_by_one(
        self,
        n: usize,
        mut statistic: impl FnMut(&[usize]) -> Result<f64, MetricError>,
    ) -> Result<BootstrapResult, MetricError> {
        self.check(n)?;
        let values = (0..self.resamples as u64).map(|r| statistic(&resample(self.seed, r, n)));
        Self::result(values.collect::<Result<_, _>>()?)
    }

    fn check(self, n: usize) -> Result<(), MetricError> {
        if n < 2 {
            return Err(MetricError::TooFew { what: "bootstrap", found: n, needed: 2 });
        }
        if self.resamples < 2 {
            return Err(MetricError::Parameter { what: "resamples", rule: "at least 2" });
        }
        Ok(())
    }

    fn result(mut values: Vec<f64>) -> Result<BootstrapResult, MetricError> {
        check("bootstrapped statistic", &values)?;
        let (mean, error) = mean_and_standard_error(&values)?;
        values.sort_by(f64::total_cmp);
        let (low, high) = (quantile(&values, 0.05), quantile(&values, 0.95));
        Ok(BootstrapResult { mean, standard_error: error * (values.len() as f64).sqrt(), low, high })
    }

    /// Bootstrap of the mean of aᵢ − bᵢ over pairs.
    ///
    /// # Errors
    /// [`MetricError::UnequalCounts`], [`MetricError::TooFew`], [`MetricError::NotFinite`],
    /// [`MetricError::Parameter`].
    pub fn paired(self, a: &[f64], b: &[f64], compute: &Compute) -> Result<BootstrapResult, MetricError> {
        let d = differences(a, b)?;
        check("paired values", &d)?;
        self.of(d.len(), |i| Ok(i.iter().map(|&i| d[i]).sum::<f64>() / d.len() as f64), compute)
    }
}

/// Two-sided 90 % interval of a fraction of independent outcomes (E. B. Wilson, 1927), in 0..1: of Precision for
/// the samples given the reference's manifold, and of Recall likewise.
///
/// # Errors
/// [`MetricError::Parameter`] unless 0 ≤ `count` ≤ `n` and `n` is above 0.
pub fn fraction_interval(count: usize, n: usize) -> Result<(f64, f64), MetricError> {
    if n == 0 || count > n {
        return Err(MetricError::Parameter { what: "count of a fraction", rule: "0 to n, n above 0" });
    }
    let (p, n, z) = (count as f64 / n as f64, n as f64, Z90);
    let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    Ok(((middle - half).max(0.0), (middle + half).min(1.0)))
}

/// Quantile of sorted values by linear interpolation (numpy's default).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (i, t) = (at.floor() as usize, at.fract());
    let high = sorted[(i + 1).min(sorted.len() - 1)];
    sorted[i] + (high - sorted[i]) * t
}

/// Margin of the equivalence test for a metric whose reference value is `reference`, on the scale of FID and of mean steps:
/// max(0.03, 1 %).
pub fn equivalence_margin(reference: f64) -> f64 {
    MARGIN_FLOOR.max(MARGIN_FRACTION * reference.abs())
}

/// The same for a distance on features of any other scale than FID-Inception's, of which no smallest margin is known: 1 %.
/// Never 0: equal numbers are equivalent.
pub fn relative_margin(reference: f64) -> f64 {
    (MARGIN_FRACTION * reference.abs()).max(f64::MIN_POSITIVE)
}

/// The same for KID on FID-Inception: max(1e-4, 1 %).
pub fn kid_margin(reference: f64) -> f64 {
    KID_MARGIN_FLOOR.max(MARGIN_FRACTION * reference.abs())
}

/// Two one-sided tests of equivalence (D. J. Schuirmann, 1987) at 5 % each, as an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Equivalence {
    /// Observed difference Δ.
    pub difference: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Margin: differences within ± margin are equivalent.
    pub margin: f64,
    /// Lower end of the 90 % interval, Δ − 1.645·SE.
    pub low: f64,
    /// Upper end of the 90 % interval.
    pub high: f64,
    /// Pass: the interval lies inside the margin. Fail: it lies wholly outside. Otherwise inconclusive.
    pub verdict: Verdict,
}

/// TOST on a difference of metrics with a normal standard error. A standard error of 0 (identical images)
/// decides by the difference alone.
///
/// # Errors
/// [`MetricError::NotFinite`]; [`MetricError::Parameter`] for a negative standard error or a margin not above
/// 0.
pub fn equivalence(difference: f64, standard_error: f64, margin: f64) -> Result<Equivalence, MetricError> {
    equivalence_at(difference, standard_error, margin, Z90)
}

/// The same with another critical value than 1.645: one of several looks ([`crate::sequential_boundaries`]). The interval is then the
/// repeated one, which covers at all looks together. An infinite value decides nothing.
///
/// # Errors
/// As [`equivalence`]; [`MetricError::Parameter`] for a critical value that is not above 0.
pub fn equivalence_at(
    difference: f64,
    standard_error: f64,
    margin: f64,
    critical: f64,
) -> Result<Equivalence, MetricError> {
    let values = [difference, standard_error, margin];
    crate::compute::check_finite("difference, standard error, margin", values.into_iter())?;
    if standard_error < 0.0 || margin <= 0.0 {
        return Err(MetricError::Parameter { what: "standard error and margin", rule: "0 or more, above 0" });
    }
    if critical.is_nan() || critical <= 0.0 {
        return Err(MetricError::Parameter { what: "critical value", rule: "above 0" });
    }
    // Not 0 · ∞, which is no number.
    let reach = if critical.is_finite() { critical * standard_error } else { f64::INFINITY };
    let (low, high) = (difference - reach, difference + reach);
    let verdict = if low > -margin && high < margin {
        Verdict::Pass
    } else if low > margin || high < -margin {
        Verdict::Fail
    } else {
        Verdict::Inconclusive
    };
    Ok(Equivalence { difference, standard_error, margin, low, high, verdict })
}

/// Comparison of runs with a printed number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrintedComparison {
    /// Mean over the seeds.
    pub mean: f64,
    /// Its standard error over the seeds; `None` for a single run.
    pub standard_error: Option<f64>,
    /// max(2 % of the printed number, 3·SE).
    pub tolerance: f64,
    /// The verdict.
    pub verdict: Verdict,
}

/// Compares runs of different seeds with a number from a publication. From three seeds on: pass where |mean −
/// printed| ≤ max(2 %, 3·SE), else fail. Fewer never pass: inconclusive where they are off by less than 1.3
/// %, else fail.
///
/// # Errors
/// [`MetricError::TooFew`] without a run, [`MetricError::NotFinite`], [`MetricError::Parameter`] for a
/// printed number of 0.
pub fn compare_with_printed(runs: &[f64], printed: f64) -> Result<PrintedComparison, MetricError> {
    if runs.is_empty() {
        return Err(MetricError::TooFew { what: "runs", found: 0, needed: 1 });
    }
    crate::compute::check_finite("runs", runs.iter().copied().chain([printed]))?;
    if printed == 0.0 {
        return Err(MetricError::Parameter { what: "printed number", rule: "other than 0" });
    }
    let mean = mean(runs);
    let standard_error = if runs.len() > 1 { Some(mean_and_standard_error(runs)?.1) } else { None };
    let off = (mean - printed).abs();
    let tolerance = (PRINTED_FRACTION * printed.abs()).max(PRINTED_ERRORS * standard_error.unwrap_or(0.0));
    let verdict = if runs.len() >= PRINTED_SEEDS {
        if off <= tolerance { Verdict::Pass } else { Verdict::Fail }
    } else if off < SINGLE_RUN_FRACTION * printed.abs() {
        Verdict::Inconclusive
    } else {
        Verdict::Fail
    };
    Ok(PrintedComparison { mean, standard_error, tolerance, verdict })
}
