//! The names a pickle may call, and what each means as data.

use crate::WeightDType;

/// A `module.name` in a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global<'a> {
    /// `collections.OrderedDict`: a dictionary.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`: a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter` and `_with_state`: its first argument.
    RebuildParameter,
    /// `torch.Size`: its first argument.
    Size,
    /// A storage class with this element type.
    StorageType(WeightDType),
    /// Harmless metadata that training checkpoints carry; becomes an opaque value.
    Inert,
    /// Anything else. It may lie there; it must not be called.
    Unknown { module: &'a str, name: &'a str },
}

/// The one table of names. Everything else is [`Global::Unknown`].
pub(crate) fn lookup<'a>(module: &'a str, name: &'a str) -> Global<'a> {
    use Global::{Inert, OrderedDict, RebuildParameter, RebuildTensor, Size, StorageType};
    match (module, name) {
        ("collections", "OrderedDict") => OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => RebuildTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => RebuildParameter,
        ("torch", "Size") => Size,
        ("torch", "FloatStorage") => StorageType(WeightDType::F32),
        ("torch", "HalfStorage") => StorageType(WeightDType::F16),
        ("torch", "BFloat16Storage") => StorageType(WeightDType::BF16),
        ("torch", "DoubleStorage") => StorageType(WeightDType::F64),
        ("torch", "LongStorage") => StorageType(WeightDType::I64),
        ("torch", "IntStorage") => StorageType(WeightDType::I32),
        ("torch", "ShortStorage") => StorageType(WeightDType::I16),
        ("torch", "CharStorage") => StorageType(WeightDType::I8),
        ("torch", "ByteStorage") => StorageType(WeightDType::U8),
        ("torch", "BoolStorage") => StorageType(WeightDType::Bool),
        // Untyped storages count bytes; PyTorch itself reads them as uint8.
        ("torch.storage", "UntypedStorage" | "TypedStorage") => StorageType(WeightDType::U8),
        ("torch", "device")
        | ("argparse", "Namespace")
        | ("collections", "defaultdict")
        | ("numpy", "dtype")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
        | ("_codecs", "encode")
        | ("pathlib" | "pathlib._local", "PosixPath" | "PurePosixPath" | "WindowsPath" | "PureWindowsPath") => {
            Inert
        }
        _ => Global::Unknown { module, name },
    }
}
