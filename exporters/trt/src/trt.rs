//! `--target trt`: one TensorRT engine per graph of a bundle.

use std::time::Instant;

use camino::Utf8Path;
use dpar_engine_api::{EngineError, GraphFile};
use dpar_engine_tensorrt::{BuildError, BuildRequest, BuildSettings, EngineBuilder, no_quantized};
use dpar_export_bundle::{
    BundleError, EngineEntry, Manifest, ProfileEntry, TRT, TargetError, TargetErrorKind,
};
use dpar_export_spec::{GraphSpec, Tuning, WeightBits};

use super::engine_cache::{CacheLookup, EngineCache};
use super::plan::TrtPlan;
use super::trtexec::{self, put, resolve};
use super::tuning::Calibrate;

/// The product in manifest entries.
const BUILDER: &str = if cfg!(feature = "tensorrt-enterprise") { "TensorRT" } else { "TensorRT-RTX" };

/// What was done for one graph.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BuiltGraph {
    /// Graph name.
    pub graph: String,
    /// Bytes of the engine.
    pub size: u64,
    /// Seconds it took; 0 where the bundle had the engine already.
    pub seconds: f64,
    /// Whether an engine of the same inputs and settings was taken over, from the bundle or the engine cache.
    pub reused: bool,
    /// Whether it came from the engine cache.
    pub from_cache: bool,
}

/// Called with graph, phase, step and total; returns false to stop.
pub type TrtProgress<'a> = &'a mut dyn FnMut(&str, &str, usize, usize) -> bool;

fn refused(e: BuildError) -> TargetError {
    let kind = match &e {
        BuildError::Stopped { .. } => TargetErrorKind::Stopped,
        BuildError::Unavailable(e) => e.kind.into(),
        BuildError::NoDevice { .. } => TargetErrorKind::Unavailable,
        BuildError::Profile(_)
        | BuildError::Capability(_)
        | BuildError::Setting { .. }
        | BuildError::Parse { .. }
        | BuildError::Ports(_)
        | BuildError::Build { .. } => TargetErrorKind::Refused,
    };
    TargetError { kind, message: e.to_string(), hint: e.hint() }
}

fn no_library(e: EngineError) -> TargetError {
    TargetError { kind: e.kind.into(), message: e.to_string(), hint: e.hint }
}

/// The settings that all graphs share, checked as far as that goes without a library: devices and level, and whether
/// there is a driver where the build needs one.
///
/// # Errors
/// When one is refused, here or anywhere.
pub fn settings(plan: &TrtPlan) -> Result<BuildSettings, TargetError> {
    let settings = BuildSettings {
        compute_capabilities: plan.capabilities()?,
        optimization_level: plan.optimization_level,
        workspace: plan.workspace,
        weights: plan.weights,
        detailed: plan.detailed,
        ..BuildSettings::default()
    };
    settings.check().map_err(refused)?;
    Ok(settings)
}

/// Whether engines can be built of graphs with such weights: no library here reads them.
///
/// # Errors
/// [`TargetErrorKind::Unavailable`] where some are quantized.
pub fn check_weights(weights: Option<WeightBits>) -> Result<(), TargetError> {
    weights.map_or(Ok(()), |weights| Err(no_library(no_quantized(weights))))
}

/// Builds the engines of all graphs into `folder/trt` and lists them in the manifest. Engines that the manifest
/// lists already, or that the engine cache holds, built from the same bytes with the same settings, are kept.
///
/// # Errors
/// When the library is missing, or a setting, profile or graph is refused, or weights are quantized; when writing fails; when
/// stopped.
pub fn add_engines(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    plan: &TrtPlan,
    calibrate: Calibrate<'_>,
    progress: TrtProgress<'_>,
) -> Result<Vec<BuiltGraph>, BundleError> {
    // Everything that can be refused is, before minutes of building.
    check_weights(manifest.numbers().weights())?;
    let settings = settings(plan)?;
    let io = |path: &Utf8Path, e| BundleError::Io { path: path.to_owned(), source: e };
    let (tuning, profiles) = resolve(folder, manifest, plan, calibrate)?;
    let builder = EngineBuilder::open(plan.library_dir.as_deref()).map_err(no_library)?;
    // Where nothing can be built, no folder is made.
    let cache =
        plan.engine_cache.as_deref().map(|c| EngineCache::open(c).map_err(|e| io(c, e))).transpose()?;
    let trt = folder.join(TRT);
    fs_err::create_dir_all(&trt).map_err(|e| io(&trt, e))?;

    let old = std::mem::take(&mut manifest.engines);
    let mut done = Vec::new();
    for (graph, profiles) in manifest.graphs.clone().into_iter().zip(&profiles) {
        let settings = BuildSettings { profiles: profiles.clone(), ..settings.clone() };
        let (name, file) = (graph.spec.name.clone(), format!("{TRT}/{}.engine", graph.spec.name));
        let mut entry = entry(manifest, &graph.spec, &file, builder.version(), &settings, &tuning)?;
        if let Some(same) = old.iter().find(|e| e.same_build(&entry)) {
            let size = manifest.files.iter().find(|f| f.path == file).map_or(0, |f| f.size);
            done.push(BuiltGraph { graph: name, size, seconds: 0.0, reused: true, from_cache: false });
            manifest.engines.push(EngineEntry { tuning: entry.tuning, ..same.clone() });
            continue;
        }
        let started = Instant::now();
        let cached = cache.as_ref().map_or(CacheLookup::Nothing, |cache| cache.find(&entry));
        if let CacheLookup::Damaged(why) = &cached {
            tracing::warn!("the engine cache is not used for `{name}`: {why}; the engine is built again");
        }
        let from_cache = matches!(cached, CacheLookup::Engine(..));
        let bytes = if let CacheLookup::Engine(bytes, found) = cached {
            (entry.layers, entry.warnings) = (found.layers, found.warnings);
            bytes
        } else {
            let source = folder.join(&graph.file);
            let mut report =
                |p: dpar_engine_tensorrt::BuildProgress<'_>| progress(&name, p.phase, p.step, p.total);
            let request = BuildRequest {
                graph: GraphFile::new(&graph.spec, &source),
                settings,
                progress: Some(&mut report),
            };
            let built = builder.build(request).map_err(refused)?;
            (entry.layers, entry.warnings) = (built.layers as u64, built.warnings);
            if let Some(cache) = &cache
                && let Err(e) = cache.keep(&entry, &built.bytes)
            {
                return Err(io(plan.engine_cache.as_deref().unwrap_or(folder), e));
            }
            built.bytes
        };
        put(folder, manifest, &file, &bytes)?;
        let seconds = started.elapsed().as_secs_f64();
        let size = bytes.len() as u64;
        manifest.engines.push(entry);
        done.push(BuiltGraph { graph: name, size, seconds, reused: from_cache, from_cache });
        if !progress(&graph.spec.name, "written", 1, 1) {
            return Err(refused(BuildError::Stopped { graph: graph.spec.name }).into());
        }
    }
    // Command lines of other profiles would be wrong beside these engines.
    if manifest.files.iter().any(|f| f.path == trtexec::SCRIPT) {
        trtexec::add_script(folder, manifest, plan, &profiles, &tuning)?;
    }
    Ok(done)
}

/// The manifest entry of a build, without its results.
fn entry(
    manifest: &Manifest,
    graph: &GraphSpec,
    file: &str,
    version: &str,
    settings: &BuildSettings,
    tuning: &Tuning,
) -> Result<EngineEntry, TargetError> {
    let name = &graph.name;
    let Some((graph_sha256, weights_sha256)) = manifest.sources_of(name) else {
        return Err(TargetError::refused(format!("graph `{name}` has no weights in the manifest"), None));
    };
    let profiles = settings
        .profiles
        .iter()
        .map(|p| ProfileEntry { name: p.name.clone(), axes: p.axes.values().cloned().collect() });
    Ok(EngineEntry {
        graph: name.clone(),
        file: file.to_owned(),
        builder: BUILDER.to_owned(),
        version: version.to_owned(),
        precision: manifest.precision_of(&graph.component),
        compute_capabilities: settings.compute_capabilities.iter().map(ToString::to_string).collect(),
        optimization_level: settings.optimization_level,
        workspace: settings.workspace.map(|w| w as u64),
        weights: settings.weights,
        detailed: settings.detailed,
        profiles: profiles.collect(),
        tuning: Some(tuning.clone()),
        graph_sha256: graph_sha256.clone(),
        weights_sha256: weights_sha256.clone(),
        layers: 0,
        warnings: Vec::new(),
    })
}
