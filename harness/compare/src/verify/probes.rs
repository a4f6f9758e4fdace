//! Probes that need no reference: what must hold for any bundle on any engine.
//!
//! Of each graph, at its smallest, tuned, largest and beside its tuned sizes: shapes, repeated runs, byte-identical
//! rows, rows alone and in a batch, masked past entries. Of the whole loop: padding does not leak, the cached steps
//! equal one call over the whole sequence, and caches in place joined ones. Rows and caches are independent, so the axes that count rows stop at
//! [`ROWS`]; all others reach the ends of their ranges.

use dpar_engine_api::{CacheForm, CachedSession, HostCache, MASKED, Tensor, TensorData, TensorView};
use dpar_engine_conformance::{ConformanceCheck, ConformanceOutcome, ConformanceVerdict, GraphCase};
use dpar_export_decode::generate::sampler::{SamplerOptions, uniform};
use dpar_export_decode::generate::{DecodeOptions, Request, Stream, prepare_model, shift_entropy};
use dpar_export_decode::loaded::{LoadedBundle, Progress, RunError};
use dpar_export_decode::replay::{ForcedTokens, ReplayOptions, follow};
use dpar_export_spec::{DType, GraphName, GraphSpec, PatchMode};
use half::{bf16, f16};

use crate::CompareError;
use crate::check::{Check, CheckId, Status, or_failed};
use crate::stats::Accumulator;
use crate::tolerance::{Quantity, Rounding};

/// Rows of a probe's largest call.
const ROWS: usize = 4;
/// Images of the probes of the whole loop: two, whose patch counts can differ.
const IMAGES: usize = 2;
/// Seed of the probes' inputs.
const SEED: u64 = 0x009D_0BE5;

/// How the calls of one bundle on one engine round: at the same places, in other orders. Of one graph, its own weights count.
fn rounding(runtime: &LoadedBundle<'_>, graph: Option<&str>) -> Rounding {
    let all = runtime.bundle().manifest().numbers();
    let own = graph.map_or_else(|| all.clone(), |graph| all.of_graph(graph));
    Rounding::own(own, runtime.arithmetic().kind)
}

/// Runs every probe.
///
/// # Errors
/// When the engine refuses a graph, or the caller asked to stop. What does not hold is in the checks.
pub fn probe(
    runtime: &LoadedBundle<'_>,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<Check>, CompareError> {
    let mut checks = graphs(runtime, progress)?;
    let system = runtime.bundle().system();
    if system.dpar().is_some() || system.llamagen().is_some() {
        let streams = match draw(runtime, batch, progress) {
            Ok(streams) => streams,
            Err(e) => {
                checks.extend(or_failed(CheckId::Steps, Err(e))?);
                runtime.bundle().unchanged()?;
                return Ok(checks);
            }
        };
        checks.extend(or_failed(CheckId::Steps, cached(runtime, &streams, batch, progress))?);
        let padded = padding(runtime, &streams, progress).map(|c| vec![c]);
        checks.extend(or_failed(CheckId::Padding, padded)?);
    }
    runtime.bundle().unchanged()?;
    Ok(checks)
}

/// The checks of single graphs, one line for each kind.
fn graphs(runtime: &LoadedBundle<'_>, progress: Progress<'_>) -> Result<Vec<Check>, CompareError> {
    let bundle = runtime.bundle();
    let all = bundle.manifest().graphs.len();
    let mut outcomes = Vec::new();
    for (i, graph) in bundle.manifest().graphs.iter().enumerate() {
        let mut session = runtime.prepare(&graph.spec.name)?;
        outcomes.extend(dpar_engine_conformance::probes(
            runtime.engine(),
            session.as_mut(),
            &case(runtime, &graph.spec),
        ));
        if !progress(i + 1, all) {
            return Err(RunError::Interrupted.into());
        }
    }
    let table = [
        (ConformanceCheck::Shapes, CheckId::Shapes),
        (ConformanceCheck::Repeat, CheckId::RepeatedRuns),
        (ConformanceCheck::IdenticalRows, CheckId::IdenticalRows),
        (ConformanceCheck::EquivalentRows, CheckId::EqualRows),
        (ConformanceCheck::BatchOne, CheckId::BatchOne),
        (ConformanceCheck::MaskedPast, CheckId::MaskedPast),
    ];
    Ok(table.map(|(kind, id)| line(id, outcomes.iter().filter(|o| o.check == kind))).into())
}

/// The outcomes of one kind as one check.
fn line<'a>(id: CheckId, outcomes: impl Iterator<Item = &'a ConformanceOutcome>) -> Check {
    let (mut passed, mut excepted, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for outcome in outcomes {
        match &outcome.verdict {
            ConformanceVerdict::Pass => passed.push(outcome.graph.as_str()),
            ConformanceVerdict::Excepted(_) => excepted.push(outcome.graph.as_str()),
            ConformanceVerdict::Fail(why) => failed.push(format!("{}: {why}", outcome.graph)),
            ConformanceVerdict::NotApplicable(_) => {}
        }
    }
    let mut detail = format!("{} graphs hold", passed.len());
    if !excepted.is_empty() {
        detail += &format!("; a listed exception in {}", excepted.join(", "));
    }
    if let Some(first) = failed.first() {
        detail = format!("{} of {} graphs fail; {first}", failed.len(), passed.len() + failed.len());
    }
    if passed.is_empty() && excepted.is_empty() && failed.is_empty() {
        return Check::not_run(id, "it asks nothing of these graphs");
    }
    Check::holds(id, detail, failed.is_empty())
}

/// A graph with the bounds of its integer inputs and the sizes that a probe may take.
fn case(runtime: &LoadedBundle<'_>, spec: &GraphSpec) -> GraphCase {
    let system = runtime.bundle().system();
    let t = system.tokens();
    let mut case = GraphCase::new(spec.clone(), "");
    case.cap = t;
    case.caps = [("batch", ROWS), ("cache_rows", ROWS)].map(|(a, n)| (a.to_owned(), n)).into();
    if spec.input("embeddings").is_none() {
        // Rows of their own, and not slots of a sequence.
        case.caps.insert("patches".to_owned(), ROWS);
    }
    case.scaled = true;
    case.tolerances = rounding(runtime, Some(&spec.name)).into();
    // The patches of the whole batch stand in one list.
    case.coupled_rows = spec.input("patch_tokens").is_some();
    for port in spec.inputs.iter().filter(|p| p.dtype == DType::I64) {
        let bound = match port.name.as_str() {
            "tokens" | "slots" => system.vocab,
            "class_labels" => system.num_classes + usize::from(system.null_class().is_some()),
            "positions" => t,
            "patch_first" | "patch_last" | "patch_index" => t + 1,
            // Flat indices: the first row exists whatever the shape.
            _ => 1,
        };
        case = case.bound(&port.name, bound);
    }
    case
}

/// Images to probe the loop with.
fn draw(
    runtime: &LoadedBundle<'_>,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<Stream>, CompareError> {
    let classes = runtime.bundle().system().num_classes;
    let requests: Vec<Request> = Request::all_seeded(SEED, IMAGES as u64, classes);
    let options =
        DecodeOptions { cfg_scale: 1.0, cfg_interval: None, sampler: SamplerOptions::default(), seed: SEED };
    Ok(runtime.decode(&requests, &options, batch, progress)?)
}

/// Tokens and labels of streams, as `score` takes them.
fn given(streams: &[Stream]) -> (Vec<i64>, Vec<i64>, Vec<Vec<usize>>) {
    let ids = Stream::ids(streams);
    let labels = streams.iter().map(|s| s.request.class).collect();
    (ids, labels, streams.iter().map(|s| s.patch_lengths.clone()).collect())
}

/// Logits and entropies of the cached steps against one call over the whole sequence, and, where caches are kept in place,
/// against the steps of the exported graphs, which join them.
fn cached(
    runtime: &LoadedBundle<'_>,
    streams: &[Stream],
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<Check>, CompareError> {
    let system = runtime.bundle().system();
    let (ids, labels, lengths) = given(streams);
    let forced = ForcedTokens::of(streams);
    let how = ReplayOptions::new(system, 1.0, batch);
    let mut model = runtime.model()?;
    let steps = follow(model.as_mut(), &how, &forced, progress)?;
    let whole = runtime.score(&ids, &labels, Some(&lengths), batch, progress)?;
    let next: Option<Vec<f32>> =
        whole.entropy.map(|e| e.chunks(how.tokens).flat_map(shift_entropy).collect());
    let limit = rounding(runtime, None).limit(Quantity::Steps);
    let check = |id, logits: &[f32], entropy: Option<&[f32]>, lengths: &[Vec<usize>]| {
        let mut sums = Accumulator::default();
        sums.add(logits, &steps.conditional);
        for (a, b) in
            entropy.into_iter().flat_map(|e| e.chunks(how.tokens)).zip(steps.entropy.chunks(how.tokens))
        {
            // Column 0 is NaN on both sides.
            sums.add(&a[1..], &b[1..]);
        }
        let found = sums.mixed("", limit);
        let same = steps.patch_lengths == lengths;
        let mut detail = format!(
            "{} values of {} images hold for t = {:.1e} of |a − b| ≤ t + t·|a|",
            found.elements,
            streams.len(),
            found.smallest_tolerance
        );
        if !same {
            detail += "; the patches differ between two runs of the same tokens";
        }
        let (max_abs, limit) = (Some(found.max_abs), Some(limit.value()));
        Check { max_abs, limit, ..Check::holds(id, detail, found.status == Status::Pass && same) }
    };
    let mut checks = vec![check(CheckId::Steps, &whole.logits, next.as_deref(), &lengths)];
    if !runtime.caches().values().any(|form| *form == CacheForm::InPlace) {
        checks.push(Check::not_run(CheckId::Caches, "no cache is kept in place"));
        return Ok(checks);
    }
    let mut joined = |graph: GraphName| -> Result<Box<dyn CachedSession>, RunError> {
        Ok(Box::new(HostCache::new(runtime.prepare(graph)?)?))
    };
    let mut model = prepare_model(system, &mut joined)?;
    let joined = follow(model.as_mut(), &how, &forced, progress)?;
    let entropy = next.as_ref().map(|_| &joined.entropy[..]);
    checks.push(check(CheckId::Caches, &joined.conditional, entropy, &joined.patch_lengths));
    Ok(checks)
}

/// Padding: an image with fewer patches than its neighbour scores as it does alone, and what lies beyond a patch's
/// length has no influence. Not run where all patches are single tokens, since nothing is padded then.
fn padding(
    runtime: &LoadedBundle<'_>,
    streams: &[Stream],
    progress: Progress<'_>,
) -> Result<Check, CompareError> {
    let system = runtime.bundle().system();
    let tokens = system.tokens();
    let (ids, labels, mut lengths) = given(streams);
    let longest = match system.patch_rule.mode {
        PatchMode::Token => 1,
        _ => system.longest_patch(),
    };
    if !unequal(&mut lengths, tokens, longest) {
        return Ok(Check::not_run(CheckId::Padding, "every image has as many patches: nothing is padded"));
    }
    let together = runtime.score(&ids, &labels, Some(&lengths), streams.len(), progress)?;
    let mut sums = Accumulator::default();
    for (i, logits) in together.logits.chunks(together.logits.len() / streams.len().max(1)).enumerate() {
        let own = &ids[i * tokens..(i + 1) * tokens];
        let alone = runtime.score(own, &labels[i..=i], Some(&lengths[i..=i]), 1, progress)?;
        sums.add(&alone.logits, logits);
    }
    let found = sums.scaled("", rounding(runtime, Some(GraphName::Score.as_str())).limit(Quantity::Rows));
    let counts: Vec<usize> = lengths.iter().map(Vec::len).collect();
    let mut detail = format!("images of {counts:?} patches score alone as together");
    let mut pass = found.status == Status::Pass;
    if let Some(why) = beyond_a_patch(runtime)? {
        (pass, detail) = (false, why);
    }
    let (max_abs, limit) = (Some(found.max_abs), Some(found.limit * found.largest.max(1.0)));
    Ok(Check { max_abs, limit, ..Check::holds(CheckId::Padding, detail, pass) })
}

/// Makes patch counts differ, so that something is padded: where all are equal, the first image gets the longest patches and
/// the last one single tokens. Whether they differ now: not where patches are single tokens only.
fn unequal(lengths: &mut [Vec<usize>], tokens: usize, longest: usize) -> bool {
    let equal = |lengths: &[Vec<usize>]| lengths.windows(2).all(|w| w[0].len() == w[1].len());
    if equal(lengths)
        && let [first, .., last] = &mut *lengths
    {
        let full = longest.clamp(1, tokens.max(1));
        *first = (0..tokens).step_by(full).map(|start| full.min(tokens - start)).collect();
        *last = vec![1; tokens];
    }
    !equal(lengths)
}

/// Whether hidden states beyond a patch's length leak into its embedding: why, if they do.
fn beyond_a_patch(runtime: &LoadedBundle<'_>) -> Result<Option<String>, CompareError> {
    const GRAPH: GraphName = GraphName::PatchEmbed;
    let system = runtime.bundle().system();
    let Some(spec) = system.dpar() else { return Ok(None) };
    let length = system.longest_patch();
    if length < 2 || system.patch_rule.mode == PatchMode::Token {
        return Ok(None);
    }
    let mut session = runtime.prepare(GRAPH)?;
    let (patches, width) = (3, spec.width);
    let visible = |patch: usize, k: usize| k <= patch % (length - 1);
    let mut mask = vec![0.0; patches * length];
    for (i, m) in mask.iter_mut().enumerate() {
        if !visible(i / length, i % length) {
            *m = MASKED;
        }
    }
    let float = |i: usize| (4.0 * uniform(SEED, i as u64) - 2.0) as f32;
    let mut run = |change: &dyn Fn(usize, usize) -> bool| -> Result<Vec<Tensor>, CompareError> {
        let graph = session.spec().clone();
        let mut tensors = Vec::new();
        for port in graph.inputs.iter().filter(|p| p.name != "patch_mask") {
            let values: Vec<f32> = (0..patches * length * width)
                .map(|i| {
                    let slot = i / width;
                    let changed = change(slot / length, slot % length);
                    float(i) * if changed { -3.0 } else { 1.0 }
                })
                .collect();
            let data = float_data(port.dtype, &values);
            tensors.push((port.name.clone(), Tensor::new([patches, length, width], data)));
        }
        let mut inputs = vec![("patch_mask", TensorView::f32([patches, length], &mask))];
        inputs.extend(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.view())));
        Ok(session.run(&inputs)?)
    };
    let plain = run(&|_, _| false)?;
    if run(&|patch, k| !visible(patch, k))? != plain {
        return Ok(Some(format!("{GRAPH}: hidden states beyond a patch's length change its embedding")));
    }
    if run(&visible)? == plain {
        return Ok(Some(format!("{GRAPH}: hidden states of a patch do not change its embedding")));
    }
    Ok(None)
}

/// Floats in the type of a port.
fn float_data(dtype: DType, values: &[f32]) -> TensorData {
    match dtype {
        DType::F16 => TensorData::F16(values.iter().map(|v| f16::from_f32(*v)).collect()),
        DType::BF16 => TensorData::BF16(values.iter().map(|v| bf16::from_f32(*v)).collect()),
        _ => TensorData::F32(values.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_counts_are_made_to_differ_where_they_can() {
        let mut differ = [vec![1, 3], vec![4]];
        assert!(unequal(&mut differ, 4, 4));
        assert_eq!(differ, [vec![1, 3], vec![4]], "what differs stays as it was drawn");
        for equal in [[vec![2, 3], vec![3, 2]], [vec![1; 5], vec![1; 5]]] {
            let mut lengths = equal;
            assert!(unequal(&mut lengths, 5, 3));
            assert_eq!(lengths, [vec![3, 2], vec![1; 5]]);
        }
        // Patches of single tokens, as the baseline has them.
        let mut single = [vec![1; 5], vec![1; 5]];
        assert!(!unequal(&mut single, 5, 1));
        assert_eq!(single, [vec![1; 5], vec![1; 5]]);
    }
}
