//! The bytes of a file, mapped.

use std::io;
use std::ops::Deref;

use camino::Utf8Path;

/// A whole file, mapped read-only: as large as the disk, not as the memory. The file must not be truncated or
/// rewritten while it is open, as with every reader that maps; the command line ends with a message where it is.
#[derive(Debug)]
pub struct Mapped(Option<memmap2::Mmap>);

impl Mapped {
    /// Maps a file; an empty file gives no bytes.
    ///
    /// # Errors
    /// When it cannot be read or is no regular file.
    pub fn open(path: &Utf8Path) -> io::Result<Self> {
        let file = dpar_export_inputs::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the mapping is private and read-only and handed out as shared bytes only, for which every bit pattern
        // is valid. What remains is that another process truncates or rewrites the file meanwhile: see the type.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(file.file()) }?;
        Ok(Self(Some(map)))
    }

    /// The bytes as little-endian f32 values; `None` where they are not a whole number of them, or the machine is not
    /// little-endian.
    pub fn f32(&self) -> Option<&[f32]> {
        self.values()
    }

    /// As [`f32`](Self::f32) for i64 values.
    pub fn i64(&self) -> Option<&[i64]> {
        self.values()
    }

    fn values<T: bytemuck::Pod>(&self) -> Option<&[T]> {
        match self.is_empty() {
            // No bytes are anywhere, and not aligned for any type.
            true => Some(&[]),
            false if cfg!(target_endian = "big") => None,
            false => bytemuck::try_cast_slice(self).ok(),
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
