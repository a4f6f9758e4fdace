//! safetensors: the header through the `safetensors` crate, placed in the file.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::{Contents, TensorEntry, WeightFormat, foreign};
use crate::{CheckpointError, ErrorKind, WeightDType};

/// Reads the table of contents of a `.safetensors` file.
pub(super) fn contents(file: &[u8]) -> Result<Contents, CheckpointError> {
    let format = WeightFormat::Safetensors;
    if file.get(8) != Some(&b'{')
        && let Some(found) = foreign::recognise(file)
    {
        return Err(foreign::error(format, found));
    }
    let (header, metadata) = SafeTensors::read_metadata(file).map_err(|e| kind(&e, file))?;
    let data = 8 + header;
    let mut contents = Contents::default();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let (range, shape) = (data + from..data + to, info.shape.clone());
        let entry = TensorEntry { dtype: dtype(info.dtype), shape, range, strides: None, negated: false };
        contents.entries.insert(name, entry);
    }
    Ok(contents)
}

fn kind(e: &SafeTensorError, file: &[u8]) -> ErrorKind {
    let format = WeightFormat::Safetensors;
    let announced = file.first_chunk::<8>().map(|n| u64::from_le_bytes(*n));
    let cut = match e {
        SafeTensorError::HeaderTooSmall => true,
        // The header announces a length that is plausible and the file ends before it.
        SafeTensorError::InvalidHeaderLength => {
            announced.is_some_and(|n| n < 100_000_000) && file.get(8).is_none_or(|b| *b == b'{')
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            let (len, described) = (file.len() as u64, announced.and_then(|n| described(file, n)));
            return match described {
                Some(whole) if whole < len => ErrorKind::Malformed {
                    format,
                    problem: format!("{} bytes follow its last tensor", len - whole),
                },
                Some(whole) => {
                    let problem = format!("it has {len} bytes, its header describes {whole}");
                    ErrorKind::Truncated { format, problem }
                }
                None => ErrorKind::Malformed { format, problem: e.to_string() },
            };
        }
        _ => false,
    };
    if cut {
        let problem = format!("its header is cut off after {} bytes", file.len());
        return ErrorKind::Truncated { format, problem };
    }
    ErrorKind::Malformed { format, problem: e.to_string() }
}

/// The size of the file that a header of `announced` bytes describes.
fn described(file: &[u8], announced: u64) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct TensorInfo {
        data_offsets: Option<(u64, u64)>,
    }
    let end = usize::try_from(announced).ok()?.checked_add(8)?;
    let tensors: BTreeMap<String, TensorInfo> = serde_json::from_slice(file.get(8..end)?).ok()?;
    let data = tensors.values().filter_map(|t| Some(t.data_offsets?.1)).max().unwrap_or(0);
    data.checked_add(end as u64)
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
