//! Parity of several engines over one bundle: tensors, decisions, and the errors that separate a near-tie from a
//! defect. A library: it prints nothing.
//!
//! 1. Every engine draws its own images from the same seed (free-running).
//! 2. Every engine follows the same tokens through the caches (teacher-forced); the baseline's calls are made on the
//!    others too, with the same inputs, which gives each graph output its own figures. So are calls of the graphs that
//!    the loop does not run.
//! 3. Decisions are compared slot by slot; a flip is held against the errors seen between the same two sources.

pub mod bisect;
pub mod decisions;
mod reference;
pub mod report;
mod shadow;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use camino::Utf8Path;
use dpar_engine_api::{
    ArithmeticKind, CachedSession, Engine, EngineError, EngineErrorKind, HostCache, Session, TensorView,
};
use dpar_export_bundle::Bundle;
use dpar_export_decode::generate::sampler::{Method, SamplerOptions, image_key};
use dpar_export_decode::generate::{DecodeOptions, Request, Stream, TeacherForced, prepare_model};
use dpar_export_decode::loaded::{Forms, LoadedBundle, Progress, RunError};
use dpar_export_decode::replay::{ForcedTokens, Replay, ReplayOptions, follow};
use dpar_export_metrics::Verdict;
use dpar_export_spec::{GraphName, Hinted};

use crate::CompareError;
use crate::check::{Check, CheckId, SCHEMA_VERSION, Status};
use crate::decision::{DecisionKind, Observed};
use crate::tolerance::Rounding;
use crate::verify::{conclusion, probe, verify_golden};
use decisions::{ComparedSizes, PairTolerance, draw_gap, free_running, teacher_forced};
use reference::Reference;
use report::{
    BundleId, EngineResult, EngineStatus, ImageTrace, Pair, ParityReport, ParitySettings, REFERENCE,
};
use shadow::{Limits, ShadowOutputs, Shadowed, SharedOutputs};

/// Images on which the graphs that the loop does not run are compared: two, so that patch counts differ.
const BESIDE_THE_LOOP: usize = 2;

/// An engine of a run: its name, whether the user named it, and the engine or why there is none.
pub struct ParityEngine {
    /// Name as given to `--engines`.
    pub name: String,
    /// Whether the user named it.
    pub asked_for: bool,
    /// The engine.
    pub engine: Result<Box<dyn Engine>, EngineError>,
}

/// How to run.
#[derive(Debug, Clone)]
pub struct ParityOptions {
    /// Images of the free run; the teacher-forced run has as many as the reference.
    pub images: usize,
    /// Seed of classes and draws.
    pub seed: u64,
    /// How tokens are drawn.
    pub sampler: Method,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Images in one call.
    pub batch: usize,
    /// Whether to run the reference-free probes.
    pub probes: bool,
}

/// What one engine computed.
struct EngineOutcome<'a> {
    runtime: Option<LoadedBundle<'a>>,
    streams: Vec<Stream>,
    replay: Option<Replay>,
    result: EngineResult,
}

/// Runs every engine and compares them with the first that runs, and with the reference where there is one.
///
/// # Errors
/// When the reference cannot be read or does not fit the bundle, an engine that the user named cannot honour a setting, or
/// the caller asked to stop. An engine that cannot run, and every difference, is in the report.
pub fn run(
    bundle: &Bundle,
    engines: Vec<ParityEngine>,
    reference: Option<&Utf8Path>,
    options: &ParityOptions,
    progress: Progress<'_>,
) -> Result<ParityReport, CompareError> {
    let system = bundle.system();
    let mut golden = reference.map(|folder| reference::read(system, folder)).transpose()?;
    let mut outcomes: Vec<EngineOutcome<'_>> =
        engines.into_iter().map(|e| start(bundle, e)).collect::<Result<_, EngineError>>()?;
    for outcome in &mut outcomes {
        outcome.attempt(|runtime, outcome| {
            outcome.streams =
                runtime.decode(&requests(bundle, options), &sampled(options), options.batch, progress)?;
            if options.probes {
                outcome.result.probes = probe(runtime, options.batch, progress)?;
            }
            if let Some(folder) = reference {
                outcome.result.checks = verify_golden(runtime, folder, options.batch, progress)?;
            }
            Ok(())
        })?;
    }
    let baseline = outcomes.iter().position(|o| o.result.status == EngineStatus::Ran);
    let mut report = ParityReport {
        schema_version: SCHEMA_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        verdict: Verdict::Incomplete,
        bundle: identify(bundle),
        settings: ParitySettings {
            baseline: baseline.map(|b| outcomes[b].result.engine.clone()),
            reference: reference.and_then(Utf8Path::file_name).map(str::to_owned),
            forced_tokens: None,
            seed: options.seed,
            sampler: options.sampler,
            cfg_scale: options.cfg_scale,
            batch: options.batch,
            reference_drawing: golden.as_ref().and_then(|g| g.drawing),
        },
        engines: Vec::new(),
        pairs: Vec::new(),
    };
    if let Some(first) = baseline {
        let forced = match &golden {
            Some(golden) => golden.forced.clone(),
            None => ForcedTokens::of(&outcomes[first].streams),
        };
        report.settings.forced_tokens = match &golden {
            Some(_) => Some(REFERENCE.to_owned()),
            None => report.settings.baseline.clone(),
        };
        let sinks = force(bundle, &mut outcomes, first, &forced, options, progress)?;
        for (i, sink) in sinks.iter().enumerate() {
            if i != first && outcomes[i].result.status != EngineStatus::NotRun {
                let again = again(bundle, &mut outcomes, [first, i], options, progress)?;
                let both = [&outcomes[first], &outcomes[i]];
                report.pairs.extend(pair(bundle, both, sink, again.as_ref(), options)?);
            }
        }
        if let Some(golden) = &mut golden {
            for outcome in &outcomes {
                report.pairs.extend(against_reference(bundle, golden, outcome, options)?);
            }
        }
    }
    report.engines = outcomes.into_iter().map(|o| o.result).collect();
    // Of another bundle's files no engine is at fault.
    bundle.unchanged()?;
    report.judge();
    Ok(report)
}

fn identify(bundle: &Bundle) -> BundleId {
    let system = bundle.system();
    BundleId {
        manifest_sha256: bundle.manifest_sha256().to_owned(),
        name: system.name.clone(),
        system: system.kind,
        precision: bundle.manifest().precisions(),
        weights: bundle.manifest().numbers().weights(),
        patch_rule: system.patch_rule.clone(),
        tokens: system.tokens(),
        vocab: system.vocab,
        image_size: system.image_size,
        has_tokenizer: bundle.has_graph(GraphName::VqDecode),
    }
}

fn start<'a>(bundle: &'a Bundle, contender: ParityEngine) -> Result<EngineOutcome<'a>, EngineError> {
    let mut result = EngineResult {
        engine: contender.name,
        asked_for: contender.asked_for,
        status: EngineStatus::Ran,
        absent: false,
        info: None,
        arithmetic: None,
        caches: Forms::new(),
        reason: None,
        hint: None,
        seconds: 0.0,
        probes: Vec::new(),
        checks: Vec::new(),
        free_running: Vec::new(),
        teacher_forced: Vec::new(),
    };
    let runtime = match contender.engine.and_then(|engine| LoadedBundle::new(bundle, engine)) {
        Ok(runtime) => {
            result.info = Some(runtime.info().clone());
            result.arithmetic = Some(runtime.arithmetic().clone());
            Some(runtime)
        }
        Err(e) if e.kind == EngineErrorKind::Setting && contender.asked_for => return Err(e),
        Err(e) => {
            result.stopped(&e.into());
            None
        }
    };
    Ok(EngineOutcome { runtime, streams: Vec::new(), replay: None, result })
}

impl EngineResult {
    /// Records why an engine stopped. One that is here and does not take a graph of the bundle has failed, as has one that
    /// goes wrong while it runs.
    fn stopped(&mut self, e: &CompareError) {
        let kind = e.of_engine().map(|e| e.kind);
        self.absent = kind == Some(EngineErrorKind::Unavailable);
        let without = self.absent || kind == Some(EngineErrorKind::Setting);
        self.status = if without { EngineStatus::NotRun } else { EngineStatus::Failed };
        if self.status == EngineStatus::Failed {
            self.checks.push(Check::failed(CheckId::RunsToTheEnd, e.to_string()));
        }
        self.reason = Some(e.to_string());
        self.hint = e.hint();
    }
}

impl<'a> EngineOutcome<'a> {
    /// Runs a piece of work on the engine, if it still runs. What an engine cannot do ends the engine, not the run.
    fn attempt(
        &mut self,
        work: impl FnOnce(&LoadedBundle<'a>, &mut Self) -> Result<(), CompareError>,
    ) -> Result<(), CompareError> {
        let Some(runtime) = self.runtime.take().filter(|_| self.result.status == EngineStatus::Ran) else {
            return Ok(());
        };
        let started = Instant::now();
        let done = work(&runtime, self);
        self.result.seconds += started.elapsed().as_secs_f64();
        self.result.caches = runtime.caches();
        self.runtime = Some(runtime);
        match done {
            Err(e) if e.of_engine().is_some() || e.went_wrong() => self.result.stopped(&e),
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        Ok(())
    }
}

fn requests(bundle: &Bundle, options: &ParityOptions) -> Vec<Request> {
    Request::all_seeded(options.seed, options.images as u64, bundle.system().num_classes)
}

fn sampled(options: &ParityOptions) -> DecodeOptions {
    DecodeOptions {
        cfg_scale: options.cfg_scale,
        cfg_interval: None,
        sampler: SamplerOptions { method: options.sampler, ..SamplerOptions::default() },
        seed: options.seed,
    }
}

/// How draws are asked about where nobody drew any.
fn usual() -> DecodeOptions {
    DecodeOptions { cfg_scale: 1.0, cfg_interval: None, sampler: SamplerOptions::default(), seed: 0 }
}

/// The teacher-forced runs. The calls of engine `first` are made on all others too.
fn force(
    bundle: &Bundle,
    outcomes: &mut [EngineOutcome<'_>],
    first: usize,
    forced: &ForcedTokens,
    options: &ParityOptions,
    progress: Progress<'_>,
) -> Result<Vec<SharedOutputs>, CompareError> {
    let system = bundle.system();
    let how = ReplayOptions::new(system, options.cfg_scale, options.batch);
    let sinks: Vec<SharedOutputs> =
        outcomes.iter().map(|_| Arc::new(Mutex::new(ShadowOutputs::default()))).collect();
    for (i, outcome) in outcomes.iter_mut().enumerate() {
        if i != first {
            outcome.attempt(|runtime, outcome| {
                let mut model = runtime.model()?;
                outcome.replay = Some(follow(model.as_mut(), &how, forced, progress)?);
                Ok(())
            })?;
        }
    }
    let mut own = outcomes[first].runtime.take();
    let replay = own.as_ref().map(|runtime| -> Result<Replay, CompareError> {
        let shadowed = |name: GraphName| -> Result<Box<dyn Session>, CompareError> {
            let mut shadows = Vec::new();
            for (other, sink) in outcomes.iter().zip(&sinks) {
                let ran = other.result.status == EngineStatus::Ran;
                let Some(other) = other.runtime.as_ref().filter(|_| ran) else { continue };
                match other.prepare(name) {
                    Ok(session) => shadows.push((session, sink.clone())),
                    // The other engine's error, not the baseline's.
                    Err(RunError::Engine(e)) => {
                        if let Ok(mut shade) = sink.lock() {
                            shade.error.get_or_insert(e);
                        }
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(Box::new(Shadowed::new(runtime.prepare(name)?, shadows)))
        };
        // Caches in host memory: the other engines take them as inputs.
        let mut prepare = |name: GraphName| -> Result<Box<dyn CachedSession>, CompareError> {
            Ok(Box::new(HostCache::new(shadowed(name)?)?))
        };
        let mut model = prepare_model(system, &mut prepare)?;
        let replay = follow(model.as_mut(), &how, forced, progress)?;
        beside_the_loop(bundle, &shadowed, forced, &replay)?;
        Ok(replay)
    });
    outcomes[first].runtime = own.take();
    match replay.transpose() {
        Ok(replay) => outcomes[first].replay = replay,
        Err(e) if e.of_engine().is_some() || e.went_wrong() => outcomes[first].result.stopped(&e),
        Err(e) => return Err(e),
    }
    for (outcome, sink) in outcomes.iter_mut().zip(&sinks) {
        if let Some(e) = sink.lock().ok().and_then(|mut s| s.error.take()) {
            outcome.result.stopped(&e.into());
        }
    }
    trace(outcomes, forced, system.tokens());
    Ok(sinks)
}

/// Prepares the graph of a name.
type PrepareSession<'a> = dyn Fn(GraphName) -> Result<Box<dyn Session>, CompareError> + 'a;

/// Calls of the graphs that the loop does not run, on the first images: the whole model over given tokens, the tokenizer.
fn beside_the_loop(
    bundle: &Bundle,
    prepare: &PrepareSession<'_>,
    forced: &ForcedTokens,
    replay: &Replay,
) -> Result<(), CompareError> {
    let (system, t) = (bundle.system(), bundle.system().tokens());
    let images = forced.labels.len().min(BESIDE_THE_LOOP);
    if images == 0 {
        return Ok(());
    }
    let ids: Vec<i64> = forced.tokens[..images * t].iter().map(|id| i64::from(*id)).collect();
    let mut cached = |name: GraphName| -> Result<Box<dyn CachedSession>, CompareError> {
        Ok(Box::new(HostCache::new(prepare(name)?)?))
    };
    let mut teacher = TeacherForced::prepare(system, &mut cached)?;
    teacher.entropy(&ids, t)?;
    teacher.logits(&ids, t, &forced.labels[..images], &replay.patch_lengths[..images])?;
    if bundle.has_graph(GraphName::VqDecode) && bundle.has_graph(GraphName::VqEncode) {
        let decoded = prepare(GraphName::VqDecode)?.run(&[("tokens", TensorView::i64([images, t], &ids))])?;
        if let Some(image) = decoded.first() {
            prepare(GraphName::VqEncode)?.run(&[("image", image.view())])?;
        }
    }
    Ok(())
}

/// Fills in the traces of the report.
fn trace(outcomes: &mut [EngineOutcome<'_>], forced: &ForcedTokens, tokens: usize) {
    let some = |e: &[f32]| e.iter().map(|e| e.is_finite().then_some(*e)).collect();
    for outcome in outcomes {
        outcome.result.free_running = outcome
            .streams
            .iter()
            .map(|s| ImageTrace {
                image: s.request.index,
                class: s.request.class,
                tokens: s.tokens.clone(),
                patch_lengths: s.patch_lengths.clone(),
                entropy: some(&s.entropy),
                margin: s.margin.clone(),
            })
            .collect();
        let Some(replay) = &outcome.replay else { continue };
        let images = forced.labels.iter().zip(&replay.patch_lengths).enumerate();
        outcome.result.teacher_forced = images
            .map(|(i, (class, lengths))| ImageTrace {
                image: i as u64,
                class: *class,
                tokens: forced.tokens[i * tokens..(i + 1) * tokens].to_vec(),
                patch_lengths: lengths.clone(),
                entropy: some(&replay.entropy[i * tokens..(i + 1) * tokens]),
                margin: Vec::new(),
            })
            .collect();
    }
}

/// `cfg_scale`: of the logits that are compared.
fn sizes<'a>(
    bundle: &'a Bundle,
    drawn: &DecodeOptions,
    rounding: Rounding,
    cfg_scale: f32,
) -> ComparedSizes<'a> {
    let system = bundle.system();
    let (rule, tokens, vocab) = (&system.patch_rule, system.tokens(), system.vocab);
    let DecodeOptions { seed, sampler, .. } = *drawn;
    ComparedSizes { rule, tokens, vocab, seed, sampler, rounding, cfg_scale }
}

/// Two engines.
fn pair(
    bundle: &Bundle,
    [a, b]: [&EngineOutcome<'_>; 2],
    sink: &SharedOutputs,
    again: Option<&Again>,
    options: &ParityOptions,
) -> Result<Option<Pair>, CompareError> {
    let (Some(x), Some(y)) = (&a.replay, &b.replay) else { return Ok(None) };
    let numbers = bundle.manifest().numbers();
    let decoding = sampled(options);
    let sizes = sizes(bundle, &decoding, Rounding::engines(numbers.clone()), options.cfg_scale);
    let forced = teacher_forced(sizes, x, y, true)?;
    let kinds = [a, b].map(|o| o.result.arithmetic.as_ref().map_or(ArithmeticKind::AsGraph, |a| a.kind));
    let limits = Limits::new(numbers, kinds);
    let mut tensors = Vec::new();
    if let Ok(shade) = sink.lock() {
        tensors.extend(shade.outputs.iter().map(|o| o.finish(&limits)));
    }
    tensors.extend(loop_tensors(&forced, sizes.tolerance()));
    let gap = &mut |image: usize, slot: usize, tokens: [u32; 2]| {
        let key = image_key(options.seed, a.streams[image].request.index);
        let logits = again?.logits(image, slot, sizes)?;
        draw_gap(&sizes.sampler, logits, tokens, (key, slot as u64)).ok().flatten()
    };
    let free = free_running(sizes, &a.streams, &b.streams, &forced.observed, gap);
    let mut pair = Pair {
        baseline: a.result.engine.clone(),
        engine: b.result.engine.clone(),
        status: Status::Fail,
        notes: Vec::new(),
        observed: forced.observed,
        tensors,
        decisions: vec![forced.decisions, free],
    };
    pair.judge(sizes.rounding, &sizes.sampler);
    Ok(Some(pair))
}

/// What two engines compute for images that they draw otherwise.
struct Again {
    /// Row of each image in the replays.
    rows: BTreeMap<usize, usize>,
    replays: [Replay; 2],
}

impl Again {
    /// The logits that decide in both at a slot.
    fn logits(&self, image: usize, slot: usize, sizes: ComparedSizes<'_>) -> Option<[&[f32]; 2]> {
        let at = (self.rows.get(&image)? * sizes.tokens + slot) * sizes.vocab;
        let [x, y] = self.replays.each_ref().map(|r| r.deciding().get(at..at + sizes.vocab));
        Some([x?, y?])
    }
}

/// A stream has no logits: where draws of the free runs differ, both engines follow the baseline's tokens of those images
/// again. An engine that goes wrong on the way has failed, and the margins are not known.
fn again(
    bundle: &Bundle,
    outcomes: &mut [EngineOutcome<'_>],
    [a, b]: [usize; 2],
    options: &ParityOptions,
    progress: Progress<'_>,
) -> Result<Option<Again>, CompareError> {
    let rounding = Rounding::engines(bundle.manifest().precisions());
    let sizes = sizes(bundle, &sampled(options), rounding, options.cfg_scale);
    let (x, y) = (&outcomes[a].streams, &outcomes[b].streams);
    let found = free_running(sizes, x, y, &Observed::default(), &mut |_, _, _| None);
    let apart = found.flips.iter().filter(|f| f.kind == DecisionKind::Draw).map(|f| f.image);
    let rows: BTreeMap<usize, usize> = apart.enumerate().map(|(row, image)| (image, row)).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let streams: Vec<Stream> = rows.keys().map(|image| x[*image].clone()).collect();
    let forced = ForcedTokens::of(&streams);
    let how = ReplayOptions::new(bundle.system(), options.cfg_scale, options.batch);
    let mut replays = Vec::new();
    for engine in [a, b] {
        outcomes[engine].attempt(|runtime, _| {
            replays.push(follow(runtime.model()?.as_mut(), &how, &forced, progress)?);
            Ok(())
        })?;
    }
    Ok(<[Replay; 2]>::try_from(replays).ok().map(|replays| Again { rows, replays }))
}

fn loop_tensors(compared: &decisions::Compared, tolerance: PairTolerance) -> Vec<crate::stats::TensorStats> {
    let mut tensors = vec![compared.logits.absolute("logits", tolerance.logits)];
    if compared.entropy.largest().is_some() {
        tensors.push(compared.entropy.absolute("entropy", tolerance.entropy));
    }
    tensors
}

/// The reference and an engine: the reference's logits are conditional.
fn against_reference(
    bundle: &Bundle,
    golden: &mut Reference,
    outcome: &EngineOutcome<'_>,
    options: &ParityOptions,
) -> Result<Option<Pair>, CompareError> {
    let (Some(replay), Some(arithmetic)) = (&outcome.replay, &outcome.result.arithmetic) else {
        return Ok(None);
    };
    let rounding = Rounding::between(golden.recorded, bundle.manifest().numbers(), arithmetic.kind);
    golden.follow(replay);
    // Which token a source draws is asked with the reference's own settings, where it says them.
    let drawn = golden.drawing.map_or_else(|| sampled(options), DecodeOptions::from);
    let sizes = sizes(bundle, &drawn, rounding, 1.0);
    let forced = teacher_forced(sizes, &golden.replay, replay, false)?;
    let mut notes: Vec<String> =
        conclusion(golden.recorded, &bundle.manifest().numbers(), arithmetic).into_iter().collect();
    if !golden.has_patches && bundle.system().dpar().is_some() {
        notes.push("patch lengths: not in the reference".to_owned());
    }
    let mut pair = Pair {
        baseline: REFERENCE.to_owned(),
        engine: outcome.result.engine.clone(),
        status: Status::Fail,
        notes,
        observed: forced.observed,
        tensors: loop_tensors(&forced, sizes.tolerance()),
        decisions: vec![forced.decisions],
    };
    pair.judge(rounding, &sizes.sampler);
    Ok(Some(pair))
}
