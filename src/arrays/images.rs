//! Images of an `.npz`, a few at a time.

use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use zip::CompressionMethod;

use super::mapped::Mapped;
use super::npy::{Header, Kind};
use super::npz;
use super::{ArrayError, ArrayErrorKind};

/// `arr_0` u8 `[N, H, W, 3]` of an `.npz`, as guided-diffusion writes samples. A stored array is mapped, a deflated one
/// is streamed: neither is held in memory.
#[derive(Debug)]
pub struct ImageNpz {
    path: Utf8PathBuf,
    count: usize,
    size: (usize, usize),
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Offset of the first pixel.
    Mapped(Mapped, usize),
    /// Index of the archive's member.
    Deflated(usize),
}

/// The name of the images.
const ARR_0: &str = "arr_0";

impl ImageNpz {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is no archive, has no `arr_0`, that has another type or shape, or is truncated.
    pub fn open(path: &Utf8Path) -> Result<Self, ArrayError> {
        Self::read(path).map_err(|e| e.of(ARR_0).in_file(path))
    }

    fn read(path: &Utf8Path) -> Result<Self, ArrayErrorKind> {
        let mut archive = npz::open(path)?;
        let names = npz::names(&mut archive)?;
        let Some((index, _)) = names.iter().find(|(_, name)| name == ARR_0) else {
            return Err(ArrayErrorKind::Missing { available: names.into_iter().map(|(_, n)| n).collect() });
        };
        let mut file = archive.by_index(*index)?;
        let header = Header::read(&mut file)?;
        if header.kind()? != Kind::U8 || header.shape.len() != 4 || header.shape[3] != 3 {
            let wanted = vec![None, None, None, Some(3)];
            return Err(ArrayErrorKind::Shape { dtype: header.dtype(), found: header.shape, wanted });
        }
        if header.fortran {
            return Err(ArrayErrorKind::Malformed(
                "images in column-major order; save them row-major".to_owned(),
            ));
        }
        let (count, size) = (header.shape[0], (header.shape[1], header.shape[2]));
        if count == 0 || size.0 == 0 || size.1 == 0 {
            return Err(ArrayErrorKind::Malformed(format!("no images in shape {:?}", header.shape)));
        }
        let held = npz::most_bytes(path, &file)?.saturating_sub(header.bytes as u64);
        let needed = header.check_size(Kind::U8, held)?;
        let place = match file.compression() {
            CompressionMethod::Stored => {
                let start = file.data_start().and_then(|s| usize::try_from(s).ok());
                let mapped = Mapped::open(path)?;
                let start = start.and_then(|s| s.checked_add(header.bytes));
                let end = start.and_then(|s| s.checked_add(needed));
                match (start, end) {
                    (Some(start), Some(end)) if end <= mapped.len() => Place::Mapped(mapped, start),
                    _ => {
                        let held = mapped.len() as u64;
                        return Err(ArrayErrorKind::Truncated { promised: needed as u64, held });
                    }
                }
            }
            _ => Place::Deflated(*index),
        };
        Ok(Self { path: path.to_owned(), count, size, place })
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Height and width in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Calls `f` with consecutive chunks of at most `chunk` images, u8 `[n, H, W, 3]`, of images `from..to`, until it
    /// fails.
    ///
    /// # Errors
    /// When the file is truncated or damaged; what `f` returns.
    pub fn chunks<E: From<ArrayError>>(
        &self,
        (from, to): (usize, usize),
        chunk: usize,
        f: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let image = self.size.0 * self.size.1 * 3;
        let (from, to) = (from.min(self.count), to.min(self.count));
        let fail = |e: ArrayErrorKind| E::from(e.of(ARR_0).in_file(&self.path));
        match &self.place {
            Place::Mapped(mapped, start) => {
                let pixels = mapped.get(start + from * image..start + to * image).unwrap_or_default();
                pixels.chunks(chunk.max(1) * image).try_for_each(f)
            }
            Place::Deflated(index) => {
                let mut archive = npz::open(&self.path).map_err(fail)?;
                let mut file = archive.by_index(*index).map_err(|e| fail(e.into()))?;
                Header::read(&mut file).map_err(fail)?;
                let skip = (from * image) as u64;
                let skipped = std::io::copy(&mut (&mut file).take(skip), &mut std::io::sink());
                if skipped.map_err(|e| fail(e.into()))? < skip {
                    return Err(fail(ArrayErrorKind::Truncated { promised: skip, held: 0 }));
                }
                let mut buffer = Vec::new();
                let mut at = from;
                while at < to {
                    let n = chunk.max(1).min(to - at);
                    buffer.resize(n * image, 0);
                    file.read_exact(&mut buffer)
                        .map_err(|e| fail(ArrayErrorKind::Malformed(e.to_string())))?;
                    f(&buffer)?;
                    at += n;
                }
                Ok(())
            }
        }
    }
}
