//! End-to-end tests: real checkpoints, real graphs, real engines.
//!
//! ONNX Runtime is expected where `cargo xtask setup` puts it; its tests fail, and say so, when it is not there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod arguments;
mod attest;
mod autocast;
mod bench;
mod bombs;
mod book;
mod cached;
mod card;
mod cli;
mod common;
mod compare;
mod components;
mod demo;
mod deploy;
mod device;
mod doctor;
mod documents;
mod emitted;
mod engines;
mod evaluate;
mod evaluate_again;
mod evaluate_until;
mod exit_codes;
mod export;
mod extractor;
mod faults;
mod footprint;
mod forged;
mod graphs;
mod injection;
mod inputs;
mod integrity;
mod metrics;
#[cfg(target_os = "linux")]
#[path = "../../engines/ort/tests/telemetry/network.rs"]
mod network;
mod oci;
mod outputs;
mod pages;
mod parity;
mod precision;
mod pulled;
mod quantize;
mod readers;
mod reference;
mod report;
mod reproduce;
mod resized;
mod resume;
mod rules;
mod schedules;
mod serve;
mod snapshots;
mod streams;
mod swaps;
mod talk;
#[cfg(target_os = "linux")]
mod telemetry;
mod triton;
#[cfg(feature = "tensorrt")]
mod trt;
#[cfg(feature = "tensorrt")]
mod trt_errors;
mod trt_files;
mod trtexec;
