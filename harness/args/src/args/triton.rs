//! The options of `--target triton`.

use camino::Utf8PathBuf;
use clap::Args;

use super::engine::engine_names;
use super::threads::ThreadsArgs;
use crate::device::Device;
use crate::engines::DEFAULT_ENGINE;
use crate::triton::TritonPlan;

/// How Triton runs a bundle.
#[derive(Debug, Args)]
#[command(next_help_heading = "Triton")]
pub struct TritonArgs {
    /// Engine on which the model decodes [default: the embedded one]
    #[arg(long, value_name = "ENGINE", value_parser = engine_names())]
    engine: Option<String>,
    /// Device of the engine: `cpu`, or one of GPUs, such as cuda; each instance gets its own
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// Images that an instance decodes together [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    rows: Option<u16>,
    /// Instances of the model, each with its own weights and rows [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    instances: Option<u16>,
    /// Where the bundle is on the server, instead of a copy in the repository
    #[arg(long, value_name = "PATH", conflicts_with = "graphs")]
    server_path: Option<String>,
    /// Also a model for each graph, for Triton's own back ends
    #[arg(long)]
    graphs: bool,
}

impl TritonArgs {
    /// Whether any was given.
    pub fn any(&self) -> bool {
        self.engine.is_some()
            || self.device.is_some()
            || self.server_path.is_some()
            || self.graphs
            || self.threads.given().is_some()
            || [self.rows, self.instances].iter().any(Option::is_some)
    }

    /// What is written.
    pub fn plan(&self) -> TritonPlan {
        TritonPlan {
            engine: self.engine.clone().unwrap_or_else(|| DEFAULT_ENGINE.to_owned()),
            device: self.device,
            threads: self.threads.given(),
            rows: self.rows.map_or(8, usize::from),
            instances: self.instances.map_or(1, usize::from),
            bundle_path: self.server_path.as_ref().map(Utf8PathBuf::from),
            graphs: self.graphs,
        }
    }
}
