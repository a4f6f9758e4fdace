//! Teacher-forced scoring: a whole sequence in one call, no caches.

use dpar_engine_api::{CachedSession, CallRow, EngineError, MASKED, TensorView};
use dpar_export_spec::{DparSpec, GraphName, PatchRule, SystemSpec};

use super::{Prepare, no_transformer};

/// The prepared scoring graphs of a system.
#[derive(Debug)]
pub struct TeacherForced {
    system: SystemSpec,
    entropy: Option<Box<dyn CachedSession>>,
    score: Box<dyn CachedSession>,
}

/// `[e_1, .., e_T]` of one image as `[NaN, e_1, .., e_{T−1}]`: column t holds e_t.
pub fn shift_entropy(next: &[f32]) -> Vec<f32> {
    std::iter::once(f32::NAN).chain(next.iter().copied()).take(next.len()).collect()
}

/// The additive causal mask `[tokens, tokens]`; a slot sees nothing before `start(slot)`.
fn causal(tokens: usize, start: impl Fn(usize) -> usize) -> Vec<f32> {
    let mut mask = vec![MASKED; tokens * tokens];
    for (i, line) in mask.chunks_exact_mut(tokens).enumerate() {
        line[start(i)..=i].fill(0.0);
    }
    mask
}

fn as_i64(values: impl IntoIterator<Item = usize>) -> Vec<i64> {
    values.into_iter().map(|v| v as i64).collect()
}

impl TeacherForced {
    /// Prepares `score`, and `entropy_step` where the system has an entropy model.
    ///
    /// # Errors
    /// What `prepare` returns; when the system has no transformer.
    pub fn prepare<E: From<EngineError>>(
        system: &SystemSpec,
        prepare: &mut Prepare<'_, E>,
    ) -> Result<Self, E> {
        if system.dpar().is_none() && system.llamagen().is_none() {
            return Err(no_transformer(system).into());
        }
        let entropy = system.entropy().map(|_| prepare(GraphName::EntropyStep)).transpose()?;
        Ok(Self { system: system.clone(), entropy, score: prepare(GraphName::Score)? })
    }

    /// Entropies `[n, tokens]` in nats: column j holds e_{j+1}, from x_0..x_j. `None` without an entropy model.
    ///
    /// # Errors
    /// The engine's.
    pub fn entropy(&mut self, ids: &[i64], tokens: usize) -> Result<Option<Vec<f32>>, EngineError> {
        let Some(graph) = &mut self.entropy else { return Ok(None) };
        let n = ids.len() / tokens;
        let positions = as_i64((0..n).flat_map(|_| 0..tokens));
        graph.reset(n);
        let inputs = [
            ("tokens", TensorView::i64([n, tokens], ids)),
            ("positions", TensorView::i64([n, tokens], &positions)),
        ];
        let mut outputs = graph.step(&inputs, &CallRow::all(n, 0))?;
        // The whole sequence was in one call: nothing reads these keys and values again.
        graph.reset(0);
        outputs.floats("entropy").map(Some)
    }

    /// Patch lengths of each image, from [`entropy`](Self::entropy).
    pub fn patch_lengths(
        rule: &PatchRule,
        entropy: Option<&[f32]>,
        n: usize,
        tokens: usize,
    ) -> Vec<Vec<usize>> {
        (0..n)
            .map(|i| match entropy {
                Some(e) => rule.lengths(tokens, &shift_entropy(&e[i * tokens..(i + 1) * tokens])),
                None => rule.lengths(tokens, &[]),
            })
            .collect()
    }

    /// Logits `[n, tokens, V]` for `ids` `[n, tokens]`: slot t sees the class and x_<t.
    ///
    /// # Errors
    /// The engine's.
    pub fn logits(
        &mut self,
        ids: &[i64],
        tokens: usize,
        labels: &[i64],
        lengths: &[Vec<usize>],
    ) -> Result<Vec<f32>, EngineError> {
        let n = labels.len();
        if tokens == 1 && self.system.tokens() > 1 {
            // The graph takes 2 tokens and more; a slot does not see its own token, so any second one will do.
            let two: Vec<i64> = ids.iter().flat_map(|id| [*id, 0]).collect();
            let logits = self.logits(&two, 2, labels, &vec![vec![1, 1]; n])?;
            let vocab = self.system.vocab;
            return Ok(logits.chunks(2 * vocab).flat_map(|l| &l[..vocab]).copied().collect());
        }
        let positions = as_i64((0..n).flat_map(|_| 0..tokens));
        let decoder_mask = causal(tokens, |_| 0).repeat(n);
        let square = [n, 1, tokens, tokens];
        let mut inputs = vec![
            ("tokens", TensorView::i64([n, tokens], ids)),
            ("class_labels", TensorView::i64([n], labels)),
            ("positions", TensorView::i64([n, tokens], &positions)),
        ];
        let layout;
        if let Some(spec) = self.system.dpar() {
            layout = Layout::new(spec, lengths, tokens);
            let Layout { patches, length, slots, .. } = layout;
            inputs.push(("encoder_mask", TensorView::f32(square, &layout.encoder_mask)));
            inputs.push(("decoder_mask", TensorView::f32(square, &decoder_mask)));
            inputs.push(("patch_tokens", TensorView::i64([patches, length], &layout.patch_tokens)));
            inputs.push(("patch_mask", TensorView::f32([patches, length], &layout.patch_mask)));
            inputs.push(("global_index", TensorView::i64([n, slots], &layout.global_index)));
            inputs.push(("global_mask", TensorView::f32([n, 1, slots, slots], &layout.global_mask)));
            inputs.push(("slot_global", TensorView::i64([n, tokens], &layout.slot_global)));
            if self.system.places_by_index() {
                inputs.push(("patch_index", TensorView::i64([n, slots], &layout.patch_index)));
            } else {
                inputs.push(("patch_first", TensorView::i64([n, slots], &layout.patch_first)));
                inputs.push(("patch_last", TensorView::i64([n, slots], &layout.patch_last)));
            }
        } else {
            inputs.push(("mask", TensorView::f32(square, &decoder_mask)));
        }
        self.score.step(&inputs, &[])?.floats("logits")
    }
}

/// The inputs of the DPAR `score` graph that describe patches.
struct Layout {
    patches: usize,
    length: usize,
    slots: usize,
    encoder_mask: Vec<f32>,
    patch_tokens: Vec<i64>,
    patch_mask: Vec<f32>,
    global_index: Vec<i64>,
    global_mask: Vec<f32>,
    patch_first: Vec<i64>,
    patch_last: Vec<i64>,
    patch_index: Vec<i64>,
    slot_global: Vec<i64>,
}

impl Layout {
    fn new(spec: &DparSpec, lengths: &[Vec<usize>], tokens: usize) -> Self {
        let n = lengths.len();
        let slots = lengths.iter().map(Vec::len).max().unwrap_or(1);
        let length = lengths.iter().flatten().copied().max().unwrap_or(1);
        let patches = lengths.iter().map(Vec::len).sum();
        let mut layout = Self {
            patches,
            length,
            slots,
            encoder_mask: Vec::with_capacity(n * tokens * tokens),
            patch_tokens: vec![0; patches * length],
            patch_mask: vec![MASKED; patches * length],
            global_index: Vec::with_capacity(n * slots),
            global_mask: causal(slots, |_| 0).repeat(n),
            patch_first: Vec::with_capacity(n * slots),
            patch_last: Vec::with_capacity(n * slots),
            patch_index: Vec::with_capacity(n * slots),
            slot_global: Vec::with_capacity(n * tokens),
        };
        let mut patch = 0;
        for (image, row) in lengths.iter().enumerate() {
            let mut starts = Vec::with_capacity(tokens);
            let mut first = 0;
            for slot in 0..slots {
                // Slot 0 is the class, slot m + 1 is P_m; past the image's last slot stands the class again, and
                // nothing reads it.
                let before = slot.checked_sub(1).filter(|m| m + 1 < row.len());
                let (index, from, to) = match before {
                    None => (image, 0, 0),
                    Some(m) => {
                        let start: usize = row[..m].iter().sum();
                        (n + patch + m, start + 1, start + row[m])
                    }
                };
                layout.global_index.push(index as i64);
                layout.patch_first.push(from as i64);
                layout.patch_last.push(to as i64);
                layout.patch_index.push(before.map_or(0, |m| m as i64 + 1));
            }
            for (m, &len) in row.iter().enumerate() {
                for k in 0..len {
                    let at = (patch + m) * layout.length + k;
                    layout.patch_tokens[at] = (image * tokens + first + k) as i64;
                    layout.patch_mask[at] = 0.0;
                    layout.slot_global.push((image * slots + m) as i64);
                    starts.push(first);
                }
                first += len;
            }
            patch += row.len();
            let mask = causal(tokens, |i| if spec.encoder_block_causal { starts[i] } else { 0 });
            layout.encoder_mask.extend(mask);
        }
        layout
    }
}
