//! Checkpoints as users have them, and as nobody should: one integration binary.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod config;
mod fixtures;
mod foreign;
mod layout;
mod legacy;
mod names;
mod objects;
mod props;
mod pt;
mod safe;
mod support;
mod vq;
mod wrapped;
