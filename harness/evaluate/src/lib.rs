//! Metrics of images: activations, reports with their protocol, reference runs made again.

pub mod evaluate;
pub mod features;
pub mod reproduce;
