//! dpar-export turns trained DPAR and LlamaGen checkpoints into ONNX bundles, runs them with exact cached decoding
//! of dynamic patches, and verifies them against reference outputs.
//!
//! Data flows one way: checkpoint → component spec → ONNX graphs and manifest ([`bundle`]) → engine
//! ([`runtime`]) → decoding loop ([`generate`]) → comparison ([`verify`], [`parity`]). Only [`commands`] prints or exits.

pub mod arrays;
pub mod attest;
pub mod bundle;
pub mod commands;
pub mod device;
pub mod doctor;
pub mod engines;
pub mod escape;
pub mod evaluate;
pub mod features;
pub mod generate;
pub mod parity;
pub mod patches;
pub mod picture;
pub mod report;
pub mod reproduce;
pub mod runtime;
pub mod staging;
pub mod targets;
pub mod verify;
