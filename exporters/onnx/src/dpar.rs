//! The DPAR transformer: patch encoder, patch embedding, global transformer, patch decoder.

use dpar_export_spec::{DType, DecoderCross, Dim, DparSpec, GraphName, PatchRope};

use crate::axes::GraphSizes;
use crate::blocks::{BlockSizes, Causal, Past, Rotation};
use crate::builder::{GraphBuilder, ValueName};
use crate::part::InSystem;
use crate::rope::RotaryTable;
use crate::{ExportError, Graphs, Parts};

fn sizes(spec: InSystem<'_, DparSpec>) -> (GraphSizes, BlockSizes) {
    let sizes = GraphSizes::new(spec.system.tokens(), spec.system.longest_patch());
    (sizes, BlockSizes { width: spec.width, heads: spec.heads, ffn: spec.ffn })
}

fn width(spec: InSystem<'_, DparSpec>) -> Dim {
    Dim::Fixed(spec.width)
}

/// Token embedding and the encoder's blocks; returns the output of every layer.
fn encoder(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, DparSpec>,
    tokens: &ValueName,
    positions: &ValueName,
    mask: &ValueName,
    past: Past<'_>,
) -> Result<Vec<ValueName>, ExportError> {
    let (_, block) = sizes(spec);
    let table = RotaryTable::token(spec.system.grid(), block.head_dim(), false);
    let rows = g.rotary_rows("rotary.encoder", &table, positions)?;
    let rotation = g.rotation(rows);
    let mut h = g.embedding(tokens, "tok_embeddings.weight", spec.token_rows, spec.width)?;
    let mut outputs = Vec::with_capacity(spec.encoder_layers);
    let causal = Causal { block, rotation, mask, past };
    for i in 0..spec.encoder_layers {
        h = g.block(&h, &format!("local_encoder.layers.{i}"), i, &causal)?;
        outputs.push(h.clone());
    }
    Ok(outputs)
}

/// Pools and cross-attends the tokens of N patches.
///
/// `layers[i]` is `[N, L, D]`, the i-th encoder layer's output at the patch's tokens; `mask` is `[N, L]`, 0 for
/// a token of the patch and a large negative number for padding. Result `[N, D]`.
fn patch_embedding(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, DparSpec>,
    layers: &[ValueName],
    mask: &ValueName,
) -> Result<ValueName, ExportError> {
    let (_, block) = sizes(spec);
    let (d, heads, head_dim) = (spec.width, spec.heads as i64, block.head_dim() as i64);
    let column = g.unsqueeze(mask, 2);
    let row = g.unsqueeze(mask, 1);
    let row = g.unsqueeze(&row, 1);
    let first = g.widen(&layers[0]);
    let padded = g.add(&first, &column);
    let patch = g.reduce("ReduceMax", &padded, 1, false);
    let mut patch = g.narrow(&patch);
    for (i, h) in layers.iter().enumerate() {
        let prefix = format!("local_encoder.cross_attn_layers.{i}");
        patch = g.scoped(&prefix, |g| {
            let n = g.rms_norm(&patch, 2, &format!("{prefix}.cross_attn_norm_q.weight"), d)?;
            let q = g.linear(&n, &format!("{prefix}.wq.weight"), d, d)?;
            let q = g.unround(&q);
            let q = g.queries(&q, block.head_dim());
            let q = g.reshape(&q, &[0, heads, 1, head_dim]);
            let n = g.rms_norm(h, 3, &format!("{prefix}.cross_attn_norm_kv.weight"), d)?;
            let k = g.linear(&n, &format!("{prefix}.wk.weight"), d, d)?;
            let v = g.linear(&n, &format!("{prefix}.wv.weight"), d, d)?;
            let k = g.reshape(&k, &[0, 0, heads, head_dim]);
            let v = g.reshape(&v, &[0, 0, heads, head_dim]);
            let k = g.transpose(&k, &[0, 2, 3, 1]);
            let v = g.transpose(&v, &[0, 2, 1, 3]);
            let out = g.attend(&q, &k, &v, &row, block.head_dim());
            let out = g.reshape(&out, &[0, d as i64]);
            let out = g.linear(&out, &format!("{prefix}.wo.weight"), d, d)?;
            Ok(g.add_product(&patch, &out))
        })?;
    }
    Ok(patch)
}

/// Declares the inputs that place patches and makes their rotation.
fn patch_rotation(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, DparSpec>,
    dims: &[Dim],
) -> Result<Rotation, ExportError> {
    let (_, block) = sizes(spec);
    let head_dim = block.head_dim();
    let tokens = spec.system.tokens();
    let parts = match spec.patch_rope {
        PatchRope::Index => {
            let index = g.input("patch_index", DType::I64, dims.to_vec());
            let table = RotaryTable::patch_index(tokens, head_dim);
            g.rotary_rows("rotary.patch_index", &table, &index)?
        }
        PatchRope::Dynamic4d | PatchRope::Dynamic3d if let Some(size) = spec.system.fractional_size() => {
            let index = g.input("patch_index", DType::I64, dims.to_vec());
            let four = spec.patch_rope == PatchRope::Dynamic4d;
            let table = RotaryTable::fractional(spec.system.grid(), head_dim, four, size);
            g.rotary_rows("rotary.patch_fractional", &table, &index)?
        }
        PatchRope::Dynamic4d | PatchRope::Dynamic3d => {
            let first = g.input("patch_first", DType::I64, dims.to_vec());
            let last = g.input("patch_last", DType::I64, dims.to_vec());
            let four = spec.patch_rope == PatchRope::Dynamic4d;
            let columns = RotaryTable::patch_column(
                spec.system.grid(),
                if four { head_dim / 16 } else { head_dim / 8 },
            );
            let r = g.rotary_rows(
                "rotary.patch_row",
                &RotaryTable::patch_row(spec.system.grid(), head_dim),
                &first,
            )?;
            let a = g.rotary_rows("rotary.patch_column", &columns, &first)?;
            let b = g.rotary_rows("rotary.patch_column", &columns, &last)?;
            if four {
                (g.concat(&[&r.0, &a.0, &b.0, &b.0, &a.0], 2), g.concat(&[&r.1, &a.1, &b.1, &b.1, &a.1], 2))
            } else {
                (g.concat(&[&r.0, &a.0, &b.0], 2), g.concat(&[&r.1, &a.1, &b.1], 2))
            }
        }
    };
    Ok(g.rotation(parts))
}

fn global(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, DparSpec>,
    mut h: ValueName,
    rotation: Rotation,
    mask: &ValueName,
    past: Past<'_>,
) -> Result<ValueName, ExportError> {
    let (_, block) = sizes(spec);
    let causal = Causal { block, rotation, mask, past };
    for i in 0..spec.global_layers {
        h = g.block(&h, &format!("layers.{i}"), i, &causal)?;
    }
    Ok(h)
}

/// The decoder's layers and head. `hidden` and `global_hidden` are `[batch, tokens, D]`.
fn decoder(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, DparSpec>,
    hidden: &ValueName,
    global_hidden: &ValueName,
    positions: &ValueName,
    mask: &ValueName,
    past: Past<'_>,
) -> Result<ValueName, ExportError> {
    let (_, block) = sizes(spec);
    let d = spec.width;
    let table = RotaryTable::token(spec.system.grid(), block.head_dim(), true);
    let rows = g.rotary_rows("rotary.decoder", &table, positions)?;
    let rotation = g.rotation(rows);
    let causal = Causal { block, rotation, mask, past };
    let mut h = hidden.clone();
    for i in 0..spec.decoder_layers {
        let prefix = format!("local_decoder.cross_attn_layers.{i}");
        h = g.scoped(&prefix, |g| {
            let mut n = g.rms_norm(global_hidden, 3, &format!("{prefix}.cross_attn_norm_kv.weight"), d)?;
            if spec.decoder_cross == DecoderCross::Full {
                // One key: its softmax weight is 1, so wq, wk and the query norm have no effect.
                n = g.linear(&n, &format!("{prefix}.wv.weight"), d, d)?;
            }
            let out = g.linear(&n, &format!("{prefix}.wo.weight"), d, d)?;
            Ok(g.add_product(&h, &out))
        })?;
        h = g.block(&h, &format!("local_decoder.layers.{i}"), i, &causal)?;
    }
    g.head(&h, d, spec.token_rows, spec.system.vocab)
}

/// Class embedding `[batch, D]` and decoder start embedding `[batch, 1, D]`.
fn start_states(
    g: &mut GraphBuilder<'_, '_>,
    spec: InSystem<'_, DparSpec>,
    labels: &ValueName,
) -> Result<(ValueName, ValueName), ExportError> {
    let table = g.tensor("cls_embedding.embedding_table.weight", &[spec.system.class_rows(), spec.width])?;
    let class = g.gather(&table, labels, 0);
    let start = g.tensor("decoder_start_embedding.weight", &[1, spec.width])?;
    let zero = g.const_int(0);
    let zeros = g.mul(labels, &zero);
    let start = g.gather(&start, &zeros, 0);
    Ok((class, g.unsqueeze(&start, 1)))
}

/// `start`: the two states that exist before any token.
fn start_graph(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, DparSpec>) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let batch = sizes.batch(g, true);
    let labels = g.input("class_labels", DType::I64, vec![batch.clone()]);
    let (class, start) = start_states(g, spec, &labels)?;
    let class = g.unsqueeze(&class, 1);
    let (class, start) = (g.widen(&class), g.widen(&start));
    let dims = vec![batch, Dim::Fixed(1), width(spec)];
    g.output("class_embedding", DType::F32, dims.clone(), &class);
    g.output("decoder_start", DType::F32, dims, &start);
    Ok(())
}

/// `encoder_step`: new tokens in, every encoder layer's states out.
fn encoder_step(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, DparSpec>) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let call = sizes.step_call(g, false);
    let tokens = g.input("tokens", DType::I64, call.slots());
    let positions = g.input("positions", DType::I64, call.slots());
    let mask = g.input("mask", DType::F32, call.mask());
    let layers = encoder(g, spec, &tokens, &positions, &mask, call.past(None))?;
    for (i, h) in layers.iter().enumerate() {
        let h = g.widen(h);
        g.output(&format!("hidden_{i}"), DType::F32, call.slots_by(width(spec)), &h);
    }
    Ok(())
}

/// `patch_embed`: the encoder states of N patches in, their embeddings out.
fn patch_embed(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, DparSpec>) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let patches = g.axis("patches", 1, 8, crate::MAX_BATCH * sizes.tokens);
    let length = g.axis("patch_length", 1, 2, sizes.longest_patch);
    let dims = vec![patches.clone(), length.clone(), width(spec)];
    let layers: Vec<ValueName> =
        (0..spec.encoder_layers).map(|i| g.input(&format!("hidden_{i}"), DType::F32, dims.clone())).collect();
    let mask = g.input("patch_mask", DType::F32, vec![patches.clone(), length]);
    let layers: Vec<ValueName> = layers.iter().map(|h| g.narrow(h)).collect();
    let patch = patch_embedding(g, spec, &layers, &mask)?;
    let patch = g.widen(&patch);
    g.output("patch_embedding", DType::F32, vec![patches, width(spec)], &patch);
    Ok(())
}

/// `global_step`: new patches (or the class) of the cache rows in `rows` in, g out.
fn global_step(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, DparSpec>) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let call = sizes.patch_call(g);
    let h = g.input("embeddings", DType::F32, call.slots_by(width(spec)));
    let rotation = patch_rotation(g, spec, &call.slots())?;
    let mask = g.input("mask", DType::F32, call.mask());
    let rows = g.input("rows", DType::I64, vec![call.batch.clone()]);
    let h = g.narrow(&h);
    let h = global(g, spec, h, rotation, &mask, call.past(Some(&rows)))?;
    let h = g.widen(&h);
    g.output("global_hidden", DType::F32, call.slots_by(width(spec)), &h);
    Ok(())
}

/// `decoder_step`: new slots with their patch's g in, logits out.
fn decoder_step(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, DparSpec>) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let call = sizes.step_call(g, true);
    let hidden = g.input("hidden", DType::F32, call.slots_by(width(spec)));
    let global_hidden = g.input("global_hidden", DType::F32, call.slots_by(width(spec)));
    let positions = g.input("positions", DType::I64, call.slots());
    let mask = g.input("mask", DType::F32, call.mask());
    let (hidden, global_hidden) = (g.narrow(&hidden), g.narrow(&global_hidden));
    let logits = decoder(g, spec, &hidden, &global_hidden, &positions, &mask, call.past(None))?;
    g.output("logits", DType::F32, call.slots_by(Dim::Fixed(spec.system.vocab)), &logits);
    Ok(())
}

/// `score`: the whole model, teacher-forced.
///
/// Patches of the whole batch stand in one list of N: `patch_tokens` `[N, L]` indexes the flattened tokens
/// (`image · T + t`), `global_index` `[B, S]` indexes the list [class of each image, then the N patches],
/// `slot_global` `[B, T]` indexes the flattened global outputs (`image · S + slot`).
fn score(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, DparSpec>) -> Result<(), ExportError> {
    let (sizes, _) = sizes(spec);
    let d = spec.width;
    let call = sizes.score_call(g);
    let patches = g.axis("patches", 1, 4 * sizes.typical_patches(), crate::MAX_BATCH * sizes.tokens);
    let length = g.axis("patch_length", 1, sizes.longest_patch, sizes.longest_patch);
    let slots = g.axis("global_slots", 1, sizes.typical_patches(), sizes.tokens);
    let global_dims = vec![call.batch.clone(), slots.clone()];

    let tokens = g.input("tokens", DType::I64, call.slots());
    let labels = g.input("class_labels", DType::I64, vec![call.batch.clone()]);
    let positions = g.input("positions", DType::I64, call.slots());
    let encoder_mask = g.input("encoder_mask", DType::F32, call.mask());
    let decoder_mask = g.input("decoder_mask", DType::F32, call.mask());
    let patch_tokens = g.input("patch_tokens", DType::I64, vec![patches.clone(), length.clone()]);
    let patch_mask = g.input("patch_mask", DType::F32, vec![patches, length]);
    let global_index = g.input("global_index", DType::I64, global_dims.clone());
    let rotation = patch_rotation(g, spec, &global_dims)?;
    let mask_dims = vec![call.batch.clone(), Dim::Fixed(1), slots.clone(), slots];
    let global_mask = g.input("global_mask", DType::F32, mask_dims);
    let slot_global = g.input("slot_global", DType::I64, call.slots());

    let layers = encoder(g, spec, &tokens, &positions, &encoder_mask, Past::None)?;
    let by_patch: Vec<ValueName> = layers
        .iter()
        .map(|h| {
            let flat = g.flat_rows(h, d);
            g.gather(&flat, &patch_tokens, 0)
        })
        .collect();
    let patch = patch_embedding(g, spec, &by_patch, &patch_mask)?;
    let (class, start) = start_states(g, spec, &labels)?;
    let table = g.concat(&[&class, &patch], 0);
    let h = g.gather(&table, &global_index, 0);
    let out = global(g, spec, h, rotation, &global_mask, Past::None)?;
    let out = g.flat_rows(&out, d);
    let per_slot = g.gather(&out, &slot_global, 0);
    let before = g.all_but_last(&layers[spec.encoder_layers - 1]);
    let hidden = g.concat(&[&start, &before], 1);
    let logits = decoder(g, spec, &hidden, &per_slot, &positions, &decoder_mask, Past::None)?;
    g.output("logits", DType::F32, call.slots_by(Dim::Fixed(spec.system.vocab)), &logits);
    Ok(())
}

/// What the DPAR transformer is exported to.
pub(crate) fn parts(spec: InSystem<'_, DparSpec>) -> Parts<'_> {
    let graphs: Graphs<'_> = vec![
        (GraphName::Start, Box::new(move |g| start_graph(g, spec))),
        (GraphName::EncoderStep, Box::new(move |g| encoder_step(g, spec))),
        (GraphName::PatchEmbed, Box::new(move |g| patch_embed(g, spec))),
        (GraphName::GlobalStep, Box::new(move |g| global_step(g, spec))),
        (GraphName::DecoderStep, Box::new(move |g| decoder_step(g, spec))),
        (GraphName::Score, Box::new(move |g| score(g, spec))),
    ];
    let tables = vec![
        ("tok_embeddings.weight", spec.token_rows),
        ("cls_embedding.embedding_table.weight", spec.system.class_rows()),
    ];
    Parts { graphs, tables }
}
