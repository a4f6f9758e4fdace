//! Checkpoints with seeded random weights, in the authors' layout: what it costs to export, build and decode a system, and
//! how far engines round apart, does not depend on what it has learned.

mod spread;
mod tensors;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{DecoderCross, PatchMode, PatchRule, SystemKind, VqLevel, VqStack};

use crate::expect::{self, dpar::DparDims, gpt::GptDims, vq::VqDims};
use crate::known::{self, LayerCounts, Size};
use crate::weights::Expected;
use crate::{CheckpointError, ErrorKind};

use spread::Spread;
use tensors::Tensors;

/// Tokens per codebook entry, pixels per token and axis, classes of every published system.
const VOCAB: usize = 16_384;
const CODE_WIDTH: usize = 8;
const DOWNSAMPLE: usize = 16;
const CLASSES: usize = 1000;
/// The entropy model of every published DPAR.
const ENTROPY: &str = "GPT-B";
/// Latent channels of the published tokenizer.
const LATENT: usize = 256;
/// The word for sizes that no published name stands for.
const UNNAMED: &str = "GPT-seeded";

/// A transformer's sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthSize {
    /// Model width D.
    pub width: usize,
    /// Heads H.
    pub heads: usize,
    /// Layers: patch encoder, global transformer, patch decoder of a DPAR; one number of a LlamaGen transformer.
    pub layers: Vec<usize>,
}

impl From<Size> for SynthSize {
    fn from(size: Size) -> Self {
        let layers = match size.layers {
            LayerCounts::Gpt(n) => vec![n],
            LayerCounts::Dpar(e, g, d) => vec![e, g, d],
        };
        Self { width: size.width, heads: size.heads, layers }
    }
}

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Synth {
    /// The name of the experiment, so of what is exported from it.
    pub name: String,
    /// The transformer: three numbers of layers make a DPAR, one a LlamaGen baseline.
    pub transformer: SynthSize,
    /// The entropy model of a DPAR.
    pub entropy: SynthSize,
    /// Variant of a DPAR decoder's cross-attention.
    pub decoder_cross: DecoderCross,
    /// Codebook size V.
    pub vocab: usize,
    /// Classes without the null class.
    pub classes: usize,
    /// Image height and width in pixels, a multiple of 16.
    pub image_size: usize,
    /// Threshold of the patch rule (`entropy_row_boundary`) in nats.
    pub threshold: f32,
    /// Longest patch of the rule in tokens.
    pub max_patch_length: usize,
    /// Mean number of patches an image shall need: entropies are spread around the threshold so that about as many come out.
    pub steps: f64,
    /// Whether the tokenizer (LlamaGen's VQ-16) is made too.
    pub vq: bool,
    /// Seed of all weights.
    pub seed: u64,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synthesized {
    /// The experiment folder to export.
    pub checkpoint: Utf8PathBuf,
    /// Every component's name and parameters.
    pub parameters: Vec<(&'static str, u64)>,
}

impl Synth {
    /// The published system of a kind and a size (`B`, `L`, `XL`, …) at `image_size` pixels, with the patch rule of that
    /// image size; `steps` is the mean number of patches that an image shall need.
    ///
    /// # Errors
    /// [`ErrorKind::Synth`] when there is no such size, or no published patch rule for the image size.
    pub fn published(
        kind: SystemKind,
        size: &str,
        image_size: usize,
        steps: f64,
    ) -> Result<Self, CheckpointError> {
        let word = match kind {
            SystemKind::Dpar => format!("DGPT-{size}"),
            SystemKind::Llamagen => format!("GPT-{size}"),
            SystemKind::Extractor => {
                return Err(problem("a feature extractor is no system with a transformer"));
            }
        };
        let named =
            |word: &str| known::by_name(word).ok_or_else(|| problem(format!("no published size `{word}`")));
        let (threshold, max_patch_length) = match image_size {
            256 => (7.8, 4),
            384 => (7.9, 4),
            512 => (8.1, 6),
            other => return Err(problem(format!("no published patch rule for images of {other} px"))),
        };
        // Of the DPAR-B that was published, 120 million parameters, only this variant has so many.
        let decoder_cross = if size == "B" { DecoderCross::Full } else { DecoderCross::OutputOnly };
        Ok(Self {
            name: format!("{word}-{image_size}-seeded"),
            transformer: named(&word)?.into(),
            entropy: named(ENTROPY)?.into(),
            decoder_cross,
            vocab: VOCAB,
            classes: CLASSES,
            image_size,
            threshold,
            max_patch_length,
            steps,
            vq: true,
            seed: 0,
        })
    }

    fn is_dpar(&self) -> bool {
        self.transformer.layers.len() == 3
    }

    /// Tokens per row.
    fn grid(&self) -> usize {
        self.image_size / DOWNSAMPLE
    }

    /// The patch rule that is written into the configuration.
    fn rule(&self) -> PatchRule {
        PatchRule {
            mode: PatchMode::EntropyRowBoundary,
            threshold: Some(self.threshold),
            max_patch_length: Some(self.max_patch_length),
            ..PatchRule::per_token(self.grid())
        }
    }

    /// Writes the experiment folders `dpar` (or `llamagen`) and `entropy` and the tokenizer `vq.safetensors` into `folder`,
    /// one tensor in memory at a time; `progress` gets the name of the component before each of its tensors is made, and returns
    /// false to stop.
    ///
    /// # Errors
    /// [`ErrorKind::Synth`] when the sizes make no model or no threshold gives `steps`; [`ErrorKind::Io`];
    /// [`ErrorKind::Interrupted`], and files may be left that are not whole.
    pub fn write(
        &self,
        folder: &Utf8Path,
        progress: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Synthesized, CheckpointError> {
        if self.grid() == 0 || !self.image_size.is_multiple_of(DOWNSAMPLE) {
            return Err(problem(format!("{} px are no multiple of {DOWNSAMPLE}", self.image_size)));
        }
        let mut parameters = Vec::new();
        let mut write = |name: &'static str, to: &Utf8Path, tensors: Tensors| {
            parameters.push((name, tensors.parameters()));
            tensors.write(to, &mut || progress(name))
        };
        // No two seeds share one: every bit of it stays.
        let seed = |part: u64| self.seed.rotate_left(2).wrapping_add(part);
        let main = if self.is_dpar() { "dpar" } else { "llamagen" };
        let spread = if self.is_dpar() { Some(Spread::solve(self)?) } else { None };
        let experiment = |name: &str, config: String| {
            let at = folder.join(name);
            let final_ = at.join("checkpoints/final");
            fs_err::create_dir_all(&final_).map_err(|e| CheckpointError::io(&final_, e))?;
            let config_file = at.join("config.yaml");
            fs_err::write(&config_file, config).map_err(|e| CheckpointError::io(&config_file, e))?;
            Ok::<_, CheckpointError>(final_.join("model.safetensors"))
        };
        let to = experiment(main, self.config())?;
        write(main, &to, Tensors::new(self.main_table()?, seed(0)))?;
        if let Some(spread) = spread {
            let to = experiment("entropy", self.entropy_config())?;
            let table = expect::gpt::table(&self.gpt(&self.entropy, None)?);
            write("entropy", &to, Tensors::new(table, seed(1)).with_spread(spread))?;
        }
        if self.vq {
            let table = expect::vq::table(&self.tokenizer());
            write("vq", &folder.join("vq.safetensors"), Tensors::new(table, seed(2)))?;
        }
        Ok(Synthesized { checkpoint: folder.join(main), parameters })
    }

    fn main_table(&self) -> Result<Vec<Expected>, CheckpointError> {
        let rows = self.classes + 1;
        match self.transformer.layers[..] {
            [encoder_layers, global_layers, decoder_layers] => {
                let SynthSize { width, .. } = self.transformer;
                Ok(expect::dpar::table(&DparDims {
                    width,
                    ffn: ffn(width),
                    encoder_layers,
                    global_layers,
                    decoder_layers,
                    token_rows: self.vocab,
                    class_rows: rows,
                    decoder_cross: self.decoder_cross,
                }))
            }
            _ => Ok(expect::gpt::table(&self.gpt(&self.transformer, Some(rows))?)),
        }
    }

    fn gpt(&self, size: &SynthSize, class_rows: Option<usize>) -> Result<GptDims, CheckpointError> {
        let [layers] = size.layers[..] else {
            return Err(problem("a LlamaGen transformer has one number of layers, a DPAR three"));
        };
        let width = size.width;
        Ok(GptDims { width, ffn: ffn(width), layers, token_rows: self.vocab, class_rows })
    }

    /// LlamaGen's VQ-16: channels 128 · [1, 1, 2, 2, 4], two residual blocks a level in the encoder and three in the decoder.
    fn tokenizer(&self) -> VqDims {
        let channels = [1, 1, 2, 2, 4].map(|m| 128 * m);
        let level = |index: usize, channels: usize, res_blocks, deepest, resample| VqLevel {
            index,
            channels,
            res_blocks,
            attention: deepest,
            resample,
        };
        let last = channels.len() - 1;
        let encoder = channels.iter().enumerate().map(|(i, c)| level(i, *c, 2, i == last, i < last));
        let decoder = channels.iter().rev().enumerate().map(|(i, c)| level(i, *c, 3, i == 0, i < last));
        VqDims {
            codebook: self.vocab,
            code_width: CODE_WIDTH,
            z_channels: LATENT,
            encoder: VqStack { conv_in: channels[0], levels: encoder.collect() },
            decoder: VqStack { conv_in: channels[last], levels: decoder.collect() },
        }
    }

    fn config(&self) -> String {
        let kind = if self.is_dpar() { "D" } else { "" };
        let word = word(&self.transformer, kind);
        let mut text =
            format!("exp_name: {}\nmodel:\n{word}  gpt_type: c2i\n  cls_token_num: 1\n", self.name);
        text += &self.shared();
        if self.is_dpar() {
            let PatchRule { grid, .. } = self.rule();
            text += &format!(
                "patcher:\n  patching_mode: entropy_row_boundary\n  threshold: {}\n  max_patch_length: {}\n  block_size: \
                 {grid}\n  entropy_model_checkpoint_config: ../entropy/config.yaml\n  entropy_model_checkpoint: \
                 ../entropy/checkpoints/final/model.safetensors\n",
                self.threshold, self.max_patch_length,
            );
            text = text.replacen("dataset:", "  embedding_type: dynamic_4d\ndataset:", 1);
        }
        if self.vq {
            text = text.replacen("dataset:", "  vq_ckpt: ../vq.safetensors\ndataset:", 1);
        }
        text + "training: {}\n"
    }

    fn entropy_config(&self) -> String {
        let word = word(&self.entropy, "");
        format!("model:\n{word}  gpt_type: ucond\n  cls_token_num: 0\n{}", self.shared())
    }

    /// What both configurations say.
    fn shared(&self) -> String {
        format!(
            "  codebook_size: {}\n  codebook_embed_dim: {CODE_WIDTH}\n  downsample_size: {DOWNSAMPLE}\ndataset:\n  image_size: \
             {}\n  num_classes: {}\n",
            self.vocab, self.image_size, self.classes
        )
    }
}

/// `model.gpt_model`, and the heads where no published name says them.
fn word(size: &SynthSize, prefix: &str) -> String {
    let layers = match size.layers[..] {
        [e, g, d] => LayerCounts::Dpar(e, g, d),
        _ => LayerCounts::Gpt(size.layers[0]),
    };
    let name = known::name_of(&Size { width: size.width, heads: size.heads, layers });
    name.map_or_else(
        || format!("  gpt_model: {prefix}{UNNAMED}\n  n_head: {}\n", size.heads),
        |name| format!("  gpt_model: {name}\n"),
    )
}

/// FFN width of the published sizes: 8D/3 as an integer, rounded up to 256.
fn ffn(width: usize) -> usize {
    (8 * width / 3).next_multiple_of(256)
}

fn problem(text: impl Into<String>) -> CheckpointError {
    CheckpointError::new(ErrorKind::Synth(text.into()))
}

#[cfg(test)]
mod tests;
