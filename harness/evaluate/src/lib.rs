//! Metrics of images: activations, reports with their protocol, reference runs made again.

pub mod cluster;
mod error;
pub mod evaluate;
pub mod features;
pub mod reproduce;

/// What a long piece of work is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkPhase {
    /// Streams are drawn and decoded.
    Streams,
    /// The network looks at the samples.
    Samples,
    /// The network looks at the images of the reference.
    Reference,
    /// The network looks at the images of a recorded run.
    Recorded,
    /// This metric is computed.
    Metric(&'static str),
}

impl WorkPhase {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Streams => "decoding streams",
            Self::Samples => "looking at the samples",
            Self::Reference => "looking at the reference",
            Self::Recorded => "looking at the recorded run",
            Self::Metric(name) => name,
        }
    }

    /// What is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Streams | Self::Samples | Self::Reference | Self::Recorded => "images",
            Self::Metric(_) => "metrics",
        }
    }
}

/// Called with what is done, and (done, total) of its [units](WorkPhase::unit); the first call of a phase says what an earlier
/// run did. Returns false to stop.
pub type Step<'a> = &'a mut dyn FnMut(WorkPhase, usize, usize) -> bool;
