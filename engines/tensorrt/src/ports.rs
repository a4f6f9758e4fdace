//! TensorRT's tensors as ports.

use dpar_engine_api::FilePort;
use dpar_export_spec::DType;
use trtx::DataType;

/// A tensor as found in a network or an engine; a negative size is a dynamic one.
pub(crate) fn file_port(name: String, dtype: DataType, dims: Option<Vec<i64>>) -> FilePort {
    let dtype = match dtype {
        DataType::kFLOAT => Some(DType::F32),
        DataType::kHALF => Some(DType::F16),
        DataType::kBF16 => Some(DType::BF16),
        DataType::kINT64 => Some(DType::I64),
        _ => None,
    };
    let dims = dims.map(|d| d.into_iter().map(|n| usize::try_from(n).ok()).collect());
    FilePort { name, dtype, dims }
}
