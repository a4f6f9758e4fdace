//! The graphs that bundles have.

use std::fmt;

/// A graph of a component. Manifests, files and messages have its [name](Self::as_str); the graphs themselves are
/// described in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GraphName {
    /// Entropies of the next tokens, with a KV cache.
    EntropyStep,
    /// Class embeddings, and the decoder's input before the first patch.
    Start,
    /// Hidden states of every encoder layer, with a KV cache.
    EncoderStep,
    /// Patches from the hidden states of their tokens.
    PatchEmbed,
    /// The global transformer over patches, with a KV cache.
    GlobalStep,
    /// Logits of the next tokens, with a KV cache.
    DecoderStep,
    /// The whole transformer of a system, teacher-forced.
    Score,
    /// LlamaGen over the next tokens, with a KV cache.
    LlamagenStep,
    /// Codes to an image.
    VqDecode,
    /// An image to codes.
    VqEncode,
    /// The FID-Inception network.
    Inception,
    /// EfficientNet-Lite0.
    EfficientnetLite0,
    /// A feature network of others.
    Features,
}

impl GraphName {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::EntropyStep,
        Self::Start,
        Self::EncoderStep,
        Self::PatchEmbed,
        Self::GlobalStep,
        Self::DecoderStep,
        Self::Score,
        Self::LlamagenStep,
        Self::VqDecode,
        Self::VqEncode,
        Self::Inception,
        Self::EfficientnetLite0,
        Self::Features,
    ];

    /// The name in the manifest, also the stem of its file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EntropyStep => "entropy_step",
            Self::Start => "start",
            Self::EncoderStep => "encoder_step",
            Self::PatchEmbed => "patch_embed",
            Self::GlobalStep => "global_step",
            Self::DecoderStep => "decoder_step",
            Self::Score => "score",
            Self::LlamagenStep => "llamagen_step",
            Self::VqDecode => "vq_decode",
            Self::VqEncode => "vq_encode",
            Self::Inception => "inception",
            Self::EfficientnetLite0 => "efficientnet-lite0",
            Self::Features => "features",
        }
    }

    /// The graph of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|g| g.as_str() == name)
    }
}

impl AsRef<str> for GraphName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for GraphName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl fmt::Display for GraphName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_graph() {
        let names: std::collections::BTreeSet<&str> = GraphName::ALL.map(GraphName::as_str).into();
        assert_eq!(names.len(), GraphName::ALL.len());
        assert!(names.iter().all(|n| crate::is_name(n) && GraphName::of(n).is_some_and(|g| g == **n)));
        assert_eq!(GraphName::of("decoder"), None);
    }
}
