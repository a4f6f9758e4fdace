//! KV caches in place, for engines on the CPU that take an operator of ours.
//!
//! A step graph of the portable form joins past and new keys and values, so that every step copies the cache it reads.
//! Here that pattern is one operator, [`OPERATOR`]: q, new k and new v in, attention out. Each row of a cache has memory of
//! its own, a new slot is written once where it belongs, and a row attends over its own slots. No mask, no padding, no
//! copy, and rows in any number and order.
//!
//! [`cached`] derives such a graph from a portable one when that is loaded, over the same weights, and keeps a session over it.
//! An engine brings the graph to run and calls [`Cache::attend`] for the operator.

mod ahead;
mod attend;
mod cache;
mod edit;
mod session;
mod wire;

pub use cache::{Cache, Parallel};
pub use edit::Edited;
pub use session::{Derived, cached, not_in_place};

/// Domain of the operator.
pub const DOMAIN: &str = "dpar";
/// Name of the operator: inputs q, k, v `[batch, new, heads, head_dim]`, q scaled by 1/√head_dim; output the same shape.
pub const OPERATOR: &str = "CachedAttention";
/// Its one attribute, an integer: the layer whose cache it is.
pub const LAYER: &str = "layer";
