//! The options of `evaluate`.

use camino::Utf8PathBuf;
use clap::{Arg, Args, ValueEnum};
use serde::Serialize;

use super::emit::Cluster;
use crate::commands::args::{
    EngineArgs, ExtractorEngineArgs, MAX_IMAGES, ProtocolArgs, RULE, ResizeArgs, RuleArgs, SAMPLING,
    SamplingArgs, ScheduleArgs, is_schedule,
};
use crate::evaluate::images::Reading;
use crate::evaluate::job::Shard;

/// What pixels are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Convert {
    /// Red, green and blue, 8 bits each
    Rgb,
}

/// Most parts of an evaluation.
pub(super) const MOST: u16 = 10_000;

/// Machines that do parts of an evaluation: `ray`, or `ray://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct On(pub(super) String);

/// So much of a resource of Ray.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Amount {
    name: String,
    amount: f64,
}

/// When an evaluation ends before all images are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// As soon as the comparison is shown to agree or to differ
    InconclusiveResolved,
}

/// Metrics of images.
#[derive(Debug, Args)]
#[command(
    mut_args(of_a_bundle),
    mut_arg("extractor_engine", |a| a
        .help("Engine of the extractor; beside a bundle it runs on --device where it is the same engine [default: --engine]"))
)]
pub(crate) struct EvaluateArgs {
    /// Samples: a folder of RGB PNGs (see --convert, --recursive), or an .npz with `arr_0` u8 [N, H, W, 3] (mapped where it is stored uncompressed)
    #[arg(long, value_name = "DIR|X.npz", required_unless_present = "bundle", conflicts_with = "bundle")]
    pub(super) samples: Option<Utf8PathBuf>,
    /// Take the first N samples
    #[arg(long, value_name = "N", requires = "samples", conflicts_with = "bundle", value_parser = clap::value_parser!(u64).range(1..=MAX_IMAGES))]
    pub(super) limit: Option<u64>,
    /// Read PNG, JPEG and WebP files of any pixels as RGB with 8 bits a channel, of samples and reference: alpha is dropped,
    /// grey repeated, of 16 bits the upper 8 stay
    #[arg(long, value_enum, value_name = "PIXELS")]
    pub(super) convert: Option<Convert>,
    /// Take the images of sub-folders too, of samples and reference
    #[arg(long)]
    pub(super) recursive: bool,
    /// Reference: a set of images, statistics (`mu`, `sigma`, `mu_s`, `sigma_s`, and `arr_0` for Precision and Recall), or
    /// activations (`pool_3`)
    #[arg(long, value_name = "R.npz|DIR")]
    pub(super) reference: Utf8PathBuf,
    /// Feature network: an extractor bundle, or an .onnx file
    #[arg(long, value_name = "BUNDLE")]
    pub(super) extractor: Utf8PathBuf,
    /// Side of the input of an .onnx file that leaves it open
    #[arg(long, value_name = "PIXELS")]
    pub(super) input_size: Option<usize>,
    /// Output folder
    #[arg(short, long, value_name = "OUTDIR")]
    pub(super) output: Utf8PathBuf,
    /// Go on where an earlier run of this command line ended
    #[arg(long)]
    pub(super) resume: bool,
    /// Evaluate part I of N (from 1) only; all parts are joined with --merge
    #[arg(long, value_name = "I/N", value_parser = shard, conflicts_with = "merge")]
    pub(super) shard: Option<Shard>,
    /// Join the output folders of all shards; the other options as for the shards
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(super) merge: Vec<Utf8PathBuf>,
    /// Another evaluation under the same protocol: the difference of the Fréchet distances, paired, with a verdict (exit 0
    /// equivalent, 1 different, 4 inconclusive)
    #[arg(long, value_name = "OTHER/metrics.json", conflicts_with = "shard")]
    pub(super) compare: Option<Utf8PathBuf>,
    /// End as soon as --compare is decided: it is looked at --looks times while images come, each time with a critical value that keeps the
    /// error of all looks together at that of one
    #[arg(long, value_enum, value_name = "WHEN", requires = "compare", conflicts_with_all = ["shard", "merge", "emit", "pull"])]
    pub(super) until: Option<Until>,
    /// Looks of --until, planned before the first image
    #[arg(long, value_name = "N", default_value = "10", requires = "until", value_parser = clap::value_parser!(u16).range(2..=200))]
    pub(super) looks: u16,
    /// Also bootstrap the difference of --compare by computing both distances again for so many resamples of the pairs: slow, a check
    /// of the linearised interval
    #[arg(long, value_name = "N", requires = "compare", conflicts_with_all = ["shard", "emit", "pull"], value_parser = clap::value_parser!(u32).range(20..=100_000))]
    pub(super) resample_distances: Option<u32>,
    /// Write nothing and run nothing: print the job of a cluster that does this in --shards parts, and then merges them. Output goes to
    /// part-1, part-2 ... and merged in --output
    #[arg(long, value_enum, value_name = "CLUSTER", conflicts_with_all = ["resume", "shard", "merge", "compare"])]
    pub(super) emit: Option<Cluster>,
    /// Give the chunks to the workers of a Ray cluster, and merge what they send: ray (RAY_ADDRESS, or this machine) or
    /// ray://HOST:PORT. Needs the Python package; a run that was ended goes on with --resume
    #[arg(long, value_name = "RAY", value_parser = on, conflicts_with_all = ["shard", "merge", "emit", "pull", "until"])]
    pub(super) on: Option<On>,
    /// Workers of --on [default: as many as the cluster has room for]
    #[arg(long, value_name = "N", requires = "on", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) workers: Option<u16>,
    /// What a worker of --on takes, such as CPU=4 or GPU=1; with CPU=N it runs N threads [default: CPU=1]
    #[arg(long, value_name = "NAME=AMOUNT", requires = "on", value_parser = amount)]
    pub(super) resource: Vec<Amount>,
    /// Evaluate those of N parts whose numbers come as lines on standard input, to part-I in --output, and answer each with a
    /// line of JSON: what workers of --on run. The reference is not opened
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST)), conflicts_with_all = ["shard", "merge", "emit", "compare"])]
    pub(super) pull: Option<u16>,
    /// Parts of --emit
    #[arg(long, value_name = "N", default_value = "8", requires = "emit", value_parser = clap::value_parser!(u16).range(2..=i64::from(MOST)))]
    pub(super) shards: u16,
    /// Images between two savings of the state
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) chunk: u16,
    /// Bundle that draws the samples
    #[arg(long, value_name = "BUNDLE", requires = "num")]
    pub(super) bundle: Option<Utf8PathBuf>,
    /// Number of images; their classes follow from the seed
    #[arg(long, value_name = "N", requires = "bundle", conflicts_with = "samples", value_parser = clap::value_parser!(u64).range(1..=MAX_IMAGES))]
    pub(super) num: Option<u64>,
    #[command(flatten)]
    pub(super) resize: ResizeArgs,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    #[command(flatten)]
    pub(super) rule: RuleArgs,
    /// Seed of the KID subsets and of the bootstrap
    #[arg(long, value_name = "K", default_value = "2020", value_parser = clap::value_parser!(u64).range(0..=u64::from(u32::MAX)), help_heading = "Protocol")]
    pub(super) metric_seed: u64,
    #[command(flatten)]
    pub(super) protocol: ProtocolArgs,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    #[command(flatten)]
    pub(super) schedule: ScheduleArgs,
    #[command(flatten)]
    pub(super) extractor_engine: ExtractorEngineArgs,
}

/// How to draw is for a bundle. Beside `--samples` it is refused by name: the parser drops a requirement whose option
/// conflicts with one that is given.
fn of_a_bundle(arg: Arg) -> Arg {
    let id = arg.get_id().as_str();
    match is_schedule(&arg)
        || ["caches", "resize"].contains(&id)
        || SAMPLING.iter().chain(&RULE).any(|name| *name == id)
    {
        true => arg.requires("bundle").conflicts_with("samples"),
        false => arg,
    }
}

impl EvaluateArgs {
    /// Whether the result is held against another evaluation.
    pub(crate) fn compares(&self) -> bool {
        self.compare.is_some()
    }

    /// Whether parts are asked for on standard input.
    pub(crate) fn pulls(&self) -> bool {
        self.pull.is_some()
    }

    /// How folders are read.
    pub(super) fn reading(&self) -> Reading {
        Reading { limit: None, convert: self.convert.is_some(), recursive: self.recursive }
    }
}

fn on(text: &str) -> Result<On, String> {
    let address = text.strip_prefix("ray").filter(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix("://")
                .and_then(|r| r.rsplit_once(':'))
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    });
    address.map(|_| On(text.to_owned())).ok_or_else(|| "expected ray or ray://HOST:PORT".to_owned())
}

fn amount(text: &str) -> Result<Amount, String> {
    let (name, amount) = text.split_once('=').unwrap_or_default();
    match amount.parse::<f64>() {
        Ok(amount) if !name.is_empty() && amount.is_finite() && amount >= 0.0 => {
            Ok(Amount { name: name.to_owned(), amount })
        }
        _ => Err("expected NAME=AMOUNT, e.g. CPU=4".to_owned()),
    }
}

fn shard(text: &str) -> Result<Shard, String> {
    let parts = text.split_once('/').and_then(|(i, n)| Shard::new(i.parse().ok()?, n.parse().ok()?));
    parts.ok_or_else(|| "expected I/N with I from 1 to N, e.g. 2/8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_and_resources_are_read() {
        for good in ["ray", "ray://head:10001", "ray://[::1]:10001"] {
            assert_eq!(on(good), Ok(On(good.to_owned())));
        }
        for bad in ["", "slurm", "rays", "ray:head", "ray://head", "ray://:1", "ray://head:x"] {
            assert!(on(bad).is_err(), "{bad}");
        }
        assert_eq!(amount("GPU=0.5"), Ok(Amount { name: "GPU".to_owned(), amount: 0.5 }));
        for bad in ["CPU", "=1", "CPU=", "CPU=-1", "CPU=inf", "CPU=a"] {
            assert!(amount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_are_read_as_i_of_n() {
        assert_eq!(shard("2/8"), Ok(Shard::new(2, 8).unwrap()));
        for bad in ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/10001"] {
            assert!(shard(bad).is_err(), "{bad}");
        }
    }
}
