//! The forms in which one graph can be written.

use serde::{Deserialize, Serialize};

/// Which operators a graph's file has. All files of a graph compute the same numbers from the same weight file, have the
/// same ports, and stand beside each other in a bundle; an engine says which it takes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Operators of the ONNX standard. Every graph has this form.
    #[default]
    Portable,
    /// Products with quantized weights are one operator that takes them packed (`com.microsoft::MatMulNBits`).
    Packed,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Portable, Self::Packed];

    /// The word in manifests, and in the names of files that are not portable.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Packed => "packed",
        }
    }
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
