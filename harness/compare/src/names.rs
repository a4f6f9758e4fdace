//! The files of a golden folder.

/// Names of the array file, the one that is written first.
pub const ARRAYS: [&str; 2] = ["golden.safetensors", "golden.npz"];
/// What the arrays were made with.
pub const GOLDEN_JSON: &str = "golden.json";
