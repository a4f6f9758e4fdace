//! `--target trt`: one TensorRT engine per graph of a bundle.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{EngineError, EngineErrorKind, GraphFile};
use dpar_engine_tensorrt::{
    BuildError, BuildRequest, BuildSettings, Capability, EngineBuilder, EngineFile, Override, Point, Profile,
};
use dpar_export_spec::GraphSpec;

use super::{TargetError, TargetErrorKind};
use crate::bundle::{Bundle, BundleError, EngineEntry, FileEntry, Manifest, ProfileEntry, TRT, digest};

/// The product in manifest entries.
const BUILDER: &str = if cfg!(feature = "tensorrt-enterprise") { "TensorRT" } else { "TensorRT-RTX" };

/// How engines are built.
#[derive(Debug, Clone, Default)]
pub struct TrtPlan {
    /// Folder of the shared libraries; `None` = search.
    pub library_dir: Option<Utf8PathBuf>,
    /// Profiles: `default`, `decode`, or `AXIS=N`; none = `default`.
    pub profiles: Vec<String>,
    /// Sizes of inputs, `name:1x3`, at min, opt and max.
    pub shapes: [Vec<String>; 3],
    /// Devices; none = all of Ampere and later.
    pub compute_capabilities: Vec<String>,
    /// Builder optimization level.
    pub optimization_level: Option<u8>,
    /// Largest scratch memory of a layer in bytes.
    pub workspace: Option<usize>,
}

/// What was done for one graph.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BuiltGraph {
    /// Graph name.
    pub graph: String,
    /// Bytes of the engine.
    pub size: u64,
    /// Seconds of the build; 0 where the engine was there already.
    pub seconds: f64,
    /// Whether an engine of the same inputs and settings was taken over.
    pub reused: bool,
}

/// Called with graph, phase, step and total; returns false to stop.
pub type TrtProgress<'a> = &'a mut dyn FnMut(&str, &str, usize, usize) -> bool;

impl From<BuildError> for TargetError {
    fn from(e: BuildError) -> Self {
        let kind = match &e {
            BuildError::Stopped { .. } => TargetErrorKind::Stopped,
            BuildError::Unavailable(_) => TargetErrorKind::Unavailable,
            _ => TargetErrorKind::Refused,
        };
        let message = e.to_string();
        Self { kind, message, hint: e.hint() }
    }
}

impl From<EngineError> for TargetError {
    fn from(e: EngineError) -> Self {
        let kind = match e.kind {
            EngineErrorKind::Unavailable => TargetErrorKind::Unavailable,
            _ => TargetErrorKind::Refused,
        };
        Self { kind, message: e.to_string(), hint: e.hint }
    }
}

/// The engine of a graph in a bundle, with the profiles that the manifest lists, narrow ones first.
pub fn engine_file(bundle: &Bundle, graph: GraphFile<'_>) -> EngineFile {
    let entry = bundle.manifest().engines.iter().find(|e| e.graph == graph.spec.name);
    match entry {
        None => EngineFile::in_bundle(graph),
        Some(entry) => {
            let profiles = entry.profiles.iter().map(|p| Profile {
                name: p.name.clone(),
                axes: p.axes.iter().map(|a| (a.name.clone(), a.clone())).collect(),
            });
            EngineFile { path: bundle.folder().join(&entry.file), profiles: profiles.collect() }
        }
    }
}

/// Builds the engines of all graphs into `folder/trt` and lists them in the manifest. Engines that the manifest
/// lists already, built from the same bytes with the same settings, are kept.
///
/// # Errors
/// When the library is missing, or a setting, profile or graph is refused; when writing fails; when stopped.
pub fn add_engines(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    plan: &TrtPlan,
    progress: TrtProgress<'_>,
) -> Result<Vec<BuiltGraph>, BundleError> {
    // Everything that can be refused is, before minutes of building.
    let capabilities: Vec<Capability> = plan
        .compute_capabilities
        .iter()
        .map(|c| c.parse().map_err(|e| TargetError::from(BuildError::Capability(e))))
        .collect::<Result<_, _>>()?;
    let mut jobs = Vec::new();
    for graph in &manifest.graphs {
        let profiles = profiles(&graph.spec, plan)?;
        for profile in &profiles {
            profile.check(&graph.spec).map_err(|e| TargetError::from(BuildError::Profile(e)))?;
        }
        let settings = BuildSettings {
            profiles,
            compute_capabilities: capabilities.clone(),
            optimization_level: plan.optimization_level,
            workspace: plan.workspace,
            ..BuildSettings::default()
        };
        jobs.push((graph.clone(), settings));
    }
    check_shapes(manifest, plan)?;
    let builder = EngineBuilder::open(plan.library_dir.as_deref()).map_err(TargetError::from)?;
    let trt = folder.join(TRT);
    fs_err::create_dir_all(&trt).map_err(|e| BundleError::Io { path: trt.clone(), source: e })?;

    let old = std::mem::take(&mut manifest.engines);
    let mut done = Vec::new();
    for (graph, settings) in jobs {
        let file = format!("{TRT}/{}.engine", graph.spec.name);
        let path = folder.join(&file);
        let mut entry = entry(manifest, &graph.spec.name, &file, builder.version(), &settings)?;
        if let Some(same) = old.iter().find(|e| e.same_build(&entry)) {
            let size = manifest.files.iter().find(|f| f.path == file).map_or(0, |f| f.size);
            done.push(BuiltGraph { graph: graph.spec.name.clone(), size, seconds: 0.0, reused: true });
            manifest.engines.push(same.clone());
            continue;
        }
        let source = folder.join(&graph.file);
        let name = graph.spec.name.clone();
        let mut report = |p: dpar_engine_tensorrt::Progress<'_>| progress(&name, p.phase, p.step, p.total);
        let request = BuildRequest {
            graph: GraphFile { spec: &graph.spec, path: &source },
            settings,
            progress: Some(&mut report),
        };
        let built = builder.build(request).map_err(TargetError::from)?;
        // A linked file of the bundle that is being replaced must keep its bytes.
        let write = || -> std::io::Result<()> {
            if path.exists() {
                fs_err::remove_file(&path)?;
            }
            fs_err::write(&path, &built.bytes)
        };
        write().map_err(|e| BundleError::Io { path: path.clone(), source: e })?;
        let (size, sha256) = digest(&path)?;
        manifest.files.retain(|f| f.path != file);
        manifest.files.push(FileEntry { path: file, size, sha256 });
        entry.layers = built.layers as u64;
        entry.warnings = built.warnings;
        manifest.engines.push(entry);
        done.push(BuiltGraph { graph: name, size, seconds: built.seconds, reused: false });
    }
    Ok(done)
}

/// The manifest entry of a build, without its results.
fn entry(
    manifest: &Manifest,
    graph: &str,
    file: &str,
    version: &str,
    settings: &BuildSettings,
) -> Result<EngineEntry, TargetError> {
    let Some((graph_sha256, weights_sha256)) = manifest.sources_of(graph) else {
        return Err(TargetError::refused(format!("graph `{graph}` has no weights in the manifest"), None));
    };
    let profiles = settings
        .profiles
        .iter()
        .map(|p| ProfileEntry { name: p.name.clone(), axes: p.axes.values().cloned().collect() });
    Ok(EngineEntry {
        graph: graph.to_owned(),
        file: file.to_owned(),
        builder: BUILDER.to_owned(),
        version: version.to_owned(),
        precision: manifest.precision,
        compute_capabilities: settings.compute_capabilities.iter().map(ToString::to_string).collect(),
        optimization_level: settings.optimization_level,
        workspace: settings.workspace.map(|w| w as u64),
        profiles: profiles.collect(),
        graph_sha256: graph_sha256.clone(),
        weights_sha256: weights_sha256.clone(),
        layers: 0,
        warnings: Vec::new(),
    })
}

/// The profiles of one graph, with the overrides that concern it.
fn profiles(spec: &GraphSpec, plan: &TrtPlan) -> Result<Vec<Profile>, TargetError> {
    let refuse = |e| TargetError::from(BuildError::Profile(e));
    let mut profiles = Vec::new();
    for name in &plan.profiles {
        match name.split_once('=') {
            None if name == "default" => profiles.push(Profile::from_spec(name.as_str(), spec)),
            // A graph without a cache has nothing to decode step by step: its ranges serve.
            None if name == "decode" => profiles.extend(Profile::decode(name.as_str(), spec)),
            Some((axis, size)) => {
                let size: usize = size.parse().map_err(|_| bad_profile(name))?;
                if spec.axis(axis).is_some() {
                    let at = |point| Override::Axis { axis: axis.to_owned(), point, size };
                    let profile = Profile::from_spec(name.as_str(), spec);
                    profiles.push(profile.with(spec, &[at(Point::Opt), at(Point::Max)]).map_err(refuse)?);
                }
            }
            None => return Err(bad_profile(name)),
        }
    }
    if profiles.is_empty() {
        profiles.push(Profile::from_spec("default", spec));
    }
    let mut overrides = Vec::new();
    for (point, shapes) in Point::ALL.into_iter().zip(&plan.shapes) {
        for text in shapes {
            let (port, sizes) = shape(text)?;
            if spec.input(&port).is_some() {
                overrides.push(Override::Port { port, point, sizes });
            }
        }
    }
    profiles.into_iter().map(|p| p.with(spec, &overrides).map_err(refuse)).collect()
}

fn bad_profile(name: &str) -> TargetError {
    let hint = "a profile is `default`, `decode`, or an axis with its size, such as `batch=8`";
    TargetError::refused(format!("`{name}` is no profile"), Some(hint))
}

/// `name:1x3x4`.
fn shape(text: &str) -> Result<(String, Vec<usize>), TargetError> {
    let parsed = text.rsplit_once(':').and_then(|(name, sizes)| {
        let sizes: Option<Vec<usize>> = sizes.split('x').map(|n| n.parse().ok()).collect();
        sizes.map(|s| (name.to_owned(), s))
    });
    parsed.ok_or_else(|| {
        TargetError::refused(
            format!("`{text}` is no shape"),
            Some("write it as name:1x3, sizes outermost first"),
        )
    })
}

/// Every input that a shape names is an input of some graph.
fn check_shapes(manifest: &Manifest, plan: &TrtPlan) -> Result<(), TargetError> {
    for text in plan.shapes.iter().flatten() {
        let (port, _) = shape(text)?;
        if !manifest.graphs.iter().any(|g| g.spec.input(&port).is_some()) {
            let message = format!("no graph has an input `{port}`");
            return Err(TargetError::refused(message, Some("`dpar-export inspect BUNDLE` lists them")));
        }
    }
    Ok(())
}
