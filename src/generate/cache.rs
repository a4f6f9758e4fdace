//! A prepared graph with its KV cache on the host.

use dpar_engine_api::{EngineError, EngineErrorKind, Session, Tensor, TensorData, TensorView};
use dpar_export_spec::Dim;

/// Keys or values of one layer: `[time, rows, heads, head_dim]`, filled up to the caller's length.
#[derive(Debug, Default)]
struct Buffer {
    data: Vec<f32>,
}

/// One layer's port names and buffers.
#[derive(Debug)]
struct Layer {
    past: [String; 2],
    fresh: [usize; 2],
    buffers: [Buffer; 2],
}

/// A graph with KV cache inputs, and the cache: new keys and values are appended in place, and the past of the
/// next call is a prefix view, never a copy.
pub struct CachedGraph {
    session: Box<dyn Session>,
    layers: Vec<Layer>,
    heads: [usize; 2],
    rows: usize,
}

impl std::fmt::Debug for CachedGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedGraph").field("graph", &self.session.spec().name).finish_non_exhaustive()
    }
}

/// Where new keys and values go.
#[derive(Debug, Clone, Copy)]
pub enum Append<'a> {
    /// All rows of the cache take the new slots at this time.
    At(usize),
    /// The call's rows are these cache rows; row i takes its one new slot at `times[i]`.
    Rows {
        /// Cache row of each row of the call.
        rows: &'a [usize],
        /// Time at which it is appended.
        times: &'a [usize],
    },
}

impl CachedGraph {
    /// Wraps a prepared session.
    ///
    /// # Errors
    /// When the graph's cache ports do not come in matching pairs.
    pub fn new(session: Box<dyn Session>) -> Result<Self, EngineError> {
        let spec = session.spec();
        let mut layers = Vec::new();
        let mut heads = [0, 0];
        while let Some(port) = spec.input(&format!("past_key_{}", layers.len())) {
            let i = layers.len();
            let sizes = match (&port.dims[..], spec.input(&format!("past_value_{i}"))) {
                ([_, _, Dim::Fixed(h), Dim::Fixed(d)], Some(value)) if value.dims == port.dims => [*h, *d],
                _ => [0, 0],
            };
            if sizes.contains(&0) || (i > 0 && sizes != heads) {
                let message =
                    format!("`past_key_{i}` and `past_value_{i}` are no pair [past, batch, heads, head_dim]");
                return Err(
                    EngineError::new(EngineErrorKind::Graph, "decoding loop", message).in_graph(&spec.name)
                );
            }
            heads = sizes;
            let fresh = ["key", "value"].map(|k| spec.output_index(&format!("new_{k}_{i}")));
            let [Some(key), Some(value)] = fresh else {
                let message = format!("`past_key_{i}` has no `new_key_{i}` and `new_value_{i}`");
                return Err(
                    EngineError::new(EngineErrorKind::Graph, "decoding loop", message).in_graph(&spec.name)
                );
            };
            layers.push(Layer {
                past: ["key", "value"].map(|k| format!("past_{k}_{i}")),
                fresh: [key, value],
                buffers: Default::default(),
            });
        }
        Ok(Self { session, layers, heads, rows: 0 })
    }

    /// Empties the cache for `rows` rows.
    pub fn reset(&mut self, rows: usize) {
        self.rows = rows;
        for buffer in self.layers.iter_mut().flat_map(|l| &mut l.buffers) {
            buffer.data.clear();
        }
    }

    /// Keeps the first `rows` rows of the cache.
    pub fn truncate_rows(&mut self, rows: usize) {
        let row = self.heads[0] * self.heads[1];
        let old = self.rows;
        for buffer in self.layers.iter_mut().flat_map(|l| &mut l.buffers) {
            let times = buffer.data.len() / (old * row).max(1);
            for t in 1..times {
                buffer.data.copy_within(t * old * row..(t * old + rows) * row, t * rows * row);
            }
            buffer.data.truncate(times * rows * row);
        }
        self.rows = rows;
    }

    /// Runs the graph on `past` earlier slots and appends the new ones.
    ///
    /// # Errors
    /// The engine's.
    pub fn run(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        past: usize,
        append: Append<'_>,
    ) -> Result<Vec<Tensor>, EngineError> {
        let [h, d] = self.heads;
        let row = h * d;
        let len = past * self.rows * row;
        let mut all = inputs.to_vec();
        for layer in &self.layers {
            for (name, buffer) in layer.past.iter().zip(&layer.buffers) {
                all.push((name, TensorView::f32([past, self.rows, h, d], &buffer.data[..len])));
            }
        }
        let mut outputs = self.session.run(&all)?;
        for layer in &mut self.layers {
            for (index, buffer) in layer.fresh.iter().zip(&mut layer.buffers) {
                let fresh = std::mem::replace(&mut outputs[*index], Tensor::f32([0], Vec::new()));
                let TensorData::F32(fresh) = fresh.into_data() else { continue };
                match append {
                    Append::At(time) => {
                        buffer.data.truncate(time * self.rows * row);
                        buffer.data.extend_from_slice(&fresh);
                    }
                    Append::Rows { rows, times } => {
                        let needed = times.iter().map(|t| t + 1).max().unwrap_or(0) * self.rows * row;
                        if buffer.data.len() < needed {
                            buffer.data.resize(needed, 0.0);
                        }
                        for ((r, t), new) in rows.iter().zip(times).zip(fresh.chunks_exact(row)) {
                            let at = (t * self.rows + r) * row;
                            buffer.data[at..at + row].copy_from_slice(new);
                        }
                    }
                }
            }
        }
        Ok(outputs)
    }

    /// Index of a named output.
    ///
    /// # Errors
    /// When the graph has no such output.
    pub fn output(&self, name: &str) -> Result<usize, EngineError> {
        let spec = self.session.spec();
        spec.output_index(name).ok_or_else(|| {
            EngineError::new(EngineErrorKind::Graph, "decoding loop", format!("no output `{name}`"))
                .in_graph(&spec.name)
        })
    }
}

/// The floats of an output.
///
/// # Errors
/// When it is not a float tensor.
pub(crate) fn floats(outputs: &mut [Tensor], index: usize) -> Result<Vec<f32>, EngineError> {
    let tensor = std::mem::replace(&mut outputs[index], Tensor::f32([0], Vec::new()));
    match tensor.into_data() {
        TensorData::F32(v) => Ok(v),
        _ => Err(EngineError::new(EngineErrorKind::Output, "decoding loop", "expected a float output")),
    }
}
