//! Feature networks: what the metrics look at images with. One table of layers each, which the checkpoint reader and
//! the graph writer share.

use serde::{Deserialize, Serialize};

/// One convolution without bias, followed by a batch norm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvLayer {
    /// Module name; `{name}.conv.weight` and `{name}.bn.*` are its tensors.
    pub name: String,
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Stride of both axes.
    pub stride: usize,
    /// Padding above and below, left and right.
    pub pad: [usize; 2],
}

/// The FID-Inception network (TensorFlow's `inception-2015-12-05` as pytorch-fid and torch-fidelity store it).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InceptionSpec {
    /// Rows of `fc.weight`.
    pub classes: usize,
}

/// Blocks of one kind and their inner width (pool channels of A, 7x7 channels of C).
const A: [(&str, usize, usize); 3] = [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)];
const C: [(&str, usize); 4] = [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)];
const E: [(&str, usize); 2] = [("Mixed_7b", 1280), ("Mixed_7c", 2048)];

impl InceptionSpec {
    /// Side of the input in pixels.
    pub const INPUT: usize = 299;
    /// Width of `pool_3`.
    pub const FEATURES: usize = 2048;
    /// Classes of the published network.
    pub const CLASSES: usize = 1008;
    /// Side of the maps in the blocks 6.
    pub const SPATIAL_SIDE: usize = 17;
    /// Channels of the raw 1×1 convolution of Mixed_6d that the spatial features keep.
    pub const SPATIAL_CHANNELS: usize = 7;
    /// The convolution whose raw output gives the spatial features.
    pub const SPATIAL_LAYER: &'static str = "Mixed_6d.branch1x1";

    /// The 94 convolutions.
    pub fn layers() -> Vec<ConvLayer> {
        let mut layers = Vec::with_capacity(94);
        let mut add =
            |name: String, input: usize, output: usize, kernel: [usize; 2], stride: usize, same: bool| {
                let pad = if same { [kernel[0] / 2, kernel[1] / 2] } else { [0, 0] };
                layers.push(ConvLayer { name, input, output, kernel, stride, pad });
            };
        add("Conv2d_1a_3x3".to_owned(), 3, 32, [3, 3], 2, false);
        add("Conv2d_2a_3x3".to_owned(), 32, 32, [3, 3], 1, false);
        add("Conv2d_2b_3x3".to_owned(), 32, 64, [3, 3], 1, true);
        add("Conv2d_3b_1x1".to_owned(), 64, 80, [1, 1], 1, false);
        add("Conv2d_4a_3x3".to_owned(), 80, 192, [3, 3], 1, false);
        for (block, input, pool) in A {
            for (branch, input, output, side) in [
                ("branch1x1", input, 64, 1),
                ("branch5x5_1", input, 48, 1),
                ("branch5x5_2", 48, 64, 5),
                ("branch3x3dbl_1", input, 64, 1),
                ("branch3x3dbl_2", 64, 96, 3),
                ("branch3x3dbl_3", 96, 96, 3),
                ("branch_pool", input, pool, 1),
            ] {
                add(format!("{block}.{branch}"), input, output, [side, side], 1, true);
            }
        }
        add("Mixed_6a.branch3x3".to_owned(), 288, 384, [3, 3], 2, false);
        add("Mixed_6a.branch3x3dbl_1".to_owned(), 288, 64, [1, 1], 1, false);
        add("Mixed_6a.branch3x3dbl_2".to_owned(), 64, 96, [3, 3], 1, true);
        add("Mixed_6a.branch3x3dbl_3".to_owned(), 96, 96, [3, 3], 2, false);
        for (block, inner) in C {
            for (branch, input, output, kernel) in [
                ("branch1x1", 768, 192, [1, 1]),
                ("branch7x7_1", 768, inner, [1, 1]),
                ("branch7x7_2", inner, inner, [1, 7]),
                ("branch7x7_3", inner, 192, [7, 1]),
                ("branch7x7dbl_1", 768, inner, [1, 1]),
                ("branch7x7dbl_2", inner, inner, [7, 1]),
                ("branch7x7dbl_3", inner, inner, [1, 7]),
                ("branch7x7dbl_4", inner, inner, [7, 1]),
                ("branch7x7dbl_5", inner, 192, [1, 7]),
                ("branch_pool", 768, 192, [1, 1]),
            ] {
                add(format!("{block}.{branch}"), input, output, kernel, 1, true);
            }
        }
        add("Mixed_7a.branch3x3_1".to_owned(), 768, 192, [1, 1], 1, false);
        add("Mixed_7a.branch3x3_2".to_owned(), 192, 320, [3, 3], 2, false);
        add("Mixed_7a.branch7x7x3_1".to_owned(), 768, 192, [1, 1], 1, false);
        add("Mixed_7a.branch7x7x3_2".to_owned(), 192, 192, [1, 7], 1, true);
        add("Mixed_7a.branch7x7x3_3".to_owned(), 192, 192, [7, 1], 1, true);
        add("Mixed_7a.branch7x7x3_4".to_owned(), 192, 192, [3, 3], 2, false);
        for (block, input) in E {
            for (branch, input, output, kernel) in [
                ("branch1x1", input, 320, [1, 1]),
                ("branch3x3_1", input, 384, [1, 1]),
                ("branch3x3_2a", 384, 384, [1, 3]),
                ("branch3x3_2b", 384, 384, [3, 1]),
                ("branch3x3dbl_1", input, 448, [1, 1]),
                ("branch3x3dbl_2", 448, 384, [3, 3]),
                ("branch3x3dbl_3a", 384, 384, [1, 3]),
                ("branch3x3dbl_3b", 384, 384, [3, 1]),
                ("branch_pool", input, 192, [1, 1]),
            ] {
                add(format!("{block}.{branch}"), input, output, kernel, 1, true);
            }
        }
        layers
    }
}

/// An inverted residual block of EfficientNet-Lite0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MobileBlock {
    /// Index in `_blocks.{index}`.
    pub index: usize,
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// Side of the depthwise kernel.
    pub kernel: usize,
    /// Stride of the depthwise convolution.
    pub stride: usize,
    /// Factor of the expansion; 1 = there is none.
    pub expand: usize,
}

/// EfficientNet-Lite0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EfficientNetSpec {
    /// Side of the input in pixels.
    pub input_size: usize,
    /// Rows of `_fc.weight`.
    pub classes: usize,
}

impl EfficientNetSpec {
    /// Side of the input the network was trained for, in pixels.
    pub const INPUT: usize = 224;
    /// Channels of the stem.
    pub const STEM: usize = 32;
    /// Width of the pooled features.
    pub const FEATURES: usize = 1280;

    /// The blocks in order: M. Tan, Q. Le, "EfficientNet", 2019, table 1, without squeeze-and-excitation.
    pub fn blocks() -> Vec<MobileBlock> {
        // Repeats, kernel, stride, expansion, output channels.
        let stages = [
            (1, 3, 1, 1, 16),
            (2, 3, 2, 6, 24),
            (2, 5, 2, 6, 40),
            (3, 3, 2, 6, 80),
            (3, 5, 1, 6, 112),
            (4, 5, 2, 6, 192),
            (1, 3, 1, 6, 320),
        ];
        let mut blocks: Vec<MobileBlock> = Vec::with_capacity(16);
        for (repeats, kernel, stride, expand, output) in stages {
            for repeat in 0..repeats {
                let input = blocks.last().map_or(Self::STEM, |b| b.output);
                let stride = if repeat == 0 { stride } else { 1 };
                blocks.push(MobileBlock { index: blocks.len(), input, output, kernel, stride, expand });
            }
        }
        blocks
    }
}

/// Any other feature network, given as an ONNX file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeaturesSpec {
    /// Side of the input in pixels.
    pub input_size: usize,
    /// Values per image.
    pub width: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_the_published_sizes() {
        let layers = InceptionSpec::layers();
        assert_eq!(layers.len(), 94);
        assert!(layers.iter().any(|l| l.name == InceptionSpec::SPATIAL_LAYER));
        let blocks = EfficientNetSpec::blocks();
        assert_eq!(blocks.len(), 16);
        let strides: usize = blocks.iter().map(|b| b.stride).product();
        assert_eq!((strides, blocks[15].output), (16, 320));
    }
}
