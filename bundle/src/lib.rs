//! A bundle: the output folder with `manifest.json`, `config.json` and `onnx/`.
//!
//! Writing goes to a temporary folder beside the output, which is renamed when it is complete. Opening checks
//! size and SHA-256 of every file that the manifest lists, that the folder holds nothing else, and that graphs refer
//! to listed files only.

pub mod attest;
mod config;
mod digest;
mod entries;
mod extractor;
mod files;
mod held;
pub(crate) mod json;
mod manifest;
pub mod oci;
mod provenance;
mod target;
mod write;

use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::GraphFile;
use dpar_export_inputs::limits;
use dpar_export_onnx::Said;
use dpar_export_spec::{
    ComponentSpec, Dialect, GraphName, GraphSpec, Hinted, PatchRule, PatchRuleError, Precision, RuleChange,
    SystemKind, SystemSpec, text,
};
use sha2::{Digest, Sha256};

use files::Files;

pub use digest::{digest, digests};
pub use extractor::{
    ExtractorBundle, ExtractorPorts, ExtractorSpec, ForeignExtractor, Normalise, is_extractor,
    names_inception, port_width, write_extractor, write_features,
};
pub use json::{JsonError, unique_keys};
pub use manifest::{
    ComponentEntry, DialectEntry, EngineEntry, FileEntry, GraphEntry, Manifest, ManifestError, OwnArithmetic,
    ProfileEntry, SCHEMA_VERSION, SourceEntry, ToolEntry,
};
pub use provenance::{ComponentChain, EngineLink, GraphLink, Link, Provenance};
pub use target::{TargetError, TargetErrorKind};
pub use write::{Extend, extend, write};

/// File name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// File name of the resolved configuration.
pub const CONFIG: &str = "config.json";
/// Folder of the graphs and their weights.
pub const ONNX: &str = "onnx";
/// The axis of the tokens of a patch.
const PATCH_LENGTH: &str = "patch_length";
/// Folder of TensorRT engines.
pub const TRT: &str = "trt";

/// Why a bundle could not be read or written.
#[derive(Debug, thiserror::Error)]
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
    /// A listed file is behind a symbolic link, which may lead elsewhere by the time it is read.
    #[error("{path} is a symbolic link, or reached through one: a bundle's files are in its folder")]
    Linked {
        /// The file.
        path: Utf8PathBuf,
    },
    /// A file of the bundle was written, replaced or renamed after it was hashed: what ran may be something else.
    #[error("{path} changed while it was used")]
    Changed {
        /// The file or folder.
        path: Utf8PathBuf,
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
    /// The patch rule cannot have these numbers.
    #[error(transparent)]
    Rule(#[from] PatchRuleError),
    /// The graphs were not exported for these numbers of the patch rule.
    #[error("the graphs of {folder} cannot follow this patch rule: {message}")]
    OtherGraphs {
        /// The bundle.
        folder: Utf8PathBuf,
        /// Why not.
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
    Staging(#[from] dpar_export_files::staging::StagingError),
    /// Exporting a component failed, or was interrupted; nothing is left behind.
    #[error(transparent)]
    Export(#[from] dpar_export_onnx::ExportError),
    /// Building engines for a target failed; nothing is left behind.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Reading a checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] dpar_export_checkpoint::CheckpointError),
}

impl Hinted for BundleError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Checkpoint(e) => return e.hint(),
            Self::Staging(e) => return e.hint(),
            Self::Target(e) => return e.hint(),
            Self::Export(e) => return e.hint(),
            Self::Integrity { .. } => "the bundle was changed after it was written: export it again",
            Self::Linked { .. } => {
                "as in the cache of a model hub: copy the folder with what its links lead to, `cp -rL FOLDER COPY`, and give the \
                 copy"
            }
            Self::OtherGraphs { .. } => {
                "export the checkpoint again with these numbers: the options are the same"
            }
            Self::Changed { .. } => {
                "another program wrote it or put another in its place: run again when it is done"
            }
            Self::Manifest { source, .. } if source.is_tampering() => {
                "no version of this tool wrote this manifest: export the checkpoint again"
            }
            Self::Precision { .. } => "a graph and the manifest are not of the same export: export again",
            Self::NotABundle(_) => "make one with `dpar-export --target onnx CHECKPOINT -o OUT`",
            Self::Extractor(_) => {
                "extractors serve `evaluate`, `metrics` and `reproduce`: give it there with --extractor"
            }
            Self::NotAnExtractor(_) => {
                "make an extractor with `dpar-export --component inception WEIGHTS.pth -o OUT`"
            }
            Self::NoGraph { graph, .. }
                if [GraphName::VqDecode, GraphName::VqEncode].iter().any(|g| g.as_str() == graph) =>
            {
                "the bundle was exported without a tokenizer: export again with --vq FILE"
            }
            Self::Io { .. }
            | Self::Foreign { .. }
            | Self::Manifest { .. }
            | Self::Config { .. }
            | Self::Rule(_)
            | Self::NoGraph { .. } => return None,
        };
        Some(hint.to_owned())
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Checkpoint(e) => e.details(),
            Self::Io { .. }
            | Self::NotABundle(_)
            | Self::Extractor(_)
            | Self::NotAnExtractor(_)
            | Self::Foreign { .. }
            | Self::Manifest { .. }
            | Self::Config { .. }
            | Self::Integrity { .. }
            | Self::Linked { .. }
            | Self::Changed { .. }
            | Self::Precision { .. }
            | Self::Rule(_)
            | Self::OtherGraphs { .. }
            | Self::NoGraph { .. }
            | Self::Staging(_)
            | Self::Export(_)
            | Self::Target(_) => Vec::new(),
        }
    }
}

impl BundleError {
    fn io(path: &Utf8Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// An opened bundle whose files match its manifest.
#[derive(Debug, Clone)]
pub struct Bundle {
    files: Files,
    system: SystemSpec,
}

impl Bundle {
    /// Opens a bundle and checks size and SHA-256 of every listed file, that the folder holds no other, and that the
    /// graphs refer to listed weights only.
    ///
    /// # Errors
    /// [`BundleError::Integrity`] names the file that does not match; other errors say what is not a bundle.
    pub fn open(folder: &Utf8Path) -> Result<Self, BundleError> {
        let bundle = Self::open_ahead(folder)?;
        bundle.unchanged()?;
        Ok(bundle)
    }

    /// As [`open`](Self::open), but weights are still being hashed when it returns, on threads of their own: engines may load
    /// them meanwhile ([`with_graph_ahead`](Self::with_graph_ahead)). Nothing that was computed from them counts before
    /// [`unchanged`](Self::unchanged) has passed, which waits for the hashes.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for the digests of weights and engines.
    pub fn open_ahead(folder: &Utf8Path) -> Result<Self, BundleError> {
        let system = |system| match system {
            SystemKind::Extractor => Err(BundleError::Extractor(folder.to_owned())),
            SystemKind::Dpar | SystemKind::Llamagen => Ok(()),
        };
        let mut tables = Vec::new();
        let graph = |manifest: &Manifest, entry: &GraphEntry, dialect, bytes: &[u8]| {
            tables.push((entry.clone(), check_references(folder, manifest, (entry, dialect), bytes)?));
            Ok(())
        };
        let (files, config) = Files::open(folder, system, graph)?;
        let bundle = Self::assemble(files, &config)?;
        tables.iter().try_for_each(|(entry, tables)| bundle.check_tables(entry, tables))?;
        Ok(bundle)
    }

    /// The same bundle with other numbers in its patch rule. The files stay what they are, and so does the rule of
    /// [`manifest`](Self::manifest): [`patch_rule`](Self::patch_rule) and [`system`](Self::system) have the other one.
    ///
    /// # Errors
    /// When the mode does not read a number, or the graphs were not exported for it: patches that are longer than their
    /// range, another fractional size.
    pub fn with_rule(mut self, change: &RuleChange) -> Result<Self, BundleError> {
        if !change.is_empty() {
            self.system.patch_rule = self.changed_rule(change)?;
        }
        Ok(self)
    }

    /// The patch rule with other numbers.
    ///
    /// # Errors
    /// As [`with_rule`](Self::with_rule).
    pub fn changed_rule(&self, change: &RuleChange) -> Result<PatchRule, BundleError> {
        let rule = self.system.patch_rule.changed(change)?;
        let refuse = |message| BundleError::OtherGraphs { folder: self.folder().to_owned(), message };
        let system = SystemSpec { patch_rule: rule, ..self.system.clone() };
        let longest = system.longest_patch();
        let range = self.manifest().graphs.iter().flat_map(|g| &g.spec.axes).find(|a| a.name == PATCH_LENGTH);
        if let Some(range) = range.filter(|range| longest > range.max) {
            return Err(refuse(format!(
                "it makes patches of up to {longest} tokens, they were exported for {} at most",
                range.max
            )));
        }
        let [was, is] = [&self.system, &system].map(SystemSpec::fractional_size);
        if was != is {
            let word = |size: Option<f64>| size.map_or("whole".to_owned(), |s| s.to_string());
            let (was, is) = (word(was), word(is));
            return Err(refuse(format!("its patch size is {is}, they place patches of a {was} size")));
        }
        Ok(system.patch_rule)
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
        let bytes = read_small(&folder.join(CONFIG))?;
        Self::assemble(Files::unwritten(folder, manifest.clone(), sha256), &bytes)
    }

    /// Reads the bytes of `config.json` and holds them against the manifest. They are listed: what is wrong with them, no
    /// export wrote.
    fn assemble(files: Files, config: &[u8]) -> Result<Self, BundleError> {
        let manifest = &files.manifest;
        let unlike = |message| BundleError::Integrity { path: files.folder.join(CONFIG), message };
        let system = config::read(config, manifest.schema_version).map_err(|e| unlike(e.to_string()))?;
        // Two files of one export say the same: the one that differs was changed, whatever its digest says.
        if Some(&system.patch_rule) != manifest.patch_rule.as_ref() || system.kind != manifest.system {
            return Err(unlike(format!("its system or patch rule is not the one in {MANIFEST}")));
        }
        check_graphs(manifest, &system).map_err(|e| unlike(e.to_string()))?;
        Ok(Self { files, system })
    }

    /// Every index that the configuration allows (a class, a token, a code) is within a graph's tables.
    fn check_tables(&self, graph: &GraphEntry, tables: &[(String, Option<i64>)]) -> Result<(), BundleError> {
        let of = |c: &&ComponentSpec| c.kind().name() == graph.spec.component;
        let Some(component) = self.system.components.iter().find(of) else { return Ok(()) };
        dpar_export_onnx::check_tables(tables, component, &self.system).map_err(|e| BundleError::Integrity {
            path: self.folder().join(&graph.file),
            message: e.to_string(),
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Utf8Path {
        &self.files.folder
    }

    /// Where a listed file is, for a reader that is followed by [`unchanged`](Self::unchanged).
    pub fn path(&self, file: &str) -> Utf8PathBuf {
        self.files.path(file)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.files.manifest
    }

    /// SHA-256 of `manifest.json`: identifies the bundle.
    pub fn manifest_sha256(&self) -> &str {
        &self.files.manifest_sha256
    }

    /// Checks that every file is still the one that was hashed when the bundle was opened, and waits for hashes that are under
    /// way. Engines read files again, by path, and may map them while they run: a result is the bundle's once this has passed
    /// after the last call.
    ///
    /// # Errors
    /// [`BundleError::Changed`] with what was written, replaced or renamed, also if it was put back;
    /// [`BundleError::Integrity`] of a bundle that was opened [ahead](Self::open_ahead) of its hashes.
    pub fn unchanged(&self) -> Result<(), BundleError> {
        self.files.unchanged()
    }

    /// Where everything in it came from.
    pub fn provenance(&self) -> Provenance {
        self.manifest().provenance()
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
    pub fn has_graph(&self, name: GraphName) -> bool {
        self.manifest().graphs.iter().any(|g| name == *g.spec.name)
    }

    fn graph(&self, name: &str) -> Result<&GraphEntry, BundleError> {
        let graphs = &self.manifest().graphs;
        graphs.iter().find(|g| g.spec.name == name).ok_or_else(|| {
            let known: Vec<&str> = graphs.iter().map(|g| g.spec.name.as_str()).collect();
            let (folder, graph) = (self.folder().to_owned(), name.to_owned());
            BundleError::NoGraph { folder, graph, known: text::names(known) }
        })
    }

    /// Calls `f` with the graph of that name, in the first of `dialects` that it has, else the portable one, and then checks
    /// that the files are those that were hashed.
    ///
    /// # Errors
    /// When there is none; [`BundleError::Changed`]; what `f` returns.
    pub fn with_graph<T, E: From<BundleError>>(
        &self,
        name: &str,
        dialects: &[Dialect],
        f: impl FnOnce(GraphFile<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.files.with(self.graph(name)?, dialects, f)
    }

    /// As [`with_graph`](Self::with_graph), but where hashes are under way, it does not wait for them unless `f` fails: call
    /// [`unchanged`](Self::unchanged) before anything is computed.
    ///
    /// # Errors
    /// As [`with_graph`](Self::with_graph).
    pub fn with_graph_ahead<T, E: From<BundleError>>(
        &self,
        name: &str,
        dialects: &[Dialect],
        f: impl FnOnce(GraphFile<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.files.ahead(self.graph(name)?, dialects, f)
    }

    /// Interface, form and bytes of a graph, as they were hashed, after its weights were copied into `folder`, an empty one:
    /// what is derived from the bytes loads from there. The form is that of [`with_graph`](Self::with_graph).
    ///
    /// # Errors
    /// When there is no such graph; [`BundleError::Changed`]; when the copy cannot be written.
    pub fn copy_graph(
        &self,
        name: &str,
        dialects: &[Dialect],
        folder: &Utf8Path,
    ) -> Result<(GraphSpec, Dialect, Vec<u8>), BundleError> {
        let entry = self.graph(name)?;
        let (dialect, file) = entry.file_for(dialects);
        let bytes = self.files.bytes(file)?;
        // Checked when the bundle was opened: no graph refers to any other file.
        if let Some(weights) = weights_beside(self.manifest(), entry) {
            self.files.copy(weights.as_str(), folder)?;
        }
        Ok((entry.spec.clone(), dialect, bytes))
    }
}

/// What in a bundle does not fit the rest of it, or in a network of another tool what is asked of one: in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misfit(String);

impl From<String> for Misfit {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for Misfit {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

/// The manifest has the components of the configuration with their graphs and no others, with the sizes of the
/// configuration.
fn check_graphs(manifest: &Manifest, system: &SystemSpec) -> Result<(), Misfit> {
    if let Some(other) =
        manifest.components.iter().find(|c| system.components.iter().all(|s| s.kind() != c.kind))
    {
        return Err(format!("component `{}` of the manifest is not in it", other.kind.name()).into());
    }
    for component in &system.components {
        let name = component.kind().name();
        let known = dpar_export_onnx::graph_names(component, Some(system)).map_err(|e| e.to_string())?;
        let graphs =
            || manifest.graphs.iter().filter(|g| g.spec.component == name).map(|g| g.spec.name.as_str());
        if let Some(other) = graphs().find(|g| known.iter().all(|k| *k != **g)) {
            return Err(format!("graph `{other}` of the manifest is none of component `{name}`").into());
        }
        if let Some(missing) = known.iter().find(|k| graphs().all(|g| **k != *g)) {
            return Err(format!("the manifest has no graph `{missing}` for component `{name}`").into());
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
        let longest = graph.spec.axis(PATCH_LENGTH).map(|a| a.max);
        if let Some(longest) = longest.filter(|l| *l < system.longest_patch()) {
            let (name, rule) = (&graph.spec.name, system.longest_patch());
            return Err(format!(
                "graph `{name}` takes patches of {longest} tokens, the patch rule makes {rule}"
            )
            .into());
        }
        for port in graph.spec.inputs.iter().chain(&graph.spec.outputs) {
            let wanted = sizes.iter().find(|(name, _)| *name == port.name).and_then(|(_, size)| *size);
            let last = port.dims.last();
            if wanted.is_some_and(|w| last != Some(&dpar_export_spec::Dim::Fixed(w))) {
                return Err(
                    format!("port `{}` of graph `{}` has another size", port.name, graph.spec.name).into()
                );
            }
        }
    }
    Ok(())
}

fn read_small(path: &Utf8Path) -> Result<Vec<u8>, BundleError> {
    let file = dpar_export_inputs::open(path).map_err(|e| BundleError::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(limits::TEXT + 1).read_to_end(&mut bytes).map_err(|e| BundleError::io(path, e))?;
    if bytes.len() as u64 > limits::TEXT {
        let message = format!("larger than {} MiB", limits::TEXT >> 20);
        return Err(BundleError::Config { path: path.to_owned(), message });
    }
    Ok(bytes)
}

/// The file beside a graph that holds the weights of its component.
fn weights_beside<'m>(manifest: &'m Manifest, graph: &GraphEntry) -> Option<&'m Utf8Path> {
    let component = manifest.components.iter().find(|c| c.kind.name() == graph.spec.component);
    let weights = component.map(|c| Utf8Path::new(&c.weights));
    weights.filter(|w| w.parent() == Utf8Path::new(&graph.file).parent())
}

/// A graph's weights are in its component's file, and nowhere else; and the graph has opset and precision that the
/// manifest says, without which its outputs would be held against the wrong tolerances. Returns its tables.
fn check_references(
    folder: &Utf8Path,
    manifest: &Manifest,
    (graph, dialect): (&GraphEntry, Dialect),
    bytes: &[u8],
) -> Result<Vec<(String, Option<i64>)>, BundleError> {
    let path = folder.join(graph.file_for(&[dialect]).1);
    let wrong = |message: String| BundleError::Integrity { path: path.clone(), message };
    let own = dpar_export_onnx::read_own(bytes).map_err(|e| wrong(e.to_string()))?;
    let listed = weights_beside(manifest, graph).and_then(Utf8Path::file_name);
    if let Some(file) = own.external.iter().find(|file| Some(file.as_str()) != listed) {
        return Err(wrong(format!(
            "it takes weights from `{file}`, which the manifest does not list for it"
        )));
    }
    let quantized = manifest.quantized(&graph.spec.component);
    let opset = match (quantized, dialect) {
        (Some(quantized), Dialect::Portable) => quantized.opset,
        _ => manifest.opset_of(&graph.spec.component),
    };
    check_opset(own.opset, opset).map_err(|e| wrong(e.to_string()))?;
    let (name, precision) = (graph.spec.name.clone(), manifest.precision_of(&graph.spec.component));
    dpar_export_onnx::check_precision(bytes, &graph.spec, Said { precision, quantized, dialect })
        .map_err(|e| BundleError::Precision { graph: name, precision, message: e.to_string() })?;
    Ok(own.tables)
}

fn check_opset(found: i64, said: i64) -> Result<(), Misfit> {
    match found == said {
        true => Ok(()),
        false => Err(format!("its opset is {found}, the manifest says {said}").into()),
    }
}
