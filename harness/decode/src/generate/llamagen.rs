//! The LlamaGen baseline as a [`StepModel`]: the same loop with patches of one token.

use dpar_engine_api::{CallRow, EngineError, TensorView};
use dpar_export_spec::{GptSpec, GraphName, SystemSpec};

use super::Prepare;
use super::counted::Counted;
use super::model::{After, GraphCalls, Opening, Pushed, SlotLogits, StepModel};

/// The prepared step graph and the state of its rows.
#[derive(Debug)]
pub struct LlamagenModel {
    spec: GptSpec,
    vocab: usize,
    step: Counted,
    null: Option<i64>,
    rows: Vec<LlamagenRow>,
}

/// What an image holds between its slots.
#[derive(Debug, Clone, Copy, Default)]
struct LlamagenRow {
    guided: bool,
    slot: usize,
    /// Slot id of the next step: the class at slot 0, then the last token.
    next: i64,
}

impl LlamagenModel {
    /// Prepares the step graph.
    ///
    /// # Errors
    /// When the graph is missing or the engine refuses it.
    pub fn prepare<E: From<EngineError>>(
        system: &SystemSpec,
        spec: &GptSpec,
        prepare: &mut Prepare<'_, E>,
    ) -> Result<Self, E> {
        let step = Counted::prepare(GraphName::LlamagenStep, prepare)?;
        Ok(Self { spec: spec.clone(), vocab: system.vocab, step, null: None, rows: Vec::new() })
    }

    fn class_id(&self, class: i64) -> i64 {
        self.spec.token_rows as i64 + class
    }
}

impl StepModel for LlamagenModel {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn reset(&mut self, rows: usize, null: Option<i64>) {
        self.rows = vec![LlamagenRow::default(); rows];
        self.null = null.map(|null| self.class_id(null));
        self.step.reset(if null.is_some() { 2 * rows } else { rows });
    }

    fn open(&mut self, openings: &[Opening]) -> Result<(), EngineError> {
        for opening in openings {
            if let After::Class { class, guided } = opening.after {
                self.rows[opening.row] = LlamagenRow { guided, slot: 0, next: self.class_id(class) };
            }
        }
        Ok(())
    }

    fn push(&mut self, tokens: &[Pushed]) -> Result<Option<Vec<f32>>, EngineError> {
        for token in tokens {
            let row = &mut self.rows[token.row];
            row.next = i64::from(token.token);
            row.slot += 1;
        }
        Ok(None)
    }

    fn logits(&mut self, rows: &[usize]) -> Result<SlotLogits, EngineError> {
        let of = self.rows.len();
        let null = rows.iter().filter(|row| self.rows[**row].guided).map(|row| (*row, true));
        let lines: Vec<(usize, bool)> = rows.iter().map(|row| (*row, false)).chain(null).collect();
        let mut ids = Vec::with_capacity(lines.len());
        let mut call = Vec::with_capacity(lines.len());
        for (row, null) in lines {
            let LlamagenRow { slot, next, .. } = self.rows[row];
            ids.push(self.null.filter(|_| null && slot == 0).unwrap_or(next));
            call.push(CallRow::new(row + if null { of } else { 0 }, slot));
        }
        let positions: Vec<i64> = call.iter().map(|row| row.past as i64).collect();
        let n = ids.len();
        let inputs =
            [("slots", TensorView::i64([n, 1], &ids)), ("positions", TensorView::i64([n, 1], &positions))];
        let logits = self.step.step(&inputs, &call)?.floats("logits")?;
        let guided = rows.iter().map(|row| self.rows[*row].guided).collect();
        Ok(SlotLogits::new(self.vocab, logits, guided))
    }

    fn drop_guidance(&mut self, row: usize) {
        self.rows[row].guided = false;
    }

    fn calls(&self) -> Vec<GraphCalls> {
        vec![self.step.calls()]
    }
}
