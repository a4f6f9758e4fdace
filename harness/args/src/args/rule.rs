//! Other numbers for the patch rule.

use clap::Args;
use dpar_export_spec::RuleChange;

/// Numbers of the patch rule that are not the exported ones, or at export not the configuration's.
#[derive(Debug, Clone, Copy, Args)]
pub struct RuleArgs {
    /// Entropy in nats above which a token opens a patch; larger ones make fewer steps [default: as exported]
    #[arg(
        long,
        value_name = "NATS",
        value_parser = finite::<f32>,
        allow_negative_numbers = true,
        help_heading = "Patch rule"
    )]
    threshold: Option<f32>,
    /// Most tokens of a patch; no more than it was exported for [default: as exported]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Patch rule")]
    max_patch_length: Option<u32>,
    /// Tokens of a patch in static patching [default: as exported]
    #[arg(
        long,
        value_name = "TOKENS",
        value_parser = finite::<f64>,
        allow_negative_numbers = true,
        help_heading = "Patch rule"
    )]
    patch_size: Option<f64>,
}

impl RuleArgs {
    /// What they change.
    pub fn change(self) -> RuleChange {
        RuleChange {
            threshold: self.threshold,
            max_patch_length: self.max_patch_length.map(|n| n as usize),
            patch_size: self.patch_size,
        }
    }
}

/// The options of [`RuleArgs`], by their names in the parser.
pub const RULE: [&str; 3] = ["threshold", "max_patch_length", "patch_size"];

/// A number that is one.
fn finite<T: std::str::FromStr + Into<f64> + Copy>(text: &str) -> Result<T, String> {
    let number = text.parse::<T>().ok().filter(|n| (*n).into().is_finite());
    number.ok_or_else(|| "expected a finite number".to_owned())
}
