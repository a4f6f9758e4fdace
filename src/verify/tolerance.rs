//! Every tolerance, with its reason.

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
