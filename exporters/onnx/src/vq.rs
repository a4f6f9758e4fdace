//! The VQ tokenizer: `vq_decode` (codes to image) and `vq_encode` (image to codes).
//!
//! Height and width are fixed by the token grid; the batch is dynamic.

use std::borrow::Cow;

use dpar_export_spec::{DType, Dim, GraphName, VqSpec, VqStack};

use crate::axes::GraphSizes;
use crate::builder::{GraphBuilder, ValueName, ints};
use crate::part::InSystem;
use crate::precision::NEAREST_TABLE;
use crate::{ExportError, Graphs, Parts};

/// GroupNorm groups and epsilon.
const GROUPS: usize = 32;
const EPS: f32 = 1e-6;
/// Smallest norm of a codebook row, as in `torch.nn.functional.normalize`.
const MIN_NORM: f32 = 1e-12;

/// A feature map `[batch, channels, size, size]`.
#[derive(Clone)]
struct Map {
    value: ValueName,
    channels: usize,
    size: usize,
}

impl GraphBuilder<'_, '_> {
    fn conv(&mut self, x: &Map, name: &str, channels: usize, kernel: usize) -> Result<Map, ExportError> {
        let pad = (kernel / 2) as i64;
        self.conv_with(x, name, channels, kernel, &[pad; 4], 1)
    }

    fn conv_with(
        &mut self,
        x: &Map,
        name: &str,
        channels: usize,
        kernel: usize,
        pads: &[i64; 4],
        stride: usize,
    ) -> Result<Map, ExportError> {
        let w = self.tensor(&format!("{name}.weight"), &[channels, x.channels, kernel, kernel])?;
        let b = self.tensor(&format!("{name}.bias"), &[channels])?;
        let k = kernel as i64;
        let s = stride as i64;
        let attributes = vec![ints("kernel_shape", &[k, k]), ints("pads", pads), ints("strides", &[s, s])];
        let value = self.op("Conv", &[&x.value, &w, &b], attributes);
        Ok(Map { value, channels, size: x.size / stride })
    }

    /// GroupNorm(32) from primitive operators, in float32.
    fn group_norm(&mut self, x: &Map, name: &str) -> Result<Map, ExportError> {
        let c = x.channels;
        self.scoped(name, |g| {
            let per_channel = |g: &mut Self, part: &str| {
                let tensor = format!("{name}.{part}");
                g.weight(&format!("{tensor}.4d"), &[1, c, 1, 1], |s| s.read(&tensor, &[c]))
            };
            let (w, b) = (per_channel(g, "weight")?, per_channel(g, "bias")?);
            let (w, b) = (g.widen(&w), g.widen(&b));
            let area = (c / GROUPS * x.size * x.size) as i64;
            let grouped = g.reshape(&x.value, &[0, GROUPS as i64, area]);
            let grouped = g.widen(&grouped);
            let mean = g.reduce("ReduceMean", &grouped, 2, true);
            let centred = g.sub(&grouped, &mean);
            let square = g.mul(&centred, &centred);
            let variance = g.reduce("ReduceMean", &square, 2, true);
            let eps = g.const_float(EPS);
            let shifted = g.add(&variance, &eps);
            let root = g.op("Sqrt", &[&shifted], vec![]);
            let normal = g.op("Div", &[&centred, &root], vec![]);
            let size = x.size as i64;
            let normal = g.reshape(&normal, &[0, c as i64, size, size]);
            let scaled = g.mul(&normal, &w);
            let value = g.add(&scaled, &b);
            Ok(Map { value: g.narrow(&value), ..*x })
        })
    }

    fn norm_swish(&mut self, x: &Map, name: &str) -> Result<Map, ExportError> {
        let n = self.group_norm(x, name)?;
        Ok(Map { value: self.silu(&n.value), ..n })
    }

    fn residual(&mut self, x: &Map, name: &str, channels: usize) -> Result<Map, ExportError> {
        self.scoped(name, |g| {
            let h = g.norm_swish(x, &format!("{name}.norm1"))?;
            let h = g.conv(&h, &format!("{name}.conv1"), channels, 3)?;
            let h = g.norm_swish(&h, &format!("{name}.norm2"))?;
            let h = g.conv(&h, &format!("{name}.conv2"), channels, 3)?;
            let short = if x.channels == channels {
                x.clone()
            } else {
                g.conv(x, &format!("{name}.nin_shortcut"), channels, 1)?
            };
            Ok(Map { value: g.add(&short.value, &h.value), ..h })
        })
    }

    /// Single-head attention over all positions, scale 1/√C, residual.
    fn spatial_attention(&mut self, x: &Map, name: &str) -> Result<Map, ExportError> {
        let (c, area) = (x.channels as i64, (x.size * x.size) as i64);
        self.scoped(name, |g| {
            let n = g.group_norm(x, &format!("{name}.norm"))?;
            let flat = |g: &mut Self, part: &str| -> Result<ValueName, ExportError> {
                let map = g.conv(&n, &format!("{name}.{part}"), x.channels, 1)?;
                Ok(g.reshape(&map.value, &[0, c, area]))
            };
            let (q, k, v) = (flat(g, "q")?, flat(g, "k")?, flat(g, "v")?);
            let q = g.transpose(&q, &[0, 2, 1]);
            let q = g.widen(&q);
            let q = g.scale_query(&q, x.channels);
            let q = g.narrow(&q);
            let scores = g.matmul(&q, &k);
            let scores = g.widen(&scores);
            let weights = g.softmax(&scores);
            let weights = g.narrow(&weights);
            let weights = g.transpose(&weights, &[0, 2, 1]);
            let out = g.matmul(&v, &weights);
            let size = x.size as i64;
            let value = g.reshape(&out, &[0, c, size, size]);
            let out = g.conv(&Map { value, ..*x }, &format!("{name}.proj_out"), x.channels, 1)?;
            Ok(Map { value: g.add(&x.value, &out.value), ..*x })
        })
    }

    fn mid(&mut self, x: &Map, side: &str) -> Result<Map, ExportError> {
        let h = self.residual(x, &format!("{side}.mid.0"), x.channels)?;
        let h = self.spatial_attention(&h, &format!("{side}.mid.1"))?;
        self.residual(&h, &format!("{side}.mid.2"), x.channels)
    }

    fn levels(&mut self, mut h: Map, side: &str, stack: &VqStack) -> Result<Map, ExportError> {
        for level in &stack.levels {
            let prefix = format!("{side}.conv_blocks.{}", level.index);
            for j in 0..level.res_blocks {
                h = self.residual(&h, &format!("{prefix}.res.{j}"), level.channels)?;
                if level.attention {
                    h = self.spatial_attention(&h, &format!("{prefix}.attn.{j}"))?;
                }
            }
            if !level.resample {
                continue;
            }
            h = if side == "encoder" {
                // Padded right and bottom by 1: begin pads are zero.
                let name = format!("{prefix}.downsample.conv");
                self.conv_with(&h, &name, level.channels, 3, &[0, 0, 1, 1], 2)?
            } else {
                let value = self.upsample(&h.value);
                let large = Map { value, size: h.size * 2, ..h };
                self.conv(&large, &format!("{prefix}.upsample.conv"), level.channels, 3)?
            };
        }
        Ok(h)
    }
}

fn codebook<'w>(
    store: &crate::store::WeightStore<'w>,
    spec: InSystem<'_, VqSpec>,
) -> Result<Vec<f32>, ExportError> {
    let width = spec.code_width;
    let rows = store.read_unbounded("quantize.embedding.weight", &[spec.system.vocab, width])?;
    let mut out = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(width) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(MIN_NORM);
        out.extend(row.iter().map(|v| v / norm));
    }
    Ok(out)
}

fn image_dims(batch: Dim, spec: InSystem<'_, VqSpec>) -> Vec<Dim> {
    let size = spec.system.image_size;
    vec![batch, Dim::Fixed(3), Dim::Fixed(size), Dim::Fixed(size)]
}

/// `vq_decode`: codes `[batch, T]` in, image `[batch, 3, H, W]` out, about [-1, 1], not clamped.
fn decode(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, VqSpec>) -> Result<(), ExportError> {
    let tokens = spec.system.tokens();
    let batch = GraphSizes::new(tokens, 1).batch(g, false);
    let ids = g.input("tokens", DType::I64, vec![batch.clone(), Dim::Fixed(tokens)]);
    let (width, size) = (spec.code_width, spec.system.grid());
    let table = g.weight("codebook", &[spec.system.vocab, width], |s| codebook(s, spec).map(Cow::Owned))?;
    let z = g.gather(&table, &ids, 0);
    let z = g.transpose(&z, &[0, 2, 1]);
    let value = g.reshape(&z, &[0, width as i64, size as i64, size as i64]);
    let z = Map { value, channels: width, size };
    let h = g.conv(&z, "post_quant_conv", spec.z_channels, 1)?;
    let h = g.conv(&h, "decoder.conv_in", spec.decoder.conv_in, 3)?;
    let h = g.mid(&h, "decoder")?;
    let h = g.levels(h, "decoder", &spec.decoder)?;
    let h = g.norm_swish(&h, "decoder.norm_out")?;
    let image = g.conv(&h, "decoder.conv_out", 3, 3)?;
    let image = g.widen(&image.value);
    g.output("image", DType::F32, image_dims(batch, spec), &image);
    Ok(())
}

/// `vq_encode`: image `[batch, 3, H, W]` in [-1, 1] in, codes `[batch, T]` out.
///
/// The nearest row between normalised vectors is the row of the largest dot product, whatever the positive
/// length of the encoded vector. That product is float32, and so is its table: in a half type many codes would tie.
fn encode(g: &mut GraphBuilder<'_, '_>, spec: InSystem<'_, VqSpec>) -> Result<(), ExportError> {
    let tokens = spec.system.tokens();
    let batch = GraphSizes::new(tokens, 1).batch(g, false);
    let value = g.input("image", DType::F32, image_dims(batch.clone(), spec));
    let value = g.narrow(&value);
    let x = Map { value, channels: 3, size: spec.system.image_size };
    let h = g.conv(&x, "encoder.conv_in", spec.encoder.conv_in, 3)?;
    let h = g.levels(h, "encoder", &spec.encoder)?;
    let h = g.mid(&h, "encoder")?;
    let h = g.norm_swish(&h, "encoder.norm_out")?;
    let h = g.conv(&h, "encoder.conv_out", spec.z_channels, 3)?;
    let z = g.conv(&h, "quant_conv", spec.code_width, 1)?;
    let width = spec.code_width;
    let z = g.reshape(&z.value, &[0, width as i64, tokens as i64]);
    let z = g.transpose(&z, &[0, 2, 1]);
    let table = g.float_table(NEAREST_TABLE, &[width, spec.system.vocab], |s| {
        let rows = codebook(s, spec)?;
        Ok(Cow::Owned(
            (0..width)
                .flat_map(|c| rows.iter().skip(c).step_by(width).copied().collect::<Vec<_>>())
                .collect(),
        ))
    })?;
    let z = g.widen(&z);
    let similarity = g.matmul(&z, &table);
    let attributes = vec![crate::builder::int("axis", 2), crate::builder::int("keepdims", 0)];
    let codes = g.op("ArgMax", &[&similarity], attributes);
    g.output("tokens", DType::I64, vec![batch, Dim::Fixed(tokens)], &codes);
    Ok(())
}

/// What the tokenizer is exported to.
pub(crate) fn parts(spec: InSystem<'_, VqSpec>) -> Parts<'_> {
    let graphs: Graphs<'_> = vec![
        (GraphName::VqDecode, Box::new(move |g| decode(g, spec))),
        (GraphName::VqEncode, Box::new(move |g| encode(g, spec))),
    ];
    Parts { graphs, tables: vec![("codebook", spec.system.vocab)] }
}
