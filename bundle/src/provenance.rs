//! The provenance chain of a bundle: checkpoint → weights → graph → engine, each link a file with its SHA-256.

use std::collections::BTreeMap;

use dpar_export_spec::{Dialect, Precision, Precisions};
use serde::{Deserialize, Serialize};

use super::{EngineEntry, Manifest, SourceEntry, ToolEntry};

/// Where everything in a bundle came from. A report (`verify --json`) continues the chain with the bundle's own
/// digest and what ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// What wrote the bundle.
    pub tool: ToolEntry,
    /// Name of the model.
    pub name: String,
    /// Arithmetic of the graphs, component by component.
    #[serde(flatten)]
    pub precision: Precisions,
    /// Files that concern every component, such as rename rules.
    pub shared_sources: Vec<SourceEntry>,
    /// One chain for each component.
    pub components: Vec<ComponentChain>,
}

/// The chain of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentChain {
    /// Which component.
    pub component: String,
    /// The checkpoint's files.
    pub sources: Vec<SourceEntry>,
    /// The weights made from them.
    pub weights: Link,
    /// The graphs over these weights.
    pub graphs: Vec<GraphLink>,
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Path inside the bundle.
    pub file: String,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// A graph and what was built from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphLink {
    /// Graph name.
    pub graph: String,
    /// Its file.
    #[serde(flatten)]
    pub link: Link,
    /// The form that the file is in, where it is not portable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<Dialect>,
    /// Engines built from exactly this graph and these weights.
    pub engines: Vec<EngineLink>,
}

/// An engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineLink {
    /// Its file.
    #[serde(flatten)]
    pub link: Link,
    /// The product that built it.
    pub builder: String,
    /// Its version.
    pub version: String,
    /// Arithmetic.
    pub precision: Precision,
}

impl Manifest {
    /// The provenance chain. A checked manifest lists every file of it, and its engines are bound to their graphs
    /// and weights.
    pub fn provenance(&self) -> Provenance {
        let files: BTreeMap<&str, &String> =
            self.files.iter().map(|f| (f.path.as_str(), &f.sha256)).collect();
        let link = |path: &str| {
            let sha256 = files.get(path).copied().cloned().unwrap_or_default();
            Link { file: path.to_owned(), sha256 }
        };
        let mut built: BTreeMap<&str, Vec<&EngineEntry>> = BTreeMap::new();
        for engine in &self.engines {
            built.entry(engine.graph.as_str()).or_default().push(engine);
        }
        let engines = |graph: &str| {
            let of_graph = built.get(graph).into_iter().flatten();
            of_graph
                .map(|e| EngineLink {
                    link: link(&e.file),
                    builder: e.builder.clone(),
                    version: e.version.clone(),
                    precision: e.precision,
                })
                .collect()
        };
        let names: Vec<&str> = self.components.iter().map(|c| c.kind.name()).collect();
        let belongs = |source: &SourceEntry, name: &str| {
            source.role == name
                || source.role.strip_prefix(name).is_some_and(|rest| ["-config", "-shard"].contains(&rest))
        };
        let components = self.components.iter().map(|c| {
            let graphs = self.graphs.iter().filter(|g| g.spec.component == c.kind.name());
            let own = self.sources.iter().filter(|s| belongs(s, c.kind.name()));
            ComponentChain {
                component: c.kind.name().to_owned(),
                sources: own.cloned().collect(),
                weights: link(&c.weights),
                graphs: graphs
                    .flat_map(|g| g.files().map(move |(dialect, file)| (g, dialect, file)))
                    .map(|(g, dialect, file)| GraphLink {
                        graph: g.spec.name.clone(),
                        link: link(file),
                        // Engines are built from the portable form.
                        engines: if dialect == Dialect::Portable {
                            engines(&g.spec.name)
                        } else {
                            Vec::new()
                        },
                        dialect: Some(dialect).filter(|d| *d != Dialect::Portable),
                    })
                    .collect(),
            }
        });
        let shared = self.sources.iter().filter(|s| names.iter().all(|n| !belongs(s, n)));
        Provenance {
            tool: self.tool.clone(),
            name: self.name.clone(),
            precision: self.precisions(),
            shared_sources: shared.cloned().collect(),
            components: components.collect(),
        }
    }
}
