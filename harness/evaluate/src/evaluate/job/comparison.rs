//! The evaluation that another one is held against: after all images, or while they come.

use std::sync::Arc;

use camino::Utf8Path;
use dpar_export_inputs::limits;
use dpar_export_metrics::{Moments, Verdict, Z90};
use serde_json::{Value, json};

use super::{
    COMPARISON, DecidedComparison, FrechetComparison, Job, JobOutcome, SampleSource, apart, like,
    read_metrics, samples_of,
};
use crate::evaluate::compare::{ComparisonRule, SequentialLooks, compare};
use crate::evaluate::measure::PARTS;
use crate::evaluate::protocol::MetricsFile;
use crate::evaluate::report::Metric;
use crate::evaluate::sequential::{IMAGES_PER_FEATURE, Sequential};
use crate::evaluate::store::Store;
use crate::evaluate::{EvaluateError, InputKind};
use crate::{Step, WorkPhase};

/// The plan of the looks, in the output folder.
const LOOKS: &str = "looks.json";

/// Looks of which none but the last is left: its rule, and what the others found.
pub(super) struct EarlierLooks {
    rule: ComparisonRule,
    before: SequentialLooks,
}

/// The evaluation to compare with.
pub(super) struct OtherEvaluation {
    file: MetricsFile,
    /// The features of its samples, every one held against its hash.
    store: Store,
    /// Its Fréchet distance.
    distance: f64,
}

impl Job {
    /// Opens the evaluation to compare with.
    pub(super) fn other(&self, path: &Utf8Path) -> Result<OtherEvaluation, EvaluateError> {
        let other = read_metrics(path)?;
        let folder = samples_of(path);
        let store = Store::read(&folder)?;
        if store.pixels_sha256()? != other.samples.pixels_sha256 {
            let message = format!("{folder} does not hold the samples of {path}");
            return Err(EvaluateError::input(InputKind::Report, message, None));
        }
        let distance = self.distance(path, &other)?;
        Ok(OtherEvaluation { file: other, store, distance })
    }

    /// The Fréchet distance of a report.
    fn distance(&self, path: &Utf8Path, file: &MetricsFile) -> Result<f64, EvaluateError> {
        let metric = if self.network.inception { Metric::Fid } else { Metric::FrechetDistance };
        file.report.metrics.get(&metric).map(|m| m.value).ok_or_else(|| {
            let message = format!("{path}: no Fréchet distance to compare");
            EvaluateError::input(InputKind::Report, message, None)
        })
    }

    /// One look at all images. `there`: the distance of the others.
    fn rule(&self, there: f64) -> ComparisonRule {
        ComparisonRule {
            margin: ComparisonRule::margin(self.network.inception, there),
            critical: Z90,
            seed: self.options.kid.seed,
            resamples: self.options.resamples,
        }
    }

    /// Compares after all images.
    pub(super) fn compare(
        &self,
        path: &Utf8Path,
        own: &MetricsFile,
        samples: Store,
        reference: Moments,
        parts: usize,
        step: Step<'_>,
    ) -> Result<FrechetComparison, EvaluateError> {
        // Again: hours may have passed.
        let OtherEvaluation { file: other, store, distance: there } = self.other(path)?;
        like(path, &own.protocol, &other.protocol)?;
        let here = self.distance(&self.options.output, own)?;
        let rule = self.looked.as_ref().map_or_else(|| self.rule(there), |looked| looked.rule);
        let compute = Arc::clone(&self.compute);
        let work = move |next: &mut dyn FnMut(&'static str) -> bool| -> Result<_, EvaluateError> {
            if !next("comparison") {
                return Err(EvaluateError::Interrupted);
            }
            compare((&samples, here), (&store, there), &reference, rule, &compute)
        };
        let mut found = apart(parts, work, &mut |phase, done, total| step(phase, PARTS + done, total))?;
        if let Some(EarlierLooks { rule, before }) = &self.looked {
            found.sequential = Some(before.with_last(rule, &found));
        }
        self.write(COMPARISON, &found)?;
        Ok(found)
    }

    /// Looks at the images and, as planned, at the comparison; ends with the first look that decides, or with all images.
    pub(super) fn until(
        mut self,
        source: &SampleSource<'_>,
        mut samples: Store,
        other: Option<OtherEvaluation>,
        step: Step<'_>,
    ) -> Result<JobOutcome, EvaluateError> {
        let reference = self.reference(step)?;
        let (Some(path), Some(other), Some(moments)) =
            (self.options.compare.clone(), other, reference.pool.clone())
        else {
            let message = "looks before all images are there are looks at a comparison, and there is none";
            return Err(EvaluateError::input(InputKind::Report, message.to_owned(), None));
        };
        let OtherEvaluation { file: other, store, distance: there } = other;
        like(&path, &self.protocol(source, reference.id.clone())?, &other.protocol)?;
        let (total, chunk) = (samples.purpose().total, self.chunk() as u64);
        let sizes = (total, chunk, samples.purpose().widths[0]);
        let looks = self.options.until.unwrap_or(1);
        let mut sequential = Sequential::new(looks, sizes, self.rule(there))?;
        self.plan(&sequential.record(), &other)?;
        if sequential.next() == Some(total) {
            tracing::warn!(
                "nothing is decided before all {total} images: a look has whole chunks, and {IMAGES_PER_FEATURE} images a feature"
            );
        }
        if source.images().is_some() {
            tracing::warn!(
                "looks take the images in their order: it must not be that of their classes, or the first looks see some classes only"
            );
        }
        let mut held = store;
        while let Some(images) = sequential.next().filter(|images| *images < total) {
            self.fill_until(&mut samples, images, WorkPhase::Samples, source, step)?;
            let (compute, moments) = (Arc::clone(&self.compute), moments.clone());
            let work = move |next: &mut dyn FnMut(&'static str) -> bool| -> Result<_, EvaluateError> {
                if !next("comparison") {
                    return Err(EvaluateError::Interrupted);
                }
                let found = sequential.look((&samples, &held), &moments, &compute)?;
                Ok((found, sequential, samples, held))
            };
            let found;
            (found, sequential, samples, held) = apart(1, work, step)?;
            let path = self.write(COMPARISON, &found)?;
            if found.verdict != Verdict::Inconclusive {
                let decided = DecidedComparison { comparison: found, path, images, of: total };
                return Ok(JobOutcome::Decided(Box::new(decided)));
            }
        }
        self.fill(&mut samples, WorkPhase::Samples, source, step)?;
        self.looked = Some(EarlierLooks { rule: sequential.last_rule(), before: sequential.record() });
        self.finish(source, samples, reference, step)
    }

    /// Looks are planned once, before the first image: with other looks at the same images the error would be another.
    fn plan(&self, plan: &SequentialLooks, other: &MetricsFile) -> Result<(), EvaluateError> {
        let path = self.options.output.join(LOOKS);
        let own = json!({ "planned": plan.planned, "other": other.samples.pixels_sha256 });
        if path.exists() {
            let bytes = dpar_export_inputs::read(&path, limits::TEXT).map_err(EvaluateError::io(&path))?;
            let begun: Value = serde_json::from_slice(&bytes)
                .map_err(|e| begun_otherwise(format!("{path}: it is no plan of looks: {e}")))?;
            if begun == own {
                return Ok(());
            }
            return Err(begun_otherwise(format!(
                "{path}: it was begun with other looks, or at another evaluation"
            )));
        }
        let compared = self.options.output.join(COMPARISON);
        if compared.exists() {
            return Err(begun_otherwise(format!(
                "{compared}: all was compared already, without planned looks"
            )));
        }
        self.write(LOOKS, &own).map(drop)
    }

    /// A comparison without looks is not one of a folder whose looks are planned: after them it would be one look more.
    pub(super) fn check_planned(&self) -> Result<(), EvaluateError> {
        let path = self.options.output.join(LOOKS);
        match self.options.compare.is_some() && self.options.until.is_none() && path.exists() {
            true => Err(begun_otherwise(format!("{path}: its comparison has planned looks"))),
            false => Ok(()),
        }
    }
}

fn begun_otherwise(message: String) -> EvaluateError {
    let hint = "repeat the options that began it, leave the comparison out, or choose another --output";
    EvaluateError::input(InputKind::Store, message, Some(hint))
}
