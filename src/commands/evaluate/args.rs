//! The options of `evaluate`.

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};

use crate::commands::args::{EngineArgs, Interval, MAX_IMAGES, SamplerWord, guidance, interval, temperature};
use crate::commands::metrics::ProtocolArgs;
use crate::evaluate::job::Shard;

/// What pixels are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Convert {
    /// Red, green and blue, 8 bits each
    Rgb,
}

/// Metrics of images.
#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    /// Samples: a folder of RGB PNGs (see --convert, --recursive), or an .npz with `arr_0` u8 [N, H, W, 3] (mapped where it is stored uncompressed)
    #[arg(long, value_name = "DIR|X.npz", required_unless_present = "bundle", conflicts_with = "bundle")]
    pub(crate) samples: Option<Utf8PathBuf>,
    /// Take the first N samples
    #[arg(long, value_name = "N", requires = "samples", value_parser = clap::value_parser!(u64).range(1..=MAX_IMAGES))]
    pub(crate) limit: Option<u64>,
    /// Read PNG, JPEG and WebP files of any pixels as RGB with 8 bits a channel, of samples and reference: alpha is dropped,
    /// grey repeated, of 16 bits the upper 8 stay
    #[arg(long, value_enum, value_name = "PIXELS")]
    pub(crate) convert: Option<Convert>,
    /// Take the images of sub-folders too, of samples and reference
    #[arg(long)]
    pub(crate) recursive: bool,
    /// Reference: a set of images, statistics (`mu`, `sigma`, `mu_s`, `sigma_s`, and `arr_0` for Precision and Recall), or
    /// activations (`pool_3`)
    #[arg(long, value_name = "R.npz|DIR")]
    pub(crate) reference: Utf8PathBuf,
    /// Feature network: an extractor bundle, or an .onnx file
    #[arg(long, value_name = "BUNDLE")]
    pub(crate) extractor: Utf8PathBuf,
    /// Side of the input of an .onnx file that leaves it open
    #[arg(long, value_name = "PIXELS")]
    pub(crate) input_size: Option<usize>,
    /// Output folder
    #[arg(short, long, value_name = "OUTDIR")]
    pub(crate) output: Utf8PathBuf,
    /// Go on where an earlier run of this command line ended
    #[arg(long)]
    pub(crate) resume: bool,
    /// Evaluate part I of N (from 1) only; all parts are joined with --merge
    #[arg(long, value_name = "I/N", value_parser = shard, conflicts_with = "merge")]
    pub(crate) shard: Option<Shard>,
    /// Join the output folders of all shards; the other options as for the shards
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(crate) merge: Vec<Utf8PathBuf>,
    /// Another evaluation under the same protocol: the difference of the Fréchet distances, paired, with a verdict (exit 0
    /// equivalent, 1 different, 4 inconclusive)
    #[arg(long, value_name = "OTHER/metrics.json", conflicts_with = "shard")]
    pub(crate) compare: Option<Utf8PathBuf>,
    /// Images between two savings of the state
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) chunk: u16,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
    /// Seed of the KID subsets and of the bootstrap
    #[arg(long, value_name = "K", default_value = "2020", value_parser = clap::value_parser!(u64).range(0..=u64::from(u32::MAX)), help_heading = "Protocol")]
    pub(crate) metric_seed: u64,
    #[command(flatten)]
    pub(crate) protocol: ProtocolArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// How a bundle draws the samples; as in `generate`.
#[derive(Debug, Args)]
pub(crate) struct DrawArgs {
    /// Bundle that draws the samples
    #[arg(long, value_name = "BUNDLE", requires = "num", help_heading = "Generation")]
    pub(crate) bundle: Option<Utf8PathBuf>,
    /// Number of images; their classes follow from the seed
    #[arg(long, value_name = "N", requires = "bundle", value_parser = clap::value_parser!(u64).range(1..=MAX_IMAGES), help_heading = "Generation")]
    pub(crate) num: Option<u64>,
    /// Guidance scale; guidance runs above 1
    #[arg(long, value_name = "S", default_value = "1.0", requires = "bundle", value_parser = guidance, allow_negative_numbers = true, help_heading = "Generation")]
    pub(crate) cfg_scale: f32,
    /// Guide only up to this decode index (-1 = always)
    #[arg(long, value_name = "I", requires = "bundle", allow_negative_numbers = true, value_parser = interval, help_heading = "Generation")]
    pub(crate) cfg_interval: Option<Interval>,
    /// Seed; image i depends on (seed, i) alone
    #[arg(long, value_name = "K", default_value = "0", requires = "bundle", help_heading = "Generation")]
    pub(crate) seed: u64,
    /// Take the most likely token instead of drawing
    #[arg(long, requires = "bundle", help_heading = "Generation")]
    pub(crate) greedy: bool,
    /// How a random number picks a token
    #[arg(
        long,
        value_enum,
        value_name = "METHOD",
        default_value = "gumbel",
        requires = "bundle",
        conflicts_with = "greedy",
        help_heading = "Generation"
    )]
    pub(crate) sampler: SamplerWord,
    /// Divide the logits by this
    #[arg(long, value_name = "X", default_value = "1.0", requires = "bundle", value_parser = temperature, conflicts_with = "greedy", help_heading = "Generation")]
    pub(crate) temperature: f32,
    /// Keep the K largest logits; 0 = all
    #[arg(
        long,
        value_name = "K",
        default_value = "0",
        requires = "bundle",
        conflicts_with = "greedy",
        help_heading = "Generation"
    )]
    pub(crate) top_k: usize,
    /// Keep the most likely tokens up to this cumulative probability; 1 = all
    #[arg(
        long,
        value_name = "P",
        default_value = "1.0",
        requires = "bundle",
        conflicts_with = "greedy",
        help_heading = "Generation"
    )]
    pub(crate) top_p: f64,
}

fn shard(text: &str) -> Result<Shard, String> {
    let parts = text.split_once('/').and_then(|(i, n)| Shard::new(i.parse().ok()?, n.parse().ok()?));
    parts.ok_or_else(|| "expected I/N with I from 1 to N, e.g. 2/8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_i_of_n() {
        assert_eq!(shard("2/8"), Ok(Shard::new(2, 8).unwrap()));
        for bad in ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/10001"] {
            assert!(shard(bad).is_err(), "{bad}");
        }
    }
}
