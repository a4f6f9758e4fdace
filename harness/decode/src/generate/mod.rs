//! Generation: from seeds and classes to token streams with dynamic patches.
//!
//! The loop is exact cached decoding: boundaries are causal and final, so caches over tokens and over patches
//! give the logits of a full recomputation, up to rounding.

mod dpar;
mod llamagen;
mod model;
pub mod sampler;
mod teacher;

use dpar_engine_api::{CachedSession, EngineError, EngineErrorKind};
use dpar_export_spec::{GraphName, PatchRule, SystemKind, SystemSpec};

pub use dpar::DparModel;
pub use llamagen::LlamagenModel;
pub use model::{ClosedPatch, SlotLogits, StepModel};
pub use teacher::{TeacherForced, shift_entropy};

use sampler::{SampleError, Sampler, SamplerOptions, guide, image_key, random_class};

/// The additive mask value of a slot that may not be looked at: exp underflows to 0 after softmax's shift, and
/// a fully masked (padding) line stays finite.
pub const MASKED: f32 = -1e9;

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
}

/// Why decoding stopped.
#[derive(Debug, thiserror::Error)]
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
        (SystemKind::Llamagen, _, Some(spec)) => Ok(Box::new(LlamagenModel::prepare(spec, prepare)?)),
        _ => Err(no_transformer(system).into()),
    }
}

fn no_transformer(system: &SystemSpec) -> EngineError {
    let message = format!("the configuration of `{}` has no transformer", system.name);
    EngineError::new(EngineErrorKind::Graph, "decoding loop", message)
}

/// Decodes one batch of images of `tokens` tokens.
///
/// `progress` is called after every slot with the number of decoded slots, and returns false to stop.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_batch(
    model: &mut dyn StepModel,
    rule: &PatchRule,
    tokens: usize,
    null_class: Option<i64>,
    options: &DecodeOptions,
    requests: &[Request],
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<Stream>, DecodeError> {
    let vocab = model.vocab();
    let sample_error = |image, slot| move |source| DecodeError::Sample { image, slot, source };
    let mut sampler = Sampler::new(options.sampler).map_err(sample_error(0, 0))?;
    let guided = options.cfg_scale > 1.0;
    let labels: Vec<i64> = requests.iter().map(|r| r.class).collect();
    let keys: Vec<u64> = requests.iter().map(|r| image_key(options.seed, r.index)).collect();
    let mut streams: Vec<Stream> = requests
        .iter()
        .map(|request| Stream {
            request: *request,
            tokens: Vec::with_capacity(tokens),
            patch_lengths: Vec::new(),
            entropy: Vec::with_capacity(tokens),
            margin: Vec::with_capacity(tokens),
        })
        .collect();
    let mut mixed = vec![0.0; vocab];
    if guided && null_class.is_none() {
        return Err(DecodeError::NoNullClass);
    }
    model.start(&labels, null_class.filter(|_| guided))?;
    for t in 0..tokens {
        let entropy = if t == 0 { None } else { push_last(model, &streams, t)? };
        let mut closed = Vec::new();
        for (row, stream) in streams.iter_mut().enumerate() {
            let e = entropy.as_ref().map_or(f32::NAN, |e| e[row]);
            if rule.mode.uses_entropy() && t > 0 && !e.is_finite() {
                return Err(DecodeError::Entropy { image: stream.request.index, slot: t, value: e });
            }
            let previous = stream.entropy.last().copied().unwrap_or(f32::NAN);
            let open = stream.patch_lengths.last().copied().unwrap_or(0);
            stream.entropy.push(e);
            match stream.patch_lengths.last_mut() {
                Some(length) if !rule.opens(t, open, e, previous) => *length += 1,
                last => {
                    if last.is_some() {
                        closed.push(ClosedPatch { row, first: t - open, last: t - 1 });
                    }
                    stream.patch_lengths.push(1);
                }
            }
        }
        model.close(&closed)?;
        if guided && t >= 2 && options.cfg_interval == t.checked_sub(2) {
            model.drop_guidance()?;
        }
        let logits = model.logits()?;
        for (row, stream) in streams.iter_mut().enumerate() {
            let range = row * vocab..(row + 1) * vocab;
            let conditional = &logits.conditional[range.clone()];
            let final_logits = match &logits.unconditional {
                Some(u) => {
                    guide(conditional, &u[range], options.cfg_scale, &mut mixed);
                    &mixed[..]
                }
                None => conditional,
            };
            let draw = sampler
                .draw_at(final_logits, keys[row], t as u64)
                .map_err(sample_error(stream.request.index, t))?;
            stream.tokens.push(draw.token);
            stream.margin.push(draw.margin);
        }
        if !progress(t + 1) {
            return Err(DecodeError::Interrupted);
        }
    }
    Ok(streams)
}

/// Gives x_{t−1} to the model.
fn push_last(
    model: &mut dyn StepModel,
    streams: &[Stream],
    t: usize,
) -> Result<Option<Vec<f32>>, EngineError> {
    let last: Vec<u32> = streams.iter().map(|s| s.tokens[t - 1]).collect();
    let starts: Vec<usize> =
        streams.iter().map(|s| t - s.patch_lengths.last().copied().unwrap_or(t)).collect();
    model.push(&last, &starts)
}

#[cfg(test)]
mod tests;
