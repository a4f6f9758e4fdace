//! Values that are too many for memory, on the disk while they are made.

use std::io::{self, BufWriter, Write};

use camino::Utf8Path;
use tempfile::NamedTempFile;

use super::{Elements, Mapped, npy};

/// A file of values that grows piece by piece. It is removed when it is dropped.
#[derive(Debug)]
pub struct Spool(BufWriter<NamedTempFile>);

impl Spool {
    /// An empty one in `folder`.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn create_in(folder: &Utf8Path) -> io::Result<Self> {
        Ok(Self(BufWriter::new(NamedTempFile::new_in(folder)?)))
    }

    /// Appends values.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, values: Elements<'_>) -> io::Result<()> {
        npy::write_elements(&mut self.0, values)
    }

    /// All values, mapped.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> io::Result<Spooled> {
        let file = self.0.into_inner().map_err(|e| e.into_error())?;
        file.as_file().flush()?;
        let path = Utf8Path::from_path(file.path()).ok_or_else(|| io::Error::other("a name is not UTF-8"))?;
        Ok(Spooled { mapped: Mapped::open(path)?, _file: file })
    }
}

/// The values of a [`Spool`].
#[derive(Debug)]
pub struct Spooled {
    mapped: Mapped,
    _file: NamedTempFile,
}

impl Spooled {
    /// As float32.
    ///
    /// # Errors
    /// When they are no whole number of them, or the machine is not little-endian.
    pub fn f32(&self) -> io::Result<&[f32]> {
        self.mapped.f32().ok_or_else(|| io::Error::other("mapped values need a little-endian machine"))
    }

    /// As int64.
    ///
    /// # Errors
    /// As [`f32`](Self::f32).
    pub fn i64(&self) -> io::Result<&[i64]> {
        self.mapped.i64().ok_or_else(|| io::Error::other("mapped values need a little-endian machine"))
    }

    /// As bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.mapped
    }
}
