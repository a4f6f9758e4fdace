//! What other programs need to serve a bundle: a model repository for NVIDIA's Triton Inference Server, and files that run
//! `serve` on clusters and hosts. No loop is here: Triton's model calls the Python package, the others the program.

mod deployment;
mod memory;
pub mod triton;

pub use deployment::{DeployHost, Deployment, DeploymentError};
pub use memory::{MemoryNeed, memory};
