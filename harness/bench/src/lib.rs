//! What decoding costs: wall time of every graph and of the loop itself, memory, and how near to the machine's read
//! bandwidth it comes.
//!
//! [`measure`] times one case: a bundle on one engine at one batch size; the calls of each graph are counted and timed by the
//! decoding loop itself. [`BenchReport`] gathers cases, [`page`] shows them, [`compare()`] holds two reports against each other.

mod bandwidth;
mod compare;
mod error;
mod measure;
mod memory;
mod page;
mod report;

pub use bandwidth::{ReadBandwidth, read_bandwidth};
pub use compare::{Change, Comparison, compare};
pub use error::BenchError;
pub use measure::{Case, GraphCost, GraphShare, Measurement, Phase, Quantiles, Round, measure};
pub use memory::{Memory, resident};
pub use page::page;
pub use report::{BenchReport, Machine, SCHEMA_VERSION};
