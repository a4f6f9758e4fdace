//! `.npz`: a zip archive of `.npy` files. Read stored or deflated, written stored.

use std::collections::BTreeSet;
use std::io::{BufReader, Cursor, Read, Seek, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::File;
use zip::read::ZipFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::atomic::AtomicFile;
use super::npy::{self, NpyHeader, NpyType};
use super::{Array, ArrayError, ArrayErrorKind, ArrayInfo, ArrayRef, Elements};

/// Deflate cannot make more than 1,032 bytes of one: a member that promises more is a lie.
const MOST_INFLATION: u64 = 1032;

pub(super) type Archive = ZipArchive<BufReader<File>>;

pub(super) fn open(path: &Utf8Path) -> Result<Archive, ArrayErrorKind> {
    Ok(ZipArchive::new(BufReader::new(dpar_export_inputs::open(path)?))?)
}

/// Index and name of every array.
pub(super) fn names(archive: &mut Archive) -> Result<Vec<(usize, String)>, ArrayErrorKind> {
    let mut names = Vec::new();
    for index in 0..archive.len() {
        names.extend(member_name(archive, index)?.map(|name| (index, name)));
    }
    Ok(names)
}

/// Most bytes that a member can hold, whatever it promises.
pub(super) fn most_bytes(
    path: &Utf8Path,
    file: &ZipFile<'_, BufReader<File>>,
) -> Result<u64, ArrayErrorKind> {
    let file_size = fs_err::metadata(path.as_std_path())?.len();
    let most = match file.compression() {
        CompressionMethod::Stored => file_size,
        _ => file_size.saturating_mul(MOST_INFLATION),
    };
    Ok(file.size().min(most))
}

/// Lists the arrays in the order of the archive; members that are not `.npy` files are not arrays.
pub(super) fn list(path: &Utf8Path) -> Result<Vec<ArrayInfo>, ArrayError> {
    let mut archive = open(path).map_err(|e| e.in_file(path))?;
    let mut arrays = Vec::new();
    let mut names = BTreeSet::new();
    for index in 0..archive.len() {
        let Some(name) = member_name(&mut archive, index).map_err(|e| e.in_file(path))? else { continue };
        if !names.insert(name.clone()) {
            return Err(ArrayErrorKind::Malformed("two arrays of this name".to_owned())
                .of(name)
                .in_file(path));
        }
        let read = |mut file: ZipFile<'_, _>| Ok((NpyHeader::read(&mut file)?, most_bytes(path, &file)?));
        let (header, most) = member(&mut archive, index, read).map_err(|e| e.of(&name).in_file(path))?;
        let (place, held) = (index as u64, most.saturating_sub(header.bytes as u64));
        arrays.push(ArrayInfo { name, dtype: header.dtype(), shape: header.shape, place, held });
    }
    Ok(arrays)
}

/// Reads one array that [`list`] found.
pub(super) fn get(path: &Utf8Path, info: &ArrayInfo) -> Result<Array, ArrayErrorKind> {
    elements(path, info, |header, held, mut elements| header.array(&mut elements, held).map_err(of_data))
}

/// Calls `read` with an array that [`list`] found: its header, the most bytes there can be, and its elements, all of
/// which it must read.
pub(super) fn elements<T, E: From<ArrayErrorKind>>(
    path: &Utf8Path,
    info: &ArrayInfo,
    read: impl FnOnce(&NpyHeader, u64, &mut dyn Read) -> Result<T, E>,
) -> Result<T, E> {
    let mut archive = open(path)?;
    let index = info.place as usize;
    if member_name(&mut archive, index)?.as_deref() != Some(&info.name) {
        return Err(ArrayErrorKind::Malformed("the file changed while it was read".to_owned()).into());
    }
    let mut file = archive.by_index(index).map_err(ArrayErrorKind::from)?;
    let header = NpyHeader::read(&mut file).map_err(of_data)?;
    let held = most_bytes(path, &file)?.saturating_sub(header.bytes as u64);
    let out = read(&header, held, &mut file)?;
    // Reading to the end is what compares the checksum.
    if file.read(&mut [0]).map_err(|e| of_data(e.into()))? > 0 {
        return Err(ArrayErrorKind::Malformed("bytes behind the last element".to_owned()).into());
    }
    Ok(out)
}

fn member_name(archive: &mut Archive, index: usize) -> Result<Option<String>, ArrayErrorKind> {
    // Raw: names can be read also where the member cannot.
    let file = archive.by_index_raw(index)?;
    let name = file.name()?;
    Ok(name.strip_suffix(".npy").map(str::to_owned))
}

fn member<T>(
    archive: &mut Archive,
    index: usize,
    read: impl FnOnce(ZipFile<'_, BufReader<File>>) -> Result<T, ArrayErrorKind>,
) -> Result<T, ArrayErrorKind> {
    read(archive.by_index(index)?).map_err(of_data)
}

/// A checksum that does not match and a broken deflate stream come as plain I/O errors.
pub(super) fn of_data(e: ArrayErrorKind) -> ArrayErrorKind {
    match e {
        ArrayErrorKind::Io(e) if is_data_error(&e) => ArrayErrorKind::Malformed(e.to_string()),
        other => other,
    }
}

fn is_data_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof | Other)
}

/// Writes arrays as an `.npz` that numpy reads: stored, in the given order, without time stamps, whole or not
/// at all. The same arrays give the same bytes.
///
/// # Errors
/// When a name is empty or given twice, a shape does not fit its elements, or the disk refuses.
pub fn write_npz(path: &Utf8Path, arrays: &[(&str, ArrayRef<'_>)]) -> Result<(), ArrayError> {
    super::check_names(arrays).map_err(|e| e.in_file(path))?;
    let mut zip = ZipWriter::new(AtomicFile::create(path).map_err(|e| ArrayErrorKind::Io(e).in_file(path))?);
    for (name, array) in arrays {
        add(&mut zip, name, array).map_err(|e| e.of(*name).in_file(path))?;
    }
    finish(zip).map_err(|e| e.in_file(path))
}

/// The bytes that [`write_npz`] writes.
///
/// # Errors
/// When a name is empty or given twice, or a shape does not fit its elements.
pub fn npz_bytes(arrays: &[(&str, ArrayRef<'_>)]) -> Result<Vec<u8>, ArrayError> {
    let nowhere = Utf8Path::new("memory");
    super::check_names(arrays).map_err(|e| e.in_file(nowhere))?;
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        add(&mut zip, name, array).map_err(|e| e.of(*name).in_file(nowhere))?;
    }
    let bytes = zip.finish().map_err(|e| ArrayErrorKind::from(e).in_file(nowhere))?;
    Ok(bytes.into_inner())
}

/// Writes one array as an `.npy` that numpy reads, whole or not at all.
///
/// # Errors
/// When the shape does not fit the elements, or the disk refuses.
#[cfg(test)]
pub(super) fn write_npy(path: &Utf8Path, array: &ArrayRef<'_>) -> Result<(), ArrayError> {
    let write = || {
        let mut file = AtomicFile::create(path)?;
        npy::write(&mut file, array)?;
        Ok(file.commit()?)
    };
    write().map_err(|e: ArrayErrorKind| e.in_file(path))
}

fn start<W: Write + Seek>(zip: &mut ZipWriter<W>, name: &str, bytes: u64) -> Result<(), ArrayErrorKind> {
    // ZIP64 where the sizes need it; the margin is the .npy header.
    let large = bytes >= u64::from(u32::MAX) - (1 << 17);
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .system(zip::System::Unix)
        .unix_permissions(0o644)
        .large_file(large);
    Ok(zip.start_file(format!("{name}.npy"), options)?)
}

fn add<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    name: &str,
    array: &ArrayRef<'_>,
) -> Result<(), ArrayErrorKind> {
    start(zip, name, npy::bytes_of(array.shape, array.kind())? as u64)?;
    npy::write(zip, array)
}

fn finish(zip: ZipWriter<AtomicFile>) -> Result<(), ArrayErrorKind> {
    Ok(zip.finish()?.commit()?)
}

/// An `.npz` whose first array comes in pieces, so that no more than the piece at hand is in memory. The bytes are those
/// of [`write_npz`]; dropped before [`finish_with`](Self::finish_with), it leaves nothing behind.
#[derive(Debug)]
pub struct NpzStream {
    zip: ZipWriter<AtomicFile>,
    path: Utf8PathBuf,
    name: String,
    kind: NpyType,
    elements: u64,
    written: u64,
}

impl NpzStream {
    /// Starts the file `path` with the float32 array `name` of that shape.
    ///
    /// # Errors
    /// When the folder refuses, or the sizes overflow.
    pub fn f32(path: &Utf8Path, name: &str, shape: &[usize]) -> Result<Self, ArrayError> {
        Self::create(path, name, NpyType::F32, shape)
    }

    /// As [`f32`](Self::f32) with an int64 array.
    ///
    /// # Errors
    /// As [`f32`](Self::f32).
    pub fn i64(path: &Utf8Path, name: &str, shape: &[usize]) -> Result<Self, ArrayError> {
        Self::create(path, name, NpyType::I64, shape)
    }

    fn create(path: &Utf8Path, name: &str, kind: NpyType, shape: &[usize]) -> Result<Self, ArrayError> {
        let write = || {
            let bytes = npy::bytes_of(shape, kind)? as u64;
            let mut zip = ZipWriter::new(AtomicFile::create(path)?);
            start(&mut zip, name, bytes)?;
            zip.write_all(&npy::header_bytes(kind, shape)?)?;
            let (path, name) = (path.to_owned(), name.to_owned());
            Ok(Self { zip, path, name, kind, elements: bytes / kind.size() as u64, written: 0 })
        };
        write().map_err(|e: ArrayErrorKind| e.in_file(path))
    }

    /// Appends elements.
    ///
    /// # Errors
    /// When they are of another type or more than announced, or the disk refuses.
    pub fn push(&mut self, elements: Elements<'_>) -> Result<(), ArrayError> {
        let (count, kind) = (elements.len() as u64, elements.kind());
        let result = if kind != self.kind || count > self.elements - self.written {
            let what = format!("{count} {} behind {} of {}", kind.name(), self.written, self.elements);
            Err(ArrayErrorKind::Write(what))
        } else {
            npy::write_elements(&mut self.zip, elements).map_err(ArrayErrorKind::Io)
        };
        result.map_err(|e| e.of(&self.name).in_file(&self.path))?;
        self.written += count;
        Ok(())
    }

    /// Completes the file with more arrays behind the first.
    ///
    /// # Errors
    /// When elements are missing, a name is empty or given twice, a shape does not fit its elements, or the disk refuses;
    /// no file appears then.
    pub fn finish_with(mut self, more: &[(&str, ArrayRef<'_>)]) -> Result<(), ArrayError> {
        let path = self.path;
        if self.written != self.elements {
            let what = format!("{} of the announced {} elements", self.written, self.elements);
            return Err(ArrayErrorKind::Write(what).of(self.name).in_file(&path));
        }
        super::check_names(more).map_err(|e| e.in_file(&path))?;
        for (name, array) in more {
            if **name == self.name {
                let twice = ArrayErrorKind::Write("the name is given twice".to_owned());
                return Err(twice.of(*name).in_file(&path));
            }
            add(&mut self.zip, name, array).map_err(|e| e.of(*name).in_file(&path))?;
        }
        finish(self.zip).map_err(|e| e.in_file(&path))
    }
}

/// Writes images into an `.npz` one by one, as ADM's evaluator reads them: `arr_0`, u8 `[count, height, width, 3]`.
/// Holds no more than the image at hand; dropped before [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct ImageNpzWriter {
    stream: NpzStream,
    image_bytes: usize,
    count: u64,
    pushed: u64,
}

impl ImageNpzWriter {
    /// Starts the file `path` for exactly `count` RGB images of `height` × `width` pixels.
    ///
    /// # Errors
    /// When the folder refuses, or the sizes overflow.
    pub fn create(path: &Utf8Path, height: usize, width: usize, count: u64) -> Result<Self, ArrayError> {
        let n = usize::try_from(count)
            .map_err(|_| ArrayErrorKind::TooLarge(format!("{count} images")).in_file(path))?;
        let stream = NpzStream::create(path, "arr_0", NpyType::U8, &[n, height, width, 3])?;
        Ok(Self { stream, image_bytes: height * width * 3, count, pushed: 0 })
    }

    /// Appends one image, u8 `[height, width, 3]`.
    ///
    /// # Errors
    /// When it has another size, all images are written already, or the disk refuses.
    pub fn push(&mut self, image: &[u8]) -> Result<(), ArrayError> {
        let wrong = if image.len() != self.image_bytes {
            let (found, wanted) = (image.len(), self.image_bytes);
            Some(format!("image {} has {found} bytes, not {wanted}", self.pushed))
        } else if self.pushed == self.count {
            Some(format!("more than the announced {} images", self.count))
        } else {
            None
        };
        if let Some(what) = wrong {
            return Err(ArrayErrorKind::Write(what).of("arr_0").in_file(&self.stream.path));
        }
        self.stream.push(Elements::U8(image))?;
        self.pushed += 1;
        Ok(())
    }

    /// Images written so far.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Completes the file.
    ///
    /// # Errors
    /// When images are missing or the disk refuses; no file appears then.
    pub fn finish(self) -> Result<(), ArrayError> {
        self.finish_with(&[])
    }

    /// Completes the file with more arrays behind the images, such as the class labels (`arr_1`).
    ///
    /// # Errors
    /// As [`finish`](Self::finish), and when a name is empty, given twice or `arr_0`.
    pub fn finish_with(self, more: &[(&str, ArrayRef<'_>)]) -> Result<(), ArrayError> {
        if self.pushed != self.count {
            let (there, all) = (self.pushed, self.count);
            return Err(ArrayErrorKind::Write(format!("{there} of the announced {all} images"))
                .of("arr_0")
                .in_file(&self.stream.path));
        }
        self.stream.finish_with(more)
    }
}
