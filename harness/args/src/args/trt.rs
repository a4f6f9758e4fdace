//! The options of `--target trt`.

use camino::Utf8PathBuf;
use clap::Args;
use dpar_export_spec::WeightMode;

use super::libraries::TrtLibraryArgs;
use crate::targets::plan::{TrtPlan, TuneFor};

/// How TensorRT engines are built.
#[derive(Debug, Args)]
#[command(next_help_heading = "TensorRT", mut_arg("trt_lib", |a| a.help_heading("TensorRT")))]
pub struct TrtArgs {
    #[command(flatten)]
    library: TrtLibraryArgs,
    /// Optimization profile, may be repeated: `default` (the ranges of the manifest), `decode` (one new slot a step), or
    /// an axis with its size, e.g. `batch=8`
    #[arg(long, value_name = "PROFILE")]
    profile: Vec<String>,
    /// Smallest shape of an input, e.g. tokens:1x1
    #[arg(long, value_name = "NAME:1x3", value_delimiter = ',')]
    min_shapes: Vec<String>,
    /// Shape of an input to tune for
    #[arg(long, value_name = "NAME:1x3", value_delimiter = ',')]
    opt_shapes: Vec<String>,
    /// Largest shape of an input
    #[arg(long, value_name = "NAME:1x3", value_delimiter = ',')]
    max_shapes: Vec<String>,
    /// Tune for the patches of N images that are generated first, on the embedded engine [default: the paper's table]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "calibrate_from")]
    calibrate: Option<u32>,
    /// Tune for the patches in the trace.npz of a `generate` run
    #[arg(long, value_name = "TRACE.npz")]
    calibrate_from: Option<Utf8PathBuf>,
    /// Device to build for, e.g. 8.9 [default: all of Ampere and later]
    #[arg(long, value_name = "X.Y", value_delimiter = ',')]
    compute_capability: Vec<String>,
    /// 0 (fastest build) to 5
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5))]
    builder_optimization_level: Option<u8>,
    /// Largest scratch memory of a layer in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    workspace: Option<u32>,
    /// Take engines from this folder, and keep new ones there, for every bundle with the same graphs and weights
    #[arg(long, value_name = "DIR")]
    engine_cache: Option<Utf8PathBuf>,
    /// Build engines whose weights can be replaced; needs a GPU while building
    #[arg(long)]
    refit: bool,
    /// Build engines without their weights, to be refitted before they run; needs a GPU while building
    #[arg(long, conflicts_with = "refit")]
    strip_weights: bool,
    /// Keep names and kernels of the layers in the engines, for `inspect --layers`
    #[arg(long, value_name = "HOW", value_parser = ["layer_names_only", "detailed"])]
    profiling_verbosity: Option<String>,
    /// Write the same builds as command lines of tensorrt_rtx, trtexec and Polygraphy (trt/trtexec.sh) and build nothing;
    /// needs no TensorRT
    #[arg(long)]
    pub emit_trtexec: bool,
    /// Not there in TensorRT-RTX: says why, and what to use
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    timing_cache: Option<Utf8PathBuf>,
    /// Not an option of the builder: says why
    #[arg(long, hide_short_help = true)]
    int8: bool,
    /// Not an option of the builder: says why
    #[arg(long, hide_short_help = true)]
    fp8: bool,
}

impl TrtArgs {
    /// Whether any was given.
    pub fn any(&self) -> bool {
        let lists =
            [&self.profile, &self.min_shapes, &self.opt_shapes, &self.max_shapes, &self.compute_capability];
        let paths = [&self.library.trt_lib, &self.calibrate_from, &self.engine_cache, &self.timing_cache];
        let switches = [self.refit, self.strip_weights, self.emit_trtexec, self.int8, self.fp8];
        self.builder_optimization_level.is_some()
            || self.workspace.is_some()
            || self.calibrate.is_some()
            || self.profiling_verbosity.is_some()
            || switches.contains(&true)
            || paths.iter().any(|p| p.is_some())
            || lists.iter().any(|l| !l.is_empty())
    }

    /// Options that users of other builders know and that cannot be met: why, and what to do instead.
    pub fn refused(&self) -> Option<(&'static str, &'static str)> {
        if self.timing_cache.is_some() {
            return Some((
                "--timing-cache: TensorRT-RTX has none. It times nothing while it builds (its header calls the timing \
                 cache a no-op since version 1.2); kernels are compiled on the GPU at run time",
                "to build only once use --engine-cache DIR; what a GPU compiles is kept by the runtime cache of \
                 `--engine tensorrt`",
            ));
        }
        if self.int8 || self.fp8 {
            return Some((
                "--int8 and --fp8: TensorRT-RTX takes every tensor's type from the graph, and quantised graphs are not \
                 exported",
                "choose the precision of the graphs when they are exported (--precision)",
            ));
        }
        if self.emit_trtexec && (self.engine_cache.is_some() || self.library.trt_lib.is_some()) {
            return Some((
                "--emit-trtexec builds nothing: --engine-cache and --trt-lib have no effect",
                "leave them out",
            ));
        }
        None
    }

    /// What to build.
    pub fn plan(&self) -> TrtPlan {
        TrtPlan {
            library_dir: self.library.trt_lib.clone(),
            profiles: self.profile.clone(),
            shapes: [self.min_shapes.clone(), self.opt_shapes.clone(), self.max_shapes.clone()],
            tune_for: match (self.calibrate, &self.calibrate_from) {
                (Some(n), _) => TuneFor::Images(n),
                (None, Some(path)) => TuneFor::Trace(path.clone()),
                (None, None) => TuneFor::Table,
            },
            compute_capabilities: self.compute_capability.clone(),
            optimization_level: self.builder_optimization_level,
            workspace: self.workspace.map(|mib| (mib as usize) << 20),
            weights: match (self.refit, self.strip_weights) {
                (true, _) => WeightMode::Refittable,
                (_, true) => WeightMode::Stripped,
                _ => WeightMode::Embedded,
            },
            detailed: self.profiling_verbosity.as_deref() == Some("detailed"),
            engine_cache: self.engine_cache.clone(),
        }
    }
}
