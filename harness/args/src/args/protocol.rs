//! How numbers are computed.

use clap::{Args, ValueEnum};
use dpar_export_metrics::{KidProtocol, PrMode, Variant};

/// How numbers are computed.
#[derive(Debug, Clone, Args)]
pub struct ProtocolArgs {
    /// Whose protocol: of the image resize and of the Inception Score [default: that of the extractor's resize; adm]
    #[arg(long, value_enum, help_heading = "Protocol")]
    variant: Option<VariantName>,
    /// Precision and Recall as in f64, or in the f16 of ADM's evaluator
    #[arg(long, value_enum, default_value = "f32", help_heading = "Protocol")]
    pr_mode: PrName,
    /// Subsets of the second KID
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Protocol")]
    kid_subsets: u32,
    /// Images in a subset
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(2..=1_000_000), help_heading = "Protocol")]
    kid_subset_size: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VariantName {
    /// guided-diffusion's evaluator, the protocol of LlamaGen and DPAR
    #[value(alias = "guided-diffusion")]
    Adm,
    /// torch-fidelity: Inception Score in 10 shuffled splits
    TorchFidelity,
    /// pytorch-fid: half-pixel bilinear resize
    PytorchFid,
    /// clean-fid: Pillow's bicubic resize
    CleanFid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PrName {
    /// Exact
    F32,
    /// f16, which inflates both by about 0.001 to 0.003
    Adm,
}

impl ProtocolArgs {
    /// The variant that was asked for.
    pub fn variant(&self) -> Option<Variant> {
        self.variant.map(|name| match name {
            VariantName::Adm => Variant::GuidedDiffusion,
            VariantName::TorchFidelity => Variant::TorchFidelity,
            VariantName::PytorchFid => Variant::PytorchFid,
            VariantName::CleanFid => Variant::CleanFid,
        })
    }

    /// Arithmetic of Precision and Recall.
    pub fn pr_mode(&self) -> PrMode {
        match self.pr_mode {
            PrName::F32 => PrMode::F32,
            PrName::Adm => PrMode::Adm,
        }
    }

    /// Subsets of KID.
    pub fn kid(&self, seed: u64) -> KidProtocol {
        KidProtocol { subsets: self.kid_subsets as usize, size: self.kid_subset_size as usize, seed }
    }
}
