//! Reads PyTorch and safetensors checkpoints as data and resolves them to component specs.
//!
//! ```no_run
//! use camino::Utf8Path;
//! use dpar_export_checkpoint::{LoadOptions, load};
//!
//! let options = LoadOptions { map: Some("names.yaml".into()), ..LoadOptions::default() };
//! let loaded = load(Utf8Path::new("runs/dpar-l"), &options)?;
//! for component in &loaded.components {
//!     let weights = &component.weights;
//!     println!("{}: {} parameters", component.spec.kind().name(), weights.parameters());
//! }
//! # Ok::<(), dpar_export_checkpoint::CheckpointError>(())
//! ```
//!
//! [`load`] documents what it accepts. Below it lie [`TensorFile`] (one memory-mapped weight file) and [`WeightSet`]
//! (the tensors of one component under the names the exporter uses).
//!
//! A weight file is untrusted input. A `.pt` is a zip archive with a pickle; the pickle is read by a machine that builds
//! data only, so nothing in a file can be executed: objects beside the weights stay opaque, and a file that calls a
//! function of Python's own library is refused. Files that are cut off, contradict
//! themselves or ask for more memory than they could fill are typed errors.

mod agree;
mod config;
mod error;
mod expect;
mod extractor;
mod file;
mod known;
mod locate;
mod resolve;
mod rules;
mod synth;
mod tensor;
mod tree;
mod weights;

pub use error::{CheckpointError, ErrorKind, NameMismatch, Unmatched};
pub use extractor::{LoadedExtractor, load_extractor};
pub use file::{TensorFile, WeightFormat, pickle_tensor_names};
pub use resolve::{LoadOptions, Loaded, LoadedComponent, SourceFile, load};
pub use synth::{Synth, SynthSize, Synthesized};
pub use tensor::{TensorRef, WeightDType};
pub use weights::WeightSet;
