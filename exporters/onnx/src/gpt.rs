//! LlamaGen-style transformers: the entropy model and the class-conditional baseline.

use std::borrow::Cow;

use dpar_export_spec::{DType, Dim, GptSpec, GraphName};

use crate::axes::GraphSizes;
use crate::blocks::{BlockSizes, Causal, Past, Rotation};
use crate::builder::{GraphBuilder, ValueName};
use crate::part::InSystem;
use crate::rope::RotaryTable;
use crate::{ExportError, Graphs, Parts};

fn sizes(spec: InSystem<'_, GptSpec>) -> (GraphSizes, BlockSizes) {
    let sizes = GraphSizes::new(spec.system.tokens(), 1);
    (sizes, BlockSizes { width: spec.width, heads: spec.heads, ffn: spec.ffn })
}

/// The token RoPE of `positions` [batch, tokens].
fn token_rotation(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, GptSpec>,
    positions: &ValueName,
    zero_slot: bool,
) -> Result<Rotation, ExportError> {
    let table = RotaryTable::token(spec.system.grid(), spec.width / spec.heads, zero_slot);
    let rows = g.rotary_rows("rotary.token", &table, positions)?;
    Ok(g.rotation(rows))
}

/// The layers and the head; where a class is slot 0, `positions` count from the zero slot.
fn layers(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, GptSpec>,
    mut h: ValueName,
    (positions, zero_slot): (&ValueName, bool),
    mask: &ValueName,
    past: Past<'_>,
) -> Result<ValueName, ExportError> {
    let (_, block) = sizes(spec);
    let rotation = token_rotation(g, spec, positions, zero_slot)?;
    let causal = Causal { block, rotation, mask, past };
    for i in 0..spec.layers {
        h = g.block(&h, &format!("layers.{i}"), i, &causal)?;
    }
    g.head(&h, spec.width, spec.token_rows, spec.system.vocab)
}

/// `entropy_step`: tokens and their positions in, e_{j+1} in nats out for each token x_j.
///
/// e = -Σ p ln p with p = softmax(logits) at temperature 1, float32, as ln Σ exp(z) - Σ exp(z)·z / Σ exp(z) with
/// z = logits - max.
pub(crate) fn entropy_step(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, GptSpec>,
) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let call = sizes.step_call(g, false);
    let ids = g.input("tokens", DType::I64, call.slots());
    let positions = g.input("positions", DType::I64, call.slots());
    let mask = g.input("mask", DType::F32, call.mask());
    let h = g.embedding(&ids, "tok_embeddings.weight", spec.token_rows, spec.width)?;
    let logits = layers(g, spec, h, (&positions, false), &mask, call.past(None))?;
    let entropy = g.scoped("entropy", |g| {
        let max = g.reduce("ReduceMax", &logits, 2, true);
        let z = g.sub(&logits, &max);
        let e = g.op("Exp", &[&z], vec![]);
        let ez = g.mul(&e, &z);
        let sum = g.reduce_sum(&e, 2, false);
        let weighted = g.reduce_sum(&ez, 2, false);
        let log = g.op("Log", &[&sum], vec![]);
        let mean = g.op("Div", &[&weighted, &sum], vec![]);
        Ok(g.sub(&log, &mean))
    })?;
    g.output("entropy", DType::F32, call.slots(), &entropy);
    Ok(())
}

/// The class table behind the token table: class c has id `token_rows + c`.
fn slot_table(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, GptSpec>,
    classes: usize,
) -> Result<ValueName, ExportError> {
    let (rows, width) = (spec.token_rows, spec.width);
    g.weight("slot_embeddings", &[rows + classes, width], |store| {
        let mut table = store.read("tok_embeddings.weight", &[rows, width])?.into_owned();
        let classes = store.read("cls_embedding.embedding_table.weight", &[classes, width])?;
        table.extend_from_slice(&classes);
        Ok(Cow::Owned(table))
    })
}

/// `llamagen_step`: slot ids (a token, or `token_rows + class` at slot 0) and slot positions in, logits out.
pub(crate) fn llamagen_step(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, GptSpec>,
    classes: usize,
) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let call = sizes.step_call(g, true);
    let ids = g.input("slots", DType::I64, call.slots());
    let positions = g.input("positions", DType::I64, call.slots());
    let mask = g.input("mask", DType::F32, call.mask());
    let table = slot_table(g, spec, classes)?;
    let h = g.gather(&table, &ids, 0);
    let logits = layers(g, spec, h, (&positions, true), &mask, call.past(None))?;
    g.output("logits", DType::F32, call.slots_by(Dim::Fixed(spec.system.vocab)), &logits);
    Ok(())
}

/// `score`: a whole token sequence and class labels in, logits out; slot t sees the class and x_<t.
pub(crate) fn llamagen_score(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, GptSpec>,
    classes: usize,
) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let call = sizes.score_call(g);
    let tokens = g.input("tokens", DType::I64, call.slots());
    let labels = g.input("class_labels", DType::I64, vec![call.batch.clone()]);
    let positions = g.input("positions", DType::I64, call.slots());
    let mask = g.input("mask", DType::F32, call.mask());
    let table = slot_table(g, spec, classes)?;
    let offset = g.const_int(spec.token_rows as i64);
    let class_ids = g.add(&labels, &offset);
    let class_ids = g.unsqueeze(&class_ids, 1);
    let before = g.all_but_last(&tokens);
    let ids = g.concat(&[&class_ids, &before], 1);
    let h = g.gather(&table, &ids, 0);
    let logits = layers(g, spec, h, (&positions, true), &mask, Past::None)?;
    g.output("logits", DType::F32, call.slots_by(Dim::Fixed(spec.system.vocab)), &logits);
    Ok(())
}

/// What the entropy model is exported to.
pub(crate) fn entropy_parts(spec: InSystem<'_, GptSpec>) -> Parts<'_> {
    let graphs: Graphs<'_> = vec![(GraphName::EntropyStep, Box::new(move |g| entropy_step(g, spec)))];
    Parts { graphs, tables: vec![("tok_embeddings.weight", spec.token_rows)] }
}

/// What the baseline is exported to.
pub(crate) fn llamagen_parts(spec: InSystem<'_, GptSpec>) -> Parts<'_> {
    let classes = spec.system.class_rows();
    let graphs: Graphs<'_> = vec![
        (GraphName::LlamagenStep, Box::new(move |g| llamagen_step(g, spec, classes))),
        (GraphName::Score, Box::new(move |g| llamagen_score(g, spec, classes))),
    ];
    Parts { graphs, tables: vec![("slot_embeddings", spec.token_rows.saturating_add(classes))] }
}
