//! `.safetensors`: read by header and offset, written whole.

use std::io::{BufReader, Read, Seek, SeekFrom, Write};

use camino::Utf8Path;
use fs_err::File;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::atomic::AtomicFile;
use super::npy::{self, NpyType, Stored};
use super::{Array, ArrayError, ArrayErrorKind, ArrayInfo, ArrayRef};

/// Longest JSON header that is read: the limit of the safetensors library.
const LONGEST_HEADER: u64 = 100_000_000;

fn stored(dtype: Dtype) -> Option<Stored> {
    Some(match dtype {
        Dtype::F32 => NpyType::F32.into(),
        Dtype::F64 => NpyType::F64.into(),
        Dtype::I64 => NpyType::I64.into(),
        Dtype::I32 => NpyType::I32.into(),
        Dtype::U8 => NpyType::U8.into(),
        Dtype::F16 => Stored::F16,
        Dtype::BF16 => Stored::Bf16,
        Dtype::I8 => Stored::I8,
        Dtype::I16 => Stored::I16,
        Dtype::U16 => Stored::U16,
        Dtype::U32 => Stored::U32,
        _ => return None,
    })
}

/// Reads and checks the header; also gives the offset of the data.
fn header(path: &Utf8Path) -> Result<(Metadata, u64), ArrayErrorKind> {
    let mut file = dpar_export_inputs::open(path)?;
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
        let dtype = stored(info.dtype).map_or_else(|| info.dtype.to_string(), |s| s.name().to_owned());
        let place = start + info.data_offsets.0 as u64;
        // The header was held against the file.
        arrays.push(ArrayInfo { name, dtype, shape: info.shape.clone(), place, held: u64::MAX });
    }
    Ok(arrays)
}

/// Reads one array that [`list`] found.
pub(super) fn get(path: &Utf8Path, info: &ArrayInfo) -> Result<Array, ArrayErrorKind> {
    let (stored, mut reader) = elements(path, info)?;
    npy::read_elements(&mut reader, stored, &info.shape, false)
}

/// Type and elements of an array that [`list`] found.
pub(super) fn elements(
    path: &Utf8Path,
    info: &ArrayInfo,
) -> Result<(Stored, BufReader<File>), ArrayErrorKind> {
    let (metadata, start) = header(path)?;
    let same = |now: &&TensorInfo| start + now.data_offsets.0 as u64 == info.place && now.shape == info.shape;
    let now = metadata.info(&info.name).filter(same);
    let now =
        now.ok_or_else(|| ArrayErrorKind::Malformed("the file changed while it was read".to_owned()))?;
    let Some(stored) = stored(now.dtype) else {
        return Err(ArrayErrorKind::UnsupportedDtype { found: now.dtype.to_string(), why: "not supported" });
    };
    npy::bytes_of(&now.shape, stored)?;
    let mut file = BufReader::new(dpar_export_inputs::open(path)?);
    file.seek(SeekFrom::Start(info.place))?;
    Ok((stored, file))
}

/// Writes arrays as a `.safetensors` file, whole or not at all. Wider elements come first, then by name, as the library
/// orders them, so the same arrays give the same bytes; they are written as they lie, and none is copied.
///
/// # Errors
/// When a name is empty, given twice or `__metadata__`, a shape does not fit its elements, or the disk refuses.
pub fn write_safetensors(path: &Utf8Path, arrays: &[(&str, ArrayRef<'_>)]) -> Result<(), ArrayError> {
    super::check_names(arrays).map_err(|e| e.in_file(path))?;
    let mut ordered = Vec::with_capacity(arrays.len());
    for (name, array) in arrays {
        if *name == "__metadata__" {
            let reserved = ArrayErrorKind::Write("the name is reserved by the format".to_owned());
            return Err(reserved.of(*name).in_file(path));
        }
        array.check().map_err(|e| e.of(*name).in_file(path))?;
        ordered.push((dtype(array.kind()), *name, array));
    }
    ordered.sort_by(|(a, left, _), (b, right, _)| b.cmp(a).then(left.cmp(right)));
    let write = || {
        let mut end = 0;
        let mut infos = Vec::with_capacity(ordered.len());
        for (dtype, name, array) in &ordered {
            let start = end;
            end += npy::bytes_of(array.shape, array.kind())?;
            let (shape, data_offsets) = (array.shape.to_vec(), (start, end));
            infos.push(((*name).to_owned(), TensorInfo { dtype: *dtype, shape, data_offsets }));
        }
        let refused = |e: &dyn std::fmt::Display| ArrayErrorKind::Write(e.to_string());
        let metadata = Metadata::new(None, infos).map_err(|e| refused(&e))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| refused(&e))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        if header.len() as u64 > LONGEST_HEADER {
            return Err(refused(&"the header is too long"));
        }
        let mut file = AtomicFile::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, _, array) in &ordered {
            npy::write_elements(&mut file, array.elements)?;
        }
        Ok(file.commit()?)
    };
    write().map_err(|e: ArrayErrorKind| e.in_file(path))
}

fn dtype(kind: NpyType) -> Dtype {
    match kind {
        NpyType::F32 => Dtype::F32,
        NpyType::F64 => Dtype::F64,
        NpyType::I64 => Dtype::I64,
        NpyType::I32 => Dtype::I32,
        NpyType::U8 => Dtype::U8,
    }
}
