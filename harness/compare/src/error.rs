//! Why a comparison could not be made. A difference is no error: it is in the checks.

use std::io;

use camino::Utf8PathBuf;
use dpar_engine_api::EngineError;
use dpar_export_bundle::BundleError;
use dpar_export_decode::generate::DecodeError;
use dpar_export_decode::generate::sampler::SampleError;
use dpar_export_decode::loaded::RunError;
use dpar_export_files::arrays::ArrayError;
use dpar_export_onnx::derive::DeriveError;
use dpar_export_spec::{Hinted, Numbers, Precision};

use crate::names::{ARRAYS, GOLDEN_JSON};

/// Why two sources of outputs could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A bundle, its engine, an array file, or a file that is not the one that was recorded.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A reference that cannot be compared with.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The file system refused a file or folder.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: Utf8PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Settings that are not what they should be.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Bundles that have nothing in common to compare.
    #[error("the two bundles are of different systems")]
    Systems,
    /// Bundles whose graphs are of two types.
    #[error(
        "the bundles are of unlike precision, {a} and {b}: graphs of two types cannot be told apart by their outputs; \
         compare bundles of one precision, or give recorded outputs as the reference"
    )]
    Precisions {
        /// Of one bundle.
        a: Numbers,
        /// Of the other.
        b: Numbers,
    },
    /// A reference that would be no reference.
    #[error(
        "a reference is recorded from a bundle of one precision whose weights are floats, and this one is {0}: it is verified \
         against one"
    )]
    NoReference(Numbers),
    /// Logits without a choice.
    #[error("logits that nothing can be drawn from: {0}")]
    Draw(#[from] SampleError),
    /// A graph of which no other can be made.
    #[error("graph {graph}: {source}")]
    Derive {
        /// The graph.
        graph: String,
        /// Why not.
        source: DeriveError,
    },
}

/// Why a recorded reference cannot be compared with.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A folder without arrays.
    #[error("{folder} has no {} and no {}", ARRAYS[0], ARRAYS[1])]
    NoArrays {
        /// The folder.
        folder: Utf8PathBuf,
    },
    /// A folder with two array files.
    #[error("{folder} has both {} and {}: which one is meant? remove the other", ARRAYS[0], ARRAYS[1])]
    TwoArrays {
        /// The folder.
        folder: Utf8PathBuf,
    },
    /// No check can be made with it.
    #[error(
        "{file} holds nothing to compare with: it has {has}; verify compares `tokens` with `logits` (and `class_labels`), \
         `greedy_tokens`, `greedy_image_u8` and `encode_image` with `encode_codes`"
    )]
    Nothing {
        /// The array file.
        file: Utf8PathBuf,
        /// Its arrays.
        has: String,
    },
    /// Settings with a key twice: of two values one reader takes the first, and another the last.
    #[error("{path}: {why}")]
    Repeated {
        /// The settings.
        path: Utf8PathBuf,
        /// Which key, and where.
        why: String,
    },
    /// A setting that cannot be, or has nearly the name of one.
    #[error("{path}: `{key}`: {why}")]
    Key {
        /// The settings.
        path: Utf8PathBuf,
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Settings that contradict themselves.
    #[error("{path}: arithmetic says {arithmetic}, provenance.precision says {provenance}")]
    Contradiction {
        /// The settings.
        path: Utf8PathBuf,
        /// One word.
        arithmetic: Precision,
        /// The other.
        provenance: Precision,
    },
    /// A folder named for one precision whose settings say another, or none.
    #[error(
        "{folder} is for outputs in {precision}, but {GOLDEN_JSON} there says {} as arithmetic (or provenance.precision)",
        .says.map_or("no precision".to_owned(), |p| p.to_string())
    )]
    OtherPrecision {
        /// The folder.
        folder: Utf8PathBuf,
        /// The precision that it is named for.
        precision: Precision,
        /// What its settings say.
        says: Option<Precision>,
    },
    /// Streams of which none is compared.
    #[error("{file} holds {held} streams, and {asked} of them are asked for: nothing to compare")]
    NoStreams {
        /// The file of streams.
        file: Utf8PathBuf,
        /// Streams in it.
        held: usize,
        /// How many are to be compared.
        asked: usize,
    },
    /// Greedy tokens whose guidance is not known.
    #[error("greedy tokens need {GOLDEN_JSON} with their cfg_scale beside the arrays")]
    NoGuidance,
    /// Images without a class.
    #[error("{file}: {images} images but {labels} labels")]
    Labels {
        /// The array file.
        file: Utf8PathBuf,
        /// Images.
        images: usize,
        /// Their labels.
        labels: usize,
    },
}

impl CompareError {
    /// Whether a graph was run and it went wrong: see [`RunError::went_wrong`].
    pub fn went_wrong(&self) -> bool {
        match self {
            Self::Run(e) => e.went_wrong(),
            Self::Draw(e) => e.is_of_logits(),
            Self::Reference(_)
            | Self::Io { .. }
            | Self::Json { .. }
            | Self::Systems
            | Self::Precisions { .. }
            | Self::NoReference(_)
            | Self::Derive { .. } => false,
        }
    }

    /// The engine's own error, where it is one.
    pub(crate) fn of_engine(&self) -> Option<&EngineError> {
        match self {
            Self::Run(e) => e.of_engine(),
            Self::Reference(_)
            | Self::Io { .. }
            | Self::Json { .. }
            | Self::Systems
            | Self::Precisions { .. }
            | Self::NoReference(_)
            | Self::Draw(_)
            | Self::Derive { .. } => None,
        }
    }

    /// The file system refused this file or folder.
    pub(crate) fn io(path: impl Into<Utf8PathBuf>) -> impl Fn(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path: path.clone(), source }
    }

    /// This file of settings is not what it should be.
    pub(crate) fn json(path: impl Into<Utf8PathBuf>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.into();
        move |source| Self::Json { path, source }
    }
}

impl Hinted for CompareError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Run(e) => e.hint(),
            Self::Reference(_)
            | Self::Io { .. }
            | Self::Json { .. }
            | Self::Systems
            | Self::Precisions { .. }
            | Self::NoReference(_)
            | Self::Draw(_)
            | Self::Derive { .. } => None,
        }
    }
}

impl From<BundleError> for CompareError {
    fn from(e: BundleError) -> Self {
        Self::Run(e.into())
    }
}

impl From<EngineError> for CompareError {
    fn from(e: EngineError) -> Self {
        Self::Run(e.into())
    }
}

impl From<DecodeError> for CompareError {
    fn from(e: DecodeError) -> Self {
        Self::Run(e.into())
    }
}

impl From<ArrayError> for CompareError {
    fn from(e: ArrayError) -> Self {
        Self::Run(e.into())
    }
}
