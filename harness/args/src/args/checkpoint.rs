//! Where the parts of a checkpoint are.

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Arg, Args};
use dpar_export_checkpoint::LoadOptions;

use super::rule::RuleArgs;

/// Where the parts of a checkpoint are.
#[derive(Debug, Args)]
#[command(mut_args(of_an_export))]
pub struct CheckpointArgs {
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
    #[command(flatten)]
    rule: RuleArgs,
}

/// At export the numbers of the rule stand in place of the configuration's.
fn of_an_export(arg: Arg) -> Arg {
    let help = match arg.get_id().as_str() {
        "threshold" => {
            "Entropy in nats above which a token opens a patch [default: patcher.threshold of config.yaml]"
        }
        "max_patch_length" => {
            "Most tokens of a patch, and of every later run [default: patcher.max_patch_length]"
        }
        "patch_size" => "Tokens of a patch in static patching [default: patcher.patch_size]",
        _ => return arg,
    };
    arg.help(help)
}

impl CheckpointArgs {
    /// For the reader.
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            entropy: self.entropy.clone(),
            vq: self.vq.clone(),
            epoch: self.epoch,
            map: self.map.clone(),
            config: self.config.clone(),
            weights: self.weights.clone(),
            rule: self.rule.change(),
        }
    }

    /// Whether any was given.
    pub fn any(&self) -> bool {
        self.any_but_map() || self.map.is_some()
    }

    /// Whether any but the rename rules was given.
    pub fn any_but_map(&self) -> bool {
        self.epoch.is_some()
            || !self.rule.change().is_empty()
            || self.weights.is_some()
            || [&self.entropy, &self.vq, &self.config].iter().any(|p| p.is_some())
    }

    /// The rename rules.
    pub fn map(&self) -> Option<&Utf8Path> {
        self.map.as_deref()
    }
}
