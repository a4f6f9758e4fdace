//! Whether two sources of outputs agree: with recorded references, engine against engine, and where they part.

pub mod check;
pub mod parity;
pub mod replay;
pub mod report;
pub mod stats;
pub mod tolerance;
pub mod verify;
