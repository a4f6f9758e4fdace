//! What needs an NVIDIA GPU: `cargo xtask gpu`.
//! The engines are built there too, from the graphs of the conformance suite.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{
    CachedSession, CallRow, Engine, EngineError, EngineFile, EngineInfo, GraphFile, HostCache, Session,
    Tensor, TensorView,
};
use dpar_engine_conformance::{GraphCase, Inputs, KnownOutputs, Tolerances, assert_passed, run};
use dpar_engine_tensorrt::{
    BuildRequest, BuildSettings, EngineBuilder, Profile, TensorRtEngine, TensorRtOptions,
};
use dpar_export_spec::{DType, GraphSpec, Port};
use serde_json::Value;

fn fixtures() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures")
}

fn tensor(port: &Port, value: &Value) -> Tensor {
    let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
    match port.dtype {
        DType::I64 => Tensor::i64(shape, serde_json::from_value::<Vec<i64>>(value["data"].clone()).unwrap()),
        _ => Tensor::f32(shape, serde_json::from_value::<Vec<f32>>(value["data"].clone()).unwrap()),
    }
}

/// A graph of the conformance suite with its known results.
fn case(name: &str) -> GraphCase {
    let text = std::fs::read_to_string(fixtures().join(format!("{name}.json"))).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let spec: GraphSpec = serde_json::from_value(document["spec"].clone()).unwrap();
    let reference = &document["reference"];
    let inputs = spec.inputs.iter().map(|p| (p.name.clone(), tensor(p, &reference["inputs"][&p.name])));
    let outputs = spec.outputs.iter().map(|p| tensor(p, &reference["outputs"][&p.name]));
    let known = KnownOutputs { inputs: Inputs(inputs.collect()), outputs: outputs.collect() };
    let mut case = GraphCase::new(spec, fixtures().join(format!("{name}.onnx")));
    case.bounds = serde_json::from_value(document["bounds"].clone()).unwrap();
    case.references.push(known);
    case
}

fn cases() -> Vec<GraphCase> {
    ["attention_step", "head", "conv_decode"].map(case).into()
}

/// Builds a graph's engine when it is prepared, so that the suite's damaged graphs are refused as well.
struct BuildAndRun {
    builder: EngineBuilder,
    folder: Utf8PathBuf,
    run: TensorRtEngine,
    /// The engine is told its profiles, or has to try them.
    tell_profiles: bool,
}

fn profiles(spec: &GraphSpec) -> Vec<Profile> {
    let whole = Profile::from_spec("default", spec);
    Profile::decode("decode", spec).into_iter().chain([whole]).collect()
}

impl BuildAndRun {
    fn new(folder: &Utf8Path, cuda_graphs: bool, tell_profiles: bool) -> Self {
        let builder = EngineBuilder::open(None)
            .unwrap_or_else(|e| panic!("{e}\nnext step: {}", e.hint.clone().unwrap_or_default()));
        let run = TensorRtEngine::new(TensorRtOptions {
            cuda_graphs,
            runtime_cache_dir: Some(folder.join("cache")),
            ..TensorRtOptions::default()
        });
        let info = run.probe().unwrap_or_else(|e| panic!("{e}"));
        println!("{} {} on {}", info.engine, info.version, info.device);
        Self { builder, folder: folder.to_owned(), run, tell_profiles }
    }

    fn file(&self, graph: GraphFile<'_>) -> EngineFile {
        let profiles = if self.tell_profiles { profiles(graph.spec) } else { Vec::new() };
        EngineFile { path: self.folder.join(format!("{}.engine", graph.spec.name)), profiles }
    }
}

impl Engine for BuildAndRun {
    fn name(&self) -> &'static str {
        self.run.name()
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        self.run.probe()
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        let settings =
            BuildSettings { profiles: profiles(graph.spec), detailed: true, ..BuildSettings::default() };
        let built = self.builder.build(BuildRequest { settings, ..BuildRequest::new(graph) })?;
        let file = self.file(graph);
        std::fs::write(&file.path, built.bytes).unwrap();
        self.run.prepare(GraphFile { engine: Some(&file), ..graph })
    }

    /// With the cache on the device, from the engine that [`prepare`](Engine::prepare) built.
    fn prepare_cached(&self, graph: GraphFile<'_>) -> Result<Box<dyn CachedSession>, EngineError> {
        drop(self.prepare(graph)?);
        self.run.prepare_cached(GraphFile { engine: Some(&self.file(graph)), ..graph })
    }
}

fn conforms(cuda_graphs: bool, tell_profiles: bool) {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let outcomes = run(&BuildAndRun::new(folder, cuda_graphs, tell_profiles), &cases());
    for outcome in &outcomes {
        println!("{outcome}");
    }
    assert_passed(&outcomes);
    assert!(folder.join("cache/head.cache").is_file(), "the runtime cache was kept");
}

#[test]
fn the_conformance_suite_passes() {
    conforms(false, true);
}

#[test]
fn the_conformance_suite_passes_with_cuda_graphs() {
    conforms(true, true);
}

#[test]
fn the_conformance_suite_passes_when_profiles_are_not_known() {
    conforms(false, false);
}

#[test]
fn layers_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let engine = BuildAndRun::new(folder, false, true);
    let head = case("head");
    drop(engine.prepare(GraphFile::new(&head.spec, &head.path)).unwrap());
    let layers = engine.run.inspect(&folder.join("head.engine")).unwrap();
    assert!(layers.trim_start().starts_with('{'), "{layers}");
}

/// Steps of `rows` rows of the graph with a cache, each on all that came before.
fn walk(session: &mut dyn CachedSession, rows: usize, steps: usize) {
    session.reset(rows);
    let zeros = vec![0_i64; rows];
    for time in 0..steps {
        let inputs = [
            ("tokens", TensorView::i64([rows, 1], &zeros)),
            ("positions", TensorView::i64([rows, 1], &zeros)),
        ];
        let mut outputs = session.step(&inputs, &CallRow::all(rows, time)).unwrap();
        assert!(outputs.floats("entropy").unwrap().iter().all(|e| e.is_finite()));
    }
}

/// The first sequence allocates; later steps and sequences of the same size take no more device memory.
#[test]
fn memory_does_not_grow_with_steps() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let engine = BuildAndRun::new(folder, false, true);
    let step = case("attention_step");
    let mut session = engine.prepare_cached(GraphFile::new(&step.spec, &step.path)).unwrap();
    walk(session.as_mut(), 3, 16);
    let free = engine.run.free_memory().unwrap();
    for _ in 0..20 {
        walk(session.as_mut(), 3, 16);
        walk(session.as_mut(), 2, 16);
    }
    // Nothing else should run on the device meanwhile; what does would be seen here.
    assert_eq!(engine.run.free_memory().unwrap(), free);
}

/// The same answers as from a cache that is kept in host memory and travels at every step.
#[test]
fn a_cache_on_the_device_equals_one_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let engine = BuildAndRun::new(folder, false, true);
    let step = case("attention_step");
    let graph = GraphFile::new(&step.spec, &step.path);
    let mut host = HostCache::new(engine.prepare(graph).unwrap()).unwrap();
    let mut device = engine.prepare_cached(graph).unwrap();
    host.reset(2);
    device.reset(2);
    for time in 0..12 {
        // Each third step has the second row only.
        let rows = match time % 3 {
            0 if time > 0 => vec![CallRow::new(1, time)],
            _ => vec![CallRow::new(0, time - time / 3), CallRow::new(1, time)],
        };
        let (tokens, positions): (Vec<i64>, Vec<i64>) =
            rows.iter().map(|r| ((r.past + 7 * r.row) as i64, r.past as i64)).unzip();
        let n = rows.len();
        let inputs = [
            ("tokens", TensorView::i64([n, 1], &tokens)),
            ("positions", TensorView::i64([n, 1], &positions)),
        ];
        let one = host.step(&inputs, &rows).unwrap();
        let other = device.step(&inputs, &rows).unwrap();
        for ((name, a), (_, b)) in one.into_tensors().iter().zip(&other.into_tensors()) {
            Tolerances::default().batch.check(name, a, b).unwrap_or_else(|e| panic!("slot {time}: {e}"));
        }
    }
}
