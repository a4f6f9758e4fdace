//! Names in the folders of samples that `generate` and `decode` write.

/// All samples: `arr_0` u8 `[N, H, W, 3]`.
pub const SAMPLES: &str = "samples.npz";
/// What was decided for each.
pub const TRACE: &str = "trace.npz";
/// The contact sheet: no sample.
pub const GRID: &str = "grid.png";
