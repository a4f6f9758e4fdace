//! Files of the harness: arrays (npz, npy, safetensors), pictures, output folders that appear complete or not at all.

pub mod arrays;
pub mod patches;
pub mod picture;
pub mod samples;
pub mod staging;
