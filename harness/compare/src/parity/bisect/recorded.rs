//! An engine and recorded outputs: which of them differ names the graphs that can be at fault.

use camino::Utf8Path;
use dpar_export_decode::loaded::{LoadedBundle, Progress};
use dpar_export_decode::replay::{Replay, ReplayOptions, follow};
use dpar_export_metrics::Verdict;
use dpar_export_spec::GraphName;

use super::super::decisions::ComparedSizes;
use super::super::{reference, usual};
use super::{BisectSource, Bisection, Divergence, GraphFinding, Symptom, sizes, source, symptom};
use crate::CompareError;
use crate::check::{Check, CheckId, SCHEMA_VERSION, Status};
use crate::decision::starts;
use crate::stats::Accumulator;
use crate::tolerance::Rounding;
use crate::verify::verify_golden;

/// Finds where an engine parts from recorded outputs. They hold no intermediate values, so the graph is inferred from
/// which of them differ.
///
/// # Errors
/// When the recording does not fit, the engine cannot run, or the caller asked to stop.
pub fn against_recorded(
    runtime: &LoadedBundle<'_>,
    folder: &Utf8Path,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Bisection, CompareError> {
    let bundle = runtime.bundle();
    let mut golden = reference::read(bundle.system(), folder)?;
    if golden.has_patches
        && let Some(found) = other_rule(runtime, folder, &golden.replay)
    {
        return Ok(found);
    }
    let how = ReplayOptions::new(bundle.system(), 1.0, batch);
    let own = follow(runtime.model()?.as_mut(), &how, &golden.forced, progress)?;
    golden.follow(&own);
    let numbers = bundle.manifest().numbers();
    let rounding = Rounding::between(golden.recorded, numbers, runtime.arithmetic().kind);
    let sizes = sizes(bundle, &usual(), rounding, 1.0);
    let symptom = symptom(sizes, &golden.replay, &own, false)?;
    let mut graph = None;
    let mut note = None;
    if let Some(symptom) = &symptom {
        let named = inferred(runtime, &golden, symptom, sizes, batch, progress)?;
        note = Some(match named.len() {
            0 => "every entropy agrees: the patch rule, and no graph, decides otherwise".to_owned(),
            _ => "recorded outputs hold no intermediate values: give a bundle that is known to be good as --reference \
                  to name the node"
                .to_owned(),
        });
        let found = GraphFinding { graphs: named, slot: Some(symptom.slot), output: None, max_abs: None };
        graph = Some(found).filter(|g| !g.graphs.is_empty());
    }
    let mut verdict = if symptom.is_some() { Verdict::Fail } else { Verdict::Pass };
    if symptom.is_none() {
        // The loop agrees on given tokens: what else was recorded.
        let checks = verify_golden(runtime, folder, batch, progress)?;
        let mut notes = Vec::new();
        for check in checks.iter().filter(|c| c.status == Status::Fail) {
            verdict = Verdict::Fail;
            notes.push(format!("{} differ: {}", check.name, check.detail));
            let named = graphs_of(runtime, check);
            if graph.is_none() && !named.is_empty() {
                let max_abs = check.max_abs;
                graph = Some(GraphFinding { graphs: named, slot: None, output: None, max_abs });
            }
        }
        let absent: Vec<&str> =
            checks.iter().filter(|c| c.status == Status::NotRun).map(|c| c.name.as_str()).collect();
        if !absent.is_empty() {
            notes.push(format!("not compared, as the reference does not hold it: {}", absent.join(", ")));
        }
        note = Some(notes.join("; ")).filter(|n| !n.is_empty());
    }
    bundle.unchanged()?;
    Ok(Bisection {
        schema_version: SCHEMA_VERSION,
        verdict,
        sources: recorded(runtime, folder),
        symptom,
        graph,
        node: None,
        note,
    })
}

/// Which graphs can be at fault where the loop agrees on given tokens and this check of `verify` fails.
fn graphs_of(runtime: &LoadedBundle<'_>, check: &Check) -> Vec<String> {
    let system = runtime.bundle().system();
    let step = if system.dpar().is_some() {
        &[
            GraphName::Start,
            GraphName::EncoderStep,
            GraphName::PatchEmbed,
            GraphName::GlobalStep,
            GraphName::DecoderStep,
        ][..]
    } else {
        &[GraphName::LlamagenStep]
    };
    let names: &[GraphName] = match check.id {
        CheckId::Images => &[GraphName::VqDecode],
        CheckId::Codes => &[GraphName::VqEncode],
        CheckId::Entropy => &[GraphName::EntropyStep],
        // The step graphs agree: what is left is the graph that scores whole sequences.
        CheckId::Logits if system.dpar().is_some() => &[GraphName::Score],
        CheckId::Logits | CheckId::GreedyTokens | CheckId::DrawnTokens => step,
        _ => &[],
    };
    named(names)
}

fn named(graphs: &[GraphName]) -> Vec<String> {
    graphs.iter().map(ToString::to_string).collect()
}

fn recorded(runtime: &LoadedBundle<'_>, folder: &Utf8Path) -> [BisectSource; 2] {
    let name = folder.file_name().unwrap_or("reference").to_owned();
    [BisectSource { name, engine: None, bundle: None }, source(&runtime.info().engine, runtime)]
}

/// Whether the bundle's patch rule gives other patches than recorded for the recorded entropies: exact, so it comes first.
fn other_rule(runtime: &LoadedBundle<'_>, folder: &Utf8Path, golden: &Replay) -> Option<Bisection> {
    let system = runtime.bundle().system();
    let (rule, t) = (&system.patch_rule, system.tokens());
    if rule.mode.uses_entropy() && golden.entropy.iter().all(|e| e.is_nan()) {
        return None;
    }
    let (image, slot) = golden.patch_lengths.iter().enumerate().find_map(|(image, lengths)| {
        let (r, f) = (starts(lengths), starts(&rule.lengths(t, &golden.entropy[image * t..(image + 1) * t])));
        (0..t).find(|slot| r.get(*slot) != f.get(*slot)).map(|slot| (image, slot))
    })?;
    let recorded_entropy = golden.entropy[image * t + slot];
    let (threshold, longest) = (rule.threshold, rule.longest_patch(t));
    let divergence = Divergence::Rule { recorded: recorded_entropy, threshold, longest };
    Some(Bisection {
        schema_version: SCHEMA_VERSION,
        verdict: Verdict::Fail,
        sources: recorded(runtime, folder),
        symptom: Some(Symptom::new(image, slot, divergence)),
        graph: None,
        node: None,
        note: Some("the patch rule, and no graph, decides otherwise".to_owned()),
    })
}

/// Which graphs can be at fault.
fn inferred(
    runtime: &LoadedBundle<'_>,
    golden: &reference::Reference,
    symptom: &Symptom,
    sizes: ComparedSizes<'_>,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<String>, CompareError> {
    let system = runtime.bundle().system();
    match symptom.divergence {
        Divergence::Entropy { .. } | Divergence::Boundary { entropies_agree: false, .. } => {
            return Ok(named(&[GraphName::EntropyStep]));
        }
        Divergence::Rule { .. } | Divergence::Boundary { entropies_agree: true, .. } => return Ok(Vec::new()),
        Divergence::Logits { .. } => {}
    }
    if system.dpar().is_none() {
        return Ok(named(&[GraphName::LlamagenStep]));
    }
    // Slot 0 sees the class alone: neither the encoder nor a patch has run.
    if symptom.slot == 0 {
        return Ok(named(&[GraphName::Start, GraphName::GlobalStep, GraphName::DecoderStep]));
    }
    let ids = golden.forced.ids();
    let lengths = &golden.replay.patch_lengths;
    let whole = runtime.score(&ids, &golden.forced.labels, Some(lengths), batch, progress)?;
    let mut sums = Accumulator::default();
    sums.add(&golden.replay.conditional, &whole.logits);
    let steps =
        [GraphName::EncoderStep, GraphName::PatchEmbed, GraphName::GlobalStep, GraphName::DecoderStep];
    let pass = sums.absolute("", sizes.tolerance().logits).status == Status::Pass;
    // Where `score` agrees, its weights do: the fault lies in the step graphs.
    Ok(if pass { named(&steps) } else { named(&[&steps[..], &[GraphName::Score]].concat()) })
}
