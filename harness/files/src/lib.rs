//! Files of the harness: arrays (npz, npy, safetensors), pictures, the frame of HTML pages, output folders that appear complete or not at all.

pub mod arrays;
pub mod page;
pub mod patches;
pub mod picture;
pub mod samples;
pub mod staging;
