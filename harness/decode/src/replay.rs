//! The decoding loop over given tokens: the caches, the patch rule and every decision run as they do when tokens are
//! drawn, and everything that decides is kept.

use crate::generate::sampler::{SamplerOptions, guide};
use crate::generate::{ClosedPatch, DecodeOptions, Request, SlotLogits, StepModel, decode_batch};
use crate::runtime::{Progress, RunError};
use dpar_engine_api::{EngineError, EngineErrorKind};
use dpar_export_spec::{PatchRule, SystemSpec};

/// Tokens to follow, with their classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Forced {
    /// `[N, T]`.
    pub tokens: Vec<u32>,
    /// `[N]`.
    pub labels: Vec<i64>,
}

/// How tokens are followed.
#[derive(Debug, Clone, Copy)]
pub struct Follow<'a> {
    /// The patch rule.
    pub rule: &'a PatchRule,
    /// Tokens of an image, T.
    pub tokens: usize,
    /// The null class, if the model has one.
    pub null_class: Option<i64>,
    /// Guidance scale; guidance runs above 1.
    pub cfg_scale: f32,
    /// Images in one call.
    pub batch: usize,
}

impl<'a> Follow<'a> {
    /// For a system, at this guidance and batch.
    pub fn new(system: &'a SystemSpec, cfg_scale: f32, batch: usize) -> Self {
        let (rule, tokens, null_class) = (&system.patch_rule, system.tokens(), system.null_class());
        Self { rule, tokens, null_class, cfg_scale, batch }
    }
}

/// What one source computed for N images of T tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Patch lengths of each image, from the source's own entropies.
    pub patch_lengths: Vec<Vec<usize>>,
    /// `[N, T]`: e_t at column t; NaN at 0 and without an entropy model.
    pub entropy: Vec<f32>,
    /// `[N, T, V]`: conditional logits.
    pub conditional: Vec<f32>,
    /// `[N, T, V]`: guided logits, where guidance ran.
    pub guided: Option<Vec<f32>>,
}

impl Replay {
    /// The logits that tokens are drawn from.
    pub fn deciding(&self) -> &[f32] {
        self.guided.as_deref().unwrap_or(&self.conditional)
    }
}

/// Runs the loop over `forced`.
///
/// # Errors
/// The engine's; when an output is no finite number; when the caller asked to stop.
pub fn follow(
    model: &mut dyn StepModel,
    how: &Follow<'_>,
    forced: &Forced,
    progress: Progress<'_>,
) -> Result<Replay, RunError> {
    let (t, vocab, n) = (how.tokens, model.vocab(), forced.labels.len());
    let guided = how.cfg_scale > 1.0;
    let mut replay = Replay {
        patch_lengths: Vec::with_capacity(n),
        entropy: Vec::with_capacity(n * t),
        conditional: vec![0.0; n * t * vocab],
        guided: guided.then(|| vec![0.0; n * t * vocab]),
    };
    let options = DecodeOptions {
        cfg_scale: how.cfg_scale,
        cfg_interval: None,
        // The recorder gives logits of which the forced token is the largest.
        sampler: SamplerOptions { greedy: true, ..SamplerOptions::default() },
        seed: 0,
    };
    let mut first = 0;
    for labels in forced.labels.chunks(how.batch.max(1)) {
        let indices = first as u64..;
        let requests: Vec<Request> =
            labels.iter().zip(indices).map(|(class, index)| Request { index, class: *class }).collect();
        let mut recorder = Recorder { model, forced, replay: &mut replay, how, first, slot: 0 };
        let mut stop = |slots: usize| progress(first * t + slots * labels.len(), n * t);
        let streams =
            decode_batch(&mut recorder, how.rule, t, how.null_class, &options, &requests, &mut stop)?;
        for stream in streams {
            replay.entropy.extend_from_slice(&stream.entropy);
            replay.patch_lengths.push(stream.patch_lengths);
        }
        first += labels.len();
    }
    Ok(replay)
}

/// A model that keeps its logits and says that the next token is the forced one.
struct Recorder<'a> {
    model: &'a mut dyn StepModel,
    forced: &'a Forced,
    replay: &'a mut Replay,
    how: &'a Follow<'a>,
    /// First image of the batch.
    first: usize,
    slot: usize,
}

impl StepModel for Recorder<'_> {
    fn vocab(&self) -> usize {
        self.model.vocab()
    }

    fn start(&mut self, labels: &[i64], null: Option<i64>) -> Result<(), EngineError> {
        self.slot = 0;
        self.model.start(labels, null)
    }

    fn push(&mut self, tokens: &[u32], patch_starts: &[usize]) -> Result<Option<Vec<f32>>, EngineError> {
        self.model.push(tokens, patch_starts)
    }

    fn close(&mut self, patches: &[ClosedPatch]) -> Result<(), EngineError> {
        self.model.close(patches)
    }

    fn logits(&mut self) -> Result<SlotLogits, EngineError> {
        let (vocab, t) = (self.model.vocab(), self.how.tokens);
        let logits = self.model.logits()?;
        if let Some(bad) =
            logits.conditional.iter().chain(logits.unconditional.iter().flatten()).find(|v| !v.is_finite())
        {
            let message = format!("slot {}: a logit is {bad}", self.slot);
            return Err(EngineError::new(EngineErrorKind::Output, "decoding loop", message));
        }
        let rows = logits.conditional.len() / vocab.max(1);
        let mut chosen = vec![0.0; rows * vocab];
        for row in 0..rows {
            let image = self.first + row;
            let to = (image * t + self.slot) * vocab..(image * t + self.slot + 1) * vocab;
            let from = row * vocab..(row + 1) * vocab;
            let conditional = &logits.conditional[from.clone()];
            if let (Some(guided), Some(u)) = (&mut self.replay.guided, &logits.unconditional) {
                guide(conditional, &u[from], self.how.cfg_scale, &mut guided[to.clone()]);
            }
            self.replay.conditional[to].copy_from_slice(conditional);
            let token = self.forced.tokens[image * t + self.slot] as usize;
            if let Some(one) = chosen[row * vocab..(row + 1) * vocab].get_mut(token) {
                *one = 1.0;
            }
        }
        self.slot += 1;
        Ok(SlotLogits { conditional: chosen, unconditional: None })
    }

    fn drop_guidance(&mut self) -> Result<(), EngineError> {
        self.model.drop_guidance()
    }
}
