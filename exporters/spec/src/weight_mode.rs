//! Where an engine has its weights.

use serde::{Deserialize, Serialize};

/// How an engine holds its weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightMode {
    /// In the engine, for good.
    #[default]
    Embedded,
    /// In the engine, replaceable (`--refit`). Needs a GPU while building.
    Refittable,
    /// Not in the engine: they must be put in before it runs (`--strip-weights`). Needs a GPU while building.
    Stripped,
}
