//! Weight files, memory-mapped.

mod foreign;
mod legacy;
mod mapped;
mod pickle;
mod safe;
mod shards;
mod state;
mod torch;
mod zip;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use camino::{Utf8Path, Utf8PathBuf};

use crate::{CheckpointError, ErrorKind, TensorRef, WeightDType};
use mapped::Bytes;

pub(crate) use shards::is_index;
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

/// Where a tensor lies in a file. The range is inside the file; strides are in elements.
#[derive(Debug)]
struct TensorEntry {
    dtype: WeightDType,
    shape: Vec<usize>,
    range: Range<usize>,
    strides: Option<Vec<usize>>,
    /// The elements are those of the file with the other sign.
    negated: bool,
}

/// What stands in a state dict and cannot be read as a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    /// What it is, for messages.
    pub(crate) what: String,
    /// Whether it is a tensor at all.
    pub(crate) tensor: bool,
}

/// The table of contents of one file.
#[derive(Debug, Default)]
struct Contents {
    entries: BTreeMap<String, TensorEntry>,
    unread: BTreeMap<String, Unread>,
    /// Keys to the state dict, joined by dots; empty where it is bare.
    key: String,
    /// Other keys under which there are about as many tensors.
    others: Vec<String>,
}

/// One file of the weights.
#[derive(Debug)]
struct WeightFile {
    path: Utf8PathBuf,
    bytes: Bytes,
}

/// Memory-mapped weights: a `.safetensors`, a PyTorch `.pt`/`.pth`, or the index of a sharded checkpoint with its shards.
///
/// Opening reads and checks the table of contents only. For a `.pt` the state dict is looked for under `model`,
/// `module` and `state_dict`, then at the top; its pickle is read as data and never executed. Names are those of
/// the file. Checksums of zip records are not verified: what was read is identified by the hash of the whole file.
#[derive(Debug)]
pub struct TensorFile {
    path: Utf8PathBuf,
    parts: Vec<WeightFile>,
    /// Name → part and place in it.
    entries: BTreeMap<String, (usize, TensorEntry)>,
    unread: BTreeMap<String, Unread>,
    key: String,
    others: Vec<String>,
}

impl TensorFile {
    /// Maps a file, or the shards of an index, and reads the table of contents.
    ///
    /// A file must not be truncated by another process while the value lives: reading a mapped page that no
    /// longer exists ends the process. A file that was cut off before is an error.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Io`], [`ErrorKind::Truncated`], [`ErrorKind::Malformed`],
    /// [`ErrorKind::OtherFormat`], [`ErrorKind::NoStateDict`], [`ErrorKind::LegacyTorch`],
    /// [`ErrorKind::UnsupportedFile`], [`ErrorKind::HostilePickle`] or [`ErrorKind::MalformedTensor`].
    pub fn open(path: &Utf8Path) -> Result<Self, CheckpointError> {
        Self::open_at(path, None)
    }

    /// As [`Self::open`]; with `key` the state dict of a `.pt` that lies under that key (keys in keys are joined by dots).
    ///
    /// # Errors
    /// As [`Self::open`], and [`ErrorKind::Option`] when there are no tensors under `key`.
    pub fn open_at(path: &Utf8Path, key: Option<&str>) -> Result<Self, CheckpointError> {
        if is_index(path) {
            return Self::sharded(path, key);
        }
        let Some(format) = WeightFormat::from_path(path) else {
            return Err(CheckpointError::in_file(
                ErrorKind::UnsupportedFile(
                    "not a weight file by its name (.safetensors, .pt, .pth)".to_owned(),
                ),
                path,
            ));
        };
        Self::index(path, Bytes::map(path)?, format, key)
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
        Self::index(path, Bytes::Owned(bytes), format, None)
    }

    fn index(
        path: &Utf8Path,
        bytes: Bytes,
        format: WeightFormat,
        key: Option<&str>,
    ) -> Result<Self, CheckpointError> {
        if bytes.is_empty() {
            let problem = "it is empty".to_owned();
            return Err(CheckpointError::in_file(ErrorKind::Truncated { format, problem }, path));
        }
        let contents = match format {
            WeightFormat::Safetensors if key.is_some() => Err(no_keys()),
            WeightFormat::Safetensors => safe::contents(&bytes),
            // Before PyTorch 1.6 there was no archive around a pickle.
            WeightFormat::Torch if legacy::is_legacy(&bytes) => legacy::contents(&bytes, key),
            WeightFormat::Torch => torch::contents(&bytes, key),
        };
        let Contents { entries, unread, key, others } = contents.map_err(|e| e.at(path))?;
        let entries = entries.into_iter().map(|(name, entry)| (name, (0, entry))).collect();
        let parts = vec![WeightFile { path: path.to_owned(), bytes }];
        Ok(Self { path: path.to_owned(), parts, entries, unread, key, others })
    }

    /// All files of an index as one; every tensor lies where the index says, and there are no others.
    fn sharded(path: &Utf8Path, key: Option<&str>) -> Result<Self, CheckpointError> {
        if key.is_some() {
            return Err(no_keys().at(path));
        }
        let shards::Index { files, place } = shards::read(path)?;
        let (mut parts, mut entries, mut unread) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let fail = |problem: String, name: &str, file: &Utf8Path| {
            CheckpointError::in_file(ErrorKind::MalformedTensor(problem), file).tensor_named(name)
        };
        for (i, file) in files.iter().enumerate() {
            let shard = Self::open(file)?;
            let listed = |name: &str| match place.get(name) {
                Some(p) if *p == i => Ok(()),
                _ => Err(fail(format!("the index {} does not list it here", label(path)), name, file)),
            };
            for (name, (_, entry)) in shard.entries {
                listed(&name)?;
                entries.insert(name, (i, entry));
            }
            for (name, what) in shard.unread {
                listed(&name)?;
                unread.insert(name, what);
            }
            parts.extend(shard.parts);
        }
        for (name, i) in &place {
            if !entries.contains_key(name) && !unread.contains_key(name) {
                return Err(fail(
                    format!("it is not in {}, as the index says", label(&files[*i])),
                    name,
                    path,
                ));
            }
        }
        Ok(Self { path: path.to_owned(), parts, entries, unread, key: String::new(), others: Vec::new() })
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The files that an index lists; none for a single file.
    pub fn shards(&self) -> impl Iterator<Item = &Utf8Path> {
        self.parts.iter().map(|p| p.path.as_path()).filter(|p| *p != self.path)
    }

    /// Keys to the state dict that is read, joined by dots; empty where it lies bare.
    pub(crate) fn state_dict_key(&self) -> &str {
        &self.key
    }

    /// Other keys of the file under which there are about as many tensors: averaged weights, as a rule.
    pub(crate) fn other_state_dicts(&self) -> &[String] {
        &self.others
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What stands between the tensors and cannot be read as one.
    pub(crate) fn unread(&self) -> &BTreeMap<String, Unread> {
        &self.unread
    }

    /// Shape of a tensor without touching its elements.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|(_, e)| e.shape.as_slice())
    }

    /// Element type of a tensor without touching its elements.
    pub(crate) fn dtype(&self, name: &str) -> Option<WeightDType> {
        self.entries.get(name).map(|(_, e)| e.dtype)
    }

    /// A tensor by its name in the file; its bytes are borrowed from the mapping unless it is strided or negated.
    pub fn get(&self, name: &str) -> Option<TensorRef<'_>> {
        let (part, entry) = self.entries.get(name)?;
        let raw = self.parts.get(*part)?.bytes.get(entry.range.clone())?;
        let mut bytes = match (&entry.strides, entry.dtype.size()) {
            (Some(strides), Some(item)) => Cow::Owned(gather(raw, &entry.shape, strides, item)),
            _ => Cow::Borrowed(raw),
        };
        if let (true, Some(item)) = (entry.negated, entry.dtype.size()) {
            // Floats only: the sign is the highest bit of the last byte.
            bytes.to_mut().iter_mut().skip(item - 1).step_by(item).for_each(|b| *b ^= 0x80);
        }
        Some(TensorRef { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }
}

fn no_keys() -> CheckpointError {
    let problem = "these weights lie under no keys, as those of a .pt may".to_owned();
    CheckpointError::new(ErrorKind::Option { option: "--weights", problem })
        .with_hint("leave `--weights` out")
}

fn label(path: &Utf8Path) -> &str {
    path.file_name().unwrap_or("the file")
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
