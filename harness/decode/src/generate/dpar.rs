//! DPAR as a [`StepModel`]: exact cached decoding of dynamic patches.

use dpar_engine_api::{CallRow, EngineError, MASKED, TensorView};
use dpar_export_spec::{DparSpec, GraphName, SystemSpec};

use super::Prepare;
use super::counted::Counted;
use super::model::{After, GraphCalls, Opening, Pushed, SlotLogits, StepModel};

/// The prepared graphs of a DPAR system and the state of its rows.
#[derive(Debug)]
pub struct DparModel {
    spec: DparSpec,
    vocab: usize,
    places_by_index: bool,
    entropy: Option<Counted>,
    start: Counted,
    encoder: Counted,
    patch_embed: Counted,
    global: Counted,
    decoder: Counted,
    rows: Vec<DparRow>,
    null: Option<i64>,
}

/// What an image holds between its slots. Row r has its class in row r of the caches of the global transformer and the
/// decoder, and the null class in row r plus the number of rows.
#[derive(Debug, Clone, Default)]
struct DparRow {
    guided: bool,
    /// Tokens pushed so far; the slot of the next logits.
    slot: usize,
    /// Encoder states of the open patch's tokens, by layer: `[token, D]`.
    patch: Vec<Vec<f32>>,
    /// What the decoder sees of the last token: its encoder state, at first the start embedding; D.
    last: Vec<f32>,
    /// g of the current patch, with the class and with the null class; D each.
    current: [Vec<f32>; 2],
    /// Slots of the global transformer, the class slot included.
    global_slots: usize,
}

/// A line of a call of the global transformer.
struct GlobalLine<'a> {
    row: usize,
    /// Whether it is that of the null class.
    null: bool,
    /// D.
    embedding: &'a [f32],
    /// First and last slot id of the patch.
    place: (usize, usize),
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
        let mut counted = |graph| Counted::prepare(graph, prepare);
        Ok(Self {
            spec: spec.clone(),
            vocab: system.vocab,
            places_by_index: system.places_by_index(),
            entropy: system.entropy().map(|_| counted(GraphName::EntropyStep)).transpose()?,
            start: counted(GraphName::Start)?,
            encoder: counted(GraphName::EncoderStep)?,
            patch_embed: counted(GraphName::PatchEmbed)?,
            global: counted(GraphName::GlobalStep)?,
            decoder: counted(GraphName::DecoderStep)?,
            rows: Vec::new(),
            null: None,
        })
    }

    /// Where a line lies in the caches of the global transformer and the decoder.
    fn cache_row(&self, row: usize, null: bool) -> usize {
        row + if null { self.rows.len() } else { 0 }
    }

    /// The class embeddings of the images that begin, then, where one of them is guided, that of the null class.
    fn begin(&mut self, openings: &[Opening]) -> Result<Vec<f32>, EngineError> {
        let mut labels = Vec::new();
        let mut any_guided = false;
        for opening in openings {
            let After::Class { class, guided } = opening.after else { continue };
            labels.push(class);
            any_guided |= guided;
            self.rows[opening.row] =
                DparRow { guided, patch: vec![Vec::new(); self.spec.encoder_layers], ..DparRow::default() };
        }
        if labels.is_empty() {
            return Ok(Vec::new());
        }
        labels.extend(self.null.filter(|_| any_guided));
        let inputs = [("class_labels", TensorView::i64([labels.len()], &labels))];
        let mut outputs = self.start.step(&inputs, &[])?;
        let first = outputs.floats("decoder_start")?;
        for opening in openings.iter().filter(|o| matches!(o.after, After::Class { .. })) {
            self.rows[opening.row].last = first[..self.spec.width].to_vec();
        }
        outputs.floats("class_embedding")
    }

    /// The embeddings of the patches that ended.
    fn embed(&mut self, openings: &[Opening]) -> Result<Vec<f32>, EngineError> {
        let d = self.spec.width;
        let ended = openings.iter().filter(|o| matches!(o.after, After::Patch { .. }));
        let rows: Vec<usize> = ended.map(|o| o.row).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let states = |row: usize, layer: usize| self.rows[row].patch[layer].as_slice();
        let length = rows.iter().map(|row| states(*row, 0).len() / d).max().unwrap_or(1);
        let mut mask = vec![MASKED; rows.len() * length];
        let mut layers = vec![vec![0.0; rows.len() * length * d]; self.spec.encoder_layers];
        for (i, row) in rows.iter().enumerate() {
            mask[i * length..][..states(*row, 0).len() / d].fill(0.0);
            for (layer, padded) in layers.iter_mut().enumerate() {
                let own = states(*row, layer);
                padded[i * length * d..][..own.len()].copy_from_slice(own);
            }
        }
        let names: Vec<String> = (0..layers.len()).map(|i| format!("hidden_{i}")).collect();
        let mut inputs = vec![("patch_mask", TensorView::f32([rows.len(), length], &mask))];
        for (name, layer) in names.iter().zip(&layers) {
            inputs.push((name, TensorView::f32([rows.len(), length, d], layer)));
        }
        let embeddings = self.patch_embed.step(&inputs, &[])?.floats("patch_embedding")?;
        for row in rows {
            self.rows[row].patch.iter_mut().for_each(Vec::clear);
        }
        Ok(embeddings)
    }

    fn global_step(&mut self, lines: &[GlobalLine<'_>]) -> Result<(), EngineError> {
        let (n, d) = (lines.len(), self.spec.width);
        let past = |line: &GlobalLine<'_>| self.rows[line.row].global_slots;
        let embeddings: Vec<f32> = lines.iter().flat_map(|line| line.embedding).copied().collect();
        let ints = |value: &dyn Fn(&GlobalLine<'_>) -> usize| -> Vec<i64> {
            lines.iter().map(|line| value(line) as i64).collect()
        };
        let (first, last, index) = (ints(&|l| l.place.0), ints(&|l| l.place.1), ints(&past));
        let mut inputs = vec![("embeddings", TensorView::f32([n, 1, d], &embeddings))];
        if self.places_by_index {
            inputs.push(("patch_index", TensorView::i64([n, 1], &index)));
        } else {
            inputs.push(("patch_first", TensorView::i64([n, 1], &first)));
            inputs.push(("patch_last", TensorView::i64([n, 1], &last)));
        }
        let rows: Vec<CallRow> =
            lines.iter().map(|l| CallRow::new(self.cache_row(l.row, l.null), past(l))).collect();
        let out = self.global.step(&inputs, &rows)?.floats("global_hidden")?;
        for (line, g) in lines.iter().zip(out.chunks_exact(d)) {
            let row = &mut self.rows[line.row];
            row.current[usize::from(line.null)] = g.to_vec();
            row.global_slots += usize::from(!line.null);
        }
        Ok(())
    }
}

impl StepModel for DparModel {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn reset(&mut self, rows: usize, null: Option<i64>) {
        self.rows = vec![DparRow::default(); rows];
        self.null = null;
        let twice = if null.is_some() { 2 * rows } else { rows };
        if let Some(entropy) = &mut self.entropy {
            entropy.reset(rows);
        }
        self.encoder.reset(rows);
        self.global.reset(twice);
        self.decoder.reset(twice);
    }

    fn open(&mut self, openings: &[Opening]) -> Result<(), EngineError> {
        if openings.is_empty() {
            return Ok(());
        }
        let d = self.spec.width;
        let classes = self.begin(openings)?;
        let patches = self.embed(openings)?;
        // The null class stands behind the classes.
        let null = classes.len().saturating_sub(d);
        let (mut class, mut patch) = (classes.chunks_exact(d), patches.chunks_exact(d));
        let mut own = Vec::with_capacity(openings.len());
        let mut with_null = Vec::new();
        for Opening { row, after } in openings.iter().copied() {
            let (embedding, null_embedding, place) = match after {
                After::Class { .. } => (class.next(), &classes[null..], (0, 0)),
                After::Patch { first, last } => {
                    let embedding = patch.next();
                    (embedding, embedding.unwrap_or_default(), (first + 1, last + 1))
                }
            };
            let embedding = embedding.unwrap_or_default();
            own.push(GlobalLine { row, null: false, embedding, place });
            if self.rows[row].guided {
                with_null.push(GlobalLine { row, null: true, embedding: null_embedding, place });
            }
        }
        own.extend(with_null);
        self.global_step(&own)
    }

    fn push(&mut self, tokens: &[Pushed]) -> Result<Option<Vec<f32>>, EngineError> {
        let (n, d) = (tokens.len(), self.spec.width);
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(t.token)).collect();
        let slots: Vec<usize> = tokens.iter().map(|t| self.rows[t.row].slot).collect();
        let positions: Vec<i64> = slots.iter().map(|slot| *slot as i64).collect();
        let inputs =
            [("tokens", TensorView::i64([n, 1], &ids)), ("positions", TensorView::i64([n, 1], &positions))];
        let all: Vec<CallRow> =
            tokens.iter().zip(&slots).map(|(t, slot)| CallRow::new(t.row, *slot)).collect();
        let mut own_patch = all.clone();
        if self.spec.encoder_block_causal {
            for (row, token) in own_patch.iter_mut().zip(tokens) {
                row.from = token.patch_start;
            }
        }
        let mut outputs = self.encoder.step(&inputs, &own_patch)?;
        for layer in 0..self.spec.encoder_layers {
            let states = outputs.floats(&format!("hidden_{layer}"))?;
            for (token, state) in tokens.iter().zip(states.chunks_exact(d)) {
                let row = &mut self.rows[token.row];
                row.patch[layer].extend_from_slice(state);
                row.last.copy_from_slice(state);
            }
        }
        for token in tokens {
            self.rows[token.row].slot += 1;
        }
        let Some(entropy) = &mut self.entropy else { return Ok(None) };
        entropy.step(&inputs, &all)?.floats("entropy").map(Some)
    }

    fn logits(&mut self, rows: &[usize]) -> Result<SlotLogits, EngineError> {
        let d = self.spec.width;
        // All of them with their class, then the guided ones with the null class.
        let with_null = rows.iter().filter(|row| self.rows[**row].guided).map(|row| (*row, true));
        let lines: Vec<(usize, bool)> = rows.iter().map(|row| (*row, false)).chain(with_null).collect();
        let n = lines.len();
        let (mut hidden, mut global) = (Vec::with_capacity(n * d), Vec::with_capacity(n * d));
        for (row, null) in &lines {
            hidden.extend_from_slice(&self.rows[*row].last);
            global.extend_from_slice(&self.rows[*row].current[usize::from(*null)]);
        }
        let slots = lines.iter().map(|(row, _)| self.rows[*row].slot);
        let positions: Vec<i64> = slots.clone().map(|slot| slot as i64).collect();
        let inputs = [
            ("hidden", TensorView::f32([n, 1, d], &hidden)),
            ("global_hidden", TensorView::f32([n, 1, d], &global)),
            ("positions", TensorView::i64([n, 1], &positions)),
        ];
        let call: Vec<CallRow> = lines
            .iter()
            .zip(slots)
            .map(|((row, null), slot)| CallRow::new(self.cache_row(*row, *null), slot))
            .collect();
        let logits = self.decoder.step(&inputs, &call)?.floats("logits")?;
        let guided = rows.iter().map(|row| self.rows[*row].guided).collect();
        Ok(SlotLogits::new(self.vocab, logits, guided))
    }

    fn drop_guidance(&mut self, row: usize) {
        self.rows[row].guided = false;
    }

    fn calls(&self) -> Vec<GraphCalls> {
        let own = [&self.start, &self.encoder, &self.patch_embed, &self.global, &self.decoder];
        self.entropy.iter().chain(own).map(Counted::calls).collect()
    }
}
