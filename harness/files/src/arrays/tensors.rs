//! `.safetensors`: read by header and offset, written whole.

use std::borrow::Cow;
use std::io::{BufReader, Read, Seek, SeekFrom};

use camino::Utf8Path;
use fs_err::File;
use safetensors::tensor::{Dtype, Metadata, View};

use super::npy::{self, Kind};
use super::{Array, ArrayError, ArrayErrorKind, ArrayInfo, ArrayRef};

/// Longest JSON header that is read: the limit of the safetensors library.
const LONGEST_HEADER: u64 = 100_000_000;

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::F32),
        Dtype::F64 => Some(Kind::F64),
        Dtype::I64 => Some(Kind::I64),
        Dtype::I32 => Some(Kind::I32),
        Dtype::U8 => Some(Kind::U8),
        _ => None,
    }
}

/// Reads and checks the header; also gives the offset of the data.
fn header(path: &Utf8Path) -> Result<(Metadata, u64), ArrayErrorKind> {
    let mut file = File::open(path.as_std_path())?;
    let size = file.metadata()?.len();
    if size < 8 {
        return Err(ArrayErrorKind::Truncated { promised: 8, held: size });
    }
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(ArrayErrorKind::TooLarge(format!("a header of {length} bytes")));
    }
    if length > size - 8 {
        return Err(ArrayErrorKind::Truncated { promised: 8 + length, held: size });
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json)?;
    let metadata: Metadata =
        serde_json::from_slice(&json).map_err(|e| ArrayErrorKind::Malformed(format!("header: {e}")))?;
    let promised = (metadata.data_len() as u64).saturating_add(8 + length);
    if promised > size {
        return Err(ArrayErrorKind::Truncated { promised, held: size });
    }
    if promised < size {
        return Err(ArrayErrorKind::Malformed(format!("{} bytes belong to no array", size - promised)));
    }
    Ok((metadata, 8 + length))
}

/// Lists the arrays in the order of the data.
pub(super) fn list(path: &Utf8Path) -> Result<Vec<ArrayInfo>, ArrayError> {
    let (metadata, start) = header(path).map_err(|e| e.in_file(path))?;
    let mut arrays = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let dtype = kind(info.dtype).map_or_else(|| info.dtype.to_string(), |k| k.name().to_owned());
        let place = start + info.data_offsets.0 as u64;
        arrays.push(ArrayInfo { name, dtype, shape: info.shape.clone(), place });
    }
    Ok(arrays)
}

/// Reads one array that [`list`] found.
pub(super) fn get(path: &Utf8Path, info: &ArrayInfo) -> Result<Array, ArrayErrorKind> {
    let (metadata, start) = header(path)?;
    let now = metadata.info(&info.name).filter(|now| start + now.data_offsets.0 as u64 == info.place);
    let now =
        now.ok_or_else(|| ArrayErrorKind::Malformed("the file changed while it was read".to_owned()))?;
    let Some(kind) = kind(now.dtype) else {
        return Err(ArrayErrorKind::UnsupportedDtype { found: now.dtype.to_string(), why: "not supported" });
    };
    npy::bytes_of(&now.shape, kind)?;
    let mut file = BufReader::new(File::open(path.as_std_path())?);
    file.seek(SeekFrom::Start(info.place))?;
    npy::read_elements(&mut file, kind, &now.shape, false)
}

struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Writes arrays as a `.safetensors` file, whole or not at all. The library orders them (wider elements first,
/// then by name), so the same arrays give the same bytes.
///
/// # Errors
/// When a name is empty, given twice or `__metadata__`, a shape does not fit its elements, or the disk refuses.
pub fn write_safetensors(path: &Utf8Path, arrays: &[(&str, ArrayRef<'_>)]) -> Result<(), ArrayError> {
    super::check_names(arrays).map_err(|e| e.in_file(path))?;
    let mut views = Vec::with_capacity(arrays.len());
    for (name, array) in arrays {
        if *name == "__metadata__" {
            let reserved = ArrayErrorKind::Write("the name is reserved by the format".to_owned());
            return Err(reserved.of(*name).in_file(path));
        }
        let view = || {
            array.check()?;
            let mut data = Vec::with_capacity(npy::bytes_of(array.shape, array.kind())?);
            npy::write_elements(&mut data, array.elements)?;
            let dtype = match array.kind() {
                Kind::F32 => Dtype::F32,
                Kind::F64 => Dtype::F64,
                Kind::I64 => Dtype::I64,
                Kind::I32 => Dtype::I32,
                Kind::U8 => Dtype::U8,
            };
            Ok(Bytes { dtype, shape: array.shape.to_vec(), data })
        };
        views.push((*name, view().map_err(|e: ArrayErrorKind| e.of(*name).in_file(path))?));
    }
    let bytes = safetensors::serialize(views, None)
        .map_err(|e| ArrayErrorKind::Write(e.to_string()).in_file(path))?;
    super::atomic::write_atomic(path, &bytes).map_err(|e| ArrayErrorKind::Io(e).in_file(path))
}
