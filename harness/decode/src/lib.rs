//! A bundle on an engine: the decoding loop, the sampler, teacher-forced scoring, images and codes.

pub mod calibrate;
mod error;
pub mod generate;
pub mod loaded;
pub mod replay;
pub mod tokenizer;
