//! The command line. Parsed here, resolved in the commands.

use clap::{Parser, Subcommand};
use dpar_export_inputs::memory;

use super::args::{ExportArgs, TalkArgs};

/// Turn trained DPAR and LlamaGen checkpoints into ONNX bundles, run them, verify them.
///
/// The main job needs no subcommand: `dpar-export --target onnx CHECKPOINT -o OUT` writes a bundle, a folder with
/// manifest.json, config.json and onnx/. The subcommands read such a bundle.
#[derive(Debug, Parser)]
#[command(
    name = "dpar-export",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 pass, 1 a gate or parity check failed, 2 usage or bad input, 3 an engine, library \
                  or device is not available, 4 statistics are inconclusive, 5 a hash does not match, 130 \
                  interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) export: ExportArgs,
    #[command(flatten)]
    pub(crate) talk: TalkArgs,
    /// Most memory that what is read of one input may take: an array file, a picture, statistics; bytes, KiB, MiB, GiB
    /// [default: 4GiB, or half of what the machine, container or process has]
    #[arg(long, value_name = "SIZE", global = true, value_parser = memory::parse, help_heading = "Limits")]
    pub(crate) max_memory: Option<u64>,
}

/// The jobs that read a bundle.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what is in a bundle or a checkpoint: components, parameters, axes, patch rule, hashes
    Inspect(super::inspect::InspectArgs),
    /// Say which engines can run here, and why not: libraries, driver, GPUs; exit 3 if the wanted one cannot
    Doctor(super::doctor::DoctorArgs),
    /// Teacher-forced logits, entropies and patch lengths of given tokens
    Score(super::score::ScoreArgs),
    /// Generate images: PNGs, samples.npz, trace.npz, grid.png
    Generate(super::generate::GenerateArgs),
    /// Turn tokens into images
    Decode(super::pixels::DecodeArgs),
    /// Turn images into tokens
    Encode(super::pixels::EncodeArgs),
    /// Generate a reference run again, or hold runs against the published table, with statistics; exit 1 or 4
    Reproduce(super::reproduce::ReproduceArgs),
    /// Compare a bundle with reference outputs; exit 1 on a mismatch
    Verify(super::verify::VerifyArgs),
    /// Record reference outputs of an engine for `verify --reference`
    Reference(super::reference::ReferenceArgs),
    /// Sign a statement over a bundle's files, or over a report
    Attest(super::attest::AttestArgs),
    /// Write a model card and a CycloneDX bill of materials, every number cited from a report; or check them
    Card(super::card::CardArgs),
    /// Write a bundle as an OCI image layout, for registries and what mounts models from them
    Package(super::package::PackageArgs),
    /// Make a bundle of an OCI image layout again, every file held against its digest
    Unpack(super::package::UnpackArgs),
    /// FID, sFID, IS, Precision, Recall, KID of images, or of images that a bundle draws; resumable, in shards
    ///
    /// Writes metrics.json with its protocol fingerprint. The output folder also keeps the features of every image (4 bytes a
    /// value on disk, mapped when they are used) and, after every chunk, how far the work is: an interrupted or killed
    /// evaluation goes on with --resume and ends with the same bytes. Memory: a chunk of images and features and the sums
    /// of the covariances, about 0.3 GB for FID-Inception; the metrics themselves at most 0.6 GB.
    Evaluate(super::evaluate::EvaluateArgs),
    /// FID, sFID, IS, Precision, Recall, KID of activations
    ///
    /// Memory: the activations (4 bytes a value; 50,000 × 2048 are 410 MB), and at most 0.6 GB beside them.
    Metrics(super::metrics::MetricsArgs),
    /// Compare engines with each other and with a reference: tensors, decisions, near-ties and defects
    Parity(super::parity::ParityArgs),
    /// Find the first slot, graph and node at which two engines, or a bundle and a reference, part
    Bisect(super::bisect::BisectArgs),
    /// Time decoding, graph by graph, with memory and the part of the read bandwidth that it takes
    ///
    /// Each case (bundle, engine, batch) runs in a process of its own. The first figure is this machine's read bandwidth: with
    /// few rows, decoding is bound by reading all weights at each step.
    Bench(super::bench::BenchArgs),
    /// Serve images over HTTP: requests share the rows of the decoder, and join and leave it as they come and go
    ///
    /// Loopback by default. SIGTERM ends it when all that it accepted is answered, a second one at once; SIGHUP opens the bundles
    /// again. An image is the one that `generate` makes of the same seed, index and class, whatever else is decoded.
    #[cfg(feature = "serve")]
    Serve(super::serve::ServeArgs),
    /// Write the files that run `serve` on Kubernetes, KServe, Docker Compose or systemd, sized for a bundle
    ///
    /// The memory that they ask for follows from the weights and from the caches of a row, which the bundle says.
    Deploy(super::deploy::DeployArgs),
    /// Write a full-size checkpoint with seeded random weights, to size a machine before there are trained ones
    ///
    /// In the authors' layout, ready to export. Weights have the scale of training's start; entropies are spread around the
    /// threshold so that images need about as many steps of the large transformer as the published ones. Pictures are noise.
    Synth(super::synth::SynthArgs),
    /// Export a small trained system that the program carries, draw images with it, verify it: half a minute
    Demo(super::demo::DemoArgs),
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of a command, for `man`; or of all commands, for a book
    Manual {
        /// A subcommand [default: the program with its main job]
        name: Option<String>,
        /// All commands and their options on one page, as Markdown
        #[arg(long, conflicts_with = "name")]
        markdown: bool,
    },
}

#[cfg(test)]
mod tests;
