//! Generation: from seeds and classes to token streams with dynamic patches.
//!
//! The loop is exact cached decoding: boundaries are causal and final, so caches over tokens and over patches
//! give the logits of a full recomputation, up to rounding.

mod counted;
mod decoder;
mod dpar;
mod llamagen;
mod model;
mod teacher;

use dpar_engine_api::{CachedSession, EngineError, EngineErrorKind};
use dpar_export_spec::{GraphName, SystemKind, SystemSpec};

pub use decoder::{Batching, Decoder, Event, Images, Schedule, Ticket};
pub use dpar::DparModel;
pub use dpar_export_sampler as sampler;
pub use llamagen::LlamagenModel;
pub use model::{After, GraphCalls, Opening, Pushed, SlotLogits, StepModel};
pub use teacher::{TeacherForced, shift_entropy};

use sampler::{SampleError, SamplerOptions, image_key, random_class};

/// Prepares the graph of a name, with its cache, on the chosen engine.
pub type Prepare<'a, E> = dyn FnMut(GraphName) -> Result<Box<dyn CachedSession>, E> + 'a;

/// How streams are decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeOptions {
    /// Guidance scale s in u + s·(c − u); guidance runs when s > 1.
    pub cfg_scale: f32,
    /// LlamaGen's `cfg_interval` i: slot t ≥ 1 has decode index t − 1, and slots with a decode index above i use
    /// conditional logits only.
    pub cfg_interval: Option<usize>,
    /// Sampling.
    pub sampler: SamplerOptions,
    /// Seed of the counter-based sampler.
    pub seed: u64,
}

impl DecodeOptions {
    /// Checks that the loop can run with these, and that none of them is without effect.
    ///
    /// # Errors
    /// The first that is no number in its range; an interval without guidance.
    pub fn validate(&self) -> Result<(), SampleError> {
        if !(self.cfg_scale.is_finite() && self.cfg_scale >= 0.0) {
            return Err(SampleError::Guidance(self.cfg_scale));
        }
        if self.cfg_interval.is_some() && self.cfg_scale <= 1.0 {
            return Err(SampleError::Interval);
        }
        self.sampler.validate()
    }
}

/// One image to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Index of the image in the whole run: its draws depend on it, on the seed and on the slot alone.
    pub index: u64,
    /// Class label.
    pub class: i64,
}

impl Request {
    /// The image of that index with the class that follows from the seed.
    pub fn seeded(seed: u64, index: u64, num_classes: usize) -> Self {
        Self { index, class: random_class(image_key(seed, index), num_classes as u64) as i64 }
    }

    /// The first `count` images of a seed.
    pub fn all_seeded(seed: u64, count: u64, num_classes: usize) -> Vec<Self> {
        (0..count).map(|index| Self::seeded(seed, index, num_classes)).collect()
    }
}

/// One decoded image.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// What was asked for.
    pub request: Request,
    /// VQ codes in raster order, T.
    pub tokens: Vec<u32>,
    /// Patch lengths; they sum to T.
    pub patch_lengths: Vec<usize>,
    /// e_t at index t in nats; NaN at 0 and where no entropy model runs.
    pub entropy: Vec<f32>,
    /// How near each draw was to another token ([`sampler::Draw::margin`]).
    pub margin: Vec<f32>,
}

impl Stream {
    /// Steps of the large transformer: the class slot and P_0..P_{M−2}, so as many as patches.
    pub fn steps(&self) -> usize {
        self.patch_lengths.len()
    }

    /// The tokens of images, one after another, as graphs take them.
    pub fn ids(streams: &[Self]) -> Vec<i64> {
        streams.iter().flat_map(|s| &s.tokens).map(|t| i64::from(*t)).collect()
    }
}

/// Why decoding stopped.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A draw was impossible.
    #[error("image {image}, slot {slot}: {source}")]
    Sample {
        /// Index of the image.
        image: u64,
        /// Slot.
        slot: usize,
        /// Why.
        source: SampleError,
    },
    /// The entropy model gave something that is not a finite number.
    #[error("image {image}, slot {slot}: the entropy is {value}")]
    Entropy {
        /// Index of the image.
        image: u64,
        /// Slot.
        slot: usize,
        /// The value.
        value: f32,
    },
    /// Guidance for a model that was trained without a null class.
    #[error(
        "guidance needs a null class, and the class table of this model has none (class dropout 0); only --cfg-scale 1 runs"
    )]
    NoNullClass,
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Prepares the step graphs of a system.
///
/// # Errors
/// What `prepare` returns; when the system has no transformer.
pub fn prepare_model<E: From<EngineError>>(
    system: &SystemSpec,
    prepare: &mut Prepare<'_, E>,
) -> Result<Box<dyn StepModel>, E> {
    match (system.kind, system.dpar(), system.llamagen()) {
        (SystemKind::Dpar, Some(spec), _) => Ok(Box::new(DparModel::prepare(system, spec, prepare)?)),
        (SystemKind::Llamagen, _, Some(spec)) => Ok(Box::new(LlamagenModel::prepare(system, spec, prepare)?)),
        _ => Err(no_transformer(system).into()),
    }
}

fn no_transformer(system: &SystemSpec) -> EngineError {
    let message = format!("the configuration of `{}` has no transformer", system.name);
    EngineError::new(EngineErrorKind::Graph, "decoding loop", message)
}

#[cfg(test)]
mod tests;
