//! What can be wrong with an array file.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_inputs::memory::{HINT, MemoryError};
use dpar_export_spec::{Hinted, text};

use super::dims_text;

/// An error about a file of arrays: where (file, array) and what.
#[derive(Debug, thiserror::Error)]
#[error("{}{kind}", place(.file, .array))]
pub struct ArrayError {
    /// The file, where one is concerned.
    pub file: Option<Utf8PathBuf>,
    /// The array, where one is concerned.
    pub array: Option<String>,
    /// What is wrong.
    #[source]
    pub kind: ArrayErrorKind,
}

fn place(file: &Option<Utf8PathBuf>, array: &Option<String>) -> String {
    match (file, array) {
        (Some(f), Some(a)) => format!("{f}: array `{a}`: "),
        (Some(f), None) => format!("{f}: "),
        (None, Some(a)) => format!("array `{a}`: "),
        (None, None) => String::new(),
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ArrayErrorKind {
    /// The file system refused.
    #[error("{0}")]
    Io(std::io::Error),
    /// The file name does not end in a known format.
    #[error("not an array file: the name must end in .npz, .npy or .safetensors")]
    UnknownFormat,
    /// No such array; `available` lists what is there.
    #[error("no such array; the file holds {}", listed(.available))]
    Missing {
        /// Names in the file.
        available: Vec<String>,
    },
    /// An element type this tool does not read: Python objects, big-endian numbers, records, ….
    #[error(
        "elements of type {found} cannot be read ({why}); save it as float16, float32, float64, int16, int32, int64, uint8, uint16 or \
         uint32"
    )]
    UnsupportedDtype {
        /// The type as the file writes it.
        found: String,
        /// In words.
        why: &'static str,
    },
    /// An element type that would lose values if turned into the wanted one.
    #[error("{found} elements of shape {shape:?} do not fit {wanted} without loss")]
    Dtype {
        /// Element type found.
        found: String,
        /// Element type wanted.
        wanted: &'static str,
        /// Shape found.
        shape: Vec<usize>,
    },
    /// Another shape than wanted.
    #[error("shape {found:?} where {} is wanted ({dtype})", dims_text(.wanted))]
    Shape {
        /// Element type found.
        dtype: String,
        /// Shape found.
        found: Vec<usize>,
        /// Shape wanted; `None` = any size.
        wanted: Vec<Option<usize>>,
    },
    /// The file ends before the data it promises.
    #[error("truncated: {promised} bytes are promised, {held} are there")]
    Truncated {
        /// Bytes promised by a header.
        promised: u64,
        /// Bytes there.
        held: u64,
    },
    /// A shape or header too large for this machine or for the format.
    #[error("too large: {0}")]
    TooLarge(String),
    /// More memory than one input may take.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Not what the format allows.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Values that the array cannot have.
    #[error("{0}")]
    Content(String),
    /// What was to be written does not fit together.
    #[error("cannot be written: {0}")]
    Write(String),
}

/// Names in words, the first of many.
pub(super) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    if names.is_empty() {
        "no arrays".to_owned()
    } else {
        text::names(names.iter().map(|n| format!("`{}`", n.as_ref())))
    }
}

impl ArrayErrorKind {
    /// The error, about an array.
    pub(super) fn of(self, array: impl Into<String>) -> ArrayError {
        ArrayError { file: None, array: Some(array.into()), kind: self }
    }

    /// The error, about a whole file.
    pub fn in_file(self, file: &Utf8Path) -> ArrayError {
        ArrayError { file: Some(file.to_owned()), array: None, kind: self }
    }
}

impl ArrayError {
    /// Names the file.
    #[must_use]
    pub(crate) fn in_file(mut self, file: &Utf8Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }
}

impl From<std::io::Error> for ArrayErrorKind {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<zip::result::ZipError> for ArrayErrorKind {
    fn from(error: zip::result::ZipError) -> Self {
        match error {
            zip::result::ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Self::Io(e),
            other => Self::Malformed(format!("not a readable zip archive: {other}")),
        }
    }
}

impl Hinted for ArrayError {
    fn hint(&self) -> Option<String> {
        matches!(self.kind, ArrayErrorKind::Memory(_)).then(|| HINT.to_owned())
    }
}
