//! What other tools do differently.

use crate::Resize;

/// Whose protocol a number follows. The Fréchet distance itself is the same in all (they differ by the
/// rounding of their matrix square roots); the image preprocessing and the Inception Score are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// `evaluator.py` of guided-diffusion: the default, and the protocol of LlamaGen and DPAR.
    #[default]
    GuidedDiffusion,
    /// torch-fidelity: the same preprocessing; Inception Score shuffled, in 10 splits.
    TorchFidelity,
    /// pytorch-fid: half-pixel bilinear resize.
    PytorchFid,
    /// clean-fid: PIL bicubic resize.
    CleanFid,
}

/// How an Inception Score is cut into splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InceptionScoreSplits {
    /// Consecutive chunks of this many images, in order.
    Chunks(usize),
    /// Equal parts of the images shuffled by `numpy.random.RandomState`.
    Shuffled {
        /// Number of parts.
        splits: usize,
        /// Seed of the shuffle.
        seed: u64,
    },
}

impl Variant {
    /// Every variant, the default first.
    pub const ALL: [Self; 4] = [Self::GuidedDiffusion, Self::TorchFidelity, Self::PytorchFid, Self::CleanFid];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuidedDiffusion => "guided-diffusion",
            Self::TorchFidelity => "torch-fidelity",
            Self::PytorchFid => "pytorch-fid",
            Self::CleanFid => "clean-fid",
        }
    }

    /// Its resize to the extractor's input.
    pub fn resize(self) -> Resize {
        match self {
            Self::GuidedDiffusion | Self::TorchFidelity => Resize::Tf1Bilinear,
            Self::PytorchFid => Resize::HalfPixelBilinear,
            Self::CleanFid => Resize::PilBicubic,
        }
    }

    /// Its Inception Score. pytorch-fid and clean-fid define none; they get the default's.
    pub fn inception_score(self) -> InceptionScoreSplits {
        match self {
            Self::TorchFidelity => InceptionScoreSplits::Shuffled { splits: 10, seed: 2020 },
            _ => InceptionScoreSplits::Chunks(crate::ADM_CHUNK),
        }
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Variant {
    type Err = crate::MetricError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|v| v.name() == s).ok_or(crate::MetricError::Parameter {
            what: "variant",
            rule: "guided-diffusion, torch-fidelity, pytorch-fid or clean-fid",
        })
    }
}
