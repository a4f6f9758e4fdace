//! What the decoding loop needs of a model.

use dpar_engine_api::EngineError;

/// A patch that was just closed: tokens `first..=last` of image `row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedPatch {
    /// Image in the batch.
    pub row: usize,
    /// First token.
    pub first: usize,
    /// Last token.
    pub last: usize,
}

/// Logits of one slot for a batch of B images, `[B, V]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotLogits {
    /// With the class.
    pub conditional: Vec<f32>,
    /// With the null class, if guidance runs.
    pub unconditional: Option<Vec<f32>>,
}

impl SlotLogits {
    /// From `[rows, V]`, whose second half is unconditional if `guided`.
    pub(crate) fn split(mut logits: Vec<f32>, guided: bool) -> Self {
        let unconditional = guided.then(|| logits.split_off(logits.len() / 2));
        Self { conditional: logits, unconditional }
    }
}

/// A model that decodes a batch of images slot by slot. All images are at the same slot; their patches differ.
///
/// For each slot t the loop calls, in this order: [`push`](Self::push) with x_{t−1} (t ≥ 1),
/// [`close`](Self::close) with the patches that end before x_t, [`logits`](Self::logits).
pub trait StepModel {
    /// Codebook size V.
    fn vocab(&self) -> usize;

    /// Starts a batch with these class labels, B = `labels.len()`. `null` is the null class if guidance runs.
    ///
    /// # Errors
    /// The engine's.
    fn start(&mut self, labels: &[i64], null: Option<i64>) -> Result<(), EngineError>;

    /// Takes x_{t−1} of each image; `patch_starts` is the first token of the patch that x_{t−1} is in. Returns
    /// e_t of each image in nats, or nothing if the model has no entropy model.
    ///
    /// # Errors
    /// The engine's.
    fn push(&mut self, tokens: &[u32], patch_starts: &[usize]) -> Result<Option<Vec<f32>>, EngineError>;

    /// Runs the global transformer on the patches that just ended (at most one per image).
    ///
    /// # Errors
    /// The engine's.
    fn close(&mut self, patches: &[ClosedPatch]) -> Result<(), EngineError>;

    /// Logits of slot t.
    ///
    /// # Errors
    /// The engine's.
    fn logits(&mut self) -> Result<SlotLogits, EngineError>;

    /// Stops guidance for the rest of the batch: later logits are conditional only.
    ///
    /// # Errors
    /// The engine's.
    fn drop_guidance(&mut self) -> Result<(), EngineError>;
}
