//! Builds real engines from the conformance graphs and checks everything that is refused without a GPU. The tests
//! need the TensorRT-RTX libraries and fail with the way to get them where they are missing.
#![allow(clippy::unwrap_used)]

mod build;
mod hostile;
mod profile;
mod refused;
mod runtime;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::GraphFile;
use dpar_engine_tensorrt::EngineBuilder;
use dpar_export_spec::GraphSpec;

/// A graph of the conformance suite.
struct Graph {
    spec: GraphSpec,
    path: Utf8PathBuf,
}

impl Graph {
    fn file(&self) -> GraphFile<'_> {
        GraphFile::new(&self.spec, &self.path)
    }
}

fn fixtures() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures")
}

fn graph(name: &str) -> Graph {
    let text = std::fs::read_to_string(fixtures().join(format!("{name}.json"))).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let spec = serde_json::from_value(document["spec"].clone()).unwrap();
    Graph { spec, path: fixtures().join(format!("{name}.onnx")) }
}

/// The builder; there is no way to pass these tests without the libraries.
fn builder() -> EngineBuilder {
    EngineBuilder::open(None)
        .unwrap_or_else(|e| panic!("{e}\nnext step: {}", e.hint.clone().unwrap_or_default()))
}

/// A copy of a graph and its weights that a test may damage.
struct Copied {
    folder: tempfile::TempDir,
    graph: Graph,
}

impl Copied {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let mut graph = graph(name);
        let path = root.join("onnx").join(format!("{name}.onnx"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(&graph.path, &path).unwrap();
        for data in ["step.onnx_data", "conv.onnx_data"] {
            std::fs::copy(fixtures().join(data), path.with_file_name(data)).unwrap();
        }
        graph.path = path;
        Self { folder, graph }
    }

    fn root(&self) -> &Utf8Path {
        Utf8Path::from_path(self.folder.path()).unwrap()
    }

    /// Replaces every occurrence of a text in the graph file by one of the same length.
    fn replace(&self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        let bytes = std::fs::read(&self.graph.path).unwrap();
        let mut changed = bytes.clone();
        let mut found = 0;
        for at in 0..bytes.len().saturating_sub(from.len()) {
            if bytes[at..].starts_with(from.as_bytes()) {
                changed[at..at + to.len()].copy_from_slice(to.as_bytes());
                found += 1;
            }
        }
        assert!(found > 0, "no {from} in {}", self.graph.path);
        std::fs::write(&self.graph.path, changed).unwrap();
    }
}
