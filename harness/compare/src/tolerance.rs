//! Every tolerance, with its reason. docs/precision.md has the measurements behind those of the half types.

use dpar_engine_api::ArithmeticKind;
use dpar_export_spec::{DType, Precision};

/// Logits and entropies, absolute, fp32. The engines sum in other orders than PyTorch: differences of 1e-6 to
/// 2e-5 are normal for logits of magnitude 10; a wrong position, mask or weight moves them by 1e-2 and more.
pub const FP32_ABS: f32 = 2e-4;

/// A patch boundary whose entropy is nearer to the threshold than this may flip by rounding (nats). Entropies
/// of the engines agree with PyTorch within 1.2e-5 (`cargo xtask parity`).
pub const BOUNDARY_TIE: f32 = 2e-5;

/// A greedy decision whose two best guided logits are nearer than this may flip by rounding. Guidance amplifies
/// the error of a logit by up to 2s − 1.
pub const GREEDY_TIE: f32 = 5e-5;

/// A sampled draw nearer than this to a boundary of the cumulative distribution may flip by rounding
/// (probability): engines differ in the cumulative sum by 1e-7 (median) to 3.4e-6 (largest seen).
pub const DRAW_TIE: f32 = 1e-5;

/// Pixels, in steps of 1/255: truncation to u8 moves a value that is near an integer by one.
pub const IMAGE_LSB: u8 = 1;

// Half types against a float32 reference. "Worst seen" is over the trained DPAR and LlamaGen, dpar-small and the
// variant `combined`, on every engine that runs the type and in the numpy reference; a limit is that times 2.5 or more,
// but for codes, which come in steps of one in 32.

/// Logits of fp16 graphs; worst seen 1.9e-2. A wrong position or mask moves them by 1e-1 and more.
pub const FP16_LOGITS: f32 = 5e-2;
/// Entropies of fp16 graphs; worst seen 4.9e-3.
pub const FP16_ENTROPY: f32 = 1.25e-2;
/// Gap of the two best guided logits below which an fp16 graph may choose another token; largest seen at a flip 3.9e-3.
pub const FP16_GREEDY_TIE: f32 = 2e-2;
/// Share of the compared decisions that may be near-ties in fp16; worst seen 0.6 %.
pub const FP16_TIE_RATE: f64 = 0.02;
/// Pixels of fp16 graphs; worst seen 2.
pub const FP16_IMAGE_LSB: u8 = 5;
/// Pixels of fp16 graphs where the engine keeps sums in fp16 too; worst seen 14, where a convolution adds 1,152 products.
pub const FP16_NARROW_IMAGE_LSB: u8 = 35;
/// Share of codes that may differ in fp16, whose margins no graph gives; worst seen 3.1 % (1 of 32), 1.6 % of 128.
pub const FP16_CODE_RATE: f64 = 0.04;

/// Logits of bf16 graphs; worst seen 1.9e-1.
pub const BF16_LOGITS: f32 = 5e-1;
/// Entropies of bf16 graphs; worst seen 5.7e-2.
pub const BF16_ENTROPY: f32 = 1.5e-1;
/// As [`FP16_GREEDY_TIE`] for bf16; largest seen at a flip 6.3e-2.
pub const BF16_GREEDY_TIE: f32 = 1.6e-1;
/// As [`FP16_TIE_RATE`] for bf16; worst seen 2.1 %.
pub const BF16_TIE_RATE: f64 = 0.055;
/// Pixels of bf16 graphs; worst seen 20.
pub const BF16_IMAGE_LSB: u8 = 50;
/// As [`FP16_CODE_RATE`] for bf16; worst seen 6.3 % (2 of 32).
pub const BF16_CODE_RATE: f64 = 0.16;

/// A sampled draw of a half type (probability): a logit that is off by d moves a cumulative sum by at most d / 2 times the
/// guidance's 2s − 1; draws are compared at scale 2, and the logits' usual error is a tenth of the limit.
const DRAW_TIE_PER_LOGIT: f32 = 0.15;

// Half types against a reference in the same type: what is left is the order of sums, which decides at some places how a
// result is rounded.

/// Logits of fp16 graphs against an fp16 reference; worst seen 1.3e-2 (tract on `combined`, the one such reference).
pub const FP16_SAME_LOGITS: f32 = 2.5e-2;
/// Entropies of fp16 graphs against an fp16 reference; worst seen 2.8e-3.
pub const FP16_SAME_ENTROPY: f32 = 7.5e-3;
/// Logits of bf16 graphs against a bf16 reference: eight times the fp16 limit, as bf16 has three bits less.
pub const BF16_SAME_LOGITS: f32 = 2e-1;
/// Entropies of bf16 graphs against a bf16 reference: as for the logits.
pub const BF16_SAME_ENTROPY: f32 = 6e-2;

// bf16 autocast, measured on the trained DPAR against the authors' code under it (`fixtures/emoji32-autocast`), with every
// engine here and in numpy. Which way a sum is rounded hangs on its last float32 bits, so that two correct computations
// differ by whole roundings at a few places: means are held as well as largest differences, and tell arithmetics apart where
// those cannot.

/// Mean over entropies (nats) against a reference in the same arithmetic. The engines are 0.0006 to 0.0008 away, PyTorch
/// with and without oneDNN 0.0011 from itself; a missing rounding of silu is 0.0036, float32 0.0052, a layer of the entropy
/// model that is 1 % off 0.0042 and more.
pub const BF16_AUTOCAST_SAME_ENTROPY_MEAN: f32 = 1.8e-3;
/// The same where a GPU computed the reference: fused attention rounds its weights before they are normalised, which alone is
/// 0.0035. Float32 is still told apart.
pub const BF16_AUTOCAST_GPU_ENTROPY_MEAN: f32 = 4.5e-3;
/// Mean over logits against a reference in the same arithmetic: the engines are 0.0047 to 0.0080 away; float32 0.0118, a
/// layer that is 1 % off 0.0099 and more.
pub const BF16_AUTOCAST_SAME_LOGITS_MEAN: f32 = 9e-3;
/// A boundary whose entropy is nearer to the threshold may flip between two computations in bf16 autocast: the largest
/// difference seen, 0.043.
pub const BF16_AUTOCAST_SAME_BOUNDARY_TIE: f32 = 4.5e-2;
/// Share of decisions that may be near-ties between two computations in bf16 autocast: 2 boundaries of 504 flip against
/// float32, five times as far away.
pub const BF16_AUTOCAST_SAME_TIE_RATE: f64 = 4e-3;
/// Logits, absolute; largest seen 0.125.
pub const BF16_AUTOCAST_LOGITS: f32 = 3e-1;
/// Entropies, absolute; largest seen 0.05 over all of emoji32's streams (against float32).
pub const BF16_AUTOCAST_ENTROPY: f32 = 1.25e-1;
/// Share of decisions that may be near-ties between bf16 autocast and float32: 3 boundaries of 1,000 flip, 2 % of arg-max
/// tokens, at guidance 1.
pub const BF16_AUTOCAST_TIE_RATE: f64 = 3e-2;

/// What a reference was computed with, as far as tolerances depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Its arithmetic.
    pub precision: Precision,
    /// Whether a GPU computed it, whose fused kernels round elsewhere.
    pub on_gpu: bool,
}

impl From<Precision> for Recorded {
    fn from(precision: Precision) -> Self {
        Self { precision, on_gpu: false }
    }
}

/// What a comparison allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Logits, absolute.
    pub logits: f32,
    /// Mean over all logits of a comparison; `None` = no limit of its own.
    pub logits_mean: Option<f32>,
    /// Entropies, absolute, in nats.
    pub entropy: f32,
    /// Mean over all entropies of a comparison; `None` = no limit of its own.
    pub entropy_mean: Option<f32>,
    /// Distance of an entropy to the threshold below which a boundary is a near-tie.
    pub boundary_tie: f32,
    /// Gap of the two best guided logits below which a greedy token is a near-tie.
    pub greedy_tie: f32,
    /// Distance of a draw to its boundary below which it is a near-tie.
    pub draw_tie: f32,
    /// Near-ties per compared decision; `None` = as many as there are, as long as one image is equal to its end.
    pub tie_rate: Option<f64>,
    /// Pixels, in steps of 1/255.
    pub image_lsb: u8,
    /// Share of codes that may differ.
    pub code_rate: f64,
}

impl Limits {
    /// For a bundle of precision `found` on an engine with this arithmetic, against a reference of precision `reference`.
    pub fn between(reference: impl Into<Recorded>, found: Precision, arithmetic: ArithmeticKind) -> Self {
        let Recorded { precision: reference, on_gpu } = reference.into();
        let (reference, found) = (reference.numbers(), found.numbers());
        if reference.is_autocast() || found.is_autocast() {
            return Self::autocast(reference, found, arithmetic, on_gpu);
        }
        let half = match (reference, found) {
            (Precision::Fp32, Precision::Fp32) => return Self::FP32,
            (Precision::Bf16, _) | (_, Precision::Bf16) => Self::BF16,
            _ => Self::FP16,
        };
        let half = match (found, arithmetic) {
            (Precision::Fp16, ArithmeticKind::NarrowSums) if half == Self::FP16 => {
                Self { image_lsb: FP16_NARROW_IMAGE_LSB, ..half }
            }
            _ => half,
        };
        match (reference == found, arithmetic) {
            // An engine that does not round where the graph does is as far from the reference as float32 is.
            (true, ArithmeticKind::Wider) | (false, _) => half,
            (true, _) => half.same(found),
        }
    }

    /// fp32 against fp32.
    pub const FP32: Self = Self {
        logits: FP32_ABS,
        entropy: FP32_ABS,
        logits_mean: None,
        entropy_mean: None,
        boundary_tie: BOUNDARY_TIE,
        greedy_tie: GREEDY_TIE,
        draw_tie: DRAW_TIE,
        tie_rate: None,
        image_lsb: IMAGE_LSB,
        code_rate: 0.0,
    };

    const FP16: Self = Self {
        logits: FP16_LOGITS,
        entropy: FP16_ENTROPY,
        logits_mean: None,
        entropy_mean: None,
        // The reference's entropy and this one lie on both sides of the threshold: no further apart than they may be.
        boundary_tie: FP16_ENTROPY,
        greedy_tie: FP16_GREEDY_TIE,
        draw_tie: FP16_LOGITS * DRAW_TIE_PER_LOGIT,
        tie_rate: Some(FP16_TIE_RATE),
        image_lsb: FP16_IMAGE_LSB,
        code_rate: FP16_CODE_RATE,
    };

    const BF16: Self = Self {
        logits: BF16_LOGITS,
        entropy: BF16_ENTROPY,
        logits_mean: None,
        entropy_mean: None,
        boundary_tie: BF16_ENTROPY,
        greedy_tie: BF16_GREEDY_TIE,
        draw_tie: BF16_LOGITS * DRAW_TIE_PER_LOGIT,
        tie_rate: Some(BF16_TIE_RATE),
        image_lsb: BF16_IMAGE_LSB,
        code_rate: BF16_CODE_RATE,
    };

    /// Where one side at least is autocast.
    fn autocast(reference: Precision, found: Precision, arithmetic: ArithmeticKind, on_gpu: bool) -> Self {
        let bf16 = [reference, found].iter().any(|p| p.rounds_to() == DType::BF16);
        // A plain half type rounds the residual stream and the tokenizer's images too.
        if [reference, found].iter().any(|p| !p.is_autocast() && *p != Precision::Fp32) {
            return if bf16 { Self::BF16 } else { Self::FP16 };
        }
        let apart = if bf16 { Self::BF16_AUTOCAST } else { Self::FP16_AUTOCAST };
        match (reference == found, bf16, arithmetic) {
            (false, ..) | (true, _, ArithmeticKind::Wider) => apart,
            (true, false, _) => apart.same(Precision::Fp16),
            (true, true, _) if on_gpu => Self { entropy_mean: Some(BF16_AUTOCAST_GPU_ENTROPY_MEAN), ..apart },
            (true, true, _) => Self::BF16_AUTOCAST_SAME,
        }
    }

    /// fp16 autocast against float32: no further apart than fp16 graphs, with float32 images.
    const FP16_AUTOCAST: Self = Self { image_lsb: IMAGE_LSB, code_rate: 0.0, ..Self::FP16 };

    /// bf16 autocast against float32.
    const BF16_AUTOCAST: Self = Self {
        logits: BF16_AUTOCAST_LOGITS,
        entropy: BF16_AUTOCAST_ENTROPY,
        boundary_tie: BF16_AUTOCAST_ENTROPY,
        tie_rate: Some(BF16_AUTOCAST_TIE_RATE),
        image_lsb: IMAGE_LSB,
        code_rate: 0.0,
        ..Self::BF16
    };

    /// bf16 autocast against a reference in it.
    const BF16_AUTOCAST_SAME: Self = Self {
        logits_mean: Some(BF16_AUTOCAST_SAME_LOGITS_MEAN),
        entropy_mean: Some(BF16_AUTOCAST_SAME_ENTROPY_MEAN),
        boundary_tie: BF16_AUTOCAST_SAME_BOUNDARY_TIE,
        tie_rate: Some(BF16_AUTOCAST_SAME_TIE_RATE),
        ..Self::BF16_AUTOCAST
    };

    fn same(self, precision: Precision) -> Self {
        let (logits, entropy) = match precision {
            Precision::Bf16 => (BF16_SAME_LOGITS, BF16_SAME_ENTROPY),
            _ => (FP16_SAME_LOGITS, FP16_SAME_ENTROPY),
        };
        Self { logits, entropy, boundary_tie: entropy, ..self }
    }

    /// How many of `compared` decisions may be near-ties: at least one, since an image of a few slots may hold it.
    pub fn ties(&self, compared: usize) -> usize {
        self.tie_rate.map_or(usize::MAX, |rate| (compared as f64 * rate).ceil() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ArithmeticKind::{AsGraph, NarrowSums, Wider};
    use Precision::{Bf16, Bf16Autocast, Bf16AutocastExplicit, Fp16, Fp16Autocast, Fp32};

    #[test]
    fn a_coarser_type_has_wider_limits_and_its_own_reference_narrower_ones() {
        assert_eq!(Limits::between(Fp32, Fp32, AsGraph), Limits::FP32);
        let logits = |r, f, kind| Limits::between(r, f, kind).logits;
        assert_eq!(logits(Fp32, Fp16, AsGraph), FP16_LOGITS);
        assert_eq!(logits(Fp16, Fp32, AsGraph), FP16_LOGITS);
        assert_eq!(logits(Fp16, Fp16, AsGraph), FP16_SAME_LOGITS);
        assert_eq!(logits(Fp16, Fp16, NarrowSums), FP16_SAME_LOGITS);
        assert_eq!(logits(Fp16, Fp16, Wider), FP16_LOGITS);
        assert_eq!(logits(Fp32, Bf16, AsGraph), BF16_LOGITS);
        assert_eq!(logits(Fp16, Bf16, AsGraph), BF16_LOGITS);
        assert_eq!(logits(Bf16, Bf16, AsGraph), BF16_SAME_LOGITS);
        assert_eq!(Limits::between(Fp32, Fp16, NarrowSums).image_lsb, FP16_NARROW_IMAGE_LSB);
        assert_eq!(Limits::between(Fp32, Fp16, Wider).image_lsb, FP16_IMAGE_LSB);
    }

    #[test]
    fn the_form_of_a_graph_changes_no_limit_and_a_gpu_widens_the_mean() {
        let typed = Limits::between(Bf16Autocast, Bf16Autocast, AsGraph);
        assert_eq!(typed.entropy_mean, Some(BF16_AUTOCAST_SAME_ENTROPY_MEAN));
        assert_eq!(Limits::between(Bf16Autocast, Bf16AutocastExplicit, AsGraph), typed);
        let apart = Limits::between(Bf16Autocast, Fp32, AsGraph);
        assert_eq!(Limits::between(Fp32, Bf16AutocastExplicit, AsGraph), apart);
        assert_eq!((apart.entropy_mean, apart.image_lsb, apart.code_rate), (None, IMAGE_LSB, 0.0));
        assert!(typed.boundary_tie < apart.boundary_tie && apart.logits < BF16_LOGITS);
        let gpu = Recorded { precision: Bf16Autocast, on_gpu: true };
        let mean = Limits::between(gpu, Bf16Autocast, AsGraph).entropy_mean;
        assert_eq!(mean, Some(BF16_AUTOCAST_GPU_ENTROPY_MEAN));
        // A plain half type rounds more than autocast does.
        assert_eq!(Limits::between(Bf16, Bf16AutocastExplicit, AsGraph), Limits::BF16);
        assert_eq!(Limits::between(Fp32, Fp16Autocast, NarrowSums).image_lsb, IMAGE_LSB);
        assert_eq!(Limits::between(Fp16Autocast, Fp16Autocast, AsGraph).logits, FP16_SAME_LOGITS);
    }

    #[test]
    fn near_ties_are_counted_per_decision() {
        let fp16 = Limits::between(Fp32, Fp16, AsGraph);
        assert_eq!([1, 50, 51, 576].map(|n| fp16.ties(n)), [1, 1, 2, 12]);
        assert_eq!(Limits::FP32.ties(1), usize::MAX);
    }
}
