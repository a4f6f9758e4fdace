//! `--target triton`: a model repository for NVIDIA's Triton Inference Server.
//!
//! The model `dpar` is of Triton's Python back end: its `model.py` hands requests to the scheduler of the Python package, which
//! decodes the images of all of them in one batch. It is decoupled: a request is answered when it is done, or event by event.
//! A model for each graph (`graphs`) is for who has a loop of their own.

mod config;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::device::Device;
use dpar_export_bundle::{self as bundle, Bundle, BundleError, TargetError, ToolEntry};
use dpar_export_files::staging::{FolderKind, StagedFolder};
use serde_json::json;

/// The model that draws images.
pub const MODEL: &str = "dpar";
/// What says of a folder that it is such a repository; Triton looks at folders only.
const RECORD: &str = "dpar-export.json";
/// What it holds: [`MODEL`], and a model for each graph behind its name.
const REPOSITORY: FolderKind = FolderKind {
    marks: &[RECORD],
    writes: |name| name == RECORD || name == MODEL || name.starts_with("dpar_"),
};
/// The one version of each model.
const VERSION: &str = "1";
/// The model's program.
const PROGRAM: &str = include_str!("triton/model.py");

/// How Triton runs the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TritonPlan {
    /// Name of the engine.
    pub engine: String,
    /// Device of the engine; with a GPU, Triton gives each instance its own.
    pub device: Option<Device>,
    /// Threads of one run of a graph; `None`: the engine's choice.
    pub threads: Option<usize>,
    /// Images that an instance decodes together.
    pub rows: usize,
    /// Instances, each with a copy of the model.
    pub instances: usize,
    /// Where the bundle is on the server; `None`: it is copied into the repository.
    pub bundle_path: Option<Utf8PathBuf>,
    /// Also a model for each graph.
    pub graphs: bool,
}

/// Writes a model repository, and returns the names of its models.
///
/// # Errors
/// When the bundle was changed, or writing fails; when another folder is there.
pub fn write(
    bundle: &Bundle,
    plan: &TritonPlan,
    output: &Utf8Path,
    replace: bool,
) -> Result<Vec<String>, BundleError> {
    let staged = StagedFolder::create(output, replace, &REPOSITORY)?;
    let version = staged.path().join(MODEL).join(VERSION);
    make(&version)?;
    put(&version.join("model.py"), PROGRAM)?;
    put(&staged.path().join(MODEL).join(config::NAME), &config::of_loop(bundle, plan))?;
    let mut models = vec![MODEL.to_owned()];
    let copied = version.join(config::BUNDLE);
    if plan.bundle_path.is_none() {
        bundle::extend(bundle, Some(&copied), false, &mut |_, _| Ok(()))?;
    }
    if plan.graphs {
        if plan.bundle_path.is_some() {
            let hint = "leave the path out: the models of the graphs are links to the files of the copy";
            return Err(TargetError::refused("graphs of a bundle that is not copied", Some(hint)).into());
        }
        models.extend(graphs(bundle, &copied, staged.path())?);
    }
    let record = json!({ "tool": ToolEntry::this(), "bundle": bundle.manifest_sha256(), "models": models });
    put(&staged.path().join(RECORD), &format!("{record:#}\n"))?;
    bundle.unchanged()?;
    staged.commit()?;
    Ok(models)
}

/// A model for each graph, over the files of the copy.
fn graphs(bundle: &Bundle, copied: &Utf8Path, repository: &Utf8Path) -> Result<Vec<String>, BundleError> {
    let manifest = bundle.manifest();
    let mut models = Vec::new();
    for graph in &manifest.graphs {
        let weights = manifest.components.iter().find(|c| c.graphs.contains(&graph.spec.name));
        let model = format!("{MODEL}_{}", graph.spec.name);
        let folder = repository.join(&model);
        make(&folder.join(VERSION))?;
        link(&copied.join(&graph.file), &folder.join(VERSION).join("model.onnx"))?;
        // The graph refers to its weights by their name, beside it.
        if let Some(component) = weights {
            let weights = copied.join(&component.weights);
            if let Some(name) = weights.file_name() {
                link(&weights, &folder.join(VERSION).join(name))?;
            }
        }
        put(&folder.join(config::NAME), &config::of_graph(&graph.spec, config::ONNX_RUNTIME))?;
        models.push(model);
    }
    // Plans of TensorRT-RTX are not what Triton's back end loads.
    for engine in manifest.engines.iter().filter(|e| e.builder == "TensorRT") {
        let Some(graph) = manifest.graphs.iter().find(|g| g.spec.name == engine.graph) else { continue };
        let model = format!("{MODEL}_{}_tensorrt", engine.graph);
        let folder = repository.join(&model);
        make(&folder.join(VERSION))?;
        link(&copied.join(&engine.file), &folder.join(VERSION).join("model.plan"))?;
        let profiles: Vec<String> = (0..engine.profiles.len()).map(|i| i.to_string()).collect();
        put(&folder.join(config::NAME), &config::of_engine(&graph.spec, &profiles))?;
        models.push(model);
    }
    Ok(models)
}

fn make(folder: &Utf8Path) -> Result<(), BundleError> {
    fs_err::create_dir_all(folder).map_err(|source| BundleError::Io { path: folder.to_owned(), source })
}

fn put(path: &Utf8Path, text: &str) -> Result<(), BundleError> {
    fs_err::write(path, text).map_err(|source| BundleError::Io { path: path.to_owned(), source })
}

/// One file in two places; its bytes twice where the file system has no links.
fn link(from: &Utf8Path, to: &Utf8Path) -> Result<(), BundleError> {
    let linked = fs_err::hard_link(from, to).or_else(|_| fs_err::copy(from, to).map(drop));
    linked.map_err(|source| BundleError::Io { path: to.to_owned(), source })
}
