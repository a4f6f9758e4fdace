//! A cache in host memory over any session: what an engine without memory of its own has.

use dpar_export_spec::GraphSpec;

use crate::validate::bad;
use crate::{
    Append, CacheState, CachedSession, EngineError, EngineErrorKind, Outputs, Session, Tensor, TensorData,
    TensorSlice, TensorView, check_outputs,
};

/// Calls generic code with the elements of a buffer, whatever their type.
macro_rules! with_elements {
    ($data:expr, $elements:ident => $body:expr) => {
        match $data {
            TensorData::F32($elements) => $body,
            TensorData::F16($elements) => $body,
            TensorData::BF16($elements) => $body,
            TensorData::I64($elements) => $body,
        }
    };
}

/// The first elements as a tensor.
fn prefix(data: &TensorData, shape: Vec<usize>) -> TensorView<'_> {
    let len = shape.iter().product();
    let slice = match data {
        TensorData::F32(data) => TensorSlice::F32(&data[..len]),
        TensorData::F16(data) => TensorSlice::F16(&data[..len]),
        TensorData::BF16(data) => TensorSlice::BF16(&data[..len]),
        TensorData::I64(data) => TensorSlice::I64(&data[..len]),
    };
    TensorView::new(shape, slice)
}

/// Takes the new slots of a step into a cache of `rows` rows of `slot` elements.
fn store<T: Copy + Default>(data: &mut Vec<T>, fresh: &[T], rows: usize, slot: usize, append: Append<'_>) {
    match append {
        Append::At(time) => {
            data.truncate(time * rows * slot);
            data.extend_from_slice(fresh);
        }
        Append::Rows { rows: of, times } => {
            let needed = times.iter().map(|t| t + 1).max().unwrap_or(0) * rows * slot;
            if data.len() < needed {
                data.resize(needed, T::default());
            }
            for ((row, time), new) in of.iter().zip(times).zip(fresh.chunks_exact(slot)) {
                let at = (time * rows + row) * slot;
                data[at..at + slot].copy_from_slice(new);
            }
        }
    }
}

/// Moves the first `keep` of `rows` rows of every time together.
fn keep<T: Copy>(data: &mut Vec<T>, rows: usize, keep: usize, slot: usize) {
    let times = data.len() / (rows * slot).max(1);
    for t in 1..times {
        data.copy_within(t * rows * slot..(t * rows + keep) * slot, t * keep * slot);
    }
    data.truncate(times * keep * slot);
}

/// A session with its cache in host memory: new keys and values are appended in place, and the past of a call is a
/// prefix of a buffer, never a copy.
pub struct HostCache {
    session: Box<dyn Session>,
    state: CacheState,
    /// In the order of the state's ports, `[time, rows, heads, head_dim]`, filled up to the length of the cache.
    buffers: Vec<TensorData>,
}

impl HostCache {
    /// An empty cache for a session.
    ///
    /// # Errors
    /// [`EngineErrorKind::Graph`] when the graph's cache ports do not come in matching pairs.
    pub fn new(session: Box<dyn Session>) -> Result<Self, EngineError> {
        let spec = session.spec();
        let state = CacheState::new(spec)?;
        let buffers = state.ports().iter().map(|port| {
            TensorData::zeros(port.past.dtype, 0).ok_or_else(|| {
                let message = format!("`{}` cannot be {}", port.past.name, port.past.dtype);
                bad(spec, EngineErrorKind::Graph, message)
            })
        });
        let buffers = buffers.collect::<Result<_, _>>()?;
        Ok(Self { session, state, buffers })
    }
}

impl CachedSession for HostCache {
    fn spec(&self) -> &GraphSpec {
        self.session.spec()
    }

    fn reset(&mut self, rows: usize) {
        self.state.reset(rows);
        for data in &mut self.buffers {
            with_elements!(data, elements => elements.clear());
        }
    }

    fn keep_rows(&mut self, rows: usize) -> Result<(), EngineError> {
        self.state.check_keep(self.session.spec(), rows)?;
        for (port, data) in self.state.ports().iter().zip(&mut self.buffers) {
            with_elements!(data, elements => keep(elements, self.state.rows(), rows, port.slot_len()));
        }
        self.state.kept(rows);
        Ok(())
    }

    fn step(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        past: usize,
        append: Append<'_>,
    ) -> Result<Outputs, EngineError> {
        let step = self.state.check(self.session.spec(), inputs, past, append)?;
        let rows = self.state.rows();
        let mut all = inputs.to_vec();
        for (port, data) in self.state.ports().iter().zip(&self.buffers) {
            all.push((&port.past.name, prefix(data, port.shape(past, rows))));
        }
        let outputs = self.session.run_unchecked(&all)?;
        let spec = self.session.spec();
        check_outputs(spec, &step.axes, &outputs)?;
        let mut outputs: Vec<Option<Tensor>> = outputs.into_iter().map(Some).collect();
        for (port, data) in self.state.ports().iter().zip(&mut self.buffers) {
            let fresh = outputs[port.fresh].take().map(Tensor::into_data);
            let slot = port.slot_len();
            match (data, fresh) {
                (TensorData::F32(data), Some(TensorData::F32(new))) => store(data, &new, rows, slot, append),
                (TensorData::F16(data), Some(TensorData::F16(new))) => store(data, &new, rows, slot, append),
                (TensorData::BF16(data), Some(TensorData::BF16(new))) => {
                    store(data, &new, rows, slot, append)
                }
                (TensorData::I64(data), Some(TensorData::I64(new))) => store(data, &new, rows, slot, append),
                _ => {
                    let message = format!("no new slots for `{}` came back", port.past.name);
                    return Err(bad(spec, EngineErrorKind::Output, message));
                }
            }
        }
        self.state.appended(&step, append);
        Ok(self.state.outputs(spec, outputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_appended_scattered_and_kept() {
        // Two rows of slots of one element: the digits are time and row.
        let mut data = Vec::new();
        store(&mut data, &[0, 1, 10, 11], 2, 1, Append::At(0));
        store(&mut data, &[20, 21], 2, 1, Append::At(2));
        assert_eq!(data, [0, 1, 10, 11, 20, 21]);
        // Row 1 goes on alone: what row 0 skips is zero.
        store(&mut data, &[31], 2, 1, Append::Rows { rows: &[1], times: &[3] });
        assert_eq!(data[6..], [0, 31]);
        store(&mut data, &[41, 30], 2, 1, Append::Rows { rows: &[1, 0], times: &[4, 3] });
        assert_eq!(data, [0, 1, 10, 11, 20, 21, 30, 31, 0, 41]);
        keep(&mut data, 2, 1, 1);
        assert_eq!(data, [0, 10, 20, 30, 0]);
        store(&mut data, &[99], 1, 1, Append::At(1));
        assert_eq!(data, [0, 99]);
        let mut wide: Vec<i64> = (0..12).collect();
        keep(&mut wide, 3, 2, 2);
        assert_eq!(wide, [0, 1, 2, 3, 6, 7, 8, 9]);
        keep(&mut wide, 2, 0, 2);
        assert!(wide.is_empty());
    }
}
