//! Component, port and patch-rule types: what a checkpoint resolves to, what an ONNX graph offers, and what
//! the decoding loop needs to know. This crate does no I/O.
//!
//! Notation used throughout the project: B batch, T tokens per image (`grid * grid`), W = `grid` = tokens per
//! row, M patches, D model width, H heads, Dh = D / H, V codebook size.

mod capability;
mod dialect;
mod dtype;
pub mod escape;
mod extractor;
mod graph;
mod graph_name;
mod hint;
mod numbers;
mod patch;
mod per_component;
mod precision;
mod profile;
mod quantize;
mod role;
mod system;
pub mod text;
mod tuning;
mod weight_mode;

pub use capability::{Capability, CapabilityError};
pub use dialect::Dialect;
pub use dtype::DType;
pub use extractor::{ConvLayer, EfficientNetSpec, FeaturesSpec, InceptionSpec, MobileBlock};
pub use graph::{AxisRange, Dim, GraphSpec, InterfaceFault, Port, is_name};
pub use graph_name::GraphName;
pub use hint::Hinted;
pub use numbers::{ComponentNumbers, Numbers};
pub use patch::{PatchMode, PatchRule, PatchRuleError, RuleChange};
pub use precision::{AskedPrecisions, Precision, Precisions};
pub use profile::{Override, Point, Profile, ProfileError};
pub use quantize::{AccuracyLevel, Blocks, Form, Quantize, Quantized, WeightBits};
pub use role::{CachePart, Role};
pub use system::{
    ComponentKind, ComponentSpec, DecoderCross, DparSpec, GptSpec, PatchRope, SystemFault, SystemKind,
    SystemSpec, VqLevel, VqSpec, VqStack,
};
pub use tuning::{Tuning, TuningSource};
pub use weight_mode::WeightMode;
