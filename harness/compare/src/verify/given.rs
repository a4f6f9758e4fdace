//! A bundle with quantized weights against the streams of a float reference. Its own streams would part from them at some
//! slot nearly always, and say nothing from there on: it is given the reference's tokens, and its decisions are counted.

use dpar_export_decode::generate::{TeacherForced, shift_entropy};
use dpar_export_decode::loaded::{LoadedBundle, Progress, RunError};
use dpar_export_metrics::{MARGIN_FRACTION, equivalence, mean_and_standard_error};

use super::recorded_streams::ReferenceStreams;
use crate::CompareError;
use crate::check::{Check, CheckId, Differences};
use crate::decision::{Decision, Observed, Widths, starts};
use crate::tolerance::{Quantity, Rounding};

const CHECKS: [CheckId; 3] = [CheckId::StreamEntropy, CheckId::StreamPatchLengths, CheckId::StreamMeanSteps];

/// Of streams without entropies nothing is compared: that their classes follow from the seed says nothing of a bundle.
fn not_given() -> [Check; 3] {
    let why = "there are no entropies, and tokens that are drawn say nothing of quantized weights";
    CHECKS.map(|id| Check::not_run(id, why))
}

/// Entropies, boundaries and steps of the first `n` streams of a reference, given its tokens: what a bundle with quantized weights
/// is judged by. Streams without entropies have none: nothing is compared then.
///
/// # Errors
/// When the engine fails, or the caller asked to stop.
pub fn given_streams(
    runtime: &LoadedBundle<'_>,
    reference: &ReferenceStreams,
    n: usize,
    (batch, rounding): (usize, Rounding),
    progress: Progress<'_>,
) -> Result<Vec<Check>, CompareError> {
    let system = runtime.bundle().system();
    let (t, rule) = (system.tokens(), &system.patch_rule);
    let Some(recorded) = reference.entropies()? else { return Ok(not_given().into()) };
    let tokens = reference.tokens()?;
    let mut teacher = TeacherForced::prepare(system, &mut |name| runtime.prepare_cached(name))?;
    let mut differences = Differences::default();
    let (mut apart, mut steps) = (Vec::new(), [Vec::new(), Vec::new()]);
    let mut seen: Option<f64> = None;
    let batch = batch.max(1);
    for (chunk, ids) in tokens[..n * t].chunks(batch * t).enumerate() {
        let next = teacher.entropy(ids, t)?.unwrap_or_default();
        for (row, next) in next.chunks(t).enumerate() {
            let image = chunk * batch + row;
            let (theirs, own) = (&recorded[image * t..(image + 1) * t], shift_entropy(next));
            // Column 0 is NaN on both sides.
            differences.add(&theirs[1..], &own[1..]);
            let (lengths, found) = (reference.lengths(image)?, rule.lengths(t, &own));
            let (r, f) = (starts(&lengths), starts(&found));
            let at = (0..t).find(|slot| r.get(*slot) != f.get(*slot));
            let alike = theirs.iter().zip(&own).take(at.unwrap_or(t));
            let errors = alike.map(|(a, b)| f64::from((a - b).abs())).filter(|e| !e.is_nan());
            seen = errors.chain(seen).reduce(f64::max);
            apart.extend(at.map(|slot| {
                Decision::boundary(rule, image, slot, r.get(slot) == Some(&true), [theirs, &own])
            }));
            steps[0].push(lengths.len() as f64);
            steps[1].push(found.len() as f64);
        }
        if !progress((chunk * batch + batch).min(n) * t, n * t) {
            return Err(RunError::Interrupted.into());
        }
    }
    runtime.bundle().unchanged()?;
    let limits = [Quantity::Entropy, Quantity::EntropyMean].map(|q| rounding.limit(q));
    let widths = Widths::new(rounding, rule, 1.0, Observed { entropy: seen, ..Observed::default() });
    let flips: Vec<Decision> = apart.into_iter().map(|f| f.judged(&widths)).collect();
    let compared = n * t - flips.iter().map(|f| t - f.slot - 1).sum::<usize>();
    let limit = rounding.limit(Quantity::BoundaryShare);
    Ok(vec![
        differences.check(CheckId::StreamEntropy, &[n, t - 1], limits[0], limits[1]),
        Check::share(CheckId::StreamPatchLengths, "boundaries", (flips.len(), compared), limit, flips)?,
        equal_steps(&steps)?,
    ])
}

/// The mean steps are the reference's, within 1 %, as far as so many images can show it.
fn equal_steps([reference, found]: &[Vec<f64>; 2]) -> Result<Check, CompareError> {
    let differences: Vec<f64> = found.iter().zip(reference).map(|(f, r)| f - r).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let means = [mean(reference), mean(found)];
    if differences.len() < 2 {
        let why = "mean steps are compared over two images and more";
        return Ok(Check { means: Some(means), ..Check::not_run(CheckId::StreamMeanSteps, why) });
    }
    let (difference, error) = mean_and_standard_error(&differences).map_err(RunError::from)?;
    let shown = equivalence(difference, error, MARGIN_FRACTION * means[0]).map_err(RunError::from)?;
    let detail = format!(
        "reference {:.4}, found {:.4}; difference {:.4} to {:.4} (90 %), within ± {:.4} (1 %) it is none",
        means[0], means[1], shown.low, shown.high, shown.margin
    );
    Ok(Check { means: Some(means), ..Check::new(CheckId::StreamMeanSteps, shown.verdict.into(), detail) })
}
