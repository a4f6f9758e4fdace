//! The VQ tokenizer: convolutional encoder and decoder around a codebook.

use dpar_export_spec::{VqLevel, VqStack};

use super::{Expected, ExpectedTensors};
use crate::CheckpointError;
use crate::weights::{CanonicalTensors, WeightSet};

/// Indexes of this size and more are not levels or blocks.
const MAX_LEVELS: usize = 16;
const MAX_BLOCKS: usize = 64;
/// GroupNorm's groups.
const GROUPS: usize = 32;

/// Sizes read from the tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VqDims {
    /// Codebook size V.
    pub(crate) codebook: usize,
    /// Width of a codebook row.
    pub(crate) code_width: usize,
    /// Latent channels z.
    pub(crate) z_channels: usize,
    /// Encoder: image to latent.
    pub(crate) encoder: VqStack,
    /// Decoder: latent to image.
    pub(crate) decoder: VqStack,
}

impl VqDims {
    /// Pixels per token and axis.
    pub(crate) fn downsample(&self) -> usize {
        1 << self.encoder.levels.iter().filter(|l| l.resample).count()
    }
}

impl ExpectedTensors {
    fn conv(&mut self, name: &str, out: usize, input: usize, kernel: usize) {
        self.add(format!("{name}.weight"), &[out, input, kernel, kernel]);
        self.add(format!("{name}.bias"), &[out]);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        self.add(format!("{name}.weight"), &[channels]);
        self.add(format!("{name}.bias"), &[channels]);
    }

    fn residual(&mut self, name: &str, input: usize, out: usize) {
        self.norm(&format!("{name}.norm1"), input);
        self.conv(&format!("{name}.conv1"), out, input, 3);
        self.norm(&format!("{name}.norm2"), out);
        self.conv(&format!("{name}.conv2"), out, out, 3);
        if input != out {
            self.conv(&format!("{name}.nin_shortcut"), out, input, 1);
        }
    }

    fn attention(&mut self, name: &str, channels: usize) {
        self.norm(&format!("{name}.norm"), channels);
        for part in ["q", "k", "v", "proj_out"] {
            self.conv(&format!("{name}.{part}"), channels, channels, 1);
        }
    }

    fn middle(&mut self, stack: &str, channels: usize) {
        self.residual(&format!("{stack}.mid.0"), channels, channels);
        self.attention(&format!("{stack}.mid.1"), channels);
        self.residual(&format!("{stack}.mid.2"), channels, channels);
    }

    /// The levels in execution order; returns the channels after the last.
    fn levels(&mut self, stack: &str, resample: &str, s: &VqStack) -> usize {
        let mut channels = s.conv_in;
        for level in &s.levels {
            let at = format!("{stack}.conv_blocks.{}", level.index);
            for j in 0..level.res_blocks {
                self.residual(&format!("{at}.res.{j}"), channels, level.channels);
                channels = level.channels;
                if level.attention {
                    self.attention(&format!("{at}.attn.{j}"), channels);
                }
            }
            if level.resample {
                self.conv(&format!("{at}.{resample}.conv"), channels, channels, 3);
            }
        }
        channels
    }
}

/// Every tensor of the tokenizer. Decoder levels execute in index order, lowest resolution first.
pub(crate) fn table(d: &VqDims) -> Vec<Expected> {
    let mut t = ExpectedTensors::default();
    t.conv("encoder.conv_in", d.encoder.conv_in, 3, 3);
    let deepest = t.levels("encoder", "downsample", &d.encoder);
    t.middle("encoder", deepest);
    t.norm("encoder.norm_out", deepest);
    t.conv("encoder.conv_out", d.z_channels, deepest, 3);
    t.conv("quant_conv", d.code_width, d.z_channels, 1);
    t.add("quantize.embedding.weight", &[d.codebook, d.code_width]);
    t.conv("post_quant_conv", d.z_channels, d.code_width, 1);
    t.conv("decoder.conv_in", d.decoder.conv_in, d.z_channels, 3);
    t.middle("decoder", d.decoder.conv_in);
    let last = t.levels("decoder", "upsample", &d.decoder);
    t.norm("decoder.norm_out", last);
    t.conv("decoder.conv_out", 3, last, 3);
    t.0
}

fn stack(named: &CanonicalTensors, stack: &str) -> VqStack {
    let levels = named.parts(&format!("{stack}.conv_blocks."), MAX_LEVELS).max(1);
    let level = |index: usize| {
        let at = format!("{stack}.conv_blocks.{index}");
        VqLevel {
            index,
            channels: named.dim(&format!("{at}.res.0.conv1.weight"), 0),
            res_blocks: named.parts(&format!("{at}.res."), MAX_BLOCKS).max(1),
            attention: named.has_prefix(&format!("{at}.attn.")),
            resample: index + 1 < levels,
        }
    };
    VqStack {
        conv_in: named.dim(&format!("{stack}.conv_in.weight"), 0),
        levels: (0..levels).map(level).collect(),
    }
}

/// Compares a file with the table and reads its sizes.
pub(crate) fn resolve(named: CanonicalTensors) -> Result<(VqDims, WeightSet), CheckpointError> {
    let dims = VqDims {
        codebook: named.dim("quantize.embedding.weight", 0),
        code_width: named.dim("quantize.embedding.weight", 1),
        z_channels: named.dim("encoder.conv_out.weight", 0),
        encoder: stack(&named, "encoder"),
        decoder: stack(&named, "decoder"),
    };
    let table = table(&dims);
    named.check_names(&table)?;
    named.check_rank("quantize.embedding.weight", 2)?;
    for name in ["encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight"] {
        named.check_rank(name, 4)?;
    }
    for (at, s) in [("encoder", &dims.encoder), ("decoder", &dims.decoder)] {
        check_groups(&named, &format!("{at}.conv_in.weight"), s.conv_in)?;
        for level in &s.levels {
            let name = format!("{at}.conv_blocks.{}.res.0.conv1.weight", level.index);
            named.check_rank(&name, 4)?;
            check_groups(&named, &name, level.channels)?;
        }
    }
    if dims.encoder.levels.len() != dims.decoder.levels.len() {
        return Err(named.sizes(
            "decoder.conv_blocks",
            format!(
                "the encoder has {} resolution levels, the decoder {}",
                dims.encoder.levels.len(),
                dims.decoder.levels.len()
            ),
        ));
    }
    Ok((dims, named.bind(&table)?))
}

fn check_groups(named: &CanonicalTensors, tensor: &str, channels: usize) -> Result<(), CheckpointError> {
    if channels.is_multiple_of(GROUPS) {
        return Ok(());
    }
    Err(named.sizes(tensor, format!("{channels} channels are not a multiple of GroupNorm's {GROUPS} groups")))
}
