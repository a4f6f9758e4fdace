//! `--precision`, and the spellings of it that are explained instead of taken.

use clap::Args;
use dpar_export_spec::AskedPrecisions;

use crate::failure::Failure;

/// Arithmetic of the graphs.
#[derive(Debug, Args)]
pub struct PrecisionArgs {
    /// Type of weights, matrix products and KV caches in the graphs: fp32, fp16 or bf16, with float32 islands, or fp16-autocast or
    /// bf16-autocast (as torch.autocast computes, which the published numbers were computed under: products in the half type,
    /// everything else in float32); for every component, or for each, as in entropy=fp32,dpar=fp16,vq=fp32 [default: fp32; of a
    /// bundle: its own]
    #[arg(long, value_name = "PRECISION", value_parser = AskedPrecisions::parse)]
    precision: Option<AskedPrecisions>,
    #[arg(long, hide = true)]
    fp16: bool,
    #[arg(long, hide = true)]
    bf16: bool,
    #[arg(long, hide = true)]
    best: bool,
}

impl PrecisionArgs {
    /// The precisions that were asked for, if any were.
    ///
    /// # Errors
    /// When a switch of weakly typed builders was given: it would say something else than the graph.
    pub fn asked(&self) -> Result<Option<&AskedPrecisions>, Failure> {
        let halves = [(self.fp16, "fp16"), (self.bf16, "bf16")];
        if let Some((_, word)) = halves.iter().find(|(given, _)| *given) {
            let hint = format!("export the graphs so: --precision {word}");
            return Err(Failure::usage(explained(word), Some(&hint)));
        }
        if self.best {
            return Err(Failure::usage(
                explained("best"),
                Some("there is --precision fp32, fp16, bf16, fp16-autocast and bf16-autocast"),
            ));
        }
        Ok(self.precision.as_ref())
    }
}

fn explained(word: &str) -> String {
    format!(
        "`--{word}` is no switch here: it lets a weakly typed builder choose, and TensorRT's builder is strongly typed, so \
         that precision is the graph's"
    )
}
