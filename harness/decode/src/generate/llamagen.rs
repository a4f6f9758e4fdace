//! The LlamaGen baseline as a [`StepModel`]: the same loop with patches of one token.

use dpar_engine_api::{Append, CachedSession, EngineError, TensorView};
use dpar_export_spec::{GptSpec, GraphName};

use super::Prepare;
use super::model::{ClosedPatch, SlotLogits, StepModel};

/// The prepared step graph and the state of one batch.
#[derive(Debug)]
pub struct LlamagenModel {
    spec: GptSpec,
    step: Box<dyn CachedSession>,
    /// Slot ids of the next step: the class at slot 0, then the last token; guided rows last.
    next: Vec<i64>,
    images: usize,
    slot: usize,
}

impl LlamagenModel {
    /// Prepares the step graph.
    ///
    /// # Errors
    /// When the graph is missing or the engine refuses it.
    pub fn prepare<E: From<EngineError>>(spec: &GptSpec, prepare: &mut Prepare<'_, E>) -> Result<Self, E> {
        let step = prepare(GraphName::LlamagenStep)?;
        Ok(Self { spec: spec.clone(), step, next: Vec::new(), images: 0, slot: 0 })
    }
}

impl StepModel for LlamagenModel {
    fn vocab(&self) -> usize {
        self.spec.vocab
    }

    fn start(&mut self, labels: &[i64], null: Option<i64>) -> Result<(), EngineError> {
        let class_id = |c: i64| self.spec.token_rows as i64 + c;
        self.images = labels.len();
        self.next = labels.iter().map(|c| class_id(*c)).collect();
        if let Some(null) = null {
            self.next.resize(2 * self.images, class_id(null));
        }
        self.slot = 0;
        self.step.reset(self.next.len());
        Ok(())
    }

    fn push(&mut self, tokens: &[u32], _patch_starts: &[usize]) -> Result<Option<Vec<f32>>, EngineError> {
        for (next, token) in self.next.iter_mut().zip(tokens.iter().cycle()) {
            *next = i64::from(*token);
        }
        self.slot += 1;
        Ok(None)
    }

    fn close(&mut self, _patches: &[ClosedPatch]) -> Result<(), EngineError> {
        Ok(())
    }

    fn logits(&mut self) -> Result<SlotLogits, EngineError> {
        let (rows, t) = (self.next.len(), self.slot);
        let positions = vec![t as i64; rows];
        let mask = vec![0.0; rows * (t + 1)];
        let inputs = [
            ("slots", TensorView::i64([rows, 1], &self.next)),
            ("positions", TensorView::i64([rows, 1], &positions)),
            ("mask", TensorView::f32([rows, 1, 1, t + 1], &mask)),
        ];
        let logits = self.step.step(&inputs, t, Append::At(t))?.floats("logits")?;
        Ok(SlotLogits::split(logits, rows > self.images))
    }

    fn drop_guidance(&mut self) -> Result<(), EngineError> {
        self.next.truncate(self.images);
        self.step.keep_rows(self.images)
    }
}
