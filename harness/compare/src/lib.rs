//! Whether two sources of outputs agree: with recorded references, engine against engine, and where they part.

pub mod check;
pub mod decision;
mod error;
mod names;
pub mod parity;
pub mod report;
pub mod stats;
mod status;
pub mod verify;

pub use dpar_engine_conformance::tolerance;
pub use error::{CompareError, ReferenceError};
