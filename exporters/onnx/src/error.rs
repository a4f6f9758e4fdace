//! Export errors.

use camino::Utf8PathBuf;
use dpar_export_spec::{Hinted, Precision};

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A tensor could not be read from the checkpoint.
    #[error("{component}: tensor `{tensor}`: {source}")]
    Weight {
        /// Component name.
        component: String,
        /// Tensor name in the checkpoint.
        tensor: String,
        /// The reader's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor has another shape than the component spec says.
    #[error("{component}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Component name.
        component: String,
        /// Tensor name in the checkpoint.
        tensor: String,
        /// Shape the graph needs.
        expected: Vec<usize>,
        /// Shape in the checkpoint.
        found: Vec<usize>,
    },
    /// A weight that the half type cannot hold.
    #[error(
        "{component}: tensor `{tensor}` holds {value} at element {index}, and {precision} ends at {largest}"
    )]
    Overflow {
        /// Component name.
        component: String,
        /// Tensor name in the checkpoint.
        tensor: String,
        /// The value.
        value: f32,
        /// Its place in the flattened tensor.
        index: usize,
        /// The precision that was asked for.
        precision: Precision,
        /// Its largest number.
        largest: f32,
    },
    /// A weight that no whole number stands for.
    #[error("{component}: tensor `{tensor}` holds {value} in column {column}: it cannot be quantized")]
    NotFinite {
        /// Component name.
        component: String,
        /// Tensor name in the checkpoint.
        tensor: String,
        /// The value.
        value: f32,
        /// The column of its row.
        column: usize,
    },
    /// Quantized weights in graphs that are not float32.
    #[error("{component}: weights are quantized in fp32 graphs only, not in {precision}")]
    QuantizedPrecision {
        /// Component name.
        component: String,
        /// The precision that was asked for.
        precision: Precision,
    },
    /// Sizes that cannot be exported (an odd head width, say).
    #[error("{component}: {message}")]
    Spec {
        /// Component name.
        component: String,
        /// What does not fit.
        message: String,
    },
    /// The caller stopped the export.
    #[error("interrupted")]
    Interrupted,
    /// Writing failed.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Hinted for ExportError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Overflow { precision: Precision::Fp16, .. } => {
                "use --precision bf16, which has the range of fp32"
            }
            Self::Overflow { precision: Precision::Fp16Autocast, .. } => {
                "use --precision bf16-autocast, which has the range of fp32"
            }
            Self::Overflow { .. } => "use --precision fp32",
            Self::Weight { .. }
            | Self::Shape { .. }
            | Self::NotFinite { .. }
            | Self::QuantizedPrecision { .. }
            | Self::Spec { .. }
            | Self::Interrupted
            | Self::Write { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// Why a file is not the graph that it is said to be, or that this program knows: in words, about the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileFault(String);

impl From<String> for FileFault {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for FileFault {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}
