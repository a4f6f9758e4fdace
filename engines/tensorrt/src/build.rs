//! Building engines. No GPU takes part: TensorRT-RTX compiles for all wanted devices on the CPU and leaves the last
//! step, kernels for the device at hand, to the runtime.
//!
//! There is no timing cache: nothing is timed without a GPU, and the bindings have no call for one. A build that is
//! to be skipped is recognised by equal [`BuildSettings`], equal library version and equal graph and weight files.
//! What a GPU host compiles at run time is kept by [`crate::TensorRtOptions::runtime_cache_dir`].

use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{EngineError, GraphFile, check_graph};
use dpar_export_spec::WeightMode;
use serde::{Deserialize, Serialize};
use trtx::builder::MemoryPoolType;
use trtx::interfaces::MonitorProgress;
use trtx::trtx_sys::Dims64;
use trtx::{BuilderConfig, BuilderFlag, OnnxParser, OptProfileSelector, ProfilingVerbosity};

use crate::log::{Collector, LogRecord, errors};
use crate::profile::Point;
use crate::start::Started;
use crate::{BuildError, Capability, NAME, Profile, ProfileError, cuda, flavour, log, parse_log, start};

/// The highest builder optimization level (`setBuilderOptimizationLevel` in `NvInfer.h`).
const MAX_LEVEL: u8 = 5;

/// TensorRT recurses deeply on large graphs; address space only.
const STACK_BYTES: usize = 64 << 20;

/// How long the progress callback may go without being asked whether to go on.
const POLL: Duration = Duration::from_millis(200);

/// What decides the bytes of an engine, apart from graph, weights and library version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildSettings {
    /// Optimization profiles; none = one over the graph's whole ranges, named `default`.
    pub profiles: Vec<Profile>,
    /// Devices to build for; none = all of Ampere and later.
    pub compute_capabilities: Vec<Capability>,
    /// 0 (fastest build) to 5; `None` = the library's choice, 3.
    pub optimization_level: Option<u8>,
    /// Largest scratch memory of a layer in bytes; `None` = no limit.
    pub workspace: Option<usize>,
    /// Float matrix products may round their inputs to 10 bits of mantissa. The library's own default is yes; here
    /// it is no, so that an engine computes what the graph says.
    pub tf32: bool,
    /// Where the weights are.
    pub weights: WeightMode,
    /// Keep layer names and kernels in the engine for inspection.
    pub detailed: bool,
}

impl BuildSettings {
    /// Checks what does not depend on a graph: everything here that a library or this machine refuses.
    ///
    /// # Errors
    /// [`BuildError::Setting`] for a value that no machine takes, [`BuildError::NoDevice`] for one that needs a GPU.
    pub fn check(&self) -> Result<(), BuildError> {
        if let Some(level) = self.optimization_level.filter(|l| *l > MAX_LEVEL) {
            return Err(BuildError::Setting {
                setting: format!("builder optimization level {level}"),
                reason: format!("TensorRT has levels 0 to {MAX_LEVEL}"),
                hint: format!("give a number from 0 to {MAX_LEVEL}"),
            });
        }
        flavour::check_build(&self.compute_capabilities)?;
        if self.weights != WeightMode::Embedded
            && let Err(e) = cuda::driver()
        {
            let setting = match self.weights {
                WeightMode::Stripped => "an engine without weights",
                _ => "a refittable engine",
            };
            return Err(BuildError::NoDevice {
                setting: setting.to_owned(),
                reason: format!("TensorRT-RTX compiles it on a GPU while it builds, and {}", e.message),
                hint: "build it where a GPU is, or leave the weights in the engine".to_owned(),
            });
        }
        Ok(())
    }
}

/// How far a build is. Phases nest: each step of one may contain others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildProgress<'a> {
    /// TensorRT's name of the phase, e.g. `Building engine`.
    pub phase: &'a str,
    /// Steps of the phase that are done.
    pub step: usize,
    /// Its steps.
    pub total: usize,
    /// 0 for the outermost phase.
    pub depth: usize,
}

/// One engine to build.
pub struct BuildRequest<'a> {
    /// The graph; its external data lies beside it.
    pub graph: GraphFile<'a>,
    /// How to build it.
    pub settings: BuildSettings,
    /// Called after every step and at least five times a second, in the thread that called
    /// [`EngineBuilder::build`]; false stops the build at TensorRT's next step. Compiling a graph is one step of
    /// seconds, which cannot be cut short.
    pub progress: Option<&'a mut dyn FnMut(BuildProgress<'_>) -> bool>,
}

impl<'a> BuildRequest<'a> {
    /// A request with default settings.
    pub fn new(graph: GraphFile<'a>) -> Self {
        Self { graph, settings: BuildSettings::default(), progress: None }
    }
}

impl std::fmt::Debug for BuildRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildRequest")
            .field("graph", &self.graph)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A built engine.
#[derive(Clone, PartialEq)]
pub struct BuiltEngine {
    /// Graph name.
    pub graph: String,
    /// The serialised engine: the content of a `.engine` file. Two builds of the same graph differ in a few bytes.
    pub bytes: Vec<u8>,
    /// Version of the library that built it, and with which it must be run.
    pub version: String,
    /// The settings, with the profiles that were used.
    pub settings: BuildSettings,
    /// Layers of the network before optimization.
    pub layers: usize,
    /// TensorRT's warnings, each once.
    pub warnings: Vec<String>,
    /// Seconds it took.
    pub seconds: f64,
}

impl std::fmt::Debug for BuiltEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuiltEngine")
            .field("graph", &self.graph)
            .field("bytes", &self.bytes.len())
            .field("version", &self.version)
            .field("settings", &self.settings)
            .field("warnings", &self.warnings)
            .field("seconds", &self.seconds)
            .finish_non_exhaustive()
    }
}

/// Builds engines with one checked library.
#[derive(Debug, Clone)]
pub struct EngineBuilder {
    core: Started,
}

impl EngineBuilder {
    /// Finds, checks and loads both libraries, in the order of places that the crate documentation gives.
    ///
    /// # Errors
    /// [`dpar_engine_api::EngineErrorKind::Unavailable`] with the next step, when one is missing or does not fit.
    pub fn open(library_dir: Option<&Utf8Path>) -> Result<Self, EngineError> {
        let core = start::core(library_dir)?;
        start::parser(library_dir)?;
        Ok(Self { core })
    }

    /// Version of the library, e.g. `1.7.1.116`.
    pub fn version(&self) -> &str {
        &self.core.version
    }

    /// Path of the library that builds.
    pub fn library(&self) -> &Utf8PathBuf {
        &self.core.path
    }

    /// Builds one engine.
    ///
    /// # Errors
    /// When the settings cannot be met (before anything is built), the file is not a graph that TensorRT reads, its
    /// ports are not those of the spec, the build fails, or the progress callback stops it.
    pub fn build(&self, request: BuildRequest<'_>) -> Result<BuiltEngine, BuildError> {
        let BuildRequest { graph, mut settings, progress } = request;
        if settings.profiles.is_empty() {
            settings.profiles.push(Profile::from_spec("default", graph.spec));
        }
        check_settings(graph, &settings)?;
        let started = Instant::now();
        let (events, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut ignore = |_: BuildProgress<'_>| true;
        let progress: &mut dyn FnMut(BuildProgress<'_>) -> bool = match progress {
            Some(callback) => callback,
            None => &mut ignore,
        };
        let failed = |message: String| BuildError::Build { graph: graph.spec.name.clone(), message };
        // TensorRT gets a thread of its own, so that the callback need not be `Send` and is asked even while TensorRT
        // makes no step.
        let raw = std::thread::scope(|scope| {
            let monitor = Monitor { events, stop: Arc::clone(&stop), phases: std::sync::Mutex::default() };
            let settings = &settings;
            let log_to = tracing::dispatcher::get_default(Clone::clone);
            let worker = std::thread::Builder::new()
                .name("tensorrt-build".to_owned())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, move || {
                    tracing::dispatcher::with_default(&log_to, || build_here(graph, settings, monitor))
                })
                .map_err(|e| failed(format!("no thread for the build: {e}")))?;
            let mut last = BuildStep { phase: String::new(), step: 0, total: 0, depth: 0 };
            loop {
                match received.recv_timeout(POLL) {
                    Ok(event) => last = event,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if !stop.load(Ordering::Relaxed) && !progress(last.view()) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            worker.join().unwrap_or_else(|_| Err(failed("the build panicked".to_owned())))
        });
        if stop.load(Ordering::Relaxed) {
            return Err(BuildError::Stopped { graph: graph.spec.name.clone() });
        }
        let BuiltBytes { bytes, layers, warnings } = raw?;
        Ok(BuiltEngine {
            graph: graph.spec.name.clone(),
            bytes,
            version: self.core.version.clone(),
            settings,
            layers,
            warnings,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// Everything that can be refused before TensorRT is asked.
fn check_settings(graph: GraphFile<'_>, settings: &BuildSettings) -> Result<(), BuildError> {
    let profiles = &settings.profiles;
    for (i, profile) in profiles.iter().enumerate() {
        if profiles[..i].iter().any(|p| p.name == profile.name) {
            return Err(BuildError::Profile(ProfileError {
                graph: graph.spec.name.clone(),
                profile: profile.name.clone(),
                message: "there are two profiles of this name".to_owned(),
            }));
        }
        profile.check(graph.spec)?;
    }
    settings.check()
}

/// What the thread that builds hands back.
struct BuiltBytes {
    bytes: Vec<u8>,
    layers: usize,
    warnings: Vec<String>,
}

fn build_here(
    graph: GraphFile<'_>,
    settings: &BuildSettings,
    monitor: Monitor,
) -> Result<BuiltBytes, BuildError> {
    let name = &graph.spec.name;
    let collector = Collector::start();
    let mut kept: Vec<LogRecord> = Vec::new();
    let failed = |what: &str, e: &dyn std::fmt::Display, records: &[LogRecord]| BuildError::Build {
        graph: name.clone(),
        message: errors(records).unwrap_or_else(|| format!("{what}: {e}")),
    };
    let logger = log::logger().map_err(BuildError::Unavailable)?;
    // Dropped in the opposite order: network and parser, configuration, builder.
    let mut builder = trtx::Builder::new(logger).map_err(|e| failed("builder", &e, &collector.take()))?;
    let mut config = builder.create_config().map_err(|e| failed("settings", &e, &collector.take()))?;
    let network = builder.create_network(0).map_err(|e| failed("network", &e, &collector.take()))?;
    check_graph(NAME, graph).map_err(BuildError::Ports)?;
    let mut parser = OnnxParser::new(network, logger).map_err(|e| failed("parser", &e, &collector.take()))?;
    parser.parse_from_file(graph.path.as_str(), trtx::Severity::Warning as i32).map_err(|_| {
        BuildError::Parse {
            graph: name.clone(),
            path: graph.path.to_owned(),
            fault: Box::new(parse_log::fault(&collector.take())),
        }
    })?;
    let network = parser.network_mut();
    let layers = usize::try_from(network.nb_layers()).unwrap_or_default();
    kept.extend(collector.take());

    let configured = configure(&mut config, settings)
        .and_then(|()| config.set_progress_monitor(Box::new(monitor)))
        .and_then(|()| add_profiles(&mut builder, &mut config, graph, &settings.profiles));
    let said = collector.take();
    configured.map_err(|e| failed("settings", &e, &said))?;
    kept.extend(said);

    let built = builder.build_serialized_network(network, &mut config);
    let said = collector.take();
    let memory = built.map_err(|e| failed("build", &e, &said))?;
    kept.extend(said);
    Ok(BuiltBytes { bytes: memory.to_vec(), layers, warnings: warnings(kept) })
}

fn configure(config: &mut BuilderConfig<'_>, settings: &BuildSettings) -> trtx::Result<()> {
    if settings.tf32 {
        config.set_flag(BuilderFlag::kTF32);
    } else {
        config.clear_flag(BuilderFlag::kTF32);
    }
    match settings.weights {
        WeightMode::Embedded => {}
        WeightMode::Refittable => config.set_flag(BuilderFlag::kREFIT),
        WeightMode::Stripped => config.set_flag(BuilderFlag::kSTRIP_PLAN),
    }
    if let Some(level) = settings.optimization_level {
        config.set_builder_optimization_level(i32::from(level));
    }
    if let Some(bytes) = settings.workspace {
        config.set_memory_pool_limit(MemoryPoolType::kWORKSPACE, bytes);
    }
    if settings.detailed {
        config.set_profiling_verbosity(ProfilingVerbosity::kDETAILED);
    }
    flavour::set_capabilities(config, &settings.compute_capabilities)
}

fn add_profiles(
    builder: &mut trtx::Builder<'_>,
    config: &mut BuilderConfig<'_>,
    graph: GraphFile<'_>,
    profiles: &[Profile],
) -> trtx::Result<()> {
    // Without a dynamic axis there is nothing that a profile could say.
    if graph.spec.axes.is_empty() {
        return Ok(());
    }
    for profile in profiles {
        // The builder owns what it returns (`createOptimizationProfile` in `NvInfer.h`), and the bindings would
        // destroy it a second time.
        let mut native = ManuallyDrop::new(builder.creata_optimization_profile()?);
        for port in &graph.spec.inputs {
            for point in Point::ALL {
                let selector = match point {
                    Point::Min => OptProfileSelector::kMIN,
                    Point::Opt => OptProfileSelector::kOPT,
                    Point::Max => OptProfileSelector::kMAX,
                };
                let shape = profile
                    .shape(graph.spec, port, point)
                    .map_err(|e| trtx::Error::InvalidArgument(e.to_string()))?;
                native.set_dimensions(&port.name, selector, &dims(&shape))?;
            }
        }
        config.add_optimization_profile(&mut native)?;
    }
    Ok(())
}

/// A shape as TensorRT takes it.
pub(crate) fn dims(shape: &[usize]) -> Dims64 {
    let sizes: Vec<i64> = shape.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
    Dims64::from_slice(&sizes)
}

/// What is worth keeping of a build that succeeded. Errors among it did not stop it, and nobody has seen them yet.
fn warnings(records: Vec<LogRecord>) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for record in records {
        if record.is_error() {
            tracing::warn!(target: "tensorrt", "{}", record.text);
        }
        if !texts.contains(&record.text) {
            texts.push(record.text);
        }
    }
    texts
}

/// A step that TensorRT reported.
struct BuildStep {
    phase: String,
    step: usize,
    total: usize,
    depth: usize,
}

impl BuildStep {
    fn view(&self) -> BuildProgress<'_> {
        BuildProgress { phase: &self.phase, step: self.step, total: self.total, depth: self.depth }
    }
}

/// TensorRT's progress monitor; it may be called from several threads. The bindings give a phase's own name as that
/// of its parent, so nesting is followed here.
struct Monitor {
    events: Sender<BuildStep>,
    stop: Arc<AtomicBool>,
    phases: std::sync::Mutex<Vec<(String, usize)>>,
}

impl Monitor {
    fn phases(&self) -> std::sync::MutexGuard<'_, Vec<(String, usize)>> {
        self.phases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The innermost open phase of that name.
    fn send(&self, phase: &str, step: usize) {
        let phases = self.phases();
        if let Some(depth) = phases.iter().rposition(|(name, _)| name == phase) {
            let event = BuildStep { phase: phase.to_owned(), step, total: phases[depth].1, depth };
            // Nobody listens any more only after the build has ended.
            let _ = self.events.send(event);
        }
    }
}

impl MonitorProgress for Monitor {
    fn phase_start(&self, phase: &str, _parent: Option<&str>, steps: i32) {
        self.phases().push((phase.to_owned(), usize::try_from(steps).unwrap_or_default()));
        self.send(phase, 0);
    }

    fn step_complete(&self, phase: &str, step: i32) -> ControlFlow<()> {
        self.send(phase, usize::try_from(step).unwrap_or_default().saturating_add(1));
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn phase_finish(&self, phase: &str) {
        let mut phases = self.phases();
        if let Some(depth) = phases.iter().rposition(|(name, _)| name == phase) {
            phases.truncate(depth);
        }
    }
}
