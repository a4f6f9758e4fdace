//! A cache in host memory over any session: what an engine without memory of its own has.

use dpar_export_spec::GraphSpec;

use crate::validate::bad;
use crate::{
    CacheForm, CacheState, CachedSession, CallRow, EngineError, EngineErrorKind, Outputs, Session, Tensor,
    TensorData, TensorSlice, TensorView, check_outputs,
};

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

/// Empties rows that begin again. A call may look at slots beyond what a row has, and its mask hides numbers only: infinity and
/// NaN of the image before would stay what they are.
fn forget<T: Copy + Default>(data: &mut [T], rows: &[CallRow], of: usize, slot: usize) {
    for row in rows.iter().filter(|r| r.past == 0) {
        for slots in data.chunks_exact_mut((of * slot).max(1)) {
            slots[row.row * slot..(row.row + 1) * slot].fill(T::default());
        }
    }
}

/// Takes the new slots of a step, `[new, call's rows]`, into a cache of `of` rows of `slot` elements.
fn store<T: Copy + Default>(
    data: &mut Vec<T>,
    fresh: &[T],
    rows: &[CallRow],
    new: usize,
    of: usize,
    slot: usize,
) {
    let needed = rows.iter().map(|r| r.past + new).max().unwrap_or(0) * of * slot;
    if data.len() < needed {
        data.resize(needed, T::default());
    }
    let places = (0..new).flat_map(|k| rows.iter().map(move |r| (r.past + k) * of + r.row));
    for (place, values) in places.zip(fresh.chunks_exact(slot)) {
        data[place * slot..(place + 1) * slot].copy_from_slice(values);
    }
}

/// Brings the rows of a call together: `[past, call's rows]`, zeros where a row has no slot.
fn gather<T: Copy + Default>(
    data: &[T],
    into: &mut Vec<T>,
    rows: &[CallRow],
    past: usize,
    of: usize,
    slot: usize,
) {
    into.clear();
    into.resize(past * rows.len() * slot, T::default());
    let places =
        (0..past).flat_map(|time| rows.iter().map(move |r| (time < r.past).then_some((time, r.row))));
    for (values, place) in into.chunks_exact_mut(slot).zip(places) {
        if let Some((time, row)) = place {
            let at = (time * of + row) * slot;
            values.copy_from_slice(&data[at..at + slot]);
        }
    }
}

/// One tensor of the cache.
struct CacheBuffer {
    /// `[time, rows, heads, head_dim]`, up to the longest row; a shorter one holds zeros or what it dropped, which the mask
    /// hides.
    kept: TensorData,
    /// The past of a call that has some of the rows only.
    gathered: TensorData,
}

/// A session with its cache in host memory. New keys and values are appended in place, and the past of a call that has all
/// rows, or picks them itself, is a prefix of a buffer, never a copy; other calls have their rows gathered.
pub struct HostCache {
    session: Box<dyn Session>,
    state: CacheState,
    /// In the order of the state's ports.
    buffers: Vec<CacheBuffer>,
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
            let empty = || {
                TensorData::zeros(port.past.dtype, 0).ok_or_else(|| {
                    let message = format!("`{}` cannot be {}", port.past.name, port.past.dtype);
                    bad(spec, EngineErrorKind::Graph, message)
                })
            };
            Ok(CacheBuffer { kept: empty()?, gathered: empty()? })
        });
        let buffers = buffers.collect::<Result<_, EngineError>>()?;
        Ok(Self { session, state, buffers })
    }
}

fn bytes<T>(data: &Vec<T>) -> u64 {
    (data.capacity() * size_of::<T>()) as u64
}

/// The memory of a buffer is kept for the next rows, if there are any.
fn empty<T>(data: &mut Vec<T>, rows: usize) {
    data.clear();
    if rows == 0 {
        data.shrink_to_fit();
    }
}

impl CachedSession for HostCache {
    fn spec(&self) -> &GraphSpec {
        self.session.spec()
    }

    fn form(&self) -> Option<CacheForm> {
        self.state.kept(CacheForm::Joined)
    }

    fn cache_bytes(&self) -> u64 {
        let buffers = self.buffers.iter().flat_map(|CacheBuffer { kept, gathered }| [kept, gathered]);
        let each = buffers.map(|tensor| match tensor {
            TensorData::F32(data) => bytes(data),
            TensorData::F16(data) => bytes(data),
            TensorData::BF16(data) => bytes(data),
            TensorData::I64(data) => bytes(data),
        });
        each.sum()
    }

    fn reset(&mut self, rows: usize) {
        self.state.reset(rows);
        let buffers = self.buffers.iter_mut();
        for tensor in buffers.flat_map(|CacheBuffer { kept, gathered }| [kept, gathered]) {
            match tensor {
                TensorData::F32(data) => empty(data, rows),
                TensorData::F16(data) => empty(data, rows),
                TensorData::BF16(data) => empty(data, rows),
                TensorData::I64(data) => empty(data, rows),
            }
        }
    }

    fn step(&mut self, inputs: &[(&str, TensorView<'_>)], rows: &[CallRow]) -> Result<Outputs, EngineError> {
        let step = self.state.check(self.session.spec(), inputs, rows)?;
        let (of, whole) = (self.state.rows(), self.state.whole(rows));
        let placement = self.state.placement(&step, rows);
        let mut all = inputs.to_vec();
        all.extend(placement.iter().map(|(name, tensor)| (*name, tensor.view())));
        for (port, CacheBuffer { kept, gathered }) in self.state.ports().iter().zip(&mut self.buffers) {
            let (past, slot) = (step.past, port.slot_len());
            match kept {
                TensorData::F32(data) => forget(data, rows, of, slot),
                TensorData::F16(data) => forget(data, rows, of, slot),
                TensorData::BF16(data) => forget(data, rows, of, slot),
                TensorData::I64(data) => forget(data, rows, of, slot),
            }
            if !whole {
                match (&*kept, &mut *gathered) {
                    (TensorData::F32(data), TensorData::F32(into)) => {
                        gather(data, into, rows, past, of, slot)
                    }
                    (TensorData::F16(data), TensorData::F16(into)) => {
                        gather(data, into, rows, past, of, slot)
                    }
                    (TensorData::BF16(data), TensorData::BF16(into)) => {
                        gather(data, into, rows, past, of, slot)
                    }
                    (TensorData::I64(data), TensorData::I64(into)) => {
                        gather(data, into, rows, past, of, slot)
                    }
                    _ => unreachable!("both were made with the port's type"),
                }
            }
            let past =
                prefix(if whole { kept } else { gathered }, port.shape(past, self.state.cache_rows(rows)));
            all.push((&port.past.name, past));
        }
        let outputs = self.session.run_unchecked(&all)?;
        let spec = self.session.spec();
        check_outputs(spec, &step.axes, &outputs)?;
        let mut outputs: Vec<Option<Tensor>> = outputs.into_iter().map(Some).collect();
        for (port, CacheBuffer { kept, .. }) in self.state.ports().iter().zip(&mut self.buffers) {
            let fresh = outputs[port.fresh].take().map(Tensor::into_data);
            let (new, slot) = (step.new, port.slot_len());
            match (kept, fresh) {
                (TensorData::F32(data), Some(TensorData::F32(made))) => {
                    store(data, &made, rows, new, of, slot);
                }
                (TensorData::F16(data), Some(TensorData::F16(made))) => {
                    store(data, &made, rows, new, of, slot);
                }
                (TensorData::BF16(data), Some(TensorData::BF16(made))) => {
                    store(data, &made, rows, new, of, slot);
                }
                (TensorData::I64(data), Some(TensorData::I64(made))) => {
                    store(data, &made, rows, new, of, slot);
                }
                _ => {
                    let message = format!("no new slots for `{}` came back", port.past.name);
                    return Err(bad(spec, EngineErrorKind::Output, message));
                }
            }
        }
        self.state.appended(&step, rows);
        Ok(self.state.outputs(spec, outputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_appended_to_each_row_and_gathered() {
        // Two rows of slots of one element: the digits are time and row.
        let row = CallRow::new;
        let mut data = Vec::new();
        store(&mut data, &[0, 1, 10, 11], &CallRow::all(2, 0), 2, 2, 1);
        store(&mut data, &[20, 21], &CallRow::all(2, 2), 1, 2, 1);
        assert_eq!(data, [0, 1, 10, 11, 20, 21]);
        // Row 1 goes on alone: what row 0 does not have is zero.
        store(&mut data, &[31], &[row(1, 3)], 1, 2, 1);
        assert_eq!(data[6..], [0, 31]);
        store(&mut data, &[41, 30, 51, 40], &[row(1, 4), row(0, 3)], 2, 2, 1);
        assert_eq!(data, [0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 0, 51]);
        // Row 0 begins again.
        forget(&mut data, &[row(0, 0), row(1, 5)], 2, 1);
        store(&mut data, &[70], &[row(0, 0)], 1, 2, 1);
        assert_eq!(data[..6], [70, 1, 0, 11, 0, 21]);
        let mut some = vec![9; 3];
        gather(&data, &mut some, &[row(1, 3), row(0, 1)], 3, 2, 1);
        assert_eq!(some, [1, 70, 11, 0, 21, 0]);
        let wide: Vec<i64> = (0..12).collect();
        gather(&wide, &mut some, &[row(2, 2)], 2, 3, 2);
        assert_eq!(some, [4, 5, 10, 11]);
    }
}
