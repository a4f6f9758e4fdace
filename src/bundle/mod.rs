//! A bundle: the output folder with `manifest.json`, `config.json` and `onnx/`.
//!
//! Writing goes to a temporary folder beside the output, which is renamed when it is complete. Opening checks
//! size and SHA-256 of every file that the manifest lists, that the folder holds nothing else, and that graphs refer
//! to listed files only.

mod extractor;
mod manifest;
mod provenance;
mod write;

use std::collections::BTreeSet;
use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::GraphFile;
use dpar_export_inputs::limits;
use dpar_export_spec::{PatchRule, Precision, SystemKind, SystemSpec};
use sha2::{Digest, Sha256};

pub(crate) use extractor::port_width;
pub use extractor::{
    ExtractorBundle, ExtractorPorts, ExtractorSpec, ForeignExtractor, Normalise, is_extractor,
    write_extractor, write_features,
};
pub use manifest::{
    ComponentEntry, EngineEntry, FileEntry, GraphEntry, Manifest, ManifestError, ProfileEntry,
    SCHEMA_VERSION, SourceEntry, ToolEntry,
};
pub use provenance::{ComponentChain, EngineLink, GraphLink, Link, Provenance};
pub use write::{Extend, extend, write};

/// File name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// File name of the resolved configuration.
pub const CONFIG: &str = "config.json";
/// Folder of the graphs and their weights.
pub const ONNX: &str = "onnx";
/// Folder of TensorRT engines.
pub const TRT: &str = "trt";
/// A larger manifest or configuration is refused unread.
const MAX_JSON: u64 = 64 << 20;

/// Why a bundle could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: Utf8PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Not a bundle.
    #[error("{0} is not a bundle: it has no {MANIFEST}")]
    NotABundle(Utf8PathBuf),
    /// A feature extractor where a system is needed.
    #[error("{0} is a feature extractor, not a system that makes images")]
    Extractor(Utf8PathBuf),
    /// A system where a feature extractor is needed.
    #[error("{0} is a system that makes images, not a feature extractor")]
    NotAnExtractor(Utf8PathBuf),
    /// An ONNX file that cannot serve as a feature extractor.
    #[error("{path} cannot be a feature extractor: {message}")]
    Foreign {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        message: String,
    },
    /// The manifest is unusable.
    #[error("{path}: {source}")]
    Manifest {
        /// The manifest.
        path: Utf8PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// `config.json` is unusable.
    #[error("{path}: {message}")]
    Config {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A listed file is missing, has another size or digest, or refers elsewhere; or a file is not listed.
    #[error("{path} does not match the manifest: {message}")]
    Integrity {
        /// The file.
        path: Utf8PathBuf,
        /// What differs.
        message: String,
    },
    /// A graph has another precision than the manifest says.
    #[error("graph `{graph}` is not {precision} as the manifest says: {message}")]
    Precision {
        /// The graph.
        graph: String,
        /// The manifest's word.
        precision: Precision,
        /// What is of another type.
        message: String,
    },
    /// The bundle has no such graph.
    #[error("{folder} has no graph `{graph}` (it has {known})")]
    NoGraph {
        /// The bundle.
        folder: Utf8PathBuf,
        /// The graph asked for.
        graph: String,
        /// The graphs it has.
        known: String,
    },
    /// The output folder could not be prepared.
    #[error(transparent)]
    Staging(#[from] crate::staging::StagingError),
    /// Exporting a component failed, or was interrupted; nothing is left behind.
    #[error(transparent)]
    Export(#[from] dpar_export_onnx::ExportError),
    /// Building engines for a target failed; nothing is left behind.
    #[error(transparent)]
    Target(#[from] crate::targets::TargetError),
    /// Reading a checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] dpar_export_checkpoint::CheckpointError),
}

impl BundleError {
    fn io(path: &Utf8Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// An opened bundle whose files match its manifest.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: Utf8PathBuf,
    manifest: Manifest,
    system: SystemSpec,
    manifest_sha256: String,
}

impl Bundle {
    /// Opens a bundle and checks size and SHA-256 of every listed file, that the folder holds no other, and that the
    /// graphs refer to listed weights only.
    ///
    /// # Errors
    /// [`BundleError::Integrity`] names the file that does not match; other errors say what is not a bundle.
    pub fn open(folder: &Utf8Path) -> Result<Self, BundleError> {
        let (manifest, manifest_sha256) = read_manifest(folder)?;
        if manifest.system == SystemKind::Extractor {
            return Err(BundleError::Extractor(folder.to_owned()));
        }
        for file in &manifest.files {
            check_file(folder, file)?;
        }
        check_unlisted(folder, folder, &Listed::of(&manifest))?;
        for graph in &manifest.graphs {
            check_references(folder, graph, &manifest)?;
        }
        Self::assemble(folder, manifest, manifest_sha256)
    }

    /// A bundle that is being written: its graphs and `config.json` are in the folder, the manifest is not yet. It can
    /// run; its digest is that of the manifest so far.
    ///
    /// # Errors
    /// When the configuration does not fit the manifest.
    pub fn unwritten(folder: &Utf8Path, manifest: &Manifest) -> Result<Self, BundleError> {
        let config = |e: serde_json::Error| BundleError::Config {
            path: folder.join(MANIFEST),
            message: e.to_string(),
        };
        let sha256 = hex::encode(Sha256::digest(manifest.to_bytes().map_err(config)?));
        Self::assemble(folder, manifest.clone(), sha256)
    }

    /// Reads `config.json` and holds it against the manifest.
    fn assemble(folder: &Utf8Path, manifest: Manifest, manifest_sha256: String) -> Result<Self, BundleError> {
        let config = folder.join(CONFIG);
        let system: SystemSpec = serde_json::from_slice(&read_small(&config)?)
            .map_err(|e| BundleError::Config { path: config.clone(), message: e.to_string() })?;
        // Two files of one export say the same: the one that differs was changed, whatever its digest says.
        let unlike = |message| BundleError::Integrity { path: config.clone(), message };
        if Some(&system.patch_rule) != manifest.patch_rule.as_ref() || system.kind != manifest.system {
            return Err(unlike(format!("its system or patch rule is not the one in {MANIFEST}")));
        }
        system.validate().map_err(|message| BundleError::Config { path: config.clone(), message })?;
        check_graphs(&manifest, &system).map_err(unlike)?;
        Ok(Self { folder: folder.to_owned(), manifest, system, manifest_sha256 })
    }

    /// The folder.
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of `manifest.json`: identifies the bundle.
    pub fn manifest_sha256(&self) -> &str {
        &self.manifest_sha256
    }

    /// Where everything in it came from.
    pub fn provenance(&self) -> Provenance {
        self.manifest.provenance()
    }

    /// The resolved configuration.
    pub fn system(&self) -> &SystemSpec {
        &self.system
    }

    /// The patch rule.
    pub fn patch_rule(&self) -> &PatchRule {
        &self.system.patch_rule
    }

    /// Whether the bundle has a graph of that name.
    pub fn has_graph(&self, name: &str) -> bool {
        self.manifest.graphs.iter().any(|g| g.spec.name == name)
    }

    /// Calls `f` with the graph of that name.
    ///
    /// # Errors
    /// When there is none; what `f` returns.
    pub fn with_graph<T, E: From<BundleError>>(
        &self,
        name: &str,
        f: impl FnOnce(GraphFile<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(entry) = self.manifest.graphs.iter().find(|g| g.spec.name == name) else {
            let known: Vec<&str> = self.manifest.graphs.iter().map(|g| g.spec.name.as_str()).collect();
            return Err(E::from(BundleError::NoGraph {
                folder: self.folder.clone(),
                graph: name.to_owned(),
                known: known.join(", "),
            }));
        };
        f(GraphFile { spec: &entry.spec, path: &self.folder.join(&entry.file) })
    }
}

/// Every component of the configuration has its graphs in the manifest, with the sizes of the configuration.
fn check_graphs(manifest: &Manifest, system: &SystemSpec) -> Result<(), String> {
    for component in &system.components {
        let known = dpar_export_onnx::graph_names(component).map_err(|e| e.to_string())?;
        for name in known {
            if !manifest.graphs.iter().any(|g| g.spec.name == name) {
                return Err(format!(
                    "the manifest has no graph `{name}` for component `{}`",
                    component.kind().name()
                ));
            }
        }
    }
    let width = system.dpar().map(|d| d.width);
    let sizes = [
        ("logits", Some(system.vocab)),
        ("hidden", width),
        ("embeddings", width),
        ("image", Some(system.image_size)),
    ];
    for graph in &manifest.graphs {
        for port in graph.spec.inputs.iter().chain(&graph.spec.outputs) {
            let wanted = sizes.iter().find(|(name, _)| *name == port.name).and_then(|(_, size)| *size);
            let last = port.dims.last();
            if wanted.is_some_and(|w| last != Some(&dpar_export_spec::Dim::Fixed(w))) {
                return Err(format!("port `{}` of graph `{}` has another size", port.name, graph.spec.name));
            }
        }
    }
    Ok(())
}

/// The manifest of a bundle, parsed and checked, and its SHA-256.
fn read_manifest(folder: &Utf8Path) -> Result<(Manifest, String), BundleError> {
    let path = folder.join(MANIFEST);
    if !path.is_file() {
        return Err(BundleError::NotABundle(folder.to_owned()));
    }
    if path.is_symlink() {
        let message = "it is reached through a symbolic link".to_owned();
        return Err(BundleError::Integrity { path, message });
    }
    let bytes = read_small(&path)?;
    let manifest = Manifest::parse(&bytes).map_err(|source| BundleError::Manifest { path, source })?;
    Ok((manifest, hex::encode(Sha256::digest(&bytes))))
}

fn read_small(path: &Utf8Path) -> Result<Vec<u8>, BundleError> {
    let file = dpar_export_inputs::open(path).map_err(|e| BundleError::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(|e| BundleError::io(path, e))?;
    if bytes.len() as u64 > MAX_JSON {
        let message = format!("larger than {} MiB", MAX_JSON >> 20);
        return Err(BundleError::Config { path: path.to_owned(), message });
    }
    Ok(bytes)
}

/// Size and SHA-256 of a file, lower-case hex.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Utf8Path) -> Result<(u64, String), BundleError> {
    let mut file = dpar_export_inputs::open(path).map_err(|e| BundleError::io(path, e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 18];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer).map_err(|e| BundleError::io(path, e))?;
        if n == 0 {
            return Ok((size, hex::encode(hash.finalize())));
        }
        hash.update(&buffer[..n]);
        size += n as u64;
    }
}

fn check_file(folder: &Utf8Path, entry: &FileEntry) -> Result<(), BundleError> {
    let path = folder.join(&entry.path);
    let wrong = |message: String| BundleError::Integrity { path: path.clone(), message };
    let outside = || wrong("it is reached through a symbolic link".to_owned());
    let mut place = folder.to_owned();
    for part in entry.path.split('/') {
        place.push(part);
        if place.is_symlink() {
            return Err(outside());
        }
    }
    let meta = fs_err::metadata(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => wrong("it is missing".to_owned()),
        _ => BundleError::io(&path, e),
    })?;
    if !meta.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    if meta.len() != entry.size {
        return Err(wrong(format!("it has {} bytes, listed are {}", meta.len(), entry.size)));
    }
    let (_, sha256) = digest(&path)?;
    if sha256 != entry.sha256 {
        return Err(wrong(format!("its SHA-256 is {sha256}, listed is {}", entry.sha256)));
    }
    Ok(())
}

/// What a manifest lists, and the folders that lead there.
struct Listed<'a> {
    files: BTreeSet<&'a str>,
    folders: BTreeSet<&'a str>,
}

impl<'a> Listed<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        let files: BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
        let above = |path: &'a str| path.match_indices('/').map(move |(end, _)| &path[..end]);
        let folders = files.iter().flat_map(|path| above(path)).collect();
        Self { files, folders }
    }
}

/// Nothing lies in `place`, a folder of the bundle, but listed files and the folders that lead to them.
fn check_unlisted(folder: &Utf8Path, place: &Utf8Path, listed: &Listed<'_>) -> Result<(), BundleError> {
    let read = place.read_dir_utf8().map_err(|e| BundleError::io(place, e))?;
    for entry in read {
        let path = entry.map_err(|e| BundleError::io(place, e))?.into_path();
        let inside = path.strip_prefix(folder).unwrap_or(&path).components();
        let name = inside.map(|c| c.as_str()).collect::<Vec<_>>().join("/");
        if name == MANIFEST || listed.files.contains(name.as_str()) {
            continue;
        }
        if !listed.folders.contains(name.as_str()) || path.is_symlink() || !path.is_dir() {
            let message = "the manifest does not list it: move it out of the bundle".to_owned();
            return Err(BundleError::Integrity { path, message });
        }
        check_unlisted(folder, &path, listed)?;
    }
    Ok(())
}

/// A graph's weights are in its component's file, and nowhere else; and the graph has the precision that the manifest
/// says, without which its outputs would be held against the wrong tolerances.
fn check_references(folder: &Utf8Path, graph: &GraphEntry, manifest: &Manifest) -> Result<(), BundleError> {
    let path = folder.join(&graph.file);
    let wrong = |message: String| BundleError::Integrity { path: path.clone(), message };
    let bytes = dpar_export_inputs::read(&path, limits::GRAPH).map_err(|e| BundleError::io(&path, e))?;
    let component = manifest.components.iter().find(|c| c.kind.name() == graph.spec.component);
    let weights = component.map(|c| Utf8Path::new(&c.weights));
    let beside = weights.filter(|w| w.parent() == Utf8Path::new(&graph.file).parent());
    let listed = beside.and_then(Utf8Path::file_name);
    for file in dpar_export_onnx::external_files(&bytes).map_err(wrong)? {
        if Some(file.as_str()) != listed {
            return Err(wrong(format!(
                "it takes weights from `{file}`, which the manifest does not list for it"
            )));
        }
    }
    let (name, precision) = (graph.spec.name.clone(), manifest.precision);
    dpar_export_onnx::check_precision(&bytes, &graph.spec, precision)
        .map_err(|message| BundleError::Precision { graph: name, precision, message })
}
