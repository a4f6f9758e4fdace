//! A comparison that is looked at while images are drawn, and ends when it is decided.
//!
//! Looking often and stopping at the first pass would let anything pass in the end. So the looks are planned before the first image, and
//! each has the critical value that spends its part of the error ([`sequential_boundaries`]).

use dpar_export_metrics::{
    Compute, MetricError, Moments, MomentsAccumulator, Rows, Verdict, frechet_distance, sequential_boundaries,
};

use super::EvaluateError;
use super::compare::{
    ComparedSide, ComparisonLook, ComparisonRule, FrechetComparison, SequentialLooks, compare_sides,
    push_images, rows,
};
use super::store::Store;

/// The looks of one comparison, in their order.
pub(super) struct Sequential {
    planned: Vec<u64>,
    critical: Vec<f64>,
    rule: ComparisonRule,
    sides: [SideSums; 2],
    looks: Vec<ComparisonLook>,
}

/// Images for each feature before the first look: below, covariances are hardly more than noise, and the bias of a distance is no longer
/// one over their number.
pub(super) const IMAGES_PER_FEATURE: u64 = 4;

/// Sums of the images of a side so far; also those of every other image, of which the bias is told.
struct SideSums {
    all: MomentsAccumulator,
    halves: [MomentsAccumulator; 2],
    count: usize,
}

impl SideSums {
    fn new(width: usize) -> Result<Self, MetricError> {
        let sums = || MomentsAccumulator::new(width);
        Ok(Self { all: sums()?, halves: [sums()?, sums()?], count: 0 })
    }

    fn push(&mut self, rows: Rows<'_>, compute: &Compute) -> Result<(), MetricError> {
        self.all.push(rows, compute)?;
        for (odd, half) in self.halves.iter_mut().enumerate() {
            let own: Vec<usize> = (0..rows.count()).filter(|i| (self.count + i) % 2 == odd).collect();
            push_images(half, rows, &own, compute)?;
        }
        self.count += rows.count();
        Ok(())
    }

    /// The moments, and the distance that all `total` images can be expected to have. The bias of a distance of n images is c/n in first
    /// order (M. J. Chong, D. Forsyth, "Effectively unbiased FID and Inception Score and where to find them", 2020); those of the
    /// halves show c. The first order of the spread is the same in both, and drops out.
    fn distance(
        &self,
        total: u64,
        reference: &Moments,
        compute: &Compute,
    ) -> Result<(Moments, f64), MetricError> {
        let of = |sums: &MomentsAccumulator| -> Result<_, MetricError> {
            let moments = sums.finish(compute)?;
            let distance = frechet_distance(&moments, reference, compute)?.distance;
            Ok((moments, distance))
        };
        let (moments, all) = of(&self.all)?;
        let [(_, even), (_, odd)] = [of(&self.halves[0])?, of(&self.halves[1])?];
        let missing = 1.0 - self.count as f64 / total as f64;
        Ok((moments, all - (0.5 * (even + odd) - all) * missing))
    }
}

impl Sequential {
    /// `looks` of about the same number of images, `chunk` images or a multiple of it. `rule` has the margin.
    pub(super) fn new(
        looks: usize,
        (total, chunk, width): (u64, u64, usize),
        rule: ComparisonRule,
    ) -> Result<Self, EvaluateError> {
        let fail = || EvaluateError::metric("comparison");
        let looks = looks.max(1) as u64;
        let mut planned: Vec<u64> =
            (1..looks).map(|k| (total * k / looks).div_ceil(chunk) * chunk).chain([total]).collect();
        let least = IMAGES_PER_FEATURE * width as u64;
        // Not just before the last either: that would be the same look twice.
        planned.retain(|n| *n == total || (*n >= least && *n < total && total - n >= total / (2 * looks)));
        planned.dedup();
        let mut critical = of_looks(&planned)?;
        // A first look that could decide nothing is none.
        let idle = critical.iter().take_while(|c| c.is_infinite()).count();
        if idle > 0 {
            planned.drain(..idle);
            critical = of_looks(&planned)?;
        }
        let side = || SideSums::new(width).map_err(fail());
        Ok(Self { planned, critical, rule, sides: [side()?, side()?], looks: Vec::new() })
    }

    /// After which images the next look is; `None` behind the last.
    pub(super) fn next(&self) -> Option<u64> {
        self.planned.get(self.looks.len()).copied()
    }

    /// The plan, and what was found so far.
    pub(super) fn record(&self) -> SequentialLooks {
        SequentialLooks { planned: self.planned.clone(), looks: self.looks.clone() }
    }

    /// The rule of the last look.
    pub(super) fn last_rule(&self) -> ComparisonRule {
        ComparisonRule { critical: self.critical.last().copied().unwrap_or(f64::INFINITY), ..self.rule }
    }

    /// Looks at the next images of both: those of the plan must be there.
    pub(super) fn look(
        &mut self,
        (own, other): (&Store, &Store),
        reference: &Moments,
        compute: &Compute,
    ) -> Result<FrechetComparison, EvaluateError> {
        let fail = || EvaluateError::metric("comparison");
        let at = self.looks.len();
        let (images, critical) = (self.planned[at], self.critical[at]);
        let seen = at.checked_sub(1).map_or(0, |before| self.planned[before]) as usize;
        let mapped = [own.pool()?, other.pool()?];
        let mut sides = Vec::with_capacity(2);
        let total = self.planned.last().copied().unwrap_or(images);
        for (mapped, sums) in mapped.iter().zip(&mut self.sides) {
            let rows = rows(mapped, own.purpose().widths[0], Some(images))?;
            let fresh = &rows.data()[seen * rows.width()..];
            let fresh = Rows::new("features", fresh, rows.width()).map_err(fail())?;
            sums.push(fresh, compute).map_err(fail())?;
            let (moments, distance) = sums.distance(total, reference, compute).map_err(fail())?;
            sides.push(ComparedSide { rows, moments, distance });
        }
        let Ok([own_side, other_side]) = <[_; 2]>::try_from(sides) else { unreachable!("two were pushed") };
        // Without any spread so far nothing is known of the images to come.
        let rule = ComparisonRule { critical, resamples: None, ..self.rule };
        let mut found = compare_sides((own_side, other_side), reference, rule, compute)?;
        found.same_images = own.same_images(other, images)?;
        if found.standard_error <= 0.0 && at + 1 < self.planned.len() {
            found.verdict = Verdict::Inconclusive;
        }
        self.looks.push(ComparisonLook::new(images, critical, &found));
        found.sequential = Some(self.record());
        Ok(found)
    }
}

/// Critical values of looks after so many images, of which the last is after all.
fn of_looks(planned: &[u64]) -> Result<Vec<f64>, EvaluateError> {
    let total = planned.last().copied().unwrap_or(1) as f64;
    let fractions: Vec<f64> = planned.iter().map(|n| *n as f64 / total).collect();
    sequential_boundaries(&fractions).map_err(EvaluateError::metric("comparison"))
}
