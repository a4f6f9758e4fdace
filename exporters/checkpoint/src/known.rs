//! The published sizes, by the word in `model.gpt_model`.

use std::fmt;

/// Layer counts of a published model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerCounts {
    /// A LlamaGen transformer.
    Gpt(usize),
    /// Patch encoder, global transformer, patch decoder.
    Dpar(usize, usize, usize),
}

/// Width, heads and layers of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) layers: LayerCounts,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "width {}, ", self.width)?;
        match self.layers {
            LayerCounts::Gpt(n) => write!(f, "{n} layers"),
            LayerCounts::Dpar(e, g, d) => write!(f, "layers E{e} G{g} D{d}"),
        }
    }
}

const fn gpt(width: usize, heads: usize, layers: usize) -> Size {
    Size { width, heads, layers: LayerCounts::Gpt(layers) }
}

const fn dpar(width: usize, heads: usize, e: usize, g: usize, d: usize) -> Size {
    Size { width, heads, layers: LayerCounts::Dpar(e, g, d) }
}

/// DPAR: table 1 of the paper and the authors' code; LlamaGen: `GPT_models` of its public code. All head widths are
/// 64 but GPT-3B's (100) and GPT-7B's (128).
const SIZES: [(&str, Size); 17] = [
    ("DGPT-B", dpar(768, 12, 1, 8, 3)),
    ("DGPT-L", dpar(1024, 16, 1, 19, 4)),
    ("DGPT-L-E2D3", dpar(1024, 16, 2, 19, 3)),
    ("DGPT-L-E3D2", dpar(1024, 16, 3, 19, 2)),
    ("DGPT-L-E4D1", dpar(1024, 16, 4, 19, 1)),
    ("DGPT-XL", dpar(1280, 20, 1, 30, 5)),
    ("DGPT-XXL", dpar(1536, 24, 1, 41, 6)),
    ("DGPT-XXXL", dpar(2560, 40, 1, 41, 6)),
    ("GPT-T", gpt(512, 8, 6)),
    ("GPT-B", gpt(768, 12, 12)),
    ("GPT-L", gpt(1024, 16, 24)),
    ("GPT-XL", gpt(1280, 20, 36)),
    ("GPT-XXL", gpt(1536, 24, 48)),
    ("GPT-XXXL", gpt(2560, 40, 48)),
    ("GPT-1B", gpt(2048, 32, 22)),
    ("GPT-3B", gpt(3200, 32, 24)),
    ("GPT-7B", gpt(4096, 32, 32)),
];

/// The published size of that name.
pub(crate) fn by_name(name: &str) -> Option<Size> {
    SIZES.iter().find(|(n, _)| *n == name).map(|(_, s)| *s)
}

/// The name of a published size.
pub(crate) fn name_of(size: &Size) -> Option<&'static str> {
    SIZES.iter().find(|(_, s)| s == size).map(|(n, _)| *n)
}

/// Heads of the published model of that width and depth.
pub(crate) fn heads_of(width: usize, layers: LayerCounts) -> Option<usize> {
    SIZES.iter().find(|(_, s)| s.width == width && s.layers == layers).map(|(_, s)| s.heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_are_found_by_name_and_by_shape() {
        assert_eq!(by_name("DGPT-XXL").unwrap().to_string(), "width 1536, layers E1 G41 D6");
        assert_eq!(by_name("GPT-B").unwrap().to_string(), "width 768, 12 layers");
        assert_eq!(by_name("GPT-tiny"), None);
        assert_eq!(by_name("DGPT-L-E3D2").unwrap().to_string(), "width 1024, layers E3 G19 D2");
        // The one public class-conditional model whose heads are not 64 wide.
        assert_eq!(heads_of(3200, LayerCounts::Gpt(24)), Some(32));
        assert_eq!(heads_of(3200, LayerCounts::Gpt(23)), None);
        for (name, size) in SIZES {
            assert_eq!(size.width % size.heads, 0, "{name}");
            assert_eq!(size.width / size.heads % 4, 0, "{name}");
        }
    }
}
