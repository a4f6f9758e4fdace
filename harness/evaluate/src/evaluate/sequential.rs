//! A comparison that is looked at while images are drawn, and ends when it is decided.
//!
//! Looking often and stopping at the first pass would let anything pass in the end. So the looks are planned before the first image, and
//! each has the critical value that spends its part of the error ([`sequential_boundaries`]).

use dpar_export_metrics::{
    Compute, Moments, MomentsAccumulator, Verdict, frechet_distance, sequential_boundaries,
};

use super::EvaluateError;
use super::compare::{
    ComparedSide, ComparisonLook, ComparisonRule, FrechetComparison, SequentialLooks, compare_sides, rows,
};
use super::store::Store;

/// The looks of one comparison, in their order.
pub(super) struct Sequential {
    planned: Vec<u64>,
    critical: Vec<f64>,
    rule: ComparisonRule,
    sides: [MomentsAccumulator; 2],
    looks: Vec<ComparisonLook>,
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
        planned.retain(|n| (2..=total).contains(n));
        planned.dedup();
        let fractions: Vec<f64> = planned.iter().map(|n| *n as f64 / total as f64).collect();
        let critical = sequential_boundaries(&fractions).map_err(fail())?;
        let side = || MomentsAccumulator::new(width).map_err(fail());
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
        for (mapped, moments) in mapped.iter().zip(&mut self.sides) {
            let rows = rows(mapped, own.purpose().widths[0], Some(images))?;
            let fresh = &rows.data()[seen * rows.width()..];
            let fresh = dpar_export_metrics::Rows::new("features", fresh, rows.width()).map_err(fail())?;
            moments.push(fresh, compute).map_err(fail())?;
            let moments = moments.finish(compute).map_err(fail())?;
            let distance = frechet_distance(&moments, reference, compute).map_err(fail())?.distance;
            sides.push(ComparedSide { rows, moments, distance });
        }
        let Ok([own_side, other_side]) = <[_; 2]>::try_from(sides) else { unreachable!("two were pushed") };
        // Without any spread so far nothing is known of the images to come.
        let rule = ComparisonRule { critical, resamples: None, ..self.rule };
        let mut found = compare_sides((own_side, other_side), reference, rule, compute)?;
        if found.standard_error <= 0.0 && at + 1 < self.planned.len() {
            found.verdict = Verdict::Inconclusive;
        }
        self.looks.push(ComparisonLook::new(images, critical, &found));
        found.sequential = Some(self.record());
        Ok(found)
    }
}
