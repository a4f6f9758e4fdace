//! The bytes of a file, mapped or in memory.

use std::fmt;
use std::ops::Deref;

use camino::Utf8Path;

use crate::{CheckpointError, ErrorKind};

/// A whole file.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file read-only. An empty file becomes an empty vector.
    pub(super) fn map(path: &Utf8Path) -> Result<Self, CheckpointError> {
        let io = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => {
                CheckpointError::in_file(ErrorKind::NotFound { what: "the weight file".to_owned() }, path)
            }
            std::io::ErrorKind::InvalidInput => {
                CheckpointError::in_file(ErrorKind::Layout("is not a file".to_owned()), path)
            }
            _ => CheckpointError::io(path, e),
        };
        let file = dpar_export_inputs::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // Weights of several GB are read in place instead of being copied, which is why this crate, not an engine,
        // holds the one `unsafe` block outside the engines.
        // SAFETY: the mapping is private and read-only and never handed out as anything but shared bytes, for which
        // every bit pattern is valid. What remains is that another process truncates or rewrites the file meanwhile;
        // `TensorFile::open` documents that this must not happen, as every mapping reader does.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(file.file()) }.map_err(io)?;
        Ok(Self::Mapped(map))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
