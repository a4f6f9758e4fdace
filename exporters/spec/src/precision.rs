//! The arithmetic that graphs are written in.

use serde::{Deserialize, Serialize};

use crate::{ComponentKind, DType};

/// Precision of a bundle's graphs: the types of weights, products and activations. The graph decides it, with a
/// `Cast` at every change; no engine may choose another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floats throughout.
    #[default]
    Fp32,
    /// 16-bit IEEE floats, with float32 islands.
    Fp16,
    /// bfloat16, with float32 islands.
    Bf16,
    /// As `torch.autocast(float16)` computes: products in fp16, everything between them in float32.
    Fp16Autocast,
    /// As `torch.autocast(bfloat16)` computes: products in bfloat16, everything between them in float32.
    Bf16Autocast,
    /// [`Bf16Autocast`](Self::Bf16Autocast) for engines without bfloat16: the same numbers, held in float32, and every
    /// rounding a computation of its own.
    Bf16AutocastExplicit,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Fp32,
        Self::Fp16,
        Self::Bf16,
        Self::Fp16Autocast,
        Self::Bf16Autocast,
        Self::Bf16AutocastExplicit,
    ];

    /// The word in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp16Autocast => "fp16-autocast",
            Self::Bf16Autocast => "bf16-autocast",
            Self::Bf16AutocastExplicit => "bf16-autocast-explicit",
        }
    }

    /// Type of the matrices of linear layers, of products, their results and KV caches.
    pub fn dtype(self) -> DType {
        match self {
            Self::Fp32 | Self::Bf16AutocastExplicit => DType::F32,
            Self::Fp16 | Self::Fp16Autocast => DType::F16,
            Self::Bf16 | Self::Bf16Autocast => DType::BF16,
        }
    }

    /// Type of what lies between products: embeddings, the residual stream, weights of norms.
    pub fn stream(self) -> DType {
        if self.is_autocast() { DType::F32 } else { self.dtype() }
    }

    /// The type whose numbers products take and give, in whatever type they are held.
    pub fn rounds_to(self) -> DType {
        if self == Self::Bf16AutocastExplicit { DType::BF16 } else { self.dtype() }
    }

    /// Whether only products are rounded.
    pub fn is_autocast(self) -> bool {
        matches!(self, Self::Fp16Autocast | Self::Bf16Autocast | Self::Bf16AutocastExplicit)
    }

    /// The precision whose numbers these are: the form of a graph does not change them.
    pub fn numbers(self) -> Self {
        if self == Self::Bf16AutocastExplicit { Self::Bf16Autocast } else { self }
    }

    /// The precision of the graphs of one component: autocast covers the transformers, the tokenizer runs in float32.
    pub fn of_component(self, component: &str) -> Self {
        if self.is_autocast() && component == ComponentKind::Vq.name() { Self::Fp32 } else { self }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_the_same_in_manifests_and_messages() {
        for precision in Precision::ALL {
            assert_eq!(serde_json::to_value(precision).unwrap(), precision.name());
            assert!(precision.dtype().is_float());
        }
    }

    #[test]
    fn autocast_narrows_products_alone_and_leaves_the_tokenizer() {
        for precision in Precision::ALL {
            assert_eq!(precision.is_autocast(), precision.stream() != precision.rounds_to(), "{precision}");
            let own = precision.of_component("vq");
            assert_eq!(own, if precision.is_autocast() { Precision::Fp32 } else { precision });
            assert_eq!(precision.of_component("dpar"), precision);
            assert_eq!(precision.numbers().rounds_to(), precision.rounds_to());
        }
    }
}
