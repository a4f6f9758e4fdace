//! One weight file, memory-mapped.

mod legacy;
mod mapped;
mod pickle;
mod safe;
mod torch;
mod zip;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use camino::{Utf8Path, Utf8PathBuf};

use crate::{CheckpointError, ErrorKind, TensorRef, WeightDType};
use mapped::Bytes;

pub use torch::pickle_tensor_names;

/// Container format of a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// `.safetensors`.
    Safetensors,
    /// PyTorch's zip container, or the format it had before 1.6 (`.pt`, `.pth`).
    Torch,
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Torch => "PyTorch",
        })
    }
}

impl WeightFormat {
    /// The format of a file name: `.safetensors`, or one of PyTorch's endings (`.pt`, `.pth`, `.bin`, `.ckpt`).
    pub fn from_path(path: &Utf8Path) -> Option<Self> {
        match path.extension()?.to_ascii_lowercase().as_str() {
            "safetensors" => Some(Self::Safetensors),
            "pt" | "pth" | "bin" | "ckpt" => Some(Self::Torch),
            _ => None,
        }
    }
}

/// Where a tensor lies in the file. The range is inside the file; strides are in elements.
#[derive(Debug)]
struct Entry {
    dtype: WeightDType,
    shape: Vec<usize>,
    range: Range<usize>,
    strides: Option<Vec<usize>>,
}

/// One memory-mapped weight file, `.safetensors` or a PyTorch `.pt`/`.pth`.
///
/// Opening reads and checks the table of contents only. For a `.pt` the state dict is looked for under `model`,
/// `module` and `state_dict`, then at the top; its pickle is read as data and never executed. Names are those of
/// the file. Checksums of zip records are not verified: what was read is identified by the hash of the whole file.
#[derive(Debug)]
pub struct TensorFile {
    path: Utf8PathBuf,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Maps a file and reads its table of contents.
    ///
    /// The file must not be truncated by another process while the value lives: reading a mapped page that no
    /// longer exists ends the process. A file that was cut off before is an error.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Io`], [`ErrorKind::Truncated`], [`ErrorKind::Malformed`],
    /// [`ErrorKind::LegacyTorch`], [`ErrorKind::UnsupportedFile`], [`ErrorKind::HostilePickle`] or
    /// [`ErrorKind::MalformedTensor`].
    pub fn open(path: &Utf8Path) -> Result<Self, CheckpointError> {
        let Some(format) = WeightFormat::from_path(path) else {
            return Err(CheckpointError::in_file(
                ErrorKind::UnsupportedFile(
                    "not a weight file by its name (.safetensors, .pt, .pth)".to_owned(),
                ),
                path,
            ));
        };
        Self::index(path, Bytes::map(path)?, format)
    }

    /// Reads a weight file that is in memory already; `path` is used in errors only.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(
        path: &Utf8Path,
        bytes: Vec<u8>,
        format: WeightFormat,
    ) -> Result<Self, CheckpointError> {
        Self::index(path, Bytes::Owned(bytes), format)
    }

    fn index(path: &Utf8Path, bytes: Bytes, format: WeightFormat) -> Result<Self, CheckpointError> {
        if bytes.is_empty() {
            let problem = "it is empty".to_owned();
            return Err(CheckpointError::in_file(ErrorKind::Truncated { format, problem }, path));
        }
        let entries = match format {
            WeightFormat::Safetensors => safe::entries(&bytes, path)?,
            // Before PyTorch 1.6 there was no archive around a pickle.
            WeightFormat::Torch if legacy::is_legacy(&bytes) => legacy::entries(&bytes, path)?,
            WeightFormat::Torch => torch::entries(&bytes, path)?,
        };
        Ok(Self { path: path.to_owned(), bytes, entries })
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape of a tensor without touching its elements.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// A tensor by its name in the file; its bytes are borrowed from the mapping unless it is strided.
    pub fn get(&self, name: &str) -> Option<TensorRef<'_>> {
        let entry = self.entries.get(name)?;
        let raw = self.bytes.get(entry.range.clone())?;
        let bytes = match (&entry.strides, entry.dtype.size()) {
            (Some(strides), Some(item)) => Cow::Owned(gather(raw, &entry.shape, strides, item)),
            _ => Cow::Borrowed(raw),
        };
        Some(TensorRef { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }
}

/// Copies a strided view into row-major order. `raw` starts at the view's first element and holds its last.
fn gather(raw: &[u8], shape: &[usize], strides: &[usize], item: usize) -> Vec<u8> {
    let elements: usize = shape.iter().product();
    let mut out = Vec::with_capacity(elements * item);
    let mut index = vec![0_usize; shape.len()];
    let mut at = 0_usize;
    for _ in 0..elements {
        out.extend_from_slice(raw.get(at * item..(at + 1) * item).unwrap_or_default());
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            at = at.wrapping_add(strides[d]);
            if index[d] < shape[d] {
                break;
            }
            at = at.wrapping_sub(strides[d].wrapping_mul(shape[d]));
            index[d] = 0;
        }
    }
    out
}
