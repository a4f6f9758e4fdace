//! The graphs that bundles have.

use std::fmt;

/// Writes the one table of graphs: the name in the manifest, which is also the stem of the file.
macro_rules! graphs {
    ($($(#[$doc:meta])* $id:ident $name:literal;)*) => {
        /// A graph of a component. Manifests, files and messages have its [name](Self::as_str); the graphs themselves are
        /// described in ARCHITECTURE.md.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum GraphName {
            $($(#[$doc])* $id,)*
        }

        impl GraphName {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$id),*];

            /// The name in the manifest, also the stem of its file.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$id => $name,)*
                }
            }
        }
    };
}

graphs! {
    /// Entropies of the next tokens, with a KV cache.
    EntropyStep "entropy_step";
    /// Class embeddings, and the decoder's input before the first patch.
    Start "start";
    /// Hidden states of every encoder layer, with a KV cache.
    EncoderStep "encoder_step";
    /// Patches from the hidden states of their tokens.
    PatchEmbed "patch_embed";
    /// The global transformer over patches, with a KV cache.
    GlobalStep "global_step";
    /// Logits of the next tokens, with a KV cache.
    DecoderStep "decoder_step";
    /// The whole transformer of a system, teacher-forced.
    Score "score";
    /// LlamaGen over the next tokens, with a KV cache.
    LlamagenStep "llamagen_step";
    /// Codes to an image.
    VqDecode "vq_decode";
    /// An image to codes.
    VqEncode "vq_encode";
    /// The FID-Inception network.
    Inception "inception";
    /// EfficientNet-Lite0.
    EfficientnetLite0 "efficientnet-lite0";
    /// A feature network of others.
    Features "features";
}

impl GraphName {
    /// The graph of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|g| g.as_str() == name)
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
        let names: std::collections::BTreeSet<&str> = GraphName::ALL.iter().map(|g| g.as_str()).collect();
        assert_eq!(names.len(), GraphName::ALL.len());
        assert!(names.iter().all(|n| crate::is_name(n) && GraphName::of(n).is_some_and(|g| g == **n)));
        assert_eq!(GraphName::of("decoder"), None);
    }
}
