//! `--precision`, and the spellings of it that are explained instead of taken.

use clap::{Args, ValueEnum};
use dpar_export_spec::Precision;

use crate::failure::Failure;

/// Arithmetic of the graphs.
#[derive(Debug, Args)]
pub struct PrecisionArgs {
    /// Type of weights, matrix products and KV caches in the graphs [default: fp32; of a bundle: its own]
    #[arg(long, value_enum, value_name = "PRECISION")]
    precision: Option<Word>,
    #[arg(long, hide = true)]
    fp16: bool,
    #[arg(long, hide = true)]
    bf16: bool,
    #[arg(long, hide = true)]
    best: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Word {
    /// 32-bit floats
    Fp32,
    /// 16-bit IEEE floats, with float32 islands
    Fp16,
    /// bfloat16, with float32 islands; no CPU engine runs it
    Bf16,
    /// As torch.autocast(float16): products in fp16, everything else in float32
    Fp16Autocast,
    /// As torch.autocast(bfloat16), which the published numbers were computed under: products in bfloat16, everything else in
    /// float32; with --target onnx in graphs that round in float32, for engines without bfloat16
    Bf16Autocast,
}

impl PrecisionArgs {
    /// The precision that was asked for, if one was.
    ///
    /// # Errors
    /// When a switch of weakly typed builders was given: it would say something else than the graph.
    pub fn asked(&self) -> Result<Option<Precision>, Failure> {
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
        Ok(self.precision.map(|word| match word {
            Word::Fp32 => Precision::Fp32,
            Word::Fp16 => Precision::Fp16,
            Word::Bf16 => Precision::Bf16,
            Word::Fp16Autocast => Precision::Fp16Autocast,
            Word::Bf16Autocast => Precision::Bf16Autocast,
        }))
    }
}

fn explained(word: &str) -> String {
    format!(
        "`--{word}` is no switch here: it lets a weakly typed builder choose, and TensorRT's builder is strongly typed, so \
         that precision is the graph's"
    )
}
