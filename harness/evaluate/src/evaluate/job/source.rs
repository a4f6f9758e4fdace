//! Where samples come from.

use dpar_export_files::arrays::ArrayFile;
use dpar_export_files::samples::TRACE;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::evaluate::EvaluateError;
use crate::evaluate::drawn::Drawn;
use crate::evaluate::images::ImageSet;
use crate::evaluate::look::{Pictures, Sink};
use crate::evaluate::protocol::Sampling;

/// Where samples come from.
pub enum SampleSource<'a> {
    /// Images that are there.
    Images(ImageSet),
    /// A bundle draws them.
    Drawn(Drawn<'a>),
}

impl SampleSource<'_> {
    fn pictures(&self) -> &dyn Pictures {
        match self {
            Self::Images(set) => set,
            Self::Drawn(drawn) => drawn,
        }
    }

    /// The images that are there.
    pub(super) fn images(&self) -> Option<&ImageSet> {
        match self {
            Self::Images(set) => Some(set),
            Self::Drawn(_) => None,
        }
    }

    /// Everything that the pixels depend on.
    pub(super) fn content(&self) -> Value {
        match self {
            Self::Images(set) => json!(set.content()),
            Self::Drawn(drawn) => json!({ "generated": drawn.identity(), "calls": drawn.calls() }),
        }
    }

    /// Changes when files are written again.
    pub(super) fn stamp(&self) -> &str {
        match self {
            Self::Images(set) => set.stamp(),
            Self::Drawn(_) => "",
        }
    }

    /// What the pixels depend on, where they are drawn.
    pub(super) fn generated(&self) -> Option<Value> {
        match self {
            Self::Images(_) => None,
            Self::Drawn(drawn) => Some(drawn.identity()),
        }
    }

    /// Whether the files' pixels were made RGB with 8 bits a channel.
    pub(super) fn converted(&self) -> bool {
        self.images().is_some_and(ImageSet::converted)
    }

    /// How the samples were drawn, as far as it is known.
    ///
    /// # Errors
    /// When there are labels beside the images that cannot be read.
    pub(super) fn sampling(&self) -> Result<Sampling, EvaluateError> {
        let digest = |classes: &[i64]| {
            let bytes: Vec<u8> = classes.iter().flat_map(|c| c.to_le_bytes()).collect();
            Some(hex::encode(Sha256::digest(bytes)))
        };
        match self {
            Self::Drawn(drawn) => {
                let classes: Vec<i64> = drawn.classes().collect();
                Ok(Sampling { seed: Some(drawn.seed()), classes_sha256: digest(&classes) })
            }
            Self::Images(set) => {
                // The labels beside the images: `generate`'s trace, or the second array of ADM's samples.
                let (path, name) = match set.path().is_dir() {
                    true => (set.path().join(TRACE), "class_labels"),
                    false => (set.path().to_owned(), "arr_1"),
                };
                if !path.is_file() {
                    return Ok(Sampling::default());
                }
                let file = ArrayFile::open(&path)?;
                if !file.contains(name) {
                    return Ok(Sampling::default());
                }
                let labels: Vec<i64> = file.i64(name, &[None])?.iter().copied().take(set.count()).collect();
                let classes_sha256 = if labels.len() == set.count() { digest(&labels) } else { None };
                Ok(Sampling { seed: None, classes_sha256 })
            }
        }
    }
}

impl Pictures for SampleSource<'_> {
    fn count(&self) -> usize {
        self.pictures().count()
    }

    fn size(&self) -> (usize, usize) {
        self.pictures().size()
    }

    fn chunks(&self, range: (usize, usize), chunk: usize, sink: &mut dyn Sink) -> Result<(), EvaluateError> {
        self.pictures().chunks(range, chunk, sink)
    }
}
