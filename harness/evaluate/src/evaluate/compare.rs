//! Two evaluations under one protocol: the difference of their Fréchet distances, with its error and a verdict.

use dpar_export_metrics::{
    Bootstrap, Compute, FrechetInfluence, Moments, Rows, Verdict, equivalence, equivalence_margin,
    paired_standard_error, relative_margin,
};
use serde::Serialize;

use super::EvaluateError;
use super::store::Store;

/// The difference of two Fréchet distances to one reference, images paired in their order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FrechetComparison {
    /// The distance of these samples.
    pub here: f64,
    /// That of the others.
    pub there: f64,
    /// The first less the second.
    pub difference: f64,
    /// Its standard error, from the influence functions of the paired images.
    pub standard_error: f64,
    /// 90 % interval that follows.
    pub interval_90: [f64; 2],
    /// 90 % interval of a bootstrap of the pairs' influence values, shifted to the difference: linearised, as the standard
    /// error is.
    pub bootstrap_90: [f64; 2],
    /// Resamples and seed of the bootstrap.
    pub bootstrap: Bootstrap,
    /// Differences within ± this are equivalent: 1 % of the other distance, of an FID at least 0.03.
    pub margin: f64,
    /// Whether every image is the same.
    pub same_images: bool,
    /// Pass: equivalent. Fail: shown to differ. Otherwise inconclusive.
    pub verdict: Verdict,
}

/// Compares the samples of two stores, whose distances to `reference` are `here` and `there`: on FID-Inception (`fid`), or on
/// features of another scale.
///
/// # Errors
/// When a store is damaged or the numbers of images differ.
pub fn compare(
    (own, here): (&Store, f64),
    (other, there): (&Store, f64),
    reference: &Moments,
    fid: bool,
    seed: u64,
    compute: &Compute,
) -> Result<FrechetComparison, EvaluateError> {
    let fail = || EvaluateError::metric("comparison");
    let influence = |store: &Store| -> Result<Vec<f64>, EvaluateError> {
        let mapped = store.pool()?;
        let rows = Rows::new("features", mapped.f32().unwrap_or_default(), store.purpose().widths[0]);
        let moments = store.moments(compute)?;
        let function = FrechetInfluence::new(&moments, reference, compute).map_err(fail())?;
        function.rows(rows.map_err(fail())?, compute).map_err(fail())
    };
    let (a, b) = (influence(own)?, influence(other)?);
    let difference = here - there;
    let error = paired_standard_error(&a, &b).map_err(fail())?;
    let margin = if fid { equivalence_margin(there) } else { relative_margin(there) };
    let test = equivalence(difference, error, margin).map_err(fail())?;
    let bootstrap = Bootstrap { seed, ..Bootstrap::default() };
    let spread = bootstrap.paired(&a, &b, compute).map_err(fail())?;
    Ok(FrechetComparison {
        here,
        there,
        difference,
        standard_error: error,
        interval_90: [test.low, test.high],
        bootstrap_90: [difference + spread.low - spread.mean, difference + spread.high - spread.mean],
        bootstrap,
        margin,
        same_images: own.pixels_sha256()? == other.pixels_sha256()?,
        verdict: test.verdict,
    })
}
