//! The main job's arguments, which need no subcommand.

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};
use dpar_export_spec::{AccuracyLevel, Quantize};

use super::checkpoint::CheckpointArgs;
use super::component::ComponentArgs;
use super::output::OptionalOutputArgs;
use super::precision::PrecisionArgs;
use super::triton::TritonArgs;
use super::trt::TrtArgs;

/// What to export to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// ONNX graphs with external weights
    Onnx,
    /// The ONNX graphs and one TensorRT engine per graph; CHECKPOINT may be a bundle
    Trt,
    /// A model repository for Triton Inference Server, of a bundle
    Triton,
}

/// Export a checkpoint.
#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.value_name("OUT").help("Bundle folder, or model repository, to write")))]
pub struct ExportArgs {
    /// Experiment folder (config.yaml and checkpoints/), or a LlamaGen weight file (.pt, .safetensors); for the target
    /// trt also a bundle, for triton a bundle
    #[arg(required = true)]
    pub checkpoint: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub output: OptionalOutputArgs,
    /// What to export to
    #[arg(long, value_enum, default_value = "onnx")]
    pub target: Target,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Keep weights in whole numbers: int8 or int4 for every transformer, or for each component, as in
    /// entropy=int8,dpar=int4,vq=none; int8:32 takes blocks of 32 columns [blocks: 128 for int8, 32 for int4]
    #[arg(long, value_name = "KIND", value_parser = Quantize::parse)]
    pub quantize: Option<Quantize>,
    /// What engines may round in products with quantized weights that they read themselves: 4, activations to 8 bits a block; 1,
    /// nothing, which is slower than a float matrix [default: 4]
    #[arg(long, value_name = "LEVEL", value_parser = AccuracyLevel::parse, requires = "quantize")]
    pub accuracy_level: Option<AccuracyLevel>,
    #[command(flatten)]
    pub parts: CheckpointArgs,
    #[command(flatten)]
    pub component: ComponentArgs,
    /// Read and check everything, write nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub trt: TrtArgs,
    #[command(flatten)]
    pub triton: TritonArgs,
}
