//! Images of an `.npz`, a few at a time.

use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_inputs::memory;
use zip::CompressionMethod;

use super::mapped::Mapped;
use super::npy::{NpyHeader, NpyType};
use super::npz;
use super::{ArrayError, ArrayErrorKind};

/// `arr_0` u8 `[N, H, W, 3]` of an `.npz`, as guided-diffusion writes samples. A stored array is mapped, a deflated one
/// is streamed: neither is held in memory.
#[derive(Debug)]
pub struct ImageNpz {
    path: Utf8PathBuf,
    count: usize,
    size: (usize, usize),
    /// The member's checksum, as the archive has it.
    crc32: u32,
    place: PixelData,
}

#[derive(Debug)]
enum PixelData {
    /// Where the archive's member begins, its first pixel, and where it ends.
    Mapped(Mapped, [usize; 3]),
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
        let header = NpyHeader::read(&mut file)?;
        if header.stored()? != NpyType::U8.into() {
            let (found, shape) = (header.dtype(), header.shape);
            return Err(ArrayErrorKind::Dtype { found, wanted: NpyType::U8.name(), shape });
        }
        if header.shape.len() != 4 || header.shape[3] != 3 {
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
        let needed = header.check_size(NpyType::U8, held)?;
        let place = match file.compression() {
            CompressionMethod::Stored => {
                let member = file.data_start().and_then(|s| usize::try_from(s).ok());
                let mapped = Mapped::open(path)?;
                let start = member.and_then(|s| s.checked_add(header.bytes));
                let end = start.and_then(|s| s.checked_add(needed));
                match (member, start, end) {
                    (Some(member), Some(start), Some(end)) if end <= mapped.len() => {
                        // `needed` was held against this size.
                        if file.size() != (end - member) as u64 {
                            return Err(behind());
                        }
                        PixelData::Mapped(mapped, [member, start, end])
                    }
                    _ => {
                        let held = mapped.len() as u64;
                        return Err(ArrayErrorKind::Truncated { promised: needed as u64, held });
                    }
                }
            }
            _ => PixelData::Deflated(*index),
        };
        let crc32 = file.crc32();
        drop(file);
        Ok(Self { path: path.to_owned(), count, size, crc32, place })
    }

    /// Checksum of the array, as the archive has it: [`chunks`](Self::chunks) holds the bytes against it.
    pub fn crc32(&self) -> u32 {
        self.crc32
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
    /// fails. Reads the whole array, whatever the range, since its checksum is that of all bytes; `f` is called with the
    /// last chunk only where that is right, so that nobody takes a damaged file for a finished one.
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
            PixelData::Mapped(mapped, [member, start, end]) => {
                let bytes = |from: usize, to: usize| mapped.get(from..to).unwrap_or_default();
                let (first, last) = (start + from * image, start + to.max(from) * image);
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(bytes(*member, first));
                let whole = |mut hasher: crc32fast::Hasher| {
                    hasher.update(bytes(last, *end));
                    match hasher.finalize() == self.crc32 {
                        true => Ok(()),
                        false => Err(fail(damaged("Invalid checksum"))),
                    }
                };
                let mut chunks = bytes(first, last).chunks(chunk.max(1) * image).peekable();
                if chunks.peek().is_none() {
                    return whole(hasher);
                }
                while let Some(pixels) = chunks.next() {
                    hasher.update(pixels);
                    if chunks.peek().is_none() {
                        whole(hasher.clone())?;
                    }
                    f(pixels)?;
                }
                Ok(())
            }
            PixelData::Deflated(index) => {
                let mut archive = npz::open(&self.path).map_err(fail)?;
                let mut file = archive.by_index(*index).map_err(|e| fail(e.into()))?;
                NpyHeader::read(&mut file).map_err(fail)?;
                let skip = (from * image) as u64;
                let skipped = std::io::copy(&mut (&mut file).take(skip), &mut std::io::sink());
                if skipped.map_err(|e| fail(damaged(e)))? < skip {
                    return Err(fail(ArrayErrorKind::Truncated { promised: skip, held: 0 }));
                }
                let largest = chunk.max(1).min(to.saturating_sub(from)) * image;
                memory::check("a chunk of images", largest as u64).map_err(|e| fail(e.into()))?;
                let mut buffer = memory::reserved(largest).map_err(|e| fail(e.into()))?;
                let mut at = from;
                loop {
                    let n = chunk.max(1).min(to.saturating_sub(at));
                    buffer.resize(n * image, 0);
                    file.read_exact(&mut buffer).map_err(|e| fail(damaged(e)))?;
                    at += n;
                    if at < to {
                        f(&buffer)?;
                        continue;
                    }
                    // Reading to the end, and no further than one byte behind it, is what compares the checksum.
                    let rest = ((self.count - at) * image) as u64;
                    let read = std::io::copy(&mut (&mut file).take(rest + 1), &mut std::io::sink());
                    match read.map_err(|e| fail(damaged(e)))? {
                        read if read < rest => {
                            return Err(fail(ArrayErrorKind::Truncated { promised: rest, held: read }));
                        }
                        read if read > rest => return Err(fail(behind())),
                        _ => return if n > 0 { f(&buffer) } else { Ok(()) },
                    }
                }
            }
        }
    }
}

fn behind() -> ArrayErrorKind {
    damaged("bytes behind the last element")
}

fn damaged(why: impl std::fmt::Display) -> ArrayErrorKind {
    ArrayErrorKind::Malformed(format!("{why}: the file is damaged, copy it or make it again"))
}
