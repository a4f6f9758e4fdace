//! Where two sources part: the first slot, then the graph, then the node.
//!
//! 1. Both follow the same tokens; the first slot whose boundary, entropy or logits differ is the symptom.
//! 2. One source's run is made again, each call also on the other with the same inputs: the first call that differs names
//!    the graph. What merely built up before differs in its inputs, not here.
//! 3. That call is repeated on graphs whose intermediate values are outputs: the first node that differs while its
//!    inputs agree.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{
    CachedSession, EngineError, EngineInfo, GraphFile, HostCache, Session, Tensor, TensorView,
};
use dpar_export_bundle::Bundle;
use dpar_export_decode::generate::{TeacherForced, prepare_model};
use dpar_export_decode::loaded::{LoadedBundle, Progress};
use dpar_export_decode::replay::{ForcedTokens, Replay, ReplayOptions, follow};
use dpar_export_metrics::Verdict;
use dpar_export_onnx::derive::{Exposed, expose};
use dpar_export_spec::{GraphName, GraphSpec, PatchRule};
use serde::Serialize;

use super::decisions::{ComparedSizes, teacher_forced};
use super::shadow::{Limits, numbers};
use super::{sizes, usual};
use crate::CompareError;
use crate::check::{SCHEMA_VERSION, Status};
use crate::decision::starts;
use crate::stats::Accumulator;
use crate::tolerance::Rounding;

mod recorded;

pub use recorded::against_recorded;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bisection {
    /// Version of the document, as of a parity report.
    pub schema_version: u32,
    /// `pass` when nothing differs.
    pub verdict: Verdict,
    /// The two sources.
    pub sources: [BisectSource; 2],
    /// The first slot that differs in the whole loop; null where no slot does.
    pub symptom: Option<Symptom>,
    /// The first graph that differs on the same inputs.
    pub graph: Option<GraphFinding>,
    /// The first node that differs.
    pub node: Option<NodeFinding>,
    /// What could not be found out, and why.
    pub note: Option<String>,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BisectSource {
    /// How the findings call it.
    pub name: String,
    /// What ran; null for recorded outputs.
    pub engine: Option<EngineInfo>,
    /// SHA-256 of the bundle's manifest; null for recorded outputs.
    pub bundle: Option<String>,
}

/// The first divergence of the loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Symptom {
    /// Image, counted from 0.
    pub image: usize,
    /// Slot.
    pub slot: usize,
    /// What differs.
    #[serde(flatten)]
    pub divergence: Divergence,
    /// The same in words.
    pub what: String,
}

impl Symptom {
    fn new(image: usize, slot: usize, divergence: Divergence) -> Self {
        let what = divergence.to_string();
        Self { image, slot, divergence, what }
    }
}

/// What differs at a slot; entropies are those of the two sources, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Divergence {
    /// The bundle's patch rule gives other patches for the recorded entropies.
    Rule {
        /// The recorded one; NaN where the rule reads none.
        recorded: f32,
        /// Threshold of the rule.
        threshold: Option<f32>,
        /// Most tokens of a patch.
        longest: usize,
    },
    /// Whether a token opens a patch.
    Boundary {
        /// Whether the entropies agree within the tolerance: then the rule decides otherwise.
        entropies_agree: bool,
        /// Both.
        entropy: [f32; 2],
        /// Threshold of the rule.
        threshold: Option<f32>,
    },
    /// Entropies, with the same boundaries.
    Entropy {
        /// Both.
        entropy: [f32; 2],
    },
    /// Logits, with the same boundaries and entropies.
    Logits {
        /// Largest difference.
        max_abs: f64,
    },
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |threshold: Option<f32>| threshold.map(|v| format!(", threshold {v}")).unwrap_or_default();
        match *self {
            Self::Rule { recorded, threshold, longest } => write!(
                f,
                "boundary differs for the recorded entropy (e = {recorded}{}, at most {longest} tokens)",
                at(threshold)
            ),
            Self::Boundary { entropies_agree, entropy: [a, b], threshold } => {
                let agree = if entropies_agree { " and the entropies agree" } else { "" };
                write!(f, "boundary differs{agree} (e = {a} vs {b}{})", at(threshold))
            }
            Self::Entropy { entropy: [a, b] } => write!(f, "entropy differs (e = {a} vs {b})"),
            Self::Logits { max_abs } => write!(f, "logits differ (max abs {max_abs:.1e})"),
        }
    }
}

/// A graph that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphFinding {
    /// Its name; several where recorded outputs cannot tell them apart.
    pub graphs: Vec<String>,
    /// Slot of the first call that differs.
    pub slot: Option<usize>,
    /// Output that differs most.
    pub output: Option<String>,
    /// Largest difference of that output.
    pub max_abs: Option<f64>,
}

/// A node that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeFinding {
    /// Name of the node, a path.
    pub node: String,
    /// Operator.
    pub op: String,
    /// Largest difference of what it makes.
    pub max_abs: f64,
    /// Largest difference of what it reads.
    pub inputs_max_abs: f64,
}

impl Bisection {
    /// The finding as one line.
    pub fn path(&self) -> String {
        let mut steps = Vec::new();
        if let Some(s) = &self.symptom {
            steps.push(format!("image {}, slot {}: {}", s.image, s.slot, s.what));
        }
        if let Some(g) = &self.graph {
            let word = if g.graphs.len() == 1 { "graph" } else { "one of" };
            let mut step = format!("{word} {}", g.graphs.join(", "));
            if let (Some(output), Some(max)) = (&g.output, g.max_abs) {
                step += &format!(" (`{output}`, max abs {max:.1e}");
                step += &g.slot.map_or_else(|| ")".to_owned(), |slot| format!(", first at slot {slot})"));
            }
            steps.push(step);
        }
        if let Some(n) = &self.node {
            steps.push(format!(
                "node {} ({}), max abs {:.1e} where inputs agree to {:.1e}",
                n.node, n.op, n.max_abs, n.inputs_max_abs
            ));
        }
        match (steps.is_empty(), self.verdict) {
            (false, _) => steps.join(" → "),
            (true, Verdict::Fail) => "no graph can be named".to_owned(),
            (true, _) => "nothing differs".to_owned(),
        }
    }
}

fn source(name: &str, runtime: &LoadedBundle<'_>) -> BisectSource {
    BisectSource {
        name: name.to_owned(),
        engine: Some(runtime.info().clone()),
        bundle: Some(runtime.bundle().manifest_sha256().to_owned()),
    }
}

/// One batch, so that every call belongs to one slot.
fn how<'a>(bundle: &'a Bundle, forced: &ForcedTokens, cfg_scale: f32) -> ReplayOptions<'a> {
    ReplayOptions::new(bundle.system(), cfg_scale, forced.labels.len())
}

/// Finds where `b` parts from `a`: two engines on one bundle, or two bundles of one system on one engine.
///
/// # Errors
/// When an engine cannot run, the bundles are of different systems, or the caller asked to stop.
pub fn between(
    names: [&str; 2],
    a: &LoadedBundle<'_>,
    b: &LoadedBundle<'_>,
    forced: &ForcedTokens,
    cfg_scale: f32,
    progress: Progress<'_>,
) -> Result<Bisection, CompareError> {
    let same_bundle = a.bundle().manifest_sha256() == b.bundle().manifest_sha256();
    let (x, y) = (a.bundle().system(), b.bundle().system());
    if (x.kind, x.tokens(), x.vocab) != (y.kind, y.tokens(), y.vocab) {
        return Err(CompareError::Systems);
    }
    let [own, other] = [a, b].map(|r| r.bundle().manifest().numbers());
    if own != other {
        return Err(CompareError::Precisions { a: own, b: other });
    }
    let limits = Limits::new(own.clone(), [a, b].map(|r| r.arithmetic().kind));
    let limits = if same_bundle { limits } else { limits.on_one_engine() };
    let run = |runtime: &LoadedBundle<'_>, progress: Progress<'_>| -> Result<Replay, CompareError> {
        let how = how(runtime.bundle(), forced, cfg_scale);
        Ok(follow(runtime.model()?.as_mut(), &how, forced, progress)?)
    };
    let mut bad = Vec::new();
    let mut keep = |name: &str, ran: Result<Replay, CompareError>| match ran {
        Ok(replay) => Ok(Some(replay)),
        // Which graph it is, is found below.
        Err(e) if e.went_wrong() => {
            bad.push(format!("{name}: {e}"));
            Ok(None)
        }
        Err(e) => Err(e),
    };
    let first = keep(names[0], run(a, progress))?;
    let second = keep(names[1], run(b, progress))?;
    let symptom = match (&first, &second) {
        (Some(x), Some(y)) => {
            let sizes = sizes(a.bundle(), &usual(), Rounding::engines(own), cfg_scale);
            symptom(sizes, x, y, true)?
        }
        _ => None,
    };
    let mut found = Bisection {
        schema_version: SCHEMA_VERSION,
        verdict: Verdict::Pass,
        sources: [source(names[0], a), source(names[1], b)],
        symptom,
        graph: None,
        node: None,
        note: None,
    };
    if let Some(call) = first_call(a, b, forced, first.as_ref(), cfg_scale, &limits, progress)? {
        match node(a, b, &call, &limits) {
            Ok(node) => {
                if node.is_none() {
                    let note = "with every intermediate value an output, no single node differs: kernels that an \
                                engine fuses do";
                    found.note = Some(note.to_owned());
                }
                found.node = node;
            }
            Err(e) => found.note = Some(format!("the node was not looked for: {e}")),
        }
        found.graph = Some(GraphFinding {
            graphs: vec![call.graph],
            slot: call.slot,
            output: Some(call.output),
            max_abs: Some(call.max_abs),
        });
    } else if found.symptom.is_some() {
        let note = "every graph agrees on the same inputs: the difference builds up over the slots";
        found.note = Some(note.to_owned());
    }
    if x.patch_rule != y.patch_rule {
        let rule = |r: &PatchRule| serde_json::to_string(r).unwrap_or_default();
        let (x, y) = (rule(&x.patch_rule), rule(&y.patch_rule));
        found.note = Some(format!("the patch rules in the two configurations differ: {x} and {y}"));
    }
    if !bad.is_empty() {
        found.note = Some(bad.into_iter().chain(found.note.take()).collect::<Vec<_>>().join("; "));
        found.verdict = Verdict::Fail;
    }
    if found.symptom.is_some() || found.graph.is_some() || x.patch_rule != y.patch_rule {
        found.verdict = Verdict::Fail;
    }
    [a, b].iter().try_for_each(|r| r.bundle().unchanged())?;
    Ok(found)
}

/// The first slot at which two replays differ by more than the tolerance.
fn symptom(
    sizes: ComparedSizes<'_>,
    a: &Replay,
    b: &Replay,
    guided: bool,
) -> Result<Option<Symptom>, CompareError> {
    let compared = teacher_forced(sizes, a, b, guided)?;
    let firsts = compared.decisions.first_off.iter().enumerate();
    let Some((slot, image)) = firsts.filter_map(|(i, s)| s.map(|s| (s, i))).min() else { return Ok(None) };
    let (t, vocab) = (sizes.tokens, sizes.vocab);
    let at = image * t + slot;
    let starts = [starts(&a.patch_lengths[image]), starts(&b.patch_lengths[image])];
    let entropy = [a.entropy[at], b.entropy[at]];
    let [x, y] = entropy.map(f64::from);
    let limit = sizes.tolerance().entropy;
    let divergence = if starts[0].get(slot) != starts[1].get(slot) {
        let entropies_agree = entropy[0].to_bits() == entropy[1].to_bits() || limit.holds((x - y).abs());
        Divergence::Boundary { entropies_agree, entropy, threshold: sizes.rule.threshold }
    } else if !x.is_nan() && !y.is_nan() && !limit.holds((x - y).abs()) {
        Divergence::Entropy { entropy }
    } else {
        let pick = |r: &Replay| {
            let logits = if guided { r.deciding() } else { &r.conditional };
            logits[at * vocab..(at + 1) * vocab].to_vec()
        };
        let mut sums = Accumulator::default();
        sums.add(&pick(a), &pick(b));
        Divergence::Logits { max_abs: sums.largest().unwrap_or(0.0) }
    };
    Ok(Some(Symptom::new(image, slot, divergence)))
}

/// A call that came out differently on the same inputs.
struct DifferingCall {
    graph: String,
    slot: Option<usize>,
    output: String,
    max_abs: f64,
    inputs: Vec<(String, Tensor)>,
}

/// What the calls of one run share.
struct Watch {
    limit: Limits,
    slot: AtomicUsize,
    in_loop: bool,
    found: Mutex<Option<DifferingCall>>,
    error: Mutex<Option<EngineError>>,
}

impl Watch {
    fn new(limit: Limits, in_loop: bool) -> Arc<Self> {
        let (slot, found, error) = (AtomicUsize::new(0), Mutex::new(None), Mutex::new(None));
        Arc::new(Self { limit, slot, in_loop, found, error })
    }

    fn done(&self) -> bool {
        self.found.lock().is_ok_and(|f| f.is_some()) || self.error.lock().is_ok_and(|e| e.is_some())
    }

    fn take(&self) -> Result<Option<DifferingCall>, CompareError> {
        if let Some(e) = self.error.lock().ok().and_then(|mut e| e.take()) {
            return Err(e.into());
        }
        Ok(self.found.lock().ok().and_then(|mut f| f.take()))
    }
}

/// A session whose calls are compared with another's.
struct Watched {
    session: Box<dyn Session>,
    other: Box<dyn Session>,
    watch: Arc<Watch>,
}

impl Session for Watched {
    fn spec(&self) -> &GraphSpec {
        self.session.spec()
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let outputs = self.session.run_unchecked(inputs)?;
        if self.watch.done() {
            return Ok(outputs);
        }
        match self.other.run(inputs) {
            Ok(others) => {
                if let Some((output, max_abs)) =
                    worst(self.session.spec(), &outputs, &others, &self.watch.limit)
                    && let Ok(mut found) = self.watch.found.lock()
                {
                    *found = Some(DifferingCall {
                        graph: self.session.spec().name.clone(),
                        slot: self.watch.in_loop.then(|| self.watch.slot.load(Ordering::Relaxed)),
                        output,
                        max_abs,
                        inputs: inputs.iter().map(|(name, view)| ((*name).to_owned(), owned(view))).collect(),
                    });
                }
            }
            Err(e) => {
                if let Ok(mut error) = self.watch.error.lock() {
                    *error = Some(e);
                }
            }
        }
        Ok(outputs)
    }
}

fn owned(view: &TensorView<'_>) -> Tensor {
    use dpar_engine_api::{TensorData, TensorSlice};
    let data = match view.data() {
        TensorSlice::F32(v) => TensorData::F32(v.to_vec()),
        TensorSlice::F16(v) => TensorData::F16(v.to_vec()),
        TensorSlice::BF16(v) => TensorData::BF16(v.to_vec()),
        TensorSlice::I64(v) => TensorData::I64(v.to_vec()),
    };
    Tensor::new(view.shape(), data)
}

/// The output that is most out of tolerance.
fn worst(spec: &GraphSpec, a: &[Tensor], b: &[Tensor], limits: &Limits) -> Option<(String, f64)> {
    let pairs = spec.outputs.iter().zip(a.iter().zip(b));
    let off = pairs.filter_map(|(port, (a, b))| {
        let (status, max) = difference(&spec.name, a, b, limits);
        (status == Status::Fail).then(|| (port.name.clone(), max))
    });
    off.max_by(|x, y| x.1.total_cmp(&y.1))
}

/// Two values in a graph.
fn difference(graph: &str, a: &Tensor, b: &Tensor, limits: &Limits) -> (Status, f64) {
    let mut sums = Accumulator::default();
    sums.add(&numbers(a), &numbers(b));
    let stats = match a.as_i64() {
        Some(_) => sums.share("", limits.codes),
        None => sums.scaled("", limits.of(graph)),
    };
    (stats.status, sums.largest().unwrap_or(0.0))
}

/// The first call that differs: in the loop, then over whole sequences, then in the tokenizer.
fn first_call(
    a: &LoadedBundle<'_>,
    b: &LoadedBundle<'_>,
    forced: &ForcedTokens,
    replay: Option<&Replay>,
    cfg_scale: f32,
    limits: &Limits,
    progress: Progress<'_>,
) -> Result<Option<DifferingCall>, CompareError> {
    let system = a.bundle().system();
    let watched = |watch: &Arc<Watch>, name: GraphName| -> Result<Watched, CompareError> {
        Ok(Watched { session: a.prepare(name)?, other: b.prepare(name)?, watch: watch.clone() })
    };
    let watch = Watch::new(limits.clone(), true);
    let mut prepare = |name: GraphName| -> Result<Box<dyn CachedSession>, CompareError> {
        Ok(Box::new(HostCache::new(Box::new(watched(&watch, name)?))?))
    };
    let mut model = prepare_model(system, &mut prepare)?;
    let images = forced.labels.len().max(1);
    let mut advance = |done: usize, total: usize| {
        watch.slot.store(done / images, Ordering::Relaxed);
        progress(done, total) && !watch.done()
    };
    let ran = follow(model.as_mut(), &how(a.bundle(), forced, cfg_scale), forced, &mut advance);
    if let Some(call) = watch.take()? {
        return Ok(Some(call));
    }
    // Outputs that are no numbers in both sources: no call tells them apart.
    let replay = match (ran, replay) {
        (Ok(_), Some(replay)) => replay,
        (Err(e), Some(_)) => return Err(e.into()),
        // That the caller stopped is no finding.
        (Err(e), None) if !e.went_wrong() => return Err(e.into()),
        (_, None) => return Ok(None),
    };

    let ids = forced.ids();
    let watch = Watch::new(limits.clone(), false);
    let mut prepare = |name: GraphName| -> Result<Box<dyn CachedSession>, CompareError> {
        Ok(Box::new(HostCache::new(Box::new(watched(&watch, name)?))?))
    };
    let mut teacher = TeacherForced::prepare(system, &mut prepare)?;
    teacher.entropy(&ids, system.tokens())?;
    teacher.logits(&ids, system.tokens(), &forced.labels, &replay.patch_lengths)?;
    if let Some(call) = watch.take()? {
        return Ok(Some(call));
    }
    if a.bundle().has_graph(GraphName::VqDecode) && a.bundle().has_graph(GraphName::VqEncode) {
        let mut decode = watched(&watch, GraphName::VqDecode)?;
        let images = decode.run(&[("tokens", TensorView::i64([images, system.tokens()], &ids))])?;
        let mut encode = watched(&watch, GraphName::VqEncode)?;
        if let Some(image) = images.first() {
            encode.run(&[("image", image.view())])?;
        }
    }
    watch.take()
}

/// The first node of a call that differs.
fn node(
    a: &LoadedBundle<'_>,
    b: &LoadedBundle<'_>,
    call: &DifferingCall,
    limits: &Limits,
) -> Result<Option<NodeFinding>, CompareError> {
    let beside = || std::env::temp_dir().to_string_lossy().into_owned();
    let temp = tempfile::tempdir().map_err(|e| CompareError::io(beside())(e))?;
    let folder = Utf8PathBuf::from_path_buf(temp.path().to_owned())
        .map_err(|_| CompareError::io(beside())(std::io::Error::other("the folder is not UTF-8")))?;
    let (exposed, first) = opened(a, call, &folder.join("a"))?;
    let (other, second) = opened(b, call, &folder.join("b"))?;
    let value = |spec: &GraphSpec, tensors: &'_ [Tensor], name: &str| {
        spec.output_index(name).and_then(|i| tensors.get(i).cloned())
    };
    let compare = |name: &str| -> Option<(Status, f64)> {
        let (x, y) = (value(&exposed.spec, &first, name)?, value(&other.spec, &second, name)?);
        Some(difference(&call.graph, &x, &y, limits))
    };
    for made in &exposed.values {
        if let Some((Status::Fail, max_abs)) = compare(&made.value) {
            let read = made.inputs.iter().filter_map(|i| compare(i)).map(|(_, d)| d);
            return Ok(Some(NodeFinding {
                node: made.node.clone(),
                op: made.op.clone(),
                max_abs,
                inputs_max_abs: read.fold(0.0, f64::max),
            }));
        }
    }
    Ok(None)
}

/// Runs the call on the graph with its intermediate values as outputs, in a folder of its own.
fn opened(
    runtime: &LoadedBundle<'_>,
    call: &DifferingCall,
    folder: &Utf8Path,
) -> Result<(Exposed, Vec<Tensor>), CompareError> {
    fs_err::create_dir(folder).map_err(CompareError::io(folder))?;
    let (spec, dialect, bytes) = runtime.bundle().copy_graph(&call.graph, runtime.dialects(), folder)?;
    let derive = |source| CompareError::Derive { graph: call.graph.clone(), source };
    let exposed = expose(&bytes, &spec).map_err(derive)?;
    let file = folder.join(format!("{}.onnx", call.graph));
    fs_err::write(&file, &exposed.bytes).map_err(CompareError::io(&file))?;
    let mut session = runtime.prepare_file(GraphFile { dialect, ..GraphFile::new(&exposed.spec, &file) })?;
    let views: Vec<(&str, TensorView<'_>)> =
        call.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
    let outputs = session.run(&views)?;
    Ok((exposed, outputs))
}
