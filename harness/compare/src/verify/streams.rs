//! Comparison with sampled reference streams.

use std::collections::BTreeMap;

use camino::Utf8Path;
use dpar_export_decode::loaded::{LoadedBundle, Progress};

use super::given::given_streams;
use super::logits::judge_by_logits;
use super::recorded_streams::ReferenceStreams;
use crate::check::{Check, CheckId, Differences, Status, or_failed};
use crate::decision::{Decision, drawn_so};
use crate::tolerance::{Limit, Quantity, Rounding};
use crate::{CompareError, ReferenceError};

/// Decodes the first `limit` images of a streams file with the seed and settings of the `reference.json` beside
/// it, and compares tokens, patch lengths and steps up to each image's first near-tie. A bundle with quantized weights is given
/// the tokens instead: boundaries are counted, and mean steps tested for equivalence.
///
/// # Errors
/// When the reference cannot be read, does not fit the bundle or gives no image to compare, or the engine fails.
pub fn verify_streams(
    runtime: &LoadedBundle<'_>,
    path: &Utf8Path,
    limit: Option<usize>,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<Check>, CompareError> {
    let system = runtime.bundle().system();
    let reference = ReferenceStreams::open(path, system)?;
    let numbers = runtime.bundle().manifest().numbers();
    let quantized = numbers.weights().is_some();
    let rounding = Rounding::between(reference.recorded(), numbers, runtime.arithmetic().kind);
    let t = system.tokens();
    let n = limit.unwrap_or(reference.len()).min(reference.len());
    if n == 0 {
        let held = reference.len();
        let (file, asked) = (path.to_owned(), limit.unwrap_or(held));
        return Err(ReferenceError::NoStreams { file, held, asked }.into());
    }
    let requests = reference.requests(n, system.num_classes);
    let label_flips = requests.iter().zip(&reference.labels).filter(|(r, l)| r.class != **l).count();
    let labels = Check {
        equal: Some([n - label_flips, n]),
        ..Check::holds(CheckId::StreamLabels, format!("{} of {n} equal", n - label_flips), label_flips == 0)
    };
    let other = reference.other_rule(runtime.bundle().patch_rule());
    let other = other.map(|why| Check::failed(CheckId::PatchRule, why));
    if quantized {
        let given = or_failed(
            CheckId::StreamEntropy,
            given_streams(runtime, &reference, n, (batch, rounding), progress),
        )?;
        // That classes follow from the seed says nothing of weights.
        let compared = given.iter().any(|check| check.status != Status::NotRun);
        return Ok(Some(labels).filter(|_| compared).into_iter().chain(given).chain(other).collect());
    }
    let drawn = match drawn_streams(runtime, &reference, n, (batch, rounding), progress) {
        Ok(drawn) => drawn,
        Err(e) => {
            let checks = or_failed(CheckId::StreamTokens, Err(e))?;
            // A file that was swapped may be why.
            runtime.bundle().unchanged()?;
            return Ok(checks);
        }
    };
    let DrawnStreams { flips, steps: [recorded, found], entropies } = drawn;
    let equal = n - flips.len();
    let ties = flips.iter().filter(|f| f.near_tie).count();
    let detail = format!("{equal} of {n} streams equal, {ties} part at a near-tie, batch {batch}");
    // Over all images the reference's own count holds, over a part that of its patch lengths.
    let mean = |steps: usize| steps as f64 / n as f64;
    let counted = reference.mean_steps(system.kind, n).unwrap_or_else(|| mean(recorded));
    let sampler = reference.options().sampler;
    let mut checks = vec![
        labels,
        Check::mean_steps(CheckId::StreamMeanSteps, [counted, mean(found)], &flips),
        Check::streams(CheckId::StreamTokens, detail, flips, (n, t), drawn_so(rounding, &sampler)),
    ];
    checks.extend(other);
    if reference.entropies()?.is_some() {
        let (shape, limit) = ([equal, t - 1], rounding.limit(Quantity::Entropy));
        checks.push(entropies.check(CheckId::StreamEntropy, &shape, limit, Limit::NONE));
    }
    runtime.bundle().unchanged()?;
    Ok(checks)
}

/// What a bundle draws beside recorded streams.
#[derive(Default)]
struct DrawnStreams {
    /// The first decision of each stream that differs, judged.
    flips: Vec<Decision>,
    /// Patches of all images, of the reference and of the bundle.
    steps: [usize; 2],
    /// Of the streams that do not part.
    entropies: Differences,
}

/// Draws the first `n` streams; those that part are kept where their tokens are judged by logits, and no others.
fn drawn_streams(
    runtime: &LoadedBundle<'_>,
    reference: &ReferenceStreams,
    n: usize,
    (batch, rounding): (usize, Rounding),
    progress: Progress<'_>,
) -> Result<DrawnStreams, CompareError> {
    let (options, widths) = (reference.options(), reference.widths(runtime, rounding));
    let (filters, rule) = (options.sampler.filters(), runtime.bundle().patch_rule());
    let requests = reference.requests(n, runtime.bundle().system().num_classes);
    let (mut drawn, mut parted) = (DrawnStreams::default(), BTreeMap::new());
    let mut images = 0..n;
    runtime.decode_each(&requests, &options, batch.into(), progress, &mut |stream| {
        let Some(image) = images.next() else { return Ok(()) };
        let recorded = reference.stream(image)?;
        drawn.steps[0] += recorded.lengths.len();
        drawn.steps[1] += stream.steps();
        match recorded.first_flip(rule, &widths, (image, &stream)) {
            Some(flip) => {
                drawn.flips.push(flip);
                if filters {
                    parted.insert(image, stream);
                }
            }
            // Column 0 is NaN on both sides.
            None if !recorded.entropy.is_empty() => {
                drawn.entropies.add(&recorded.entropy[1..], &stream.entropy[1..]);
            }
            None => {}
        }
        Ok::<_, CompareError>(())
    })?;
    if filters {
        let of = |image: usize| parted.get(&image);
        judge_by_logits(runtime, &mut drawn.flips, &of, (&options, &widths), progress)?;
    }
    Ok(drawn)
}
