//! Checkpoints with seeded random weights of the widths of the paper's smallest system, in the authors' layout: what building
//! costs, and how far engines round apart, does not depend on what a model has learned.

use std::borrow::Cow;

use anyhow::Result;
use camino::{Utf8Path, Utf8PathBuf};
use safetensors::{Dtype, View};

/// Width D, FFN width and codebook of DPAR-B, LlamaGen-B and the entropy model.
const WIDTH: usize = 768;
const FFN: usize = 2048;
const VOCAB: usize = 16_384;
/// Classes with the null class.
const CLASS_ROWS: usize = 1001;
/// How deep a system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layers {
    /// Of encoder, global transformer and decoder.
    pub(crate) dpar: [usize; 3],
    pub(crate) entropy: usize,
}

/// DPAR-B and GPT-B.
pub(crate) const DPAR_B: Layers = Layers { dpar: [1, 8, 3], entropy: 12 };
/// Standard deviation of the weights, as they are initialised in training.
const DEVIATION: f32 = 0.02;

const DPAR_CONFIG: &str = "model:
  gpt_model: DGPT-B
  gpt_type: c2i
  cls_token_num: 1
  codebook_size: 16384
  codebook_embed_dim: 8
  downsample_size: 16
  embedding_type: dynamic_4d
dataset:
  image_size: 256
  num_classes: 1000
patcher:
  patching_mode: entropy_row_boundary
  threshold: 7.8
  max_patch_length: 4
  block_size: 16
  entropy_model_checkpoint_config: ../entropy/config.yaml
  entropy_model_checkpoint: ../entropy/checkpoints/final/model.safetensors
training: {}
";

const ENTROPY_CONFIG: &str = "model:
  gpt_model: GPT-B
  gpt_type: ucond
  cls_token_num: 0
  codebook_size: 16384
  codebook_embed_dim: 8
  downsample_size: 16
dataset:
  image_size: 256
  num_classes: 1000
";

/// A tensor whose elements are made when it is written.
struct Random {
    shape: Vec<usize>,
    seed: u64,
}

impl Random {
    /// Norm weights are 1, everything else is uniform with mean 0.
    fn elements(&self) -> Vec<f32> {
        let n = self.shape.iter().product();
        if self.shape.len() == 1 {
            return vec![1.0; n];
        }
        let mut random = fastrand::Rng::with_seed(self.seed);
        // A uniform variable on [-1/2, 1/2] has standard deviation 1/sqrt(12).
        (0..n).map(|_| (random.f32() - 0.5) * DEVIATION * 12.0_f32.sqrt()).collect()
    }
}

impl View for &Random {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.elements().into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// Names and shapes of the tensors of a stack of blocks.
fn blocks(prefix: &str, layers: usize) -> Vec<(String, Vec<usize>)> {
    let (d, f) = (WIDTH, FFN);
    let block = |i: usize| {
        [
            ("attention.wqkv", vec![3 * d, d]),
            ("attention.wo", vec![d, d]),
            ("feed_forward.w1", vec![f, d]),
            ("feed_forward.w3", vec![f, d]),
            ("feed_forward.w2", vec![d, f]),
            ("attention_norm", vec![d]),
            ("ffn_norm", vec![d]),
        ]
        .map(|(name, shape)| (format!("{prefix}layers.{i}.{name}.weight"), shape))
    };
    (0..layers).flat_map(block).collect()
}

fn dpar([encoder, global, decoder]: [usize; 3]) -> Vec<(String, Vec<usize>)> {
    let d = WIDTH;
    let mut tensors =
        [blocks("local_encoder.", encoder), blocks("", global), blocks("local_decoder.", decoder)].concat();
    // The full decoder attention of the 120M variant: wq, wk and wv there too.
    for (part, layers) in [("local_encoder", encoder), ("local_decoder", decoder)] {
        for i in 0..layers {
            for (name, shape) in [
                ("cross_attn_norm_q", vec![d]),
                ("cross_attn_norm_kv", vec![d]),
                ("wq", vec![d, d]),
                ("wk", vec![d, d]),
                ("wv", vec![d, d]),
                ("wo", vec![d, d]),
            ] {
                tensors.push((format!("{part}.cross_attn_layers.{i}.{name}.weight"), shape));
            }
        }
    }
    tensors.push(("cls_embedding.embedding_table.weight".to_owned(), vec![CLASS_ROWS, d]));
    tensors.push(("decoder_start_embedding.weight".to_owned(), vec![1, d]));
    tensors.extend(ends());
    tensors
}

fn entropy(layers: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = blocks("", layers);
    tensors.extend(ends());
    tensors
}

fn ends() -> [(String, Vec<usize>); 3] {
    [
        ("tok_embeddings.weight".to_owned(), vec![VOCAB, WIDTH]),
        ("norm.weight".to_owned(), vec![WIDTH]),
        ("output.weight".to_owned(), vec![VOCAB, WIDTH]),
    ]
}

fn parameters(tensors: &[(String, Vec<usize>)]) -> usize {
    tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// Writes a DPAR with its entropy model below `folder` and gives the checkpoint to export, and the parameters of both.
pub(crate) fn write(folder: &Utf8Path, layers: Layers) -> Result<(Utf8PathBuf, [usize; 2])> {
    let parts =
        [("dpar", DPAR_CONFIG, dpar(layers.dpar)), ("entropy", ENTROPY_CONFIG, entropy(layers.entropy))];
    for (name, config, tensors) in &parts {
        let place = folder.join(name).join("checkpoints/final");
        fs_err::create_dir_all(&place)?;
        // The names of the paper's sizes say how deep they are.
        let config = match layers {
            DPAR_B => (*config).to_owned(),
            _ => config.replace("GPT-B\n", "GPT-seeded\n  n_head: 12\n"),
        };
        fs_err::write(folder.join(name).join("config.yaml"), config)?;
        let views: Vec<(String, Random)> = (1..)
            .zip(tensors)
            .map(|(seed, (name, shape))| (name.clone(), Random { shape: shape.clone(), seed: seed << 32 }))
            .collect();
        let views = views.iter().map(|(name, view)| (name, view));
        safetensors::serialize_to_file(views, None, place.join("model.safetensors").as_std_path())?;
    }
    Ok((folder.join("dpar"), [parameters(&parts[0].2), parameters(&parts[1].2)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_are_the_papers() {
        // DPAR-B with full decoder attention 120.3M, the entropy model 111M less its class table.
        assert_eq!(parameters(&dpar(DPAR_B.dpar)) / 100_000, 1203);
        assert_eq!(parameters(&entropy(DPAR_B.entropy)) / 1_000_000, 110);
    }

    #[test]
    fn weights_are_seeded_and_have_the_scale_of_training() {
        let weights = Random { shape: vec![100, 100], seed: 7 };
        let values = weights.elements();
        let mean = values.iter().sum::<f32>() / 1e4;
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / 1e4).sqrt();
        assert!(mean.abs() < 1e-3 && (deviation - DEVIATION).abs() < 1e-3, "{mean} {deviation}");
        let other = Random { shape: vec![100, 100], seed: 8 };
        assert_ne!(other.elements()[0], values[0]);
        assert_eq!(Random { shape: vec![3], seed: 1 }.elements(), [1.0; 3]);
    }
}
