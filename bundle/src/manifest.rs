//! `manifest.json`: what is in a bundle, where it came from, and how to call it.

use std::collections::{BTreeMap, BTreeSet};

use dpar_export_spec::{
    AxisRange, ComponentKind, Dialect, GraphSpec, Numbers, PatchRule, Precision, Precisions, Quantized,
    SystemKind, Tuning, WeightMode, is_name,
};
use serde::{Deserialize, Serialize};

use super::json::{self, JsonError};

/// The layout of manifest and configuration that this version writes. It reads all before: 1 stored in `config.json` what
/// components share once more in each.
pub const SCHEMA_VERSION: u32 = 2;

/// A file with its size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path inside the bundle, `/`-separated.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// A file the bundle was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// What it was: `dpar`, `dpar-config`, `entropy`, `vq`, …
    pub role: String,
    /// Portable name: relative to the checkpoint, never absolute.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
    /// The key of the state dict that was read, where the file holds several or it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

/// The tool that wrote the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolEntry {
    /// `dpar-export`.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl ToolEntry {
    /// This program.
    pub fn this() -> Self {
        Self { name: "dpar-export".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// One exported component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentEntry {
    /// Which component.
    pub kind: ComponentKind,
    /// Number of parameters in the checkpoint.
    pub parameters: u64,
    /// External-data file that its graphs share.
    pub weights: String,
    /// Names of its graphs.
    pub graphs: Vec<String>,
    /// Arithmetic of its graphs, where it is not the bundle's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<OwnArithmetic>,
    /// What quantization made of its weights, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<Quantized>,
}

/// What the graphs of one component are written in, where those of the bundle are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnArithmetic {
    /// Arithmetic.
    pub precision: Precision,
    /// ONNX opset.
    pub opset: i64,
}

/// A graph in another form than the portable one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialectEntry {
    /// The form.
    pub dialect: Dialect,
    /// The `.onnx` file.
    pub file: String,
}

/// One graph: its files and its interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphEntry {
    /// The `.onnx` file, in the portable form.
    pub file: String,
    /// The same graph in other forms, over the same weights and with the same interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dialects: Vec<DialectEntry>,
    /// Ports and axis ranges.
    #[serde(flatten)]
    pub spec: GraphSpec,
}

impl GraphEntry {
    /// Every file of the graph, the portable one first.
    pub fn files(&self) -> impl Iterator<Item = (Dialect, &str)> {
        let others = self.dialects.iter().map(|d| (d.dialect, d.file.as_str()));
        std::iter::once((Dialect::Portable, self.file.as_str())).chain(others)
    }

    /// The file for an engine that takes `dialects` rather than the portable form, the best first.
    pub(crate) fn file_for(&self, dialects: &[Dialect]) -> (Dialect, &str) {
        let find = |wanted: &Dialect| self.files().find(|(dialect, _)| dialect == wanted);
        dialects.iter().find_map(find).unwrap_or((Dialect::Portable, &self.file))
    }
}

/// An optimization profile of an engine: the range of every axis of its graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileEntry {
    /// Name, unique in the engine.
    pub name: String,
    /// Ranges.
    pub axes: Vec<AxisRange>,
}

/// An engine that was built from a graph, bound to the bytes it was built from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineEntry {
    /// Graph name.
    pub graph: String,
    /// The `.engine` file; its size and SHA-256 are in `files`.
    pub file: String,
    /// The product that built it and must run it.
    pub builder: String,
    /// Its version.
    pub version: String,
    /// Arithmetic.
    pub precision: Precision,
    /// Devices it was built for; empty = all of Ampere and later.
    pub compute_capabilities: Vec<String>,
    /// Builder optimization level; `None` = the library's choice.
    pub optimization_level: Option<u8>,
    /// Largest scratch memory of a layer in bytes; `None` = no limit.
    pub workspace: Option<u64>,
    /// Where its weights are.
    #[serde(default)]
    pub weights: WeightMode,
    /// Whether it keeps names and kernels of its layers for inspection.
    #[serde(default)]
    pub detailed: bool,
    /// Optimization profiles in the order of the build.
    pub profiles: Vec<ProfileEntry>,
    /// What the opt points of the profiles follow from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
    /// SHA-256 of the graph it was built from.
    pub graph_sha256: String,
    /// SHA-256 of the weights it was built from.
    pub weights_sha256: String,
    /// Layers of the network before optimization.
    pub layers: u64,
    /// The builder's warnings.
    pub warnings: Vec<String>,
}

impl EngineEntry {
    /// What goes into a build: without its results, and without where the profiles' numbers come from.
    #[must_use]
    pub fn settings(&self) -> Self {
        Self { layers: 0, warnings: Vec::new(), tuning: None, ..self.clone() }
    }

    /// Whether another build with the same inputs and settings made `other`.
    pub fn same_build(&self, other: &Self) -> bool {
        self.settings() == other.settings()
    }
}

/// The manifest of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout version.
    pub schema_version: u32,
    /// What wrote it.
    pub tool: ToolEntry,
    /// DPAR, LlamaGen, or a feature extractor.
    pub system: SystemKind,
    /// Name of the model.
    pub name: String,
    /// Arithmetic of the graphs, but for components that have their own.
    pub precision: Precision,
    /// ONNX opset of the graphs, but for those of such components.
    pub opset: i64,
    /// Where patches begin; an extractor has no patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_rule: Option<PatchRule>,
    /// The rule of the configuration, where the export was told other numbers; boxed, as hardly any manifest has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_rule: Option<Box<PatchRule>>,
    /// Files the bundle was made from.
    pub sources: Vec<SourceEntry>,
    /// Components.
    pub components: Vec<ComponentEntry>,
    /// Graphs.
    pub graphs: Vec<GraphEntry>,
    /// Engines, where some were built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineEntry>,
    /// Every file of the bundle except the manifest.
    pub files: Vec<FileEntry>,
}

/// What is wrong with a manifest, apart from hashes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected layout.
    #[error("not a manifest: {0}")]
    Syntax(String),
    /// A field occurs twice in an object: of two values one reader takes the first, and another the last.
    #[error("not a manifest: {0}")]
    RepeatedField(String),
    /// A field that manifests of this schema version do not have.
    #[error("not a manifest: {0}")]
    UnknownField(String),
    /// Written by a newer (or unknown) version.
    #[error("schema version {0} is not supported (this version reads 1 to {SCHEMA_VERSION})")]
    SchemaVersion(u64),
    /// A path that leaves the bundle or is not portable.
    #[error("`{0}` is not a path inside the bundle")]
    Path(String),
    /// A graph or component refers to a file that is not listed.
    #[error("`{what}` refers to `{path}`, which is not in `files`")]
    Unlisted {
        /// The referring entry.
        what: String,
        /// The path.
        path: String,
    },
    /// An engine was built from other bytes than the bundle holds.
    #[error("the engine of graph `{0}` was built from another graph or other weights")]
    StaleEngine(String),
    /// An engine has another precision than its graph.
    #[error("the engine of graph `{graph}` is {found}, the graph is {precision}")]
    EnginePrecision {
        /// Graph name.
        graph: String,
        /// The engine's.
        found: Precision,
        /// The graph's.
        precision: Precision,
    },
    /// A name or path occurs twice.
    #[error("`{0}` is listed twice")]
    Duplicate(String),
    /// An entry that no export has: a name that is none, a size that no model has, a graph of no component.
    #[error("{0}")]
    Entry(String),
    /// The patch rule cannot be evaluated.
    #[error("patch rule: {0}")]
    PatchRule(#[from] dpar_export_spec::PatchRuleError),
    /// A system without a patch rule, or an extractor with one.
    #[error("a system has a patch rule and a feature extractor has none; here it is the other way round")]
    PatchRulePresence,
}

impl From<JsonError> for ManifestError {
    fn from(e: JsonError) -> Self {
        match e {
            JsonError::Syntax(text) => Self::Syntax(text),
            JsonError::Repeated(text) => Self::RepeatedField(text),
            JsonError::Unknown(text) => Self::UnknownField(text),
        }
    }
}

impl ManifestError {
    /// Whether no version of this tool would have written it: paths that lead elsewhere, entries that contradict
    /// each other. The others are what a damaged file or another version looks like.
    pub fn is_tampering(&self) -> bool {
        match self {
            Self::Path(_)
            | Self::Unlisted { .. }
            | Self::StaleEngine(_)
            | Self::EnginePrecision { .. }
            | Self::Duplicate(_)
            | Self::Entry(_)
            | Self::RepeatedField(_)
            | Self::UnknownField(_)
            | Self::PatchRule(_)
            | Self::PatchRulePresence => true,
            Self::Syntax(_) | Self::SchemaVersion(_) => false,
        }
    }
}

impl Manifest {
    /// Parses and checks a manifest: layout, version, paths, references.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u64,
        }
        let bytes = dpar_export_inputs::without_mark(bytes);
        json::unique_keys(bytes)?;
        let version: Version =
            serde_json::from_slice(bytes).map_err(|e| ManifestError::Syntax(e.to_string()))?;
        if !(1..=u64::from(SCHEMA_VERSION)).contains(&version.schema_version) {
            return Err(ManifestError::SchemaVersion(version.schema_version));
        }
        let manifest: Self = json::read(bytes)?;
        if let Some(later) = manifest.later_field() {
            let message = format!("unknown field `{later}` in schema version {}", manifest.schema_version);
            return Err(ManifestError::UnknownField(message));
        }
        manifest.check()?;
        manifest.check_entries()?;
        Ok(manifest)
    }

    /// A field that came with a later schema version than this manifest's.
    fn later_field(&self) -> Option<&'static str> {
        if self.schema_version >= 2 {
            return None;
        }
        let quantized = self.components.iter().any(|c| c.quantized.is_some());
        let dialects = self.graphs.iter().any(|g| !g.dialects.is_empty());
        let arithmetic = self.components.iter().any(|c| c.arithmetic.is_some());
        [(quantized, "quantized"), (dialects, "dialects"), (arithmetic, "arithmetic")]
            .into_iter()
            .find_map(|(has, name)| has.then_some(name))
    }

    fn check(&self) -> Result<(), ManifestError> {
        match (&self.patch_rule, self.system) {
            (None, SystemKind::Extractor) => {}
            (Some(rule), SystemKind::Dpar | SystemKind::Llamagen) => rule.validate()?,
            _ => return Err(ManifestError::PatchRulePresence),
        }
        // On some file systems two names that differ in case are one file.
        let mut paths = BTreeSet::new();
        let mut folded = BTreeSet::new();
        for file in &self.files {
            let fold = file.path.to_ascii_lowercase();
            if !is_inside(&file.path) || fold == super::MANIFEST {
                return Err(ManifestError::Path(file.path.clone()));
            }
            if !folded.insert(fold) {
                return Err(ManifestError::Duplicate(file.path.clone()));
            }
            paths.insert(file.path.as_str());
        }
        let listed = |what: &str, path: &str| {
            if paths.contains(path) {
                Ok(())
            } else {
                Err(ManifestError::Unlisted { what: what.to_owned(), path: path.to_owned() })
            }
        };
        listed("config", super::CONFIG)?;
        let mut names = BTreeSet::new();
        for graph in &self.graphs {
            if !names.insert(graph.spec.name.as_str()) {
                return Err(ManifestError::Duplicate(graph.spec.name.clone()));
            }
            let mut dialects = BTreeSet::new();
            for (dialect, file) in graph.files() {
                listed(&graph.spec.name, file)?;
                if !dialects.insert(dialect) {
                    return Err(ManifestError::Duplicate(format!("{} ({dialect})", graph.spec.name)));
                }
            }
        }
        // Before engines: of each kind there is one from here on, so that looking for one takes no time.
        let mut kinds = BTreeSet::new();
        for component in &self.components {
            if !kinds.insert(component.kind.name()) {
                return Err(ManifestError::Duplicate(component.kind.name().to_owned()));
            }
            listed(component.kind.name(), &component.weights)?;
        }
        let (mut built, mut engine_files) = (BTreeSet::new(), BTreeSet::new());
        let sources = self.sources();
        let component: BTreeMap<&str, &str> =
            self.graphs.iter().map(|g| (g.spec.name.as_str(), g.spec.component.as_str())).collect();
        for engine in &self.engines {
            if !built.insert(engine.graph.as_str()) || !engine_files.insert(engine.file.as_str()) {
                return Err(ManifestError::Duplicate(engine.file.clone()));
            }
            listed(&engine.graph, &engine.file)?;
            if sources.get(engine.graph.as_str()) != Some(&(&engine.graph_sha256, &engine.weights_sha256)) {
                return Err(ManifestError::StaleEngine(engine.graph.clone()));
            }
            let precision =
                self.precision_of(component.get(engine.graph.as_str()).copied().unwrap_or_default());
            if engine.precision != precision {
                let (graph, found) = (engine.graph.clone(), engine.precision);
                return Err(ManifestError::EnginePrecision { graph, found, precision });
            }
        }
        Ok(())
    }

    /// What the graphs compute with.
    pub fn numbers(&self) -> Numbers {
        let weights = self.components.iter().filter_map(|c| Some((c.kind, c.quantized.as_ref()?.weights)));
        Numbers::new(self.precisions(), weights)
    }

    /// Arithmetic of the graphs, component by component.
    pub fn precisions(&self) -> Precisions {
        let own = self.components.iter().filter_map(|c| Some((c.kind, c.arithmetic?.precision)));
        Precisions::new(self.precision, own)
    }

    /// Arithmetic of the graphs of the component of that name.
    pub fn precision_of(&self, component: &str) -> Precision {
        self.own_arithmetic(component).map_or(self.precision, |own| own.precision)
    }

    /// ONNX opset of the graphs of the component of that name, but for the portable ones of a quantized component.
    pub fn opset_of(&self, component: &str) -> i64 {
        self.own_arithmetic(component).map_or(self.opset, |own| own.opset)
    }

    fn own_arithmetic(&self, component: &str) -> Option<OwnArithmetic> {
        self.components.iter().find(|c| c.kind.name() == component)?.arithmetic
    }

    /// What quantization made of the component of that name.
    pub fn quantized(&self, component: &str) -> Option<&Quantized> {
        self.components.iter().find(|c| c.kind.name() == component)?.quantized.as_ref()
    }

    /// SHA-256 of a graph and of its weights.
    pub fn sources_of(&self, graph: &str) -> Option<(&String, &String)> {
        self.sources().get(graph).copied()
    }

    /// SHA-256 of every graph and of its weights, by the graph's name.
    fn sources(&self) -> BTreeMap<&str, (&String, &String)> {
        let files: BTreeMap<&str, &String> =
            self.files.iter().map(|f| (f.path.as_str(), &f.sha256)).collect();
        let weights: BTreeMap<&str, &str> =
            self.components.iter().map(|c| (c.kind.name(), c.weights.as_str())).collect();
        let digests = |graph: &GraphEntry| {
            let weights = weights.get(graph.spec.component.as_str())?;
            Some((*files.get(graph.file.as_str())?, *files.get(weights)?))
        };
        self.graphs.iter().filter_map(|g| Some((g.spec.name.as_str(), digests(g)?))).collect()
    }

    /// The bytes of `manifest.json`.
    ///
    /// # Errors
    /// When the manifest cannot be serialised.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Whether a path is relative, portable and stays inside the folder it starts in: its parts are names that mean the
/// same file on every file system.
fn is_inside(path: &str) -> bool {
    // A leading dot hides a file (and is `.` or `..`); a trailing one is dropped by some systems.
    path.split('/').all(|part| is_name(part) && !part.ends_with('.'))
}

#[cfg(test)]
mod tests;
