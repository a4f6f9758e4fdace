//! What each component consists of: one table of names and shapes per component, and the sizes it depends on.
//!
//! Reading a component takes three steps: sizes are read leniently (a tensor that is not there gives 0), the table made
//! from them is compared with the file's names, then ranks and shapes are checked against the same table.

pub(crate) mod dpar;
pub(crate) mod extractor;
pub(crate) mod gpt;
pub(crate) mod vq;

use crate::weights::Expected;

/// Indexes of this size and more are not layers.
const MAX_LAYERS: usize = 1024;

/// A growing table.
#[derive(Debug, Default)]
pub(crate) struct ExpectedTensors(Vec<Expected>);

impl ExpectedTensors {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(Expected { name: name.into(), shape: shape.to_vec() });
    }

    /// A transformer block: fused qkv, output projection, gated FFN, two norms; no biases.
    fn block(&mut self, prefix: &str, width: usize, ffn: usize) {
        self.add(format!("{prefix}.attention.wqkv.weight"), &[width.saturating_mul(3), width]);
        self.add(format!("{prefix}.attention.wo.weight"), &[width, width]);
        self.add(format!("{prefix}.feed_forward.w1.weight"), &[ffn, width]);
        self.add(format!("{prefix}.feed_forward.w3.weight"), &[ffn, width]);
        self.add(format!("{prefix}.feed_forward.w2.weight"), &[width, ffn]);
        self.add(format!("{prefix}.attention_norm.weight"), &[width]);
        self.add(format!("{prefix}.ffn_norm.weight"), &[width]);
    }
}
