//! The decoding loop over given tokens: the caches, the patch rule and every decision run as they do when tokens are
//! drawn, and everything that decides is kept.

use crate::generate::sampler::{SamplerOptions, guide};
use crate::generate::{
    After, Batching, DecodeOptions, Decoder, GraphCalls, Images, Opening, Pushed, Request, Schedule,
    SlotLogits, StepModel, Stream,
};
use crate::loaded::{Progress, RunError};
use dpar_engine_api::{EngineError, EngineErrorKind};
use dpar_export_spec::{PatchRule, SystemSpec};

/// Tokens to follow, with their classes.
#[derive(Debug, Clone, PartialEq)]
pub struct ForcedTokens {
    /// `[N, T]`.
    pub tokens: Vec<u32>,
    /// `[N]`.
    pub labels: Vec<i64>,
}

impl ForcedTokens {
    /// What was drawn.
    pub fn of(streams: &[Stream]) -> Self {
        Self {
            tokens: streams.iter().flat_map(|s| s.tokens.iter().copied()).collect(),
            labels: streams.iter().map(|s| s.request.class).collect(),
        }
    }

    /// The tokens as graphs take them.
    pub fn ids(&self) -> Vec<i64> {
        self.tokens.iter().map(|t| i64::from(*t)).collect()
    }
}

/// How tokens are followed.
#[derive(Debug, Clone, Copy)]
pub struct ReplayOptions<'a> {
    /// The patch rule.
    pub rule: &'a PatchRule,
    /// Tokens of an image, T.
    pub tokens: usize,
    /// The null class, if the model has one.
    pub null_class: Option<i64>,
    /// Guidance scale; guidance runs above 1.
    pub cfg_scale: f32,
    /// Where guidance ends ([`DecodeOptions::cfg_interval`]).
    pub cfg_interval: Option<usize>,
    /// Images in one call.
    pub batch: usize,
}

impl<'a> ReplayOptions<'a> {
    /// For a system, at this guidance and batch.
    pub fn new(system: &'a SystemSpec, cfg_scale: f32, batch: usize) -> Self {
        let (rule, tokens, null_class) = (&system.patch_rule, system.tokens(), system.null_class());
        Self { rule, tokens, null_class, cfg_scale, cfg_interval: None, batch }
    }

    /// With guidance up to this decode index only.
    #[must_use]
    pub fn until(self, cfg_interval: Option<usize>) -> Self {
        Self { cfg_interval, ..self }
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
    /// `[N, T, V]`: guided logits, where guidance ran, and the conditional ones of the slots behind its end.
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
    how: &ReplayOptions<'_>,
    forced: &ForcedTokens,
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
        cfg_interval: how.cfg_interval,
        // The recorder gives logits of which the forced token is the largest.
        sampler: SamplerOptions { greedy: true, ..SamplerOptions::default() },
        seed: 0,
    };
    let (indices, schedule) = (0_u64.., Schedule::Lockstep);
    let requests: Vec<Request> =
        forced.labels.iter().zip(indices).map(|(class, index)| Request { index, class: *class }).collect();
    let null_class = how.null_class.filter(|_| guided);
    let images = Images { rule: how.rule.clone(), tokens: t, null_class };
    let recorder = Recorder { model, forced, replay: &mut replay, how, begun: 0, rows: Vec::new() };
    let mut decoder = Decoder::new(Box::new(recorder), images, Batching { rows: how.batch.max(1), schedule });
    let streams = decoder.run(&requests, &options, &mut |done| progress(done, n * t))?;
    drop(decoder);
    for stream in streams {
        replay.entropy.extend_from_slice(&stream.entropy);
        replay.patch_lengths.push(stream.patch_lengths);
    }
    Ok(replay)
}

/// A model that keeps its logits and says that the next token is the forced one.
struct Recorder<'a> {
    model: &'a mut dyn StepModel,
    forced: &'a ForcedTokens,
    replay: &'a mut Replay,
    how: &'a ReplayOptions<'a>,
    /// Images that have begun: they do in their order.
    begun: usize,
    rows: Vec<RowPosition>,
}

/// Where a row is.
#[derive(Debug, Clone, Copy, Default)]
struct RowPosition {
    image: usize,
    slot: usize,
}

impl StepModel for Recorder<'_> {
    fn vocab(&self) -> usize {
        self.model.vocab()
    }

    fn reset(&mut self, rows: usize, null: Option<i64>) {
        self.rows = vec![RowPosition::default(); rows];
        self.model.reset(rows, null);
    }

    fn open(&mut self, openings: &[Opening]) -> Result<(), EngineError> {
        for opening in openings {
            if let After::Class { .. } = opening.after {
                self.rows[opening.row] = RowPosition { image: self.begun, slot: 0 };
                self.begun += 1;
            }
        }
        self.model.open(openings)
    }

    fn push(&mut self, tokens: &[Pushed]) -> Result<Option<Vec<f32>>, EngineError> {
        self.model.push(tokens)
    }

    fn logits(&mut self, rows: &[usize]) -> Result<SlotLogits, EngineError> {
        let (vocab, t) = (self.model.vocab(), self.how.tokens);
        let logits = self.model.logits(rows)?;
        let mut chosen = vec![0.0; rows.len() * vocab];
        for (i, row) in rows.iter().enumerate() {
            let RowPosition { image, slot } = &mut self.rows[*row];
            let at = *image * t + *slot;
            let (conditional, unconditional) = (logits.conditional(i), logits.unconditional(i));
            let mut all = conditional.iter().chain(unconditional.into_iter().flatten());
            if let Some(bad) = all.find(|v| !v.is_finite()) {
                let message = format!("slot {slot}: a logit is {bad}");
                return Err(EngineError::new(EngineErrorKind::Output, "decoding loop", message));
            }
            let to = at * vocab..(at + 1) * vocab;
            match (&mut self.replay.guided, unconditional) {
                (Some(guided), Some(u)) => guide(conditional, u, self.how.cfg_scale, &mut guided[to.clone()]),
                (Some(guided), None) => guided[to.clone()].copy_from_slice(conditional),
                (None, _) => {}
            }
            self.replay.conditional[to].copy_from_slice(conditional);
            let token = self.forced.tokens[at] as usize;
            if let Some(one) = chosen[i * vocab..(i + 1) * vocab].get_mut(token) {
                *one = 1.0;
            }
            *slot += 1;
        }
        Ok(SlotLogits::new(vocab, chosen, vec![false; rows.len()]))
    }

    fn drop_guidance(&mut self, row: usize) {
        self.model.drop_guidance(row);
    }

    fn calls(&self) -> Vec<GraphCalls> {
        self.model.calls()
    }
}
