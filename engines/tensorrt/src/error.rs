//! Why an engine could not be built.

use camino::Utf8PathBuf;
use dpar_engine_api::{EngineError, EngineErrorKind};

use crate::{CapabilityError, NAME, ProfileError};

/// Why an engine could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
    /// A precision was asked for that is not the graph's.
    #[error(transparent)]
    Precision(#[from] PrecisionRefused),
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

/// A precision that other TensorRT builders take as a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PrecisionFlag {
    /// 16-bit IEEE floats.
    Fp16,
    /// Brain floats.
    Bf16,
    /// 8-bit floats.
    Fp8,
    /// 8-bit integers.
    Int8,
}

impl PrecisionFlag {
    /// As on the command line, without the dashes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
        }
    }

    /// Why this flag has no effect here.
    pub fn refused(self) -> PrecisionRefused {
        PrecisionRefused { flag: self }
    }
}

/// Why a precision flag is refused: TensorRT-RTX builds strongly typed networks only, in which every tensor has the
/// type that the graph gives it. TensorRT 10 had weak typing and let the builder choose; that is gone since 11.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` cannot be chosen when an engine is built: TensorRT-RTX takes every tensor's type from the graph",
    flag.name()
)]
pub struct PrecisionRefused {
    /// The flag.
    pub flag: PrecisionFlag,
}

impl PrecisionRefused {
    /// The next step.
    pub fn hint(&self) -> String {
        match self.flag {
            PrecisionFlag::Fp16 | PrecisionFlag::Bf16 => {
                format!("export the graphs in {} and build those", self.flag.name())
            }
            PrecisionFlag::Fp8 | PrecisionFlag::Int8 => "quantised graphs are not exported".to_owned(),
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
            Self::Precision(e) => Some(e.hint()),
            Self::Setting { hint, .. } | Self::NoDevice { hint, .. } => Some(hint.clone()),
            Self::Parse { fault, .. } if fault.node.is_none() => Some(
                "the `.onnx_data` file must lie beside the `.onnx` file, as exported: copy both, or export again"
                    .into(),
            ),
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
                (EngineErrorKind::Input, Some(e.graph), message)
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
            other => (EngineErrorKind::Input, None, other.to_string()),
        };
        Self { kind, engine: NAME.to_owned(), graph, message, hint }
    }
}
