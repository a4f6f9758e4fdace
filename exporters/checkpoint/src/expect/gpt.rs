//! LlamaGen transformers: the entropy model (no class table) and the baseline.

use super::{Expected, ExpectedTensors, MAX_LAYERS};
use crate::CheckpointError;
use crate::weights::{CanonicalTensors, WeightSet};

/// Sizes read from the tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GptDims {
    /// Model width D.
    pub(crate) width: usize,
    /// FFN width.
    pub(crate) ffn: usize,
    /// Layers.
    pub(crate) layers: usize,
    /// Rows of `tok_embeddings` and `output`.
    pub(crate) token_rows: usize,
    /// Rows of the class table, with the null class; `None` for an unconditional model.
    pub(crate) class_rows: Option<usize>,
}

/// Every tensor of the transformer.
pub(crate) fn table(d: &GptDims) -> Vec<Expected> {
    let mut t = ExpectedTensors::default();
    if let Some(rows) = d.class_rows {
        t.add("cls_embedding.embedding_table.weight", &[rows, d.width]);
    }
    t.add("tok_embeddings.weight", &[d.token_rows, d.width]);
    for i in 0..d.layers {
        t.block(&format!("layers.{i}"), d.width, d.ffn);
    }
    t.add("norm.weight", &[d.width]);
    t.add("output.weight", &[d.token_rows, d.width]);
    t.0
}

/// Compares a file with the table and reads its sizes.
pub(crate) fn resolve(
    named: CanonicalTensors,
    conditional: bool,
) -> Result<(GptDims, WeightSet), CheckpointError> {
    let dims = GptDims {
        width: named.dim("tok_embeddings.weight", 1),
        ffn: named.dim("layers.0.feed_forward.w1.weight", 0),
        layers: named.parts("layers.", MAX_LAYERS).max(1),
        token_rows: named.dim("tok_embeddings.weight", 0),
        class_rows: conditional.then(|| named.dim("cls_embedding.embedding_table.weight", 0)),
    };
    let table = table(&dims);
    named.check_names(&table)?;
    named.check_rank("tok_embeddings.weight", 2)?;
    named.check_rank("layers.0.feed_forward.w1.weight", 2)?;
    if conditional {
        named.check_rank("cls_embedding.embedding_table.weight", 2)?;
    }
    Ok((dims, named.bind(&table)?))
}
