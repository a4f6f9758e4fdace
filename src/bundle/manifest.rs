//! `manifest.json`: what is in a bundle, where it came from, and how to call it.

use dpar_export_spec::{AxisRange, ComponentKind, GraphSpec, PatchRule, Precision, SystemKind};
use serde::{Deserialize, Serialize};

use crate::targets::plan::Weights;
use crate::targets::tuning::Tuning;

/// The manifest layout this version writes and reads.
pub const SCHEMA_VERSION: u32 = 1;

/// A file with its size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
pub struct ToolEntry {
    /// `dpar-export`.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl ToolEntry {
    /// This program.
    pub fn this() -> Self {
        Self { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// One exported component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentEntry {
    /// Which component.
    pub kind: ComponentKind,
    /// Number of parameters in the checkpoint.
    pub parameters: u64,
    /// External-data file that its graphs share.
    pub weights: String,
    /// Names of its graphs.
    pub graphs: Vec<String>,
}

/// One graph: its file and its interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphEntry {
    /// The `.onnx` file.
    pub file: String,
    /// Ports and axis ranges.
    #[serde(flatten)]
    pub spec: GraphSpec,
}

/// An optimization profile of an engine: the range of every axis of its graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileEntry {
    /// Name, unique in the engine.
    pub name: String,
    /// Ranges.
    pub axes: Vec<AxisRange>,
}

/// An engine that was built from a graph, bound to the bytes it was built from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    pub weights: Weights,
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
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layout version.
    pub schema_version: u32,
    /// What wrote it.
    pub tool: ToolEntry,
    /// DPAR, LlamaGen, or a feature extractor.
    pub system: SystemKind,
    /// Name of the model.
    pub name: String,
    /// Arithmetic of the graphs.
    pub precision: Precision,
    /// ONNX opset of the graphs.
    pub opset: i64,
    /// Where patches begin; an extractor has no patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_rule: Option<PatchRule>,
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
#[non_exhaustive]
pub enum ManifestError {
    /// Not JSON of the expected layout.
    #[error("not a manifest: {0}")]
    Syntax(String),
    /// A field occurs twice in an object: of two values one reader takes the first, and another the last.
    #[error("not a manifest: {0}")]
    RepeatedField(String),
    /// Written by a newer (or unknown) version.
    #[error("schema version {0} is not supported (this version reads {SCHEMA_VERSION})")]
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
    /// An engine has another precision than the graphs.
    #[error("the engine of graph `{graph}` is {found}, the graphs are {precision}")]
    EnginePrecision {
        /// Graph name.
        graph: String,
        /// The engine's.
        found: Precision,
        /// The graphs'.
        precision: Precision,
    },
    /// A name or path occurs twice.
    #[error("`{0}` is listed twice")]
    Duplicate(String),
    /// The patch rule cannot be evaluated.
    #[error("patch rule: {0}")]
    PatchRule(#[from] dpar_export_spec::PatchRuleError),
    /// A system without a patch rule, or an extractor with one.
    #[error("a system has a patch rule and a feature extractor has none; here it is the other way round")]
    PatchRulePresence,
}

impl ManifestError {
    /// Whether no version of this tool would have written it: paths that lead elsewhere, entries that contradict
    /// each other. The others are what a damaged file or another version looks like.
    pub fn is_tampering(&self) -> bool {
        matches!(
            self,
            Self::Path(_)
                | Self::Unlisted { .. }
                | Self::StaleEngine(_)
                | Self::EnginePrecision { .. }
                | Self::Duplicate(_)
                | Self::RepeatedField(_)
                | Self::PatchRulePresence
        )
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
        // The words of serde's `Error::duplicate_field`.
        let syntax = |e: serde_json::Error| match e.to_string() {
            text if text.starts_with("duplicate field") => ManifestError::RepeatedField(text),
            text => ManifestError::Syntax(text),
        };
        let version: Version = serde_json::from_slice(bytes).map_err(syntax)?;
        if version.schema_version != u64::from(SCHEMA_VERSION) {
            return Err(ManifestError::SchemaVersion(version.schema_version));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(syntax)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        match (&self.patch_rule, self.system) {
            (None, SystemKind::Extractor) => {}
            (Some(rule), SystemKind::Dpar | SystemKind::Llamagen) => rule.validate()?,
            _ => return Err(ManifestError::PatchRulePresence),
        }
        // On some file systems two names that differ in case are one file.
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        for (i, file) in self.files.iter().enumerate() {
            if !is_inside(&file.path) || same(&file.path, super::MANIFEST) {
                return Err(ManifestError::Path(file.path.clone()));
            }
            if self.files[..i].iter().any(|f| same(&f.path, &file.path)) {
                return Err(ManifestError::Duplicate(file.path.clone()));
            }
        }
        let listed = |what: &str, path: &str| {
            if self.files.iter().any(|f| f.path == path) {
                Ok(())
            } else {
                Err(ManifestError::Unlisted { what: what.to_owned(), path: path.to_owned() })
            }
        };
        listed("config", super::CONFIG)?;
        for (i, graph) in self.graphs.iter().enumerate() {
            if self.graphs[..i].iter().any(|g| g.spec.name == graph.spec.name) {
                return Err(ManifestError::Duplicate(graph.spec.name.clone()));
            }
            listed(&graph.spec.name, &graph.file)?;
        }
        for (i, engine) in self.engines.iter().enumerate() {
            if self.engines[..i].iter().any(|e| e.graph == engine.graph || e.file == engine.file) {
                return Err(ManifestError::Duplicate(engine.file.clone()));
            }
            listed(&engine.graph, &engine.file)?;
            if self.sources_of(&engine.graph) != Some((&engine.graph_sha256, &engine.weights_sha256)) {
                return Err(ManifestError::StaleEngine(engine.graph.clone()));
            }
            if engine.precision != self.precision {
                let (graph, found) = (engine.graph.clone(), engine.precision);
                return Err(ManifestError::EnginePrecision { graph, found, precision: self.precision });
            }
        }
        for (i, component) in self.components.iter().enumerate() {
            if self.components[..i].iter().any(|c| c.kind == component.kind) {
                return Err(ManifestError::Duplicate(component.kind.name().to_owned()));
            }
            listed(component.kind.name(), &component.weights)?;
        }
        Ok(())
    }

    /// SHA-256 of a graph and of its weights.
    pub fn sources_of(&self, graph: &str) -> Option<(&String, &String)> {
        let entry = self.graphs.iter().find(|g| g.spec.name == graph)?;
        let component = self.components.iter().find(|c| c.kind.name() == entry.spec.component)?;
        let digest = |path: &str| self.files.iter().find(|f| f.path == path).map(|f| &f.sha256);
        Some((digest(&entry.file)?, digest(&component.weights)?))
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

/// Whether a path is relative, portable and stays inside the folder it starts in: parts of ASCII letters, digits,
/// `.`, `_` and `-` that mean the same file on every file system.
fn is_inside(path: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    // A leading dot hides a file (and is `.` or `..`); a trailing one is dropped by some systems.
    let plain = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.ends_with('.') && part.chars().all(allowed)
    };
    path.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_are_inside() {
        for good in ["config.json", "onnx/a.onnx", "onnx/b..c.onnx_data"] {
            assert!(is_inside(good), "{good}");
        }
        let outside =
            ["", "/etc/passwd", "../x", "onnx/../../x", "./x", "a//b", "a/", "c:\\x", "a\\..\\b", "a\0b"];
        // Names that are another file, or none to see, on some file system or in some listing.
        let tricks = [
            ".hidden",
            "onnx/.x",
            "a.",
            "a b",
            "a ",
            "\u{ff41}.onnx",
            "a\u{200b}",
            "cafe\u{301}",
            "%2e%2e/x",
            "~",
        ];
        for bad in outside.into_iter().chain(tricks) {
            assert!(!is_inside(bad), "{bad:?}");
        }
    }

    /// A manifest as the exporter writes it, small.
    fn sample() -> Vec<u8> {
        let file = |path: &str| FileEntry { path: path.to_owned(), size: 1, sha256: "0".repeat(64) };
        let manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            tool: ToolEntry { name: "t".into(), version: "1".into() },
            system: SystemKind::Dpar,
            name: "n".into(),
            precision: Precision::Fp32,
            opset: 17,
            patch_rule: Some(PatchRule::per_token(4)),
            sources: vec![],
            components: vec![ComponentEntry {
                kind: ComponentKind::Dpar,
                parameters: 1,
                weights: "onnx/dpar.onnx_data".into(),
                graphs: vec!["score".into()],
            }],
            graphs: vec![],
            engines: vec![],
            files: vec![file("config.json"), file("onnx/dpar.onnx_data")],
        };
        manifest.to_bytes().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample();
        assert_eq!(Manifest::parse(&bytes).unwrap().to_bytes().unwrap(), bytes);
    }

    #[test]
    fn unlisted_and_repeated_entries_are_refused() {
        let change = |from: &str, to: &str| {
            let text = String::from_utf8(sample()).unwrap();
            Manifest::parse(text.replacen(from, to, 1).as_bytes())
        };
        let e = change("onnx/dpar.onnx_data", "onnx/other").unwrap_err();
        assert!(matches!(e, ManifestError::Unlisted { .. }), "{e}");
        let text = String::from_utf8(sample()).unwrap();
        let twice = text.replace("\"onnx/dpar.onnx_data\"", "\"config.json\"");
        let e = Manifest::parse(twice.as_bytes()).unwrap_err();
        assert!(matches!(e, ManifestError::Duplicate(_)), "{e}");
        let cased = text.replace("\"onnx/dpar.onnx_data\"", "\"Config.json\"");
        let e = Manifest::parse(cased.as_bytes()).unwrap_err();
        assert!(matches!(e, ManifestError::Duplicate(_)) && e.is_tampering(), "{e}");
        let e = change("\"config.json\"", "\"MANIFEST.json\"").unwrap_err();
        assert!(matches!(e, ManifestError::Path(_)) && e.is_tampering(), "{e}");
        let e = change("\"grid\": 4", "\"grid\": 0").unwrap_err();
        assert!(matches!(e, ManifestError::PatchRule(_)), "{e}");
        let e = change("\"dpar\"", "\"extractor\"").unwrap_err();
        assert!(matches!(e, ManifestError::PatchRulePresence), "{e}");
    }

    #[test]
    fn a_field_that_occurs_twice_is_tampering_and_an_unknown_one_is_another_version() {
        let change = |from: &str, to: &str| {
            let text = String::from_utf8(sample()).unwrap();
            assert!(text.contains(from), "{from}: {text}");
            Manifest::parse(text.replacen(from, to, 1).as_bytes()).unwrap_err()
        };
        for (from, to) in [
            ("\"opset\": 17", "\"opset\": 17, \"opset\": 17"),
            ("\"schema_version\": 1", "\"schema_version\": 1, \"schema_version\": 1"),
            ("\"path\": \"config.json\"", "\"path\": \"config.json\", \"path\": \"config.json\""),
        ] {
            let e = change(from, to);
            assert!(matches!(e, ManifestError::RepeatedField(_)) && e.is_tampering(), "{to}: {e}");
        }
        let e = change("\"opset\": 17", "\"opset\": 17, \"more\": 1");
        assert!(matches!(e, ManifestError::Syntax(_)) && !e.is_tampering(), "{e}");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = Manifest::parse(&bytes);
        }

        #[test]
        fn a_damaged_manifest_never_panics_and_never_leads_outside(at in 0_usize..2000, byte in proptest::num::u8::ANY) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(manifest) = Manifest::parse(&bytes) {
                proptest::prop_assert!(manifest.files.iter().all(|f| is_inside(&f.path)));
            }
        }
    }
}
