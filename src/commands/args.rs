//! Groups of arguments that commands share, and the arguments of the small commands.

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_inputs::limits;

use super::failure::Failure;
use super::precision::PrecisionArgs;
use crate::arrays::ArrayFile;

mod component;
mod device;
mod sampler;
mod trt;

pub(crate) use component::{Component, ComponentArgs, resize};
pub(crate) use device::DeviceArgs;
pub(crate) use sampler::SamplerWord;
pub(crate) use trt::TrtArgs;

/// What to export to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// ONNX graphs with external weights
    Onnx,
    /// The ONNX graphs and one TensorRT engine per graph; CHECKPOINT may be a bundle
    Trt,
}

/// Export a checkpoint.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Experiment folder (config.yaml and checkpoints/), or a LlamaGen weight file (.pt, .safetensors); for the target
    /// trt also a bundle
    #[arg(required = true)]
    pub(crate) checkpoint: Option<Utf8PathBuf>,
    /// Bundle folder to write
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<Utf8PathBuf>,
    /// What to export to
    #[arg(long, value_enum, default_value = "onnx")]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
    #[command(flatten)]
    pub(crate) parts: CheckpointArgs,
    #[command(flatten)]
    pub(crate) component: ComponentArgs,
    #[command(flatten)]
    pub(crate) trt: TrtArgs,
    /// Replace an existing bundle
    #[arg(long)]
    pub(crate) force: bool,
    /// Read and check everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Where the parts of a checkpoint are.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    /// Entropy model: experiment folder or weight file [default: the path in config.yaml]
    #[arg(long, value_name = "DIR", help_heading = "Checkpoint")]
    entropy: Option<Utf8PathBuf>,
    /// VQ tokenizer weights [default: the path in config.yaml]
    #[arg(long, value_name = "FILE", help_heading = "Checkpoint")]
    vq: Option<Utf8PathBuf>,
    /// Epoch to take [default: checkpoints/final, else the newest]
    #[arg(long, value_name = "N", help_heading = "Checkpoint")]
    epoch: Option<u64>,
    /// Rename rules for tensors with other names (YAML)
    #[arg(long, value_name = "RULES", help_heading = "Checkpoint")]
    map: Option<Utf8PathBuf>,
    /// State dict to read in a .pt that holds several: model, ema or another key [default: model, module, state_dict]
    #[arg(long, value_name = "KEY", help_heading = "Checkpoint")]
    weights: Option<String>,
    /// config.yaml of a single weight file [needed unless its name says that it is a published 256-px LlamaGen]
    #[arg(long, value_name = "FILE", help_heading = "Checkpoint")]
    config: Option<Utf8PathBuf>,
}

impl CheckpointArgs {
    /// For the reader.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            entropy: self.entropy.clone(),
            vq: self.vq.clone(),
            epoch: self.epoch,
            map: self.map.clone(),
            config: self.config.clone(),
            weights: self.weights.clone(),
        }
    }

    /// Whether any was given.
    pub(crate) fn any(&self) -> bool {
        self.any_but_map() || self.map.is_some()
    }

    /// Whether any but the rename rules was given.
    pub(crate) fn any_but_map(&self) -> bool {
        self.epoch.is_some()
            || self.weights.is_some()
            || [&self.entropy, &self.vq, &self.config].iter().any(|p| p.is_some())
    }

    /// The rename rules.
    pub(crate) fn map(&self) -> Option<&camino::Utf8Path> {
        self.map.as_deref()
    }
}

/// How the tool talks.
#[derive(Debug, Clone, Args)]
pub(crate) struct TalkArgs {
    /// Print one JSON document on stdout
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// More talk on stderr (-vv for traces); RUST_LOG overrides
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Output")]
    pub(crate) verbose: u8,
    /// No progress bars and notes on stderr
    #[arg(short, long, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
}

/// Where a bundle runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArgs {
    #[arg(long, default_value = crate::engines::DEFAULT_ENGINE, value_parser = engine_names(),
        help = crate::engines::help(), help_heading = "Engine")]
    pub(crate) engine: String,
    /// Threads of one run [default: the engine's choice]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Engine")]
    pub(crate) threads: Option<u16>,
    /// ONNX Runtime library [default: $ORT_DYLIB_PATH, then what `cargo xtask setup` fetched, then the system's]
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    pub(crate) ort_lib: Option<Utf8PathBuf>,
    /// Folder of the TensorRT libraries, for --engine tensorrt
    #[arg(long, value_name = "DIR", help_heading = "Engine")]
    pub(crate) trt_lib: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Images in one call of a graph
    #[arg(long, value_name = "B", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine")]
    pub(crate) batch: u16,
}

/// How many images a file may bring.
#[derive(Debug, Clone, Args)]
pub(crate) struct ManyArgs {
    /// Most images that are taken from a file
    #[arg(long, value_name = "N", default_value_t = limits::IMAGES, help_heading = "Limits")]
    max_images: u64,
}

impl ManyArgs {
    /// Refuses an array with more rows, before it is read.
    pub(super) fn check(&self, file: &ArrayFile, array: &str) -> Result<(), Failure> {
        let images = file.info(array)?.shape.first().copied().unwrap_or(0) as u64;
        if images <= self.max_images {
            return Ok(());
        }
        let message =
            format!("{}: `{array}` holds {images} images, {} are allowed", file.path(), self.max_images);
        Err(Failure::usage(message, Some("if the file is what you mean, raise the limit with --max-images")))
    }
}

pub(super) fn engine_names() -> clap::builder::PossibleValuesParser {
    crate::engines::names().collect::<Vec<_>>().into()
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Bundle, experiment folder or weight file
    pub(crate) path: Utf8PathBuf,
    /// Show the layers of the bundle's TensorRT engines; needs an NVIDIA GPU
    #[arg(long)]
    pub(crate) layers: bool,
    /// Folder of the TensorRT libraries, for --layers
    #[arg(long, value_name = "DIR", requires = "layers")]
    pub(crate) trt_lib: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub(crate) parts: CheckpointArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Bundle folder
    pub(crate) bundle: Utf8PathBuf,
    /// Arrays `tokens` i64 [N, T], `class_labels` i64 [N], optional `patch_lengths` i64 [N, M] (.npz, .safetensors)
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: Utf8PathBuf,
    /// Output: `logits` f32 [N, T, V], `entropy` f32 [N, T], `patch_lengths` i64 [N, M]
    #[arg(short, long, value_name = "OUT.npz")]
    pub(crate) output: Utf8PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) many: ManyArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Bundle folder
    pub(crate) bundle: Utf8PathBuf,
    /// Class labels, one image each
    #[arg(
        long,
        value_name = "C,..",
        allow_negative_numbers = true,
        value_delimiter = ',',
        conflicts_with = "num",
        required_unless_present = "num"
    )]
    pub(crate) classes: Vec<i64>,
    /// Number of images; their classes follow from the seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_IMAGES))]
    pub(crate) num: Option<u64>,
    /// Guidance scale; guidance runs above 1
    #[arg(long, value_name = "S", default_value = "1.0", value_parser = guidance, allow_negative_numbers = true)]
    pub(crate) cfg_scale: f32,
    /// Guide only up to this decode index (LlamaGen's cfg_interval; slot t has index t − 1; -1 = always)
    #[arg(long, value_name = "I", allow_negative_numbers = true, value_parser = interval)]
    pub(crate) cfg_interval: Option<Interval>,
    /// Seed; image i depends on (seed, i) alone
    #[arg(long, value_name = "K", default_value = "0")]
    pub(crate) seed: u64,
    /// Take the most likely token instead of drawing
    #[arg(long)]
    pub(crate) greedy: bool,
    /// How a random number picks a token
    #[arg(long, value_enum, value_name = "METHOD", default_value = "gumbel", conflicts_with = "greedy")]
    pub(crate) sampler: SamplerWord,
    /// Divide the logits by this
    #[arg(long, value_name = "X", default_value = "1.0", value_parser = temperature, conflicts_with = "greedy")]
    pub(crate) temperature: f32,
    /// Keep the K largest logits; 0 = all
    #[arg(long, value_name = "K", default_value = "0", conflicts_with = "greedy")]
    pub(crate) top_k: usize,
    /// Keep the most likely tokens up to this cumulative probability; 1 = all
    #[arg(long, value_name = "P", default_value = "1.0", conflicts_with = "greedy")]
    pub(crate) top_p: f64,
    /// Tokens and trace only
    #[arg(long)]
    pub(crate) no_images: bool,
    /// Draw patch boundaries over the images of grid.png
    #[arg(long, conflicts_with = "no_images")]
    pub(crate) overlay: bool,
    /// Labels of grid.png: a JSON list of class names, or an object with the list under "classes"
    #[arg(long, value_name = "FILE", conflicts_with = "no_images")]
    pub(crate) class_names: Option<Utf8PathBuf>,
    /// Output folder
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Utf8PathBuf,
    /// Replace an earlier output
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// Bundle folder
    pub(crate) bundle: Utf8PathBuf,
    /// Array `tokens` [N, T] (.npz, .safetensors)
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Utf8PathBuf,
    /// Output folder: PNGs and samples.npz
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Utf8PathBuf,
    /// Replace an earlier output
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) many: ManyArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    /// Bundle folder
    pub(crate) bundle: Utf8PathBuf,
    /// Array `arr_0` u8 [N, H, W, 3], or `images` f32 [N, 3, H, W] in [−1, 1]
    #[arg(long, value_name = "FILE")]
    pub(crate) images: Utf8PathBuf,
    /// Output: array `tokens` i64 [N, T]
    #[arg(short, long, value_name = "OUT.npz")]
    pub(crate) output: Utf8PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) many: ManyArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["reference", "streams", "attestation"])))]
pub(crate) struct VerifyArgs {
    /// Bundle folder; with --attestation also a file that was attested
    pub(crate) bundle: Utf8PathBuf,
    /// Folder with golden.safetensors or golden.npz, and golden.json
    #[arg(long, value_name = "DIR")]
    pub(crate) reference: Option<Utf8PathBuf>,
    /// Sampled reference streams, with reference.json beside the file
    #[arg(long, value_name = "FILE")]
    pub(crate) streams: Option<Utf8PathBuf>,
    /// Leave out the probes that need no reference
    #[arg(long)]
    pub(crate) no_probes: bool,
    /// Compare only the first N streams
    #[arg(long, value_name = "N", requires = "streams")]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) attested: super::attest::AttestedArgs,
    #[command(flatten)]
    pub(crate) reports: super::report::ReportArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// More images than this in one run are a typing error.
pub(super) const MAX_IMAGES: u64 = 10_000_000;

/// `cfg_interval`: `None` = always.
pub(crate) type Interval = Option<usize>;

pub(super) fn interval(text: &str) -> Result<Interval, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(i) => usize::try_from(i).map(Some).map_err(|_| "expected a decode index, or -1".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// A number in a range.
fn number(text: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(v) if range.contains(&v) => Ok(v),
        _ => Err(format!("expected a finite number from {} to {}", range.start(), range.end())),
    }
}

pub(super) fn guidance(text: &str) -> Result<f32, String> {
    number(text, 0.0..=1e3)
}

pub(super) fn temperature(text: &str) -> Result<f32, String> {
    number(text, 1e-4..=1e4)
}
