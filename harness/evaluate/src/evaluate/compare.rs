//! Two evaluations under one protocol: the difference of their Fréchet distances, with its error and a verdict.

use dpar_export_files::arrays::Mapped;
use dpar_export_metrics::{
    Bootstrap, BootstrapResult, Compute, FrechetInfluence, MetricError, Moments, MomentsAccumulator, Rows,
    Verdict, equivalence_at, equivalence_margin, frechet_distance, paired_standard_error, relative_margin,
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
    /// Whether every image that was looked at is the same.
    pub same_images: bool,
    /// The same interval from resamples in which both distances were computed again, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resampled: Option<ResampledDistances>,
    /// The looks, where the comparison was looked at before all images were there. `interval_90` is then the repeated
    /// interval of the last of them, which covers at all looks together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequential: Option<SequentialLooks>,
    /// Pass: equivalent. Fail: shown to differ. Otherwise inconclusive.
    pub verdict: Verdict,
}

/// A bootstrap of the difference that computes both distances again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResampledDistances {
    /// Resamples and seed.
    pub bootstrap: Bootstrap,
    /// Standard deviation over the resamples.
    pub standard_error: f64,
    /// 90 % interval, shifted to the difference: a resample has a bias of its own, which is that of both.
    pub interval_90: [f64; 2],
}

/// The plan of a comparison's looks, and what they found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SequentialLooks {
    /// Images of all looks: after which of them each is.
    pub planned: Vec<u64>,
    /// The looks so far.
    pub looks: Vec<ComparisonLook>,
}

impl SequentialLooks {
    /// These and the last one, after all images.
    pub(super) fn with_last(&self, rule: &ComparisonRule, found: &FrechetComparison) -> Self {
        let images = self.planned.last().copied().unwrap_or_default();
        let mut all = self.clone();
        all.looks.push(ComparisonLook::new(images, rule.critical, found));
        all
    }
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparisonLook {
    /// Images of each side that were looked at.
    pub images: u64,
    /// Difference of the distances of these images.
    pub difference: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Critical value of this look, in standard errors; none where it cannot decide.
    pub critical: Option<f64>,
    /// What it decided.
    pub verdict: Verdict,
}

impl ComparisonLook {
    pub(super) fn new(images: u64, critical: f64, found: &FrechetComparison) -> Self {
        Self {
            images,
            difference: found.difference,
            standard_error: found.standard_error,
            critical: critical.is_finite().then_some(critical),
            verdict: found.verdict,
        }
    }
}

/// One of the two: features of its images, their moments, and the distance of these.
pub(super) struct ComparedSide<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) moments: Moments,
    pub(super) distance: f64,
}

/// How two are held against each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct ComparisonRule {
    /// Differences within ± this are equivalent.
    pub(super) margin: f64,
    /// Half-width of the interval in standard errors.
    pub(super) critical: f64,
    /// Seed of both bootstraps.
    pub(super) seed: u64,
    /// Resamples in which both distances are computed again.
    pub(super) resamples: Option<usize>,
}

impl ComparisonRule {
    /// The margin that goes with a distance: on FID-Inception (`fid`), or on features of another scale.
    pub(super) fn margin(fid: bool, distance: f64) -> f64 {
        if fid { equivalence_margin(distance) } else { relative_margin(distance) }
    }
}

/// Compares the samples of two stores, whose distances to `reference` are `here` and `there`.
///
/// # Errors
/// When a store is damaged or the numbers of images differ.
pub(super) fn compare(
    (own, here): (&Store, f64),
    (other, there): (&Store, f64),
    reference: &Moments,
    rule: ComparisonRule,
    compute: &Compute,
) -> Result<FrechetComparison, EvaluateError> {
    let (own_rows, other_rows) = (own.pool()?, other.pool()?);
    let side = |store: &Store, mapped, distance| -> Result<_, EvaluateError> {
        let rows = rows(mapped, store.purpose().widths[0], None)?;
        Ok(ComparedSide { rows, moments: store.moments(compute)?, distance })
    };
    let sides = (side(own, &own_rows, here)?, side(other, &other_rows, there)?);
    let mut found = compare_sides(sides, reference, rule, compute)?;
    found.same_images = own.same_images(other, own.count())?;
    Ok(found)
}

/// Features of a store; of the first `count` images where one is given.
pub(super) fn rows(mapped: &Mapped, width: usize, count: Option<u64>) -> Result<Rows<'_>, EvaluateError> {
    let all = mapped.f32().unwrap_or_default();
    let end = count.map_or(all.len(), |n| (n as usize).saturating_mul(width).min(all.len()));
    Rows::new("features", &all[..end], width).map_err(EvaluateError::metric("comparison"))
}

/// The comparison without what only the stores know: `same_images` is left false.
pub(super) fn compare_sides(
    (own, other): (ComparedSide<'_>, ComparedSide<'_>),
    reference: &Moments,
    rule: ComparisonRule,
    compute: &Compute,
) -> Result<FrechetComparison, EvaluateError> {
    let fail = || EvaluateError::metric("comparison");
    let influence = |side: &ComparedSide<'_>| -> Result<Vec<f64>, EvaluateError> {
        let function = FrechetInfluence::new(&side.moments, reference, compute).map_err(fail())?;
        function.rows(side.rows, compute).map_err(fail())
    };
    let (a, b) = (influence(&own)?, influence(&other)?);
    let difference = own.distance - other.distance;
    let error = paired_standard_error(&a, &b).map_err(fail())?;
    let test = equivalence_at(difference, error, rule.margin, rule.critical).map_err(fail())?;
    let bootstrap = Bootstrap { seed: rule.seed, ..Bootstrap::default() };
    let spread = bootstrap.paired(&a, &b, compute).map_err(fail())?;
    let around = |found: &BootstrapResult| [found.low, found.high].map(|end| difference + end - found.mean);
    let resampled = rule
        .resamples
        .map(|resamples| -> Result<_, EvaluateError> {
            let bootstrap = Bootstrap { resamples, seed: rule.seed };
            let found = resample((own.rows, other.rows), reference, bootstrap, compute).map_err(fail())?;
            Ok(ResampledDistances {
                bootstrap,
                standard_error: found.standard_error,
                interval_90: around(&found),
            })
        })
        .transpose()?;
    Ok(FrechetComparison {
        here: own.distance,
        there: other.distance,
        difference,
        standard_error: error,
        interval_90: [test.low, test.high],
        bootstrap_90: around(&spread),
        bootstrap,
        resampled,
        margin: rule.margin,
        same_images: false,
        sequential: None,
        verdict: test.verdict,
    })
}

/// Images copied at a time.
const GATHERED: usize = 1024;

/// Adds the rows of these images, in their order.
pub(super) fn push_images(
    sums: &mut MomentsAccumulator,
    rows: Rows<'_>,
    images: &[usize],
    compute: &Compute,
) -> Result<(), MetricError> {
    for images in images.chunks(GATHERED) {
        let gathered: Vec<f32> = images.iter().flat_map(|&i| rows.row(i)).copied().collect();
        sums.push(Rows::new("features of chosen images", &gathered, rows.width())?, compute)?;
    }
    Ok(())
}

/// The difference of the two distances over resamples of the pairs of images, each computed as a distance of its own: nothing is
/// linearised. Each costs two covariances and two distances.
fn resample(
    (a, b): (Rows<'_>, Rows<'_>),
    reference: &Moments,
    bootstrap: Bootstrap,
    compute: &Compute,
) -> Result<BootstrapResult, MetricError> {
    // One after the other: each computes on all threads, and the sums of one fit where those of all would not.
    let distance = |rows: Rows<'_>, images: &[usize]| -> Result<f64, MetricError> {
        let mut moments = MomentsAccumulator::new(rows.width())?;
        push_images(&mut moments, rows, images, compute)?;
        Ok(frechet_distance(&moments.finish(compute)?, reference, compute)?.distance)
    };
    bootstrap.one_by_one(a.count(), |images| Ok(distance(a, images)? - distance(b, images)?))
}
