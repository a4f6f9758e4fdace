//! safetensors: the header through the `safetensors` crate, placed in the file.

use std::collections::BTreeMap;

use camino::Utf8Path;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::{Entry, WeightFormat};
use crate::{CheckpointError, ErrorKind, WeightDType};

/// Reads the table of contents of a `.safetensors` file.
pub(super) fn entries(file: &[u8], path: &Utf8Path) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let (header, metadata) =
        SafeTensors::read_metadata(file).map_err(|e| CheckpointError::in_file(kind(&e, file), path))?;
    let data = 8 + header;
    let mut found = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let range = data + from..data + to;
        let entry = Entry { dtype: dtype(info.dtype), shape: info.shape.clone(), range, strides: None };
        found.insert(name, entry);
    }
    Ok(found)
}

fn kind(e: &SafeTensorError, file: &[u8]) -> ErrorKind {
    let format = WeightFormat::Safetensors;
    let cut = match e {
        SafeTensorError::HeaderTooSmall => true,
        // The header announces a length that is plausible and the file ends before it.
        SafeTensorError::InvalidHeaderLength => {
            file.first_chunk::<8>().is_some_and(|n| u64::from_le_bytes(*n) < 100_000_000)
                && file.get(8).is_none_or(|b| *b == b'{')
        }
        SafeTensorError::MetadataIncompleteBuffer => true,
        _ => false,
    };
    if cut {
        let problem = match e {
            SafeTensorError::MetadataIncompleteBuffer => {
                format!("its header does not describe a file of {} bytes", file.len())
            }
            _ => format!("its header is cut off after {} bytes", file.len()),
        };
        return ErrorKind::Truncated { format, problem };
    }
    ErrorKind::Malformed { format, problem: e.to_string() }
}

fn dtype(d: Dtype) -> WeightDType {
    match d {
        Dtype::F32 => WeightDType::F32,
        Dtype::F16 => WeightDType::F16,
        Dtype::BF16 => WeightDType::BF16,
        Dtype::F64 => WeightDType::F64,
        Dtype::I64 => WeightDType::I64,
        Dtype::I32 => WeightDType::I32,
        Dtype::I16 => WeightDType::I16,
        Dtype::I8 => WeightDType::I8,
        Dtype::U8 => WeightDType::U8,
        Dtype::U16 => WeightDType::U16,
        Dtype::U32 => WeightDType::U32,
        Dtype::U64 => WeightDType::U64,
        Dtype::BOOL => WeightDType::Bool,
        _ => WeightDType::Other,
    }
}
