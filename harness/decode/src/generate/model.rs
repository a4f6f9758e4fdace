//! What the decoding loop needs of a model.

use std::time::Duration;

use dpar_engine_api::{CacheForm, EngineError};
use dpar_export_spec::GraphName;
use serde::Serialize;

/// A row whose next token opens a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Row.
    pub row: usize,
    /// What the patch comes after.
    pub after: After,
}

/// What stands before a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The class slot: an image of this class begins in the row, whatever was there before.
    Class {
        /// Class label.
        class: i64,
        /// Whether its logits come with the null class too.
        guided: bool,
    },
    /// The patch of tokens `first..=last`, which just ended.
    Patch {
        /// First token.
        first: usize,
        /// Last token.
        last: usize,
    },
}

/// The token that was drawn for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Row.
    pub row: usize,
    /// The token.
    pub token: u32,
    /// First token of the patch that it is in.
    pub patch_start: usize,
}

/// Logits of the next slot of some rows, V each.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotLogits {
    vocab: usize,
    /// Those of every row with its class, then those of guided rows with the null class.
    values: Vec<f32>,
    guided: Vec<bool>,
}

impl SlotLogits {
    /// From `[lines, V]`: a line of every row with its class, then one of every guided row with the null class.
    pub fn new(vocab: usize, values: Vec<f32>, guided: Vec<bool>) -> Self {
        Self { vocab, values, guided }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.guided.len()
    }

    /// With the class, of the i-th row that was asked for.
    pub fn conditional(&self, i: usize) -> &[f32] {
        self.line(i)
    }

    /// With the null class, if guidance runs for that row.
    pub fn unconditional(&self, i: usize) -> Option<&[f32]> {
        self.guided[i].then(|| self.line(self.rows() + self.guided[..i].iter().filter(|g| **g).count()))
    }

    fn line(&self, line: usize) -> &[f32] {
        &self.values[line * self.vocab..(line + 1) * self.vocab]
    }
}

/// Calls of one graph: how many, the rows that they had together (the class twice where guidance runs), what they took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GraphCalls {
    /// The graph.
    #[serde(serialize_with = "by_name")]
    pub graph: GraphName,
    /// Calls.
    pub calls: u64,
    /// Rows of all calls.
    pub rows: u64,
    /// How its cache reaches a call, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caches: Option<CacheForm>,
    /// Bytes that its cache takes now.
    #[serde(skip)]
    pub cache_bytes: u64,
    /// Wall time in the engine. No part of a report of decisions, which is the same at every run.
    #[serde(skip)]
    pub time: Duration,
}

fn by_name<S: serde::Serializer>(graph: &GraphName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(graph.as_str())
}

/// A model that decodes images in rows. Every row is at a slot of its own, and a call has some of the rows, in any order.
///
/// For slot t of a row, the loop calls in this order: [`push`](Self::push) with x_{t−1} (t ≥ 1), [`open`](Self::open) if
/// x_t opens a patch (as x_0 does), [`logits`](Self::logits).
pub trait StepModel: Send {
    /// Codebook size V.
    fn vocab(&self) -> usize;

    /// Forgets all images and makes room for `rows`; for none, it gives the memory of its caches back. `null` is the null
    /// class if some will be guided.
    fn reset(&mut self, rows: usize, null: Option<i64>);

    /// Runs the global transformer on rows whose next token opens a patch.
    ///
    /// # Errors
    /// The engine's.
    fn open(&mut self, openings: &[Opening]) -> Result<(), EngineError>;

    /// Takes the tokens that were drawn. Returns the entropy of the next one in nats, row by row, or nothing if the model
    /// has no entropy model.
    ///
    /// # Errors
    /// The engine's.
    fn push(&mut self, tokens: &[Pushed]) -> Result<Option<Vec<f32>>, EngineError>;

    /// Logits of the next slot of each row.
    ///
    /// # Errors
    /// The engine's.
    fn logits(&mut self, rows: &[usize]) -> Result<SlotLogits, EngineError>;

    /// Stops guidance of a row for the rest of its image: later logits are conditional only.
    fn drop_guidance(&mut self, row: usize);

    /// Calls of each graph since it was prepared.
    fn calls(&self) -> Vec<GraphCalls>;
}
