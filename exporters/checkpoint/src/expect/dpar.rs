//! The DPAR transformer: patch encoder, global transformer, patch decoder.

use dpar_export_spec::DecoderCross;

use super::{Expected, ExpectedTensors, MAX_LAYERS};
use crate::CheckpointError;
use crate::weights::{CanonicalTensors, WeightSet};

/// Sizes read from the tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DparDims {
    /// Model width D.
    pub(crate) width: usize,
    /// FFN width.
    pub(crate) ffn: usize,
    /// Patch encoder layers E.
    pub(crate) encoder_layers: usize,
    /// Global transformer layers G.
    pub(crate) global_layers: usize,
    /// Patch decoder layers.
    pub(crate) decoder_layers: usize,
    /// Rows of `tok_embeddings` and `output`.
    pub(crate) token_rows: usize,
    /// Rows of the class table, with the null class.
    pub(crate) class_rows: usize,
    /// Variant of the decoder's cross-attention.
    pub(crate) decoder_cross: DecoderCross,
}

/// Every tensor of the transformer.
pub(crate) fn table(d: &DparDims) -> Vec<Expected> {
    let w = d.width;
    let mut t = ExpectedTensors::default();
    t.add("cls_embedding.embedding_table.weight", &[d.class_rows, w]);
    t.add("tok_embeddings.weight", &[d.token_rows, w]);
    t.add("decoder_start_embedding.weight", &[1, w]);
    for i in 0..d.encoder_layers {
        t.block(&format!("local_encoder.layers.{i}"), w, d.ffn);
        let cross = format!("local_encoder.cross_attn_layers.{i}");
        t.add(format!("{cross}.cross_attn_norm_q.weight"), &[w]);
        t.add(format!("{cross}.cross_attn_norm_kv.weight"), &[w]);
        for m in ["wq", "wk", "wv", "wo"] {
            t.add(format!("{cross}.{m}.weight"), &[w, w]);
        }
    }
    for i in 0..d.global_layers {
        t.block(&format!("layers.{i}"), w, d.ffn);
    }
    for i in 0..d.decoder_layers {
        t.block(&format!("local_decoder.layers.{i}"), w, d.ffn);
        let cross = format!("local_decoder.cross_attn_layers.{i}");
        t.add(format!("{cross}.cross_attn_norm_kv.weight"), &[w]);
        t.add(format!("{cross}.wo.weight"), &[w, w]);
        if d.decoder_cross == DecoderCross::Full {
            t.add(format!("{cross}.cross_attn_norm_q.weight"), &[w]);
            for m in ["wq", "wk", "wv"] {
                t.add(format!("{cross}.{m}.weight"), &[w, w]);
            }
        }
    }
    t.add("norm.weight", &[w]);
    t.add("output.weight", &[d.token_rows, w]);
    t.0
}

/// Compares a file with the table and reads its sizes.
pub(crate) fn resolve(named: CanonicalTensors) -> Result<(DparDims, WeightSet), CheckpointError> {
    let layers = |layers: &str, cross: &str| {
        named.parts(layers, MAX_LAYERS).max(named.parts(cross, MAX_LAYERS)).max(1)
    };
    let decoder_layers = layers("local_decoder.layers.", "local_decoder.cross_attn_layers.");
    // One `wq` decides: in a mixture the layers without it are then reported as missing theirs.
    let full =
        (0..decoder_layers).any(|i| named.has(&format!("local_decoder.cross_attn_layers.{i}.wq.weight")));
    let dims = DparDims {
        width: named.dim("tok_embeddings.weight", 1),
        ffn: named.dim("layers.0.feed_forward.w1.weight", 0),
        encoder_layers: layers("local_encoder.layers.", "local_encoder.cross_attn_layers."),
        global_layers: named.parts("layers.", MAX_LAYERS).max(1),
        decoder_layers,
        token_rows: named.dim("tok_embeddings.weight", 0),
        class_rows: named.dim("cls_embedding.embedding_table.weight", 0),
        decoder_cross: if full { DecoderCross::Full } else { DecoderCross::OutputOnly },
    };
    let table = table(&dims);
    named.check_names(&table)?;
    for name in
        ["tok_embeddings.weight", "layers.0.feed_forward.w1.weight", "cls_embedding.embedding_table.weight"]
    {
        named.check_rank(name, 2)?;
    }
    Ok((dims, named.bind(&table)?))
}
