//! Optimization profiles are plain numbers: they live in the spec, where a build without TensorRT can use them too.

pub use dpar_export_spec::{Override, Point, Profile, ProfileError};
