//! Why an engine could not be built.

use camino::Utf8PathBuf;
use dpar_engine_api::{EngineError, EngineErrorKind};

use crate::{CapabilityError, NAME, ProfileError};

/// Why an engine could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The library is missing or does not fit.
    #[error(transparent)]
    Unavailable(EngineError),
    /// A profile does not fit the graph.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// No engine can be built for a compute capability.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// A setting that the library refuses, or refuses here.
    #[error("{setting}: {reason}")]
    Setting {
        /// What was asked for.
        setting: String,
        /// Why it cannot be.
        reason: String,
        /// The next step.
        hint: String,
    },
    /// A setting that the library meets on a GPU only.
    #[error("{setting}: {reason}")]
    NoDevice {
        /// What was asked for.
        setting: String,
        /// Why it cannot be here.
        reason: String,
        /// The next step.
        hint: String,
    },
    /// The file is not an ONNX graph that TensorRT reads.
    #[error("graph `{graph}`: {path}: {}", fault)]
    Parse {
        /// Graph name.
        graph: String,
        /// The `.onnx` file.
        path: Utf8PathBuf,
        /// What TensorRT's parser objects to.
        fault: Box<ParseFault>,
    },
    /// The graph was read and its ports are not those of the spec.
    #[error(transparent)]
    Ports(EngineError),
    /// TensorRT read the graph and could not build it.
    #[error("graph `{graph}`: TensorRT could not build it: {message}")]
    Build {
        /// Graph name.
        graph: String,
        /// What TensorRT said.
        message: String,
    },
    /// The progress callback stopped the build.
    #[error("graph `{graph}`: the build was stopped")]
    Stopped {
        /// Graph name.
        graph: String,
    },
}

/// What TensorRT's parser objects to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParseFault {
    /// Index of the node in the file.
    pub node: Option<usize>,
    /// Name of the node.
    pub name: Option<String>,
    /// Its operator.
    pub op: Option<String>,
    /// The reason.
    pub message: String,
    /// How many nodes are refused in all.
    pub count: usize,
}

impl std::fmt::Display for ParseFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(node) = self.node {
            write!(f, "node {node}")?;
            if let Some(name) = &self.name {
                write!(f, " `{name}`")?;
            }
            if let Some(op) = &self.op {
                write!(f, " ({op})")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)?;
        match self.count {
            0 | 1 => Ok(()),
            n => write!(f, " (and {} more)", n - 1),
        }
    }
}

impl BuildError {
    /// The next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unavailable(e) | Self::Ports(e) => e.hint.clone(),
            Self::Profile(_) => Some("change the shapes, or leave them to the ranges in the manifest".into()),
            Self::Capability(e) => Some(e.hint()),
            Self::Setting { hint, .. } | Self::NoDevice { hint, .. } => Some(hint.clone()),
            Self::Parse { fault, .. } if fault.node.is_none() => Some("export the graph again".into()),
            Self::Parse { .. } | Self::Build { .. } | Self::Stopped { .. } => None,
        }
    }
}

impl From<BuildError> for EngineError {
    fn from(error: BuildError) -> Self {
        let hint = error.hint();
        let (kind, graph, message) = match error {
            BuildError::Unavailable(e) | BuildError::Ports(e) => return e,
            BuildError::Profile(e) => {
                let message = format!("profile `{}`: {}", e.profile, e.message);
                (EngineErrorKind::Setting, Some(e.graph), message)
            }
            BuildError::Parse { graph, path, fault } => {
                (EngineErrorKind::Graph, Some(graph), format!("{path}: {fault}"))
            }
            BuildError::Build { graph, message } => {
                (EngineErrorKind::Graph, Some(graph), format!("TensorRT could not build it: {message}"))
            }
            BuildError::Stopped { graph } => {
                (EngineErrorKind::Run, Some(graph), "the build was stopped".to_owned())
            }
            other @ BuildError::NoDevice { .. } => (EngineErrorKind::Unavailable, None, other.to_string()),
            other @ (BuildError::Capability(_) | BuildError::Setting { .. }) => {
                (EngineErrorKind::Setting, None, other.to_string())
            }
        };
        Self { graph, hint, ..Self::new(kind, NAME, message) }
    }
}
