//! Why a job on a bundle failed.

use camino::Utf8PathBuf;
use dpar_engine_api::EngineError;
use dpar_export_bundle::BundleError;
use dpar_export_files::arrays::ArrayError;
use dpar_export_spec::Hinted;

use crate::generate::DecodeError;

/// Why a job on a bundle failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The decoding loop.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// An array file.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A file that is not the one that was recorded.
    #[error("{path} does not match {record}: {message}")]
    Integrity {
        /// The file.
        path: Utf8PathBuf,
        /// What recorded it.
        record: String,
        /// What differs.
        message: String,
    },
    /// Preparing images, or computing a metric.
    #[error(transparent)]
    Metric(#[from] dpar_export_metrics::MetricError),
    /// What was asked for does not fit the bundle.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl RunError {
    /// Whether a graph was run and it went wrong: it failed, or gave what cannot be. Not that the engine is missing or
    /// refuses the graph.
    pub fn went_wrong(&self) -> bool {
        match self {
            Self::Engine(e) | Self::Decode(DecodeError::Engine(e)) => e.kind.went_wrong(),
            Self::Decode(DecodeError::Sample { source, .. }) => source.is_of_logits(),
            Self::Decode(DecodeError::Entropy { .. }) => true,
            Self::Bundle(_)
            | Self::Array(_)
            | Self::Integrity { .. }
            | Self::Metric(_)
            | Self::Request(_)
            | Self::Decode(DecodeError::NoNullClass | DecodeError::Interrupted)
            | Self::Interrupted => false,
        }
    }

    /// The engine's own error, where it is one.
    pub fn of_engine(&self) -> Option<&EngineError> {
        match self {
            Self::Engine(e) | Self::Decode(DecodeError::Engine(e)) => Some(e),
            Self::Decode(
                DecodeError::Sample { .. }
                | DecodeError::Entropy { .. }
                | DecodeError::NoNullClass
                | DecodeError::Interrupted,
            )
            | Self::Bundle(_)
            | Self::Array(_)
            | Self::Integrity { .. }
            | Self::Metric(_)
            | Self::Request(_)
            | Self::Interrupted => None,
        }
    }
}

impl Hinted for RunError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Bundle(e) => e.hint(),
            Self::Engine(e) | Self::Decode(DecodeError::Engine(e)) => e.hint.clone(),
            Self::Array(e) => e.hint(),
            Self::Integrity { .. } => {
                let hint = "the file was changed after it was recorded: record it again, or get the original";
                Some(hint.to_owned())
            }
            Self::Decode(
                DecodeError::Sample { .. }
                | DecodeError::Entropy { .. }
                | DecodeError::NoNullClass
                | DecodeError::Interrupted,
            )
            | Self::Metric(_)
            | Self::Request(_)
            | Self::Interrupted => None,
        }
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Bundle(e) => e.details(),
            Self::Engine(_)
            | Self::Decode(_)
            | Self::Array(_)
            | Self::Integrity { .. }
            | Self::Metric(_)
            | Self::Request(_)
            | Self::Interrupted => Vec::new(),
        }
    }
}

/// Classes, tokens, patches or images that do not fit a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A class that the model does not have.
    #[error(
        "class {class} of image {image} is not in 0..{classes} ({})",
        .null.map_or("there is no null class".to_owned(), |n| format!("the null class is {n}"))
    )]
    Class {
        /// The class.
        class: i64,
        /// Index of the image.
        image: u64,
        /// Classes without the null class.
        classes: i64,
        /// The null class.
        null: Option<i64>,
    },
    /// A label that the class table has no row for.
    #[error("class label {label} of image {image} is not in 0..{end}")]
    Label {
        /// The label.
        label: i64,
        /// Which image.
        image: usize,
        /// Rows of the class table.
        end: i64,
    },
    /// Tokens and labels that are not of equally many images.
    #[error("{tokens} tokens for {labels} class labels")]
    Counts {
        /// Tokens.
        tokens: usize,
        /// Labels.
        labels: usize,
    },
    /// Images of too many tokens, or of none.
    #[error("{tokens} tokens per image; the model takes 1 to {most}")]
    Length {
        /// Tokens of an image.
        tokens: usize,
        /// The most.
        most: usize,
    },
    /// A token that is no row of the codebook.
    #[error("token {token} of image {image}, slot {slot}, is not in 0..{vocab}")]
    Token {
        /// The token.
        token: i64,
        /// Which image.
        image: usize,
        /// Which slot.
        slot: usize,
        /// Size of the codebook.
        vocab: usize,
    },
    /// Rows of patch lengths and images that are not equally many.
    #[error("{rows} rows of patch_lengths for {images} images")]
    PatchRows {
        /// Rows.
        rows: usize,
        /// Images.
        images: usize,
    },
    /// Patches that do not make up an image.
    #[error("patch_lengths of image {image} do not sum to {tokens} tokens")]
    PatchSum {
        /// Which image.
        image: usize,
        /// Its tokens.
        tokens: usize,
    },
    /// A patch that the rule cannot make.
    #[error("image {image} has a patch of {length} tokens; the longest is {longest}")]
    PatchLength {
        /// Which image.
        image: usize,
        /// Tokens of the patch.
        length: usize,
        /// The most.
        longest: usize,
    },
    /// Values that do not make up whole images.
    #[error("{found} {what} are no multiple of {image}")]
    Partial {
        /// What they are: codes, or values of pixels.
        what: &'static str,
        /// How many.
        found: usize,
        /// Those of one image.
        image: usize,
    },
}
