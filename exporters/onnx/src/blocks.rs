//! The transformer block and its parts, shared by every component.

use std::borrow::Cow;

use dpar_export_spec::{CachePart, Dim};

use crate::ExportError;
use crate::builder::{GraphBuilder, ValueName, text};
use crate::rope::{RotaryTable, half_split};

/// RMSNorm epsilon.
const EPS: f32 = 1e-5;

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSizes {
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) ffn: usize,
}

impl BlockSizes {
    pub(crate) fn head_dim(self) -> usize {
        self.width / self.heads
    }

    fn head_shape(self) -> [i64; 2] {
        [self.heads as i64, self.head_dim() as i64]
    }
}

/// Cosine and sine of the slots of a call, `[batch, tokens, 1, Dh/2]`.
pub(crate) struct Rotation {
    cos: ValueName,
    sin: ValueName,
}

/// Where past keys and values come from.
pub(crate) enum Past<'a> {
    /// The whole sequence is in the call.
    None,
    /// KV cache inputs with the time axis named `time`; new keys and values become outputs.
    Cache {
        /// Name of the past axis.
        time: Dim,
        /// Name of the new-slots axis.
        new: Dim,
        /// Batch axis of the cache.
        rows: Dim,
        /// Batch axis of the call.
        batch: Dim,
        /// Which rows of the cache the call's rows are; `None` = the same.
        select: Option<&'a ValueName>,
    },
}

/// What the self-attention of every layer in a stack shares.
pub(crate) struct Causal<'a> {
    pub(crate) block: BlockSizes,
    pub(crate) rotation: Rotation,
    pub(crate) mask: &'a ValueName,
    pub(crate) past: Past<'a>,
}

impl GraphBuilder<'_, '_> {
    /// x / Sqrt(mean(x²) + eps) · w over the last axis of a value of rank `rank`, as an operand of products; float32 up to
    /// the product with w, in autocast graphs with it.
    pub(crate) fn rms_norm(
        &mut self,
        x: &ValueName,
        rank: i64,
        weight: &str,
        width: usize,
    ) -> Result<ValueName, ExportError> {
        let w = self.tensor(weight, &[width])?;
        let x = &self.widen(x);
        let square = self.mul(x, x);
        let mean = self.reduce("ReduceMean", &square, rank - 1, true);
        let eps = self.const_float(EPS);
        let shifted = self.add(&mean, &eps);
        let root = self.op("Sqrt", &[&shifted], vec![]);
        let normal = self.op("Div", &[x, &root], vec![]);
        let normal = self.narrow(&normal);
        let scaled = self.mul(&normal, &w);
        Ok(self.operand(&scaled))
    }

    /// Token embedding rows for `ids` of rank 2: `[batch, tokens, width]`.
    pub(crate) fn embedding(
        &mut self,
        ids: &ValueName,
        weight: &str,
        rows: usize,
        width: usize,
    ) -> Result<ValueName, ExportError> {
        let table = self.tensor(weight, &[rows, width])?;
        Ok(self.gather(&table, ids, 0))
    }

    /// Rows of a rotary table for slot ids of rank 2: two float32 values `[batch, tokens, columns]`.
    pub(crate) fn rotary_rows(
        &mut self,
        name: &str,
        table: &RotaryTable,
        ids: &ValueName,
    ) -> Result<(ValueName, ValueName), ExportError> {
        let shape = [table.rows, table.columns];
        let cos = self.float_table(&format!("{name}.cos"), &shape, |_| Ok(Cow::Owned(table.cos.clone())))?;
        let sin = self.float_table(&format!("{name}.sin"), &shape, |_| Ok(Cow::Owned(table.sin.clone())))?;
        Ok((self.gather(&cos, ids, 0), self.gather(&sin, ids, 0)))
    }

    /// Makes a [`Rotation`] of `[batch, tokens, Dh/2]` values.
    pub(crate) fn rotation(&mut self, (cos, sin): (ValueName, ValueName)) -> Rotation {
        Rotation { cos: self.unsqueeze(&cos, 2), sin: self.unsqueeze(&sin, 2) }
    }

    /// Turns float32 `[batch, tokens, heads, Dh]` whose pairs are kept as halves.
    fn rotate(&mut self, x: &ValueName, r: &Rotation) -> ValueName {
        let halves = self.split(x, 2, 3);
        let (a, b) = (&halves[0], &halves[1]);
        let (ac, bs) = (self.mul(a, &r.cos), self.mul(b, &r.sin));
        let (as_, bc) = (self.mul(a, &r.sin), self.mul(b, &r.cos));
        let first = self.sub(&ac, &bs);
        let second = self.add(&as_, &bc);
        self.concat(&[&first, &second], 3)
    }

    /// Queries as operands from float32. An autocast graph scales them in [`attend`](Self::attend), behind this rounding.
    pub(crate) fn queries(&mut self, q: &ValueName, head_dim: usize) -> ValueName {
        let q = if self.is_autocast() { q.clone() } else { self.scale_query(q, head_dim) };
        self.round(&q)
    }

    /// softmax(q·k + mask)·v with q `[b, heads, t, Dh]` (from [`queries`](Self::queries)), k `[b, heads, Dh, s]`, v
    /// `[b, heads, s, Dh]`, mask broadcast to `[b, heads, t, s]`. Masking and softmax in float32; in autocast graphs the
    /// scores too.
    pub(crate) fn attend(
        &mut self,
        q: &ValueName,
        k: &ValueName,
        v: &ValueName,
        mask: &ValueName,
        head_dim: usize,
    ) -> ValueName {
        let scores = if self.is_autocast() {
            let (q, k) = (self.unround(q), self.unround(k));
            let q = self.scale_query(&q, head_dim);
            self.matmul(&q, &k)
        } else {
            let scores = self.matmul(q, k);
            self.unround(&scores)
        };
        let masked = self.add(&scores, mask);
        let weights = self.softmax(&masked);
        let weights = self.round(&weights);
        self.product(&weights, v)
    }

    /// q · 1/√Dh of a float32 q.
    pub(crate) fn scale_query(&mut self, q: &ValueName, head_dim: usize) -> ValueName {
        let scale = self.const_float(1.0 / (head_dim as f32).sqrt());
        self.mul(q, &scale)
    }

    /// Causal self-attention of layer `index` at `prefix`, without the residual.
    fn self_attention(
        &mut self,
        x: &ValueName,
        prefix: &str,
        index: usize,
        causal: &Causal<'_>,
    ) -> Result<ValueName, ExportError> {
        let block = causal.block;
        let BlockSizes { width, heads, .. } = block;
        let head_dim = block.head_dim();
        let turned = |base: usize| {
            (0..heads).flat_map(move |h| half_split(head_dim).map(move |r| base + h * head_dim + r))
        };
        let rows = turned(0).chain(turned(width)).chain(2 * width..3 * width).collect();
        let qkv =
            self.linear_rows(x, &format!("{prefix}.attention.wqkv.weight"), [3 * width, width], rows)?;
        let parts = self.split(&qkv, 3, 2);
        let [h, d] = block.head_shape();
        let q = self.reshape(&parts[0], &[0, 0, h, d]);
        let k = self.reshape(&parts[1], &[0, 0, h, d]);
        let v = self.reshape(&parts[2], &[0, 0, h, d]);
        let (q, k) = (self.unround(&q), self.unround(&k));
        let q = self.rotate(&q, &causal.rotation);
        let k = self.rotate(&k, &causal.rotation);
        let (q, k) = (self.queries(&q, head_dim), self.round(&k));
        let q = self.transpose(&q, &[0, 2, 1, 3]);
        let (keys, values) = match &causal.past {
            Past::None => (self.transpose(&k, &[0, 2, 3, 1]), self.transpose(&v, &[0, 2, 1, 3])),
            Past::Cache { time, new, rows, batch, select } => {
                let mut all = Vec::with_capacity(2);
                let keys = (CachePart::PastKey, CachePart::NewKey, k);
                let values = (CachePart::PastValue, CachePart::NewValue, v);
                for (past, new_slots, value) in [keys, values] {
                    let fixed = [Dim::Fixed(heads), Dim::Fixed(head_dim)];
                    let dims = |time: &Dim, rows: &Dim| {
                        [time, rows].into_iter().cloned().chain(fixed.clone()).collect::<Vec<_>>()
                    };
                    let mut old = self.input(&past.port(index), self.dtype(), dims(time, rows));
                    if let Some(select) = select {
                        old = self.gather(&old, select, 1);
                    }
                    let fresh = self.transpose(&value, &[1, 0, 2, 3]);
                    all.push(self.concat(&[&old, &fresh], 0));
                    self.output(&new_slots.port(index), self.dtype(), dims(new, batch), &fresh);
                }
                (self.transpose(&all[0], &[1, 2, 3, 0]), self.transpose(&all[1], &[1, 2, 0, 3]))
            }
        };
        let out = self.attend(&q, &keys, &values, causal.mask, head_dim);
        let out = self.transpose(&out, &[0, 2, 1, 3]);
        let out = self.reshape(&out, &[0, 0, width as i64]);
        self.linear(&out, &format!("{prefix}.attention.wo.weight"), width, width)
    }

    /// One block: h += wo·Attn(RMSNorm(h)); h += w2·(silu(w1·n) ⊙ w3·n). `prefix` is e.g. `layers.3`, `index`
    /// numbers the layer's cache.
    pub(crate) fn block(
        &mut self,
        x: &ValueName,
        prefix: &str,
        index: usize,
        causal: &Causal<'_>,
    ) -> Result<ValueName, ExportError> {
        let BlockSizes { width, ffn, .. } = causal.block;
        self.scoped(prefix, |g| {
            let h = g.scoped("attention", |g| {
                let n = g.rms_norm(x, 3, &format!("{prefix}.attention_norm.weight"), width)?;
                let attention = g.self_attention(&n, prefix, index, causal)?;
                Ok(g.add_product(x, &attention))
            })?;
            g.scoped("feed_forward", |g| {
                let n = g.rms_norm(&h, 3, &format!("{prefix}.ffn_norm.weight"), width)?;
                let gate = g.linear(&n, &format!("{prefix}.feed_forward.w1.weight"), ffn, width)?;
                let up = g.linear(&n, &format!("{prefix}.feed_forward.w3.weight"), ffn, width)?;
                let hidden = g.gated(&gate, &up);
                let down = g.linear(&hidden, &format!("{prefix}.feed_forward.w2.weight"), width, ffn)?;
                Ok(g.add_product(&h, &down))
            })
        })
    }

    /// silu(gate) · up of two results of products, as an operand. An autocast graph computes both factors in float32 and
    /// rounds each result once.
    fn gated(&mut self, gate: &ValueName, up: &ValueName) -> ValueName {
        if !self.is_autocast() {
            let gate = self.silu(gate);
            return self.mul(&gate, up);
        }
        let gate = self.unround(gate);
        let gate = self.silu(&gate);
        let gate = self.round(&gate);
        let (gate, up) = (self.unround(&gate), self.unround(up));
        let hidden = self.mul(&gate, &up);
        self.round(&hidden)
    }

    /// x · sigmoid(x).
    pub(crate) fn silu(&mut self, x: &ValueName) -> ValueName {
        let s = self.op("Sigmoid", &[x], vec![]);
        self.mul(x, &s)
    }

    /// `norm`, then the first `vocab` rows of `output`: float32 logits `[batch, tokens, vocab]`.
    pub(crate) fn head(
        &mut self,
        h: &ValueName,
        width: usize,
        token_rows: usize,
        vocab: usize,
    ) -> Result<ValueName, ExportError> {
        self.scoped("head", |g| {
            let n = g.rms_norm(h, 3, "norm.weight", width)?;
            let logits = g.linear_rows(&n, "output.weight", [token_rows, width], (0..vocab).collect())?;
            Ok(g.unround(&logits))
        })
    }

    /// Nearest-neighbour enlargement by 2 of `[batch, c, h, w]`.
    pub(crate) fn upsample(&mut self, x: &ValueName) -> ValueName {
        // The region of interest is an absent input: an empty name.
        let scales = self.float_table("const/scales", &[4], |_| Ok(Cow::Owned(vec![1.0, 1.0, 2.0, 2.0])));
        let Ok(scales) = scales else { unreachable!("a four-element constant is inline") };
        self.op(
            "Resize",
            &[x, &String::new(), &scales],
            vec![
                text("coordinate_transformation_mode", "asymmetric"),
                text("mode", "nearest"),
                text("nearest_mode", "floor"),
            ],
        )
    }
}
