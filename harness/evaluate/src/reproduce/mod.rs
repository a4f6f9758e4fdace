//! Reproducing reference results: the same classes and seeds as a recorded run, and whether what comes out is the same:
//! streams, steps, and distances on a feature network, each with its statistics.
//!
//! Identical streams make identical images, so their metrics are equal and few images are enough. Where streams part, the
//! difference of each metric is tested for equivalence, paired by class and seed.

mod gates;
pub mod paper;
mod reference;

use dpar_engine_api::EngineInfo;
use dpar_export_compare::CompareError;
use dpar_export_compare::decision::Decision;
use dpar_export_compare::tolerance::Rounding;
use dpar_export_compare::verify::{ReferenceStreams, given_streams};
use dpar_export_decode::generate::{DecodeOptions, Request, Stream};
use dpar_export_decode::loaded::LoadedBundle;
use dpar_export_metrics::{
    Compute, MetricError, Moments, MomentsAccumulator, PrMode, Rows, Variant, Verdict,
};
use dpar_export_spec::{PatchRule, SystemKind};
use serde::Serialize;

use crate::error::{EvaluateError, InputKind};
use crate::evaluate::drawn::{Codes, Drawn};
use crate::evaluate::look::{Pictures, collect};
use crate::evaluate::measure::{PARTS, Side, measure};
use crate::evaluate::report::{Metric, MetricSettings, Network};
use crate::features::{Activations, ExtractorIdentity, FeatureExtractor};
use crate::{Step, WorkPhase};

pub use reference::{Real, ReferenceFolder};

/// Images that are decoded and looked at together: bounds memory.
const CHUNK: usize = 256;

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReproduceOptions {
    /// Images; `None` = as many as the reference has.
    pub num: Option<usize>,
    /// Images in one call of a graph.
    pub batch: usize,
    /// Threads of the metrics.
    pub threads: usize,
}

/// A comparison with its verdict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// What is compared.
    pub name: String,
    /// Pass, fail or inconclusive.
    pub verdict: Verdict,
    /// The reference's number.
    pub reference: Option<f64>,
    /// This run's.
    pub found: Option<f64>,
    /// found − reference.
    pub difference: Option<f64>,
    /// Standard error of the difference, paired by class and seed.
    pub standard_error: Option<f64>,
    /// Two-sided 90 % interval of the difference.
    pub interval_90: Option<[f64; 2]>,
    /// Differences within ± margin are equivalent.
    pub margin: Option<f64>,
    /// In words.
    pub detail: String,
}

impl Gate {
    pub(crate) fn new(name: &str, verdict: Verdict) -> Self {
        Self {
            name: name.to_owned(),
            verdict,
            reference: None,
            found: None,
            difference: None,
            standard_error: None,
            interval_90: None,
            margin: None,
            detail: String::new(),
        }
    }
}

/// Steps of the large transformer over the images of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepSummary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation over the images (ddof 0).
    pub std: f64,
    /// Fewest.
    pub min: usize,
    /// Most.
    pub max: usize,
    /// (steps, images with so many), ascending.
    pub histogram: Vec<(usize, usize)>,
}

impl StepSummary {
    /// Over at least one image.
    fn of(steps: &[usize]) -> Self {
        let n = steps.len().max(1) as f64;
        let mean = steps.iter().sum::<usize>() as f64 / n;
        let square = steps.iter().map(|s| (*s as f64 - mean).powi(2)).sum::<f64>() / n;
        let mut counts = std::collections::BTreeMap::new();
        steps.iter().for_each(|s| *counts.entry(*s).or_insert(0) += 1);
        let (min, max) = (steps.iter().min().copied(), steps.iter().max().copied());
        Self {
            mean,
            std: square.sqrt(),
            min: min.unwrap_or(0),
            max: max.unwrap_or(0),
            histogram: counts.into_iter().collect(),
        }
    }
}

/// The numbers of one set of images on a feature network, against the real images where there are some.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageMetrics {
    /// Images.
    pub images: usize,
    /// Fréchet distance; the extractor's `distance` says on what.
    pub distance: Option<f64>,
    /// KID.
    pub kid: Option<f64>,
    /// Precision.
    pub precision: Option<f64>,
    /// Recall.
    pub recall: Option<f64>,
    /// Inception Score, or the same on another network's logits.
    pub score: Option<f64>,
}

/// One system: what it is, what came out, and every gate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SystemReport {
    /// Name of the model.
    pub model: String,
    /// DPAR or LlamaGen.
    pub system: SystemKind,
    /// Parameters of the generating transformer, without entropy model and tokenizer.
    pub parameters: u64,
    /// SHA-256 of the bundle's manifest.
    pub bundle: String,
    /// The patch rule that ran.
    pub patch_rule: PatchRule,
    /// What ran.
    pub engine: EngineInfo,
    /// Images.
    pub images: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Steps of this run.
    pub steps: StepSummary,
    /// Steps of the same images in the reference.
    pub reference_steps: StepSummary,
    /// Streams that part from the reference: the first decision that differs in each.
    pub flips: Vec<Decision>,
    /// The feature network, where one was given.
    pub extractor: Option<ExtractorIdentity>,
    /// Metrics of the generated images.
    pub metrics: Option<ImageMetrics>,
    /// Metrics of the reference's images, decoded from its tokens.
    pub reference_metrics: Option<ImageMetrics>,
    /// The comparisons.
    pub gates: Vec<Gate>,
    /// Over all gates: a failure fails, otherwise anything inconclusive is inconclusive.
    pub verdict: Verdict,
}

/// Generates the first images of the reference again and compares.
///
/// # Errors
/// When the reference does not fit the bundle, the engine fails, or `step` says stop.
pub fn reproduce(
    runtime: &LoadedBundle<'_>,
    reference: &mut ReferenceFolder,
    mut extractor: Option<&mut FeatureExtractor>,
    options: ReproduceOptions,
    step: Step<'_>,
) -> Result<SystemReport, EvaluateError> {
    let bundle = runtime.bundle();
    let system = bundle.system();
    let recorded = reference.streams(system)?;
    let n = options.num.unwrap_or(recorded.len()).min(recorded.len());
    if n < 2 {
        let message = format!("{n} images; at least 2 are needed");
        return Err(EvaluateError::input(InputKind::Request, message, None));
    }
    if let Some(asked) = options.num.filter(|num| *num > n) {
        let message = format!("{asked} images were asked for, the reference has {n}");
        let hint = Some("images beyond it have nothing to be compared with");
        return Err(EvaluateError::input(InputKind::Request, message, hint));
    }
    let compute = Compute::new(options.threads).map_err(EvaluateError::metric("threads"))?;
    if let Some(extractor) = extractor.as_deref_mut() {
        reference.look(extractor, &compute, step)?;
    }
    let requests = recorded.requests(n, system.num_classes);
    let mut tell = |done, total| step(WorkPhase::Streams, done, total);
    let streams = runtime.decode(&requests, &recorded.options(), options.batch, &mut tell)?;
    let own = bundle.manifest().numbers();
    let quantized = own.weights().is_some();
    let rounding = Rounding::between(recorded.recorded(), own, runtime.arithmetic().kind);
    let flips = recorded.first_flips(runtime, rounding, &streams, &mut tell)?;
    let steps: Vec<usize> = streams.iter().map(Stream::steps).collect();
    let counted = (0..n).map(|image| Ok(recorded.lengths(image)?.len()));
    let counted = counted.collect::<Result<Vec<usize>, CompareError>>()?;
    let labels = (0..n).filter(|i| recorded.labels[*i] != requests[*i].class).count();

    let (slots, sampler) = (system.tokens(), recorded.options().sampler);
    let parted = gates::DivergedStreams { flips: &flips, of: n, slots, rounding, sampler };
    let mut distances = Vec::new();
    let mut looked = None;
    if let Some(extractor) = extractor.as_deref_mut() {
        let pair = pair(runtime, extractor, &streams, &recorded, options.batch, step)?;
        let real = reference.real();
        let network = Network::of(extractor.spec()).0;
        let wanted = numbers(&pair.reference, real, &network, &compute, step)?;
        let same = pair.found == pair.reference;
        let found = if same { wanted.clone() } else { numbers(&pair.found, real, &network, &compute, step)? };
        if let Some(real) = real {
            let name = extractor.identity().distance.clone();
            let (on, found) = ((name.as_str(), &network), (&found, &wanted));
            distances = gates::distances(on, &pair, real, found, parted, &compute).map_err(failed())?;
        }
        looked = Some((found, wanted));
    }
    let mut gates = vec![gates::labels(labels, n), gates::streams(parted, &distances)];
    // Streams of quantized weights part nearly always, and compare nothing from there on: decisions are counted on the reference's
    // tokens.
    if quantized && system.kind == SystemKind::Dpar {
        let tell = &mut |done, total| step(WorkPhase::Streams, done, total);
        let given = given_streams(runtime, &recorded, n, (options.batch, rounding), tell)?;
        gates.extend(given.into_iter().map(gates::given));
    } else {
        gates.push(gates::steps(&steps, &counted, parted).map_err(failed())?);
    }
    gates.extend(distances);
    let other = recorded.other_rule(bundle.patch_rule());
    gates.extend(other.map(|detail| Gate { detail, ..Gate::new("patch rule", Verdict::Fail) }));
    let verdict = Verdict::all(gates.iter().map(|g| g.verdict));
    let (metrics, reference_metrics) = looked.unzip();
    Ok(SystemReport {
        model: system.name.clone(),
        system: system.kind,
        parameters: generating_parameters(runtime),
        bundle: bundle.manifest_sha256().to_owned(),
        patch_rule: bundle.patch_rule().clone(),
        engine: runtime.info().clone(),
        images: n,
        seed: recorded.options().seed,
        steps: StepSummary::of(&steps),
        reference_steps: StepSummary::of(&counted),
        flips,
        extractor: extractor.map(|e| e.identity().clone()),
        metrics,
        reference_metrics,
        gates,
        verdict,
    })
}

/// A run of another seed, for a comparison with a printed number: no reference stream exists for it. What the extractor sees is
/// resized to [`paper::EVALUATED_SIDE`] before it becomes bytes, as for the table.
///
/// # Errors
/// As [`reproduce`].
pub fn run_seed(
    runtime: &LoadedBundle<'_>,
    decode: &DecodeOptions,
    n: usize,
    extractor: Option<&mut FeatureExtractor>,
    real: Option<&Real>,
    options: ReproduceOptions,
    step: Step<'_>,
) -> Result<paper::Run, EvaluateError> {
    let mut run = paper::Run { images: Some(n as u64), ..paper::Run::default() };
    let mean = |steps: f64| Some(steps / n.max(1) as f64);
    // The table's numbers are on FID-Inception: those of another network are not comparable.
    let Some(extractor) = extractor.filter(|e| e.spec().is_fid()) else {
        let requests = Request::all_seeded(decode.seed, n as u64, runtime.bundle().system().num_classes);
        let mut tell = |done, total| step(WorkPhase::Streams, done, total);
        let streams = runtime.decode(&requests, decode, options.batch, &mut tell)?;
        run.steps = mean(streams.iter().map(Stream::steps).sum::<usize>() as f64);
        return Ok(run);
    };
    let drawn = Drawn::new(runtime, n as u64, decode.clone(), options.batch)?;
    let drawn = drawn.resized(Some(paper::EVALUATED_SIDE));
    let (activations, steps) = collect(&drawn, CHUNK, extractor, &mut |at| step(WorkPhase::Samples, at, n))?;
    let compute = Compute::new(options.threads).map_err(EvaluateError::metric("threads"))?;
    let metrics = numbers(&activations, real, &Network::of(extractor.spec()).0, &compute, step)?;
    run.steps = mean(steps.iter().map(|s| f64::from(*s)).sum());
    run.fid = metrics.distance;
    run.inception_score = metrics.score;
    run.precision = metrics.precision;
    run.recall = metrics.recall;
    Ok(run)
}

/// Parameters of the generating transformer, as the table counts.
fn generating_parameters(runtime: &LoadedBundle<'_>) -> u64 {
    use dpar_export_spec::ComponentKind::{Dpar, Llamagen};
    let components = runtime.bundle().manifest().components.iter();
    components.filter(|c| [Dpar, Llamagen].contains(&c.kind)).map(|c| c.parameters).sum()
}

/// Activations of the generated images and of the reference's, in the same order.
struct PairedActivations {
    found: Activations,
    reference: Activations,
}

/// Looks at both sets of images; where the tokens of an image are equal in both, its activations are the same and are
/// computed once.
fn pair(
    runtime: &LoadedBundle<'_>,
    extractor: &mut FeatureExtractor,
    streams: &[Stream],
    recorded: &ReferenceStreams,
    batch: usize,
    step: Step<'_>,
) -> Result<PairedActivations, EvaluateError> {
    let t = runtime.bundle().system().tokens();
    let reference = &recorded.tokens()?[..streams.len() * t];
    let mut other = Vec::new();
    let mut changed = Vec::new();
    for (i, (stream, row)) in streams.iter().zip(reference.chunks_exact(t)).enumerate() {
        if stream.tokens.iter().zip(row).any(|(a, b)| i64::from(*a) != *b) {
            changed.push(i);
            other.extend(stream.tokens.iter().map(|t| i64::from(*t)));
        }
    }
    let mut look_at = |ids: &[i64], phase| {
        let codes = Codes { runtime, ids, batch };
        collect(&codes, CHUNK, extractor, &mut |at| step(phase, at, codes.count()))
    };
    let (reference, _) = look_at(reference, WorkPhase::Recorded)?;
    let mut found = reference.clone();
    let (new, _) = look_at(&other, WorkPhase::Samples)?;
    let put = |to: &mut [f32], from: &[f32], count: usize| {
        let width = from.len().checked_div(count).unwrap_or(0);
        for (row, &i) in from.chunks_exact(width.max(1)).zip(&changed) {
            to[i * width..(i + 1) * width].copy_from_slice(row);
        }
    };
    put(&mut found.features, &new.features, new.count);
    if let (Some(to), Some(from)) = (&mut found.logits, &new.logits) {
        put(to, from, new.count);
    }
    Ok(PairedActivations { found, reference })
}

/// Mean and covariance of features.
fn moments(activations: &Activations, compute: &Compute) -> Result<Moments, MetricError> {
    let mut sums = MomentsAccumulator::new(activations.width)?;
    sums.push(rows(activations)?, compute)?;
    sums.finish(compute)
}

fn rows(activations: &Activations) -> Result<Rows<'_>, MetricError> {
    Rows::new("features", &activations.features, activations.width)
}

fn failed() -> impl FnOnce(MetricError) -> EvaluateError {
    EvaluateError::metric("reproduction")
}

/// The numbers of a set of images; those that need real images are `None` without them.
fn numbers(
    set: &Activations,
    real: Option<&Real>,
    network: &Network,
    compute: &Compute,
    step: Step<'_>,
) -> Result<ImageMetrics, EvaluateError> {
    let own = moments(set, compute).map_err(failed())?;
    let logits = set.logits.as_ref().map(|l| Rows::new("logits", l, l.len() / set.count.max(1)));
    let side = Side {
        pool_moments: Some(&own),
        pool: Some(rows(set).map_err(failed())?),
        logits: logits.transpose().map_err(failed())?,
        ..Side::default()
    };
    let other = Side {
        pool_moments: real.map(|r| &r.moments),
        pool: real.map(|r| rows(&r.seen)).transpose().map_err(failed())?,
        ..Side::default()
    };
    let settings = MetricSettings { variant: Variant::GuidedDiffusion, pr_mode: PrMode::F32, kid: None };
    let mut done = 0..PARTS;
    let mut next = |what| step(WorkPhase::Metric(what), done.next().unwrap_or(PARTS), PARTS);
    let report = measure(side, other, network, &settings, compute, &mut next)?;
    let value = |metric| report.metrics.get(&metric).map(|m| m.value);
    Ok(ImageMetrics {
        images: set.count,
        distance: value(Metric::Fid).or(value(Metric::FrechetDistance)),
        kid: value(Metric::Kid),
        precision: value(Metric::Precision),
        recall: value(Metric::Recall),
        score: value(Metric::InceptionScore),
    })
}
