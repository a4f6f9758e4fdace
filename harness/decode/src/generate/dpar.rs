//! DPAR as a [`StepModel`]: exact cached decoding of dynamic patches.

use dpar_engine_api::{Append, CachedSession, EngineError, TensorView};
use dpar_export_spec::{DparSpec, GraphName, SystemSpec};

use super::model::{ClosedPatch, SlotLogits, StepModel};
use super::{MASKED, Prepare};

/// The prepared graphs of a DPAR system and the state of one batch.
#[derive(Debug)]
pub struct DparModel {
    spec: DparSpec,
    entropy: Option<Box<dyn CachedSession>>,
    start: Box<dyn CachedSession>,
    encoder: Box<dyn CachedSession>,
    patch_embed: Box<dyn CachedSession>,
    global: Box<dyn CachedSession>,
    decoder: Box<dyn CachedSession>,
    state: State,
}

/// What a batch holds between slots. Guided rows are the conditional images, then the same images with the
/// null class.
#[derive(Debug, Default)]
struct State {
    images: usize,
    guided: bool,
    /// Tokens pushed so far; the slot of the next logits.
    slot: usize,
    /// Encoder states by layer: `[time, image, D]` as pushed.
    hidden: Vec<Vec<f32>>,
    /// Decoder start embedding, `[image, D]`.
    decoder_start: Vec<f32>,
    /// g of each guided row's current patch, `[row, D]`.
    current: Vec<f32>,
    /// Global slots of each image (the class slot included).
    global_slots: Vec<usize>,
}

impl State {
    fn rows(&self) -> usize {
        if self.guided { 2 * self.images } else { self.images }
    }
}

impl DparModel {
    /// Prepares the graphs of a DPAR system.
    ///
    /// # Errors
    /// When a graph is missing or an engine refuses it.
    pub fn prepare<E: From<EngineError>>(
        system: &SystemSpec,
        spec: &DparSpec,
        prepare: &mut Prepare<'_, E>,
    ) -> Result<Self, E> {
        let entropy = system.entropy().map(|_| prepare(GraphName::EntropyStep)).transpose()?;
        Ok(Self {
            spec: spec.clone(),
            entropy,
            start: prepare(GraphName::Start)?,
            encoder: prepare(GraphName::EncoderStep)?,
            patch_embed: prepare(GraphName::PatchEmbed)?,
            global: prepare(GraphName::GlobalStep)?,
            decoder: prepare(GraphName::DecoderStep)?,
            state: State::default(),
        })
    }

    /// One global step of the given cache rows with `embeddings` `[rows, D]`; `place` is the first and last
    /// slot id of each row's patch.
    fn global_step(
        &mut self,
        rows: &[usize],
        embeddings: &[f32],
        place: &[(usize, usize)],
    ) -> Result<(), EngineError> {
        let (n, d) = (rows.len(), self.spec.width);
        let images = self.state.images;
        let times: Vec<usize> = rows.iter().map(|r| self.state.global_slots[r % images]).collect();
        let past = times.iter().copied().max().unwrap_or(0);
        let mut mask = vec![0.0; n * (past + 1)];
        for (line, &len) in mask.chunks_exact_mut(past + 1).zip(&times) {
            line[len..past].fill(MASKED);
        }
        let ints = |values: &mut dyn Iterator<Item = usize>| values.map(|v| v as i64).collect::<Vec<_>>();
        let cache_rows = ints(&mut rows.iter().copied());
        let first = ints(&mut place.iter().map(|p| p.0));
        let last = ints(&mut place.iter().map(|p| p.1));
        let index = ints(&mut times.iter().copied());
        let mut inputs = vec![
            ("embeddings", TensorView::f32([n, 1, d], embeddings)),
            ("mask", TensorView::f32([n, 1, 1, past + 1], &mask)),
            ("rows", TensorView::i64([n], &cache_rows)),
        ];
        if self.spec.places_by_index() {
            inputs.push(("patch_index", TensorView::i64([n, 1], &index)));
        } else {
            inputs.push(("patch_first", TensorView::i64([n, 1], &first)));
            inputs.push(("patch_last", TensorView::i64([n, 1], &last)));
        }
        let append = Append::Rows { rows, times: &times };
        let out = self.global.step(&inputs, past, append)?.floats("global_hidden")?;
        for (row, g) in rows.iter().zip(out.chunks_exact(d)) {
            self.state.current[row * d..(row + 1) * d].copy_from_slice(g);
        }
        for row in rows.iter().filter(|r| **r < images) {
            self.state.global_slots[*row] += 1;
        }
        Ok(())
    }
}

impl StepModel for DparModel {
    fn vocab(&self) -> usize {
        self.spec.vocab
    }

    fn start(&mut self, labels: &[i64], null: Option<i64>) -> Result<(), EngineError> {
        let (images, d) = (labels.len(), self.spec.width);
        let mut all = labels.to_vec();
        if let Some(null) = null {
            all.resize(2 * images, null);
        }
        self.state = State {
            images,
            guided: null.is_some(),
            hidden: vec![Vec::new(); self.spec.encoder_layers],
            current: vec![0.0; all.len() * d],
            global_slots: vec![0; images],
            ..State::default()
        };
        if let Some(entropy) = &mut self.entropy {
            entropy.reset(images);
        }
        self.encoder.reset(images);
        self.global.reset(all.len());
        self.decoder.reset(all.len());
        let inputs = [("class_labels", TensorView::i64([all.len()], &all))];
        let mut outputs = self.start.step(&inputs, 0, Append::At(0))?;
        let class = outputs.floats("class_embedding")?;
        let mut first = outputs.floats("decoder_start")?;
        first.truncate(images * d);
        self.state.decoder_start = first;
        let rows: Vec<usize> = (0..all.len()).collect();
        self.global_step(&rows, &class, &vec![(0, 0); all.len()])
    }

    fn push(&mut self, tokens: &[u32], patch_starts: &[usize]) -> Result<Option<Vec<f32>>, EngineError> {
        let (images, j) = (self.state.images, self.state.slot);
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        let positions = vec![j as i64; images];
        let open = vec![0.0; images * (j + 1)];
        let mut own_patch = Vec::new();
        if self.spec.encoder_block_causal {
            own_patch.clone_from(&open);
            for (line, start) in own_patch.chunks_exact_mut(j + 1).zip(patch_starts) {
                line[..*start].fill(MASKED);
            }
        }
        let inputs = |mask| {
            [
                ("tokens", TensorView::i64([images, 1], &ids)),
                ("positions", TensorView::i64([images, 1], &positions)),
                ("mask", TensorView::f32([images, 1, 1, j + 1], mask)),
            ]
        };
        let mask = if self.spec.encoder_block_causal { &own_patch } else { &open };
        let mut outputs = self.encoder.step(&inputs(mask), j, Append::At(j))?;
        for (i, states) in self.state.hidden.iter_mut().enumerate() {
            states.extend_from_slice(&outputs.floats(&format!("hidden_{i}"))?);
        }
        self.state.slot += 1;
        let Some(entropy) = &mut self.entropy else { return Ok(None) };
        entropy.step(&inputs(&open), j, Append::At(j))?.floats("entropy").map(Some)
    }

    fn close(&mut self, patches: &[ClosedPatch]) -> Result<(), EngineError> {
        let (images, d, n) = (self.state.images, self.spec.width, patches.len());
        if n == 0 {
            return Ok(());
        }
        let length = patches.iter().map(|p| p.last - p.first + 1).max().unwrap_or(1);
        let mut mask = vec![MASKED; n * length];
        let mut layers = vec![vec![0.0; n * length * d]; self.spec.encoder_layers];
        for (i, p) in patches.iter().enumerate() {
            for (k, token) in (p.first..=p.last).enumerate() {
                let to = i * length + k;
                let from = token * images + p.row;
                mask[to] = 0.0;
                for (layer, states) in layers.iter_mut().zip(&self.state.hidden) {
                    layer[to * d..(to + 1) * d].copy_from_slice(&states[from * d..(from + 1) * d]);
                }
            }
        }
        let names: Vec<String> = (0..layers.len()).map(|i| format!("hidden_{i}")).collect();
        let mut inputs = vec![("patch_mask", TensorView::f32([n, length], &mask))];
        for (name, layer) in names.iter().zip(&layers) {
            inputs.push((name, TensorView::f32([n, length, d], layer)));
        }
        let mut embeddings = self.patch_embed.step(&inputs, 0, Append::At(0))?.floats("patch_embedding")?;
        let mut rows: Vec<usize> = patches.iter().map(|p| p.row).collect();
        let mut place: Vec<(usize, usize)> = patches.iter().map(|p| (p.first + 1, p.last + 1)).collect();
        if self.state.guided {
            rows.extend_from_within(..);
            for row in &mut rows[n..] {
                *row += images;
            }
            place.extend_from_within(..);
            embeddings.extend_from_within(..);
        }
        self.global_step(&rows, &embeddings, &place)
    }

    fn logits(&mut self) -> Result<SlotLogits, EngineError> {
        let (rows, images, d, t) = (self.state.rows(), self.state.images, self.spec.width, self.state.slot);
        let own = match (t, self.state.hidden.last()) {
            (1.., Some(states)) => &states[(t - 1) * images * d..t * images * d],
            _ => &self.state.decoder_start[..],
        };
        let hidden: Vec<f32> = own.iter().copied().cycle().take(rows * d).collect();
        let positions = vec![t as i64; rows];
        let mask = vec![0.0; rows * (t + 1)];
        let inputs = [
            ("hidden", TensorView::f32([rows, 1, d], &hidden)),
            ("global_hidden", TensorView::f32([rows, 1, d], &self.state.current[..rows * d])),
            ("positions", TensorView::i64([rows, 1], &positions)),
            ("mask", TensorView::f32([rows, 1, 1, t + 1], &mask)),
        ];
        let logits = self.decoder.step(&inputs, t, Append::At(t))?.floats("logits")?;
        Ok(SlotLogits::split(logits, self.state.guided))
    }

    fn drop_guidance(&mut self) -> Result<(), EngineError> {
        if self.state.guided {
            self.state.guided = false;
            self.global.keep_rows(self.state.images)?;
            self.decoder.keep_rows(self.state.images)?;
        }
        Ok(())
    }
}
