//! dpar-export turns trained DPAR and LlamaGen checkpoints into ONNX bundles, runs them with exact cached decoding
//! of dynamic patches, and verifies them against reference outputs.
//!
//! Data flows one way: checkpoint → component spec → ONNX graphs and manifest ([`bundle`]) → engine
//! ([`loaded`]) → decoding loop ([`generate`]) → comparison ([`verify`], [`parity`]). Only [`commands`] prints or exits.
//! Each layer is a crate; this one has the command line, and names all of them for who uses the tool as a library.

pub mod commands;

pub use dpar_engine_table::{self as engines, device};
pub use dpar_export_bundle::{self as bundle, attest};
pub use dpar_export_card as card;
pub use dpar_export_compare::{
    CompareError, ReferenceError, check, decision, parity, report, stats, tolerance, verify,
};
pub use dpar_export_decode::{calibrate, generate, loaded, replay, tokenizer};
pub use dpar_export_deploy::{self as deploy, triton};
pub use dpar_export_doctor as doctor;
pub use dpar_export_evaluate::{Step, WorkPhase, cluster, evaluate, features, reproduce};
pub use dpar_export_files::{arrays, patches, picture, samples, staging};
#[cfg(feature = "serve")]
pub use dpar_export_serve as serve;
pub use dpar_export_trt as targets;
