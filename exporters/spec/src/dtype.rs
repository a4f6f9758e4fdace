//! Element types.

use serde::{Deserialize, Serialize};

/// Element type of a graph port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float: 5 exponent bits, 10 stored mantissa bits.
    F16,
    /// The upper half of a 32-bit float: 8 exponent bits, 7 stored mantissa bits.
    BF16,
    /// 64-bit signed integer.
    I64,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// Whether elements are floats of any width.
    pub fn is_float(self) -> bool {
        !matches!(self, Self::I64)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
        })
    }
}
