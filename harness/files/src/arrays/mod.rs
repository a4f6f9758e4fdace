//! Named arrays in files: `.npz`, `.npy` and `.safetensors`, read and written.
//!
//! In memory arrays are of five element types: float32, float64, int64, int32 and uint8. Narrower ones of a file (float16,
//! bfloat16, int8, int16, uint16, uint32; little-endian, as all) become the next of them. Files are untrusted: what a
//! header promises is compared with what the file holds before memory is taken, and every refusal names the file
//! and the array. Writers write beside the destination and rename, and the same arrays give the same bytes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_inputs::memory;
use dpar_export_spec::text;
use ndarray::{ArrayD, Dimension};

mod atomic;
mod error;
mod images;
mod mapped;
mod npy;
mod npz;
mod rows;
mod spool;
mod tensors;
#[cfg(test)]
mod tests;

pub use atomic::write_atomic;
pub use error::{ArrayError, ArrayErrorKind};
pub use images::ImageNpz;
pub use mapped::Mapped;
pub use npz::{ImageNpzWriter, NpzStream, npz_bytes, write_npz};
pub use spool::{Spool, Spooled};
pub use tensors::write_safetensors;

use npy::{NpyType, Stored};

/// An array, row-major and contiguous.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// 32-bit floats.
    F32(ArrayD<f32>),
    /// 64-bit floats.
    F64(ArrayD<f64>),
    /// 64-bit integers.
    I64(ArrayD<i64>),
    /// 32-bit integers.
    I32(ArrayD<i32>),
    /// Bytes.
    U8(ArrayD<u8>),
}

impl Array {
    fn kind(&self) -> NpyType {
        match self {
            Self::F32(_) => NpyType::F32,
            Self::F64(_) => NpyType::F64,
            Self::I64(_) => NpyType::I64,
            Self::I32(_) => NpyType::I32,
            Self::U8(_) => NpyType::U8,
        }
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::F64(a) => a.shape(),
            Self::I64(a) => a.shape(),
            Self::I32(a) => a.shape(),
            Self::U8(a) => a.shape(),
        }
    }

    /// Element type, in numpy's word.
    pub fn dtype(&self) -> &'static str {
        self.kind().name()
    }

    /// The elements as int64, from int64, int32 or uint8; `name` is for the error.
    ///
    /// # Errors
    /// When the elements are floats: they do not fit without loss.
    pub fn to_i64(&self, name: &str) -> Result<ArrayD<i64>, ArrayError> {
        match self {
            Self::I64(a) => Ok(a.clone()),
            Self::I32(a) => Ok(a.mapv(i64::from)),
            Self::U8(a) => Ok(a.mapv(i64::from)),
            Self::F32(_) | Self::F64(_) => Err(self.no_fit("int64", name)),
        }
    }

    /// The elements as float32, from float32 or uint8; `name` is for the error.
    ///
    /// # Errors
    /// When the elements are wider: they do not fit without loss.
    pub fn to_f32(&self, name: &str) -> Result<ArrayD<f32>, ArrayError> {
        match self {
            Self::F32(a) => Ok(a.clone()),
            Self::U8(a) => Ok(a.mapv(f32::from)),
            Self::F64(_) | Self::I64(_) | Self::I32(_) => Err(self.no_fit("float32", name)),
        }
    }

    /// The elements as float64, from float64, float32, int32 or uint8; `name` is for the error.
    ///
    /// # Errors
    /// When the elements are int64: they do not fit without loss.
    pub fn to_f64(&self, name: &str) -> Result<ArrayD<f64>, ArrayError> {
        match self {
            Self::F64(a) => Ok(a.clone()),
            Self::F32(a) => Ok(a.mapv(f64::from)),
            Self::I32(a) => Ok(a.mapv(f64::from)),
            Self::U8(a) => Ok(a.mapv(f64::from)),
            Self::I64(_) => Err(self.no_fit("float64", name)),
        }
    }

    fn no_fit(&self, wanted: &'static str, name: &str) -> ArrayError {
        ArrayErrorKind::Dtype { found: self.dtype().to_owned(), wanted, shape: self.shape().to_vec() }
            .of(name)
    }
}

/// Borrowed elements of an array to be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit floats.
    F64(&'a [f64]),
    /// 64-bit integers.
    I64(&'a [i64]),
    /// 32-bit integers.
    I32(&'a [i32]),
    /// Bytes.
    U8(&'a [u8]),
}

impl Elements<'_> {
    fn kind(self) -> NpyType {
        match self {
            Self::F32(_) => NpyType::F32,
            Self::F64(_) => NpyType::F64,
            Self::I64(_) => NpyType::I64,
            Self::I32(_) => NpyType::I32,
            Self::U8(_) => NpyType::U8,
        }
    }

    fn len(self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::U8(v) => v.len(),
        }
    }
}

/// An array to be written: row-major elements with a shape. The writers check that they fit together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArrayRef<'a> {
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// Elements, row-major.
    pub elements: Elements<'a>,
}

impl<'a> ArrayRef<'a> {
    /// float32 elements.
    pub fn f32(shape: &'a [usize], elements: &'a [f32]) -> Self {
        Self { shape, elements: Elements::F32(elements) }
    }

    /// float64 elements.
    pub fn f64(shape: &'a [usize], elements: &'a [f64]) -> Self {
        Self { shape, elements: Elements::F64(elements) }
    }

    /// int64 elements.
    pub fn i64(shape: &'a [usize], elements: &'a [i64]) -> Self {
        Self { shape, elements: Elements::I64(elements) }
    }

    /// uint8 elements.
    pub fn u8(shape: &'a [usize], elements: &'a [u8]) -> Self {
        Self { shape, elements: Elements::U8(elements) }
    }

    fn kind(&self) -> NpyType {
        self.elements.kind()
    }

    fn check(&self) -> Result<(), ArrayErrorKind> {
        let found = self.elements.len();
        if npy::bytes_of(self.shape, self.kind())? == found * self.kind().size() {
            return Ok(());
        }
        Err(ArrayErrorKind::Write(format!("{found} elements in the shape {:?}", self.shape)))
    }
}

impl<'a> From<&'a Array> for ArrayRef<'a> {
    /// An array built by hand in another layout gives no elements, which the writers refuse; arrays that were
    /// read or made with [`ArrayD::from_shape_vec`] are row-major.
    fn from(array: &'a Array) -> Self {
        let shape = array.shape();
        let elements = match array {
            Array::F32(a) => Elements::F32(a.as_slice().unwrap_or_default()),
            Array::F64(a) => Elements::F64(a.as_slice().unwrap_or_default()),
            Array::I64(a) => Elements::I64(a.as_slice().unwrap_or_default()),
            Array::I32(a) => Elements::I32(a.as_slice().unwrap_or_default()),
            Array::U8(a) => Elements::U8(a.as_slice().unwrap_or_default()),
        };
        Self { shape, elements }
    }
}

/// An array as a file lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayInfo {
    /// Name; in an `.npy` file, which has none, the file's stem.
    pub name: String,
    /// Element type in numpy's word, or as the file writes it where this tool does not read it.
    pub dtype: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Where it is: an index or offset, by format.
    place: u64,
    /// Most bytes of elements that there can be.
    held: u64,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Npz,
    Npy,
    Safetensors,
}

/// A file of named arrays. Opening reads the headers only; an array is read when it is asked for. All arrays that are
/// read of one file take at most the memory of [`memory::most`], which is compared with their headers first.
#[derive(Debug, Clone)]
pub struct ArrayFile {
    path: Utf8PathBuf,
    format: Format,
    arrays: Vec<ArrayInfo>,
    /// Bytes of the arrays that were read.
    taken: Arc<AtomicU64>,
}

impl ArrayFile {
    /// Opens a file; its ending says the format.
    ///
    /// # Errors
    /// When it cannot be read, its ending is none of the three, or a header is malformed. An array with an
    /// element type that is not read is listed, and refused only when asked for.
    pub fn open(path: impl AsRef<Utf8Path>) -> Result<Self, ArrayError> {
        let path = path.as_ref();
        let (format, arrays) = match path.extension().map(str::to_ascii_lowercase).as_deref() {
            Some("npz") => (Format::Npz, npz::list(path)?),
            Some("npy") => (Format::Npy, vec![npy_info(path).map_err(|e| e.in_file(path))?]),
            Some("safetensors") => (Format::Safetensors, tensors::list(path)?),
            _ => return Err(ArrayErrorKind::UnknownFormat.in_file(path)),
        };
        Ok(Self { path: path.to_owned(), format, arrays, taken: Arc::default() })
    }

    /// The file.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// What the file holds, in its order.
    pub fn arrays(&self) -> &[ArrayInfo] {
        &self.arrays
    }

    /// The names of what the file holds in words, for messages: the first of many.
    pub fn listing(&self) -> String {
        error::listed(&self.arrays.iter().map(|a| a.name.as_str()).collect::<Vec<_>>())
    }

    /// One entry of the list.
    ///
    /// # Errors
    /// When there is no such array; the error lists those there are.
    pub fn info(&self, name: &str) -> Result<&ArrayInfo, ArrayError> {
        self.arrays.iter().find(|a| a.name == name).ok_or_else(|| {
            let available = self.arrays.iter().map(|a| a.name.clone()).collect();
            ArrayErrorKind::Missing { available }.of(name).in_file(&self.path)
        })
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.arrays.iter().any(|a| a.name == name)
    }

    /// The arrays that are none of the `known` ones, in the file's order.
    ///
    /// # Errors
    /// When one has nearly a known name that no array has: what it holds would be passed over. When a known one has no
    /// elements.
    pub fn others(&self, known: &[&str]) -> Result<Vec<&str>, ArrayError> {
        let absent: Vec<&str> = known.iter().copied().filter(|name| !self.contains(name)).collect();
        let mut others = Vec::new();
        for array in &self.arrays {
            let wrong = match (known.contains(&array.name.as_str()), text::nearest(&array.name, &absent)) {
                (true, _) if array.shape.contains(&0) => {
                    format!("shape {:?} has no elements: there is nothing to compare", array.shape)
                }
                (true, _) => continue,
                (false, Some(nearest)) => format!(
                    "no array of this name is read; is `{nearest}` meant? rename the array, or leave it out"
                ),
                (false, None) => {
                    others.push(array.name.as_str());
                    continue;
                }
            };
            return Err(ArrayErrorKind::Content(wrong).of(&array.name).in_file(&self.path));
        }
        Ok(others)
    }

    /// Reads an array.
    ///
    /// # Errors
    /// When it is not there, has an element type that is not read, or the file is truncated or malformed.
    pub fn get(&self, name: &str) -> Result<Array, ArrayError> {
        let info = self.info(name)?;
        self.take_whole(info)?;
        let array = match self.format {
            Format::Npz => npz::get(&self.path, info),
            Format::Npy => npy_get(&self.path),
            Format::Safetensors => tensors::get(&self.path, info),
        };
        array.map_err(|e| e.of(name).in_file(&self.path))
    }

    /// Counts an array among what is read of the file.
    fn take_whole(&self, info: &ArrayInfo) -> Result<(), ArrayError> {
        // What the file cannot hold is refused by what reads it, in better words.
        match Stored::named(&info.dtype) {
            Some(stored)
                if npy::bytes_of(&info.shape, stored).is_ok_and(|bytes| bytes as u64 <= info.held) =>
            {
                self.take(info, stored.kind().size())
            }
            _ => Ok(()),
        }
    }

    /// Counts an array of that many bytes an element among what is read of the file.
    fn take(&self, info: &ArrayInfo, width: usize) -> Result<(), ArrayError> {
        let elements = info.shape.iter().fold(1_u64, |all, n| all.saturating_mul(*n as u64));
        let bytes = elements.saturating_mul(width as u64);
        let before = self.taken.load(Ordering::Relaxed);
        let all = before.saturating_add(bytes);
        let what = if before == 0 { "it" } else { "it, with the arrays of this file that were read before," };
        memory::check(what, all).map_err(|e| ArrayErrorKind::from(e).of(&info.name).in_file(&self.path))?;
        self.taken.store(all, Ordering::Relaxed);
        Ok(())
    }

    /// An array with its elements as another type, of `kind`: that takes memory too.
    fn widened<T>(
        &self,
        name: &str,
        array: &Array,
        kind: NpyType,
        to: impl FnOnce(&Array, &str) -> Result<T, ArrayError>,
    ) -> Result<T, ArrayError> {
        if array.kind().size() != kind.size() {
            self.take(self.info(name)?, kind.size())?;
        }
        to(array, name).map_err(|e| self.as_stored(e))
    }

    /// An error about an array of this file, with its element type as the file has it.
    fn as_stored(&self, mut e: ArrayError) -> ArrayError {
        if let (ArrayErrorKind::Dtype { found, .. }, Some(name)) = (&mut e.kind, &e.array)
            && let Ok(info) = self.info(name)
        {
            found.clone_from(&info.dtype);
        }
        e.in_file(&self.path)
    }

    /// Reads an array of the wanted rank and sizes; `None` = any size. The shape is checked before the elements
    /// are read.
    ///
    /// # Errors
    /// As [`get`](Self::get), and when the shape is another.
    pub fn require(&self, name: &str, wanted: &[Option<usize>]) -> Result<Array, ArrayError> {
        self.fitting(name, wanted)?;
        self.get(name)
    }

    /// One entry of the list, of the wanted rank and sizes; `None` = any size.
    ///
    /// # Errors
    /// When it is not there, or the shape is another.
    pub fn fitting(&self, name: &str, wanted: &[Option<usize>]) -> Result<&ArrayInfo, ArrayError> {
        let info = self.info(name)?;
        let fits = info.shape.len() == wanted.len()
            && info.shape.iter().zip(wanted).all(|(&found, &wanted)| wanted.is_none_or(|w| w == found));
        if !fits {
            let (dtype, found) = (info.dtype.clone(), info.shape.clone());
            let kind = ArrayErrorKind::Shape { dtype, found, wanted: wanted.to_vec() };
            return Err(kind.of(name).in_file(&self.path));
        }
        Ok(info)
    }

    /// Refuses an element type that is none of these before a shape, which is seldom right where the type is not.
    fn fits_in(&self, name: &str, wanted: &'static str, from: &[NpyType]) -> Result<(), ArrayError> {
        let info = self.info(name)?;
        match Stored::named(&info.dtype) {
            Some(stored) if !from.contains(&stored.kind()) => {
                let (found, shape) = (info.dtype.clone(), info.shape.clone());
                Err(ArrayErrorKind::Dtype { found, wanted, shape }.of(name).in_file(&self.path))
            }
            // What is not read at all is refused in better words.
            _ => Ok(()),
        }
    }

    /// [`require`](Self::require), then [`Array::to_i64`].
    ///
    /// # Errors
    /// As both.
    pub fn i64(&self, name: &str, wanted: &[Option<usize>]) -> Result<ArrayD<i64>, ArrayError> {
        self.fits_in(name, "int64", &[NpyType::I64, NpyType::I32, NpyType::U8])?;
        match self.require(name, wanted)? {
            Array::I64(a) => Ok(a),
            other => self.widened(name, &other, NpyType::I64, Array::to_i64),
        }
    }

    /// [`i64`](Self::i64) with every element in `range`; `what` is the word for one, such as `token`.
    ///
    /// # Errors
    /// As [`i64`](Self::i64), and when an element is outside: the first, with its place.
    pub fn i64_in(
        &self,
        name: &str,
        wanted: &[Option<usize>],
        what: &str,
        range: Range<i64>,
    ) -> Result<ArrayD<i64>, ArrayError> {
        let array = self.i64(name, wanted)?;
        match array.indexed_iter().find(|(_, v)| !range.contains(*v)) {
            None => Ok(array),
            Some((at, bad)) => {
                let at = at.slice();
                let message = format!("{what} {bad} at {at:?} is not in {}..{}", range.start, range.end);
                Err(ArrayErrorKind::Content(message).of(name).in_file(&self.path))
            }
        }
    }

    /// [`require`](Self::require), then [`Array::to_f32`].
    ///
    /// # Errors
    /// As both.
    pub fn f32(&self, name: &str, wanted: &[Option<usize>]) -> Result<ArrayD<f32>, ArrayError> {
        self.fits_in(name, "float32", &[NpyType::F32, NpyType::U8])?;
        match self.require(name, wanted)? {
            Array::F32(a) => Ok(a),
            other => self.widened(name, &other, NpyType::F32, Array::to_f32),
        }
    }

    /// [`require`](Self::require), then [`Array::to_f64`].
    ///
    /// # Errors
    /// As both.
    pub fn f64(&self, name: &str, wanted: &[Option<usize>]) -> Result<ArrayD<f64>, ArrayError> {
        self.fits_in(name, "float64", &[NpyType::F64, NpyType::F32, NpyType::I32, NpyType::U8])?;
        match self.require(name, wanted)? {
            Array::F64(a) => Ok(a),
            other => self.widened(name, &other, NpyType::F64, Array::to_f64),
        }
    }

    /// [`require`](Self::require) for uint8, such as images `[N, H, W, 3]`.
    ///
    /// # Errors
    /// As [`require`](Self::require), and when the elements are of another type.
    pub fn u8(&self, name: &str, wanted: &[Option<usize>]) -> Result<ArrayD<u8>, ArrayError> {
        self.fits_in(name, "uint8", &[NpyType::U8])?;
        match self.require(name, wanted)? {
            Array::U8(a) => Ok(a),
            other => Err(self.as_stored(other.no_fit("uint8", name))),
        }
    }
}

fn npy_open(path: &Utf8Path) -> Result<(npy::NpyHeader, u64, impl std::io::Read), ArrayErrorKind> {
    let file = dpar_export_inputs::open(path)?;
    let size = file.metadata()?.len();
    let mut reader = std::io::BufReader::new(file);
    let header = npy::NpyHeader::read(&mut reader)?;
    let held = size.saturating_sub(header.bytes as u64);
    if let Ok(needed) = header.stored().and_then(|stored| npy::bytes_of(&header.shape, stored))
        && let Some(behind) = held.checked_sub(needed as u64).filter(|n| *n > 0)
    {
        return Err(ArrayErrorKind::Malformed(format!("{behind} bytes behind the last element")));
    }
    Ok((header, held, reader))
}

fn npy_info(path: &Utf8Path) -> Result<ArrayInfo, ArrayErrorKind> {
    let (header, held, _) = npy_open(path)?;
    let name = path.file_stem().unwrap_or_default().to_owned();
    Ok(ArrayInfo { name, dtype: header.dtype(), shape: header.shape, place: 0, held })
}

fn npy_get(path: &Utf8Path) -> Result<Array, ArrayErrorKind> {
    let (header, held, mut reader) = npy_open(path)?;
    header.array(&mut reader, held)
}

fn check_names(arrays: &[(&str, ArrayRef<'_>)]) -> Result<(), ArrayError> {
    let mut names = BTreeSet::new();
    for (name, _) in arrays {
        if name.is_empty() {
            return Err(ArrayErrorKind::Write("an array without a name".to_owned()).of(*name));
        }
        if !names.insert(name) {
            return Err(ArrayErrorKind::Write("the name is given twice".to_owned()).of(*name));
        }
    }
    Ok(())
}

/// A wanted shape in words: `[1024, any]`.
fn dims_text(dims: &[Option<usize>]) -> String {
    let sizes: Vec<String> = dims.iter().map(|d| d.map_or("any".to_owned(), |n| n.to_string())).collect();
    format!("[{}]", sizes.join(", "))
}

/// A temporary folder and its path.
#[cfg(test)]
pub(crate) fn test_folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    (dir, path)
}
