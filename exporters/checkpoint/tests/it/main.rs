//! Checkpoints as users have them, and as nobody should: one integration binary.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod config;
mod fixtures;
mod layout;
mod legacy;
mod names;
mod props;
mod pt;
mod safe;
mod support;
mod vq;
