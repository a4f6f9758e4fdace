//! A KV cache in device memory.
//!
//! Each tensor of the cache is one buffer, time-major: the slots that a call looks at begin at its first byte, and new
//! slots of all rows are one piece behind them, where TensorRT writes them itself. Only what cannot be written in
//! place goes through a second buffer and is copied on the stream: slots of some rows, and pieces that begin at an
//! address which TensorRT does not take. Nothing passes through the host.

use std::ffi::c_void;
use std::sync::Arc;

use dpar_engine_api::{CacheState, CallRow, CheckedStep, EngineError, EngineErrorKind};
use dpar_export_spec::{Dim, GraphSpec};

use crate::NAME;
use crate::buffers::element_bytes;
use crate::cuda::{CudaDevice, CudaError, CudaStream, DeviceBuffer};
use crate::profile::Profile;

/// TensorRT takes addresses that are a multiple of this (`IExecutionContext::setTensorAddress`).
const ALIGNMENT: usize = 256;

/// One tensor of the cache.
struct Layer {
    /// Bytes of one slot of one row.
    slot: usize,
    /// `[time, rows, heads, head_dim]`.
    kept: Option<DeviceBuffer>,
    /// New slots of a call that are not written in place, `[new, batch, heads, head_dim]`.
    staged: Option<DeviceBuffer>,
}

/// Where a tensor of the cache lies for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheSlice {
    /// First byte of the earlier slots.
    pub(crate) past: *mut c_void,
    /// Where the new ones are to be written.
    pub(crate) fresh: *mut c_void,
}

/// The cache of one graph.
pub(crate) struct DeviceCache {
    device: Arc<CudaDevice>,
    state: CacheState,
    /// In the order of the state's ports.
    layers: Vec<Layer>,
    /// Slots that a call can look at.
    most: usize,
}

impl DeviceCache {
    pub(crate) fn new(
        device: &Arc<CudaDevice>,
        spec: &GraphSpec,
        profiles: &[Profile],
    ) -> Result<Self, EngineError> {
        let state = CacheState::new(spec)?;
        let layers = state.ports().iter().map(|port| {
            let bytes = element_bytes(port.past.dtype).and_then(|n| n.checked_mul(port.slot_len()));
            let slot = bytes.ok_or_else(|| {
                let message = format!("`{}` has a dtype this engine does not know", port.past.name);
                EngineError::new(EngineErrorKind::Graph, NAME, message).in_graph(&spec.name)
            })?;
            Ok(Layer { slot, kept: None, staged: None })
        });
        let layers = layers.collect::<Result<_, EngineError>>()?;
        let axis = match state.ports().first().and_then(|p| p.past.dims.first()) {
            Some(Dim::Axis(axis)) => Some(axis),
            _ => None,
        };
        let ranges = axis.map(|axis| profiles.iter().filter_map(|p| p.axes.get(axis)).map(|r| r.max));
        let own = axis.and_then(|axis| spec.axis(axis)).map_or(0, |r| r.max);
        let most = ranges.and_then(Iterator::max).unwrap_or(own);
        Ok(Self { device: Arc::clone(device), state, layers, most })
    }

    /// Bytes of device memory.
    pub(crate) fn bytes(&self) -> u64 {
        let buffers = self.layers.iter().flat_map(|layer| layer.kept.iter().chain(&layer.staged));
        buffers.map(|buffer| buffer.bytes() as u64).sum()
    }

    pub(crate) fn state(&self) -> &CacheState {
        &self.state
    }

    /// Empties the cache; its memory stays for the next sequence.
    pub(crate) fn reset(&mut self, rows: usize) {
        self.state.reset(rows);
    }

    /// Makes room for a checked step, and says where each tensor lies. Nothing may be running on the stream. Of `rows`, those
    /// in `kept` keep their new slots: `None` = all.
    pub(crate) fn place(
        &mut self,
        stream: &CudaStream,
        step: &CheckedStep,
        rows: &[CallRow],
        kept: Option<&[usize]>,
    ) -> Result<Vec<CacheSlice>, CudaError> {
        // One slot at least: an empty past needs an address as well.
        self.reserve(stream, self.state.length_after(step).max(1))?;
        self.forget(stream, rows, kept)?;
        let time = self.aligned_time(rows, kept);
        let of = self.state.rows();
        let place = |layer: &mut Layer| -> Result<CacheSlice, CudaError> {
            let buffer = layer.kept.as_ref().ok_or("the cache has no memory")?;
            let past = buffer.raw();
            if let Some(at) = layer.in_place(of, time) {
                return Ok(CacheSlice { past, fresh: buffer.raw_at(at) });
            }
            let bytes = step.new * rows.len() * layer.slot;
            if layer.staged.as_ref().is_none_or(|b| b.bytes() < bytes) {
                layer.staged = None;
                layer.staged = Some(DeviceBuffer::new(&self.device, bytes)?);
            }
            let staged = layer.staged.as_ref().ok_or("new slots have no memory")?;
            Ok(CacheSlice { past, fresh: staged.raw() })
        };
        self.layers.iter_mut().map(place).collect()
    }

    /// Empties rows that begin again. Calls look at slots beyond what a row has, and their mask hides numbers only: infinity and NaN of
    /// the image before would stay what they are.
    fn forget(&self, stream: &CudaStream, rows: &[CallRow], kept: Option<&[usize]>) -> Result<(), CudaError> {
        let (of, length) = (self.state.rows(), self.state.length());
        let is_kept = |i: &usize| kept.is_none_or(|kept| kept.contains(i));
        for row in (0..rows.len()).filter(is_kept).map(|i| rows[i]).filter(|row| row.past == 0) {
            for Layer { slot, kept, .. } in &self.layers {
                if let Some(buffer) = kept {
                    stream.zero_each(buffer, row.row * slot, (of * slot, *slot, length))?;
                }
            }
        }
        Ok(())
    }

    /// Puts the copies on the stream that a step needs whose slots were written where [`place`](Self::place) said.
    pub(crate) fn store(
        &mut self,
        stream: &CudaStream,
        step: &CheckedStep,
        rows: &[CallRow],
        kept: Option<&[usize]>,
    ) -> Result<(), CudaError> {
        let (of, length) = (self.state.rows(), self.state.length());
        let time = self.aligned_time(rows, kept);
        let all: Vec<usize> = (0..rows.len()).collect();
        let kept = kept.unwrap_or(&all);
        let grown = kept.iter().map(|i| rows[*i].past + step.new).max().unwrap_or(0);
        for layer in &self.layers {
            let (Some(buffer), slot) = (&layer.kept, layer.slot) else { continue };
            let Some(staged) = layer.staged.as_ref().filter(|_| layer.in_place(of, time).is_none()) else {
                continue;
            };
            if grown > length && time.is_none() {
                // Rows that do not have these slots read zeros: what is masked must still be numbers.
                stream.zero(buffer, length * of * slot, (grown - length) * of * slot)?;
            }
            for piece in pieces(of, rows, kept, step.new) {
                let bytes = piece.slots * slot;
                stream.copy(buffer, piece.to * slot, staged, piece.from * slot, bytes)?;
            }
        }
        let kept: Vec<CallRow> = kept.iter().map(|i| rows[*i]).collect();
        self.state.appended(step, &kept);
        Ok(())
    }

    /// The time at which all rows of the cache, in their order, take new slots: one piece of memory.
    fn aligned_time(&self, rows: &[CallRow], kept: Option<&[usize]>) -> Option<usize> {
        let time = rows.first()?.past;
        let all = rows.len() == self.state.rows() && kept.is_none();
        let aligned = rows.iter().enumerate().all(|(i, r)| r.row == i && r.past == time);
        (all && aligned).then_some(time)
    }

    /// Gives every tensor room for so many slots. Where all of them fit into half of the free device memory, they get
    /// room for all that a call can ever look at, when a sequence begins; else the room doubles.
    fn reserve(&mut self, stream: &CudaStream, slots: usize) -> Result<(), CudaError> {
        let rows = self.state.rows().max(1);
        let held = |layer: &Layer| layer.kept.as_ref().map_or(0, DeviceBuffer::bytes);
        let have = |layer: &Layer| held(layer) / (rows * layer.slot).max(1);
        let least = self.layers.iter().map(have).min().unwrap_or(slots);
        let most = self.most.max(slots);
        let begins = self.state.length() == 0;
        if least >= most || (least >= slots && !begins) {
            return Ok(());
        }
        let size = |slots: usize, layer: &Layer| slots.saturating_mul(rows).saturating_mul(layer.slot);
        let whole = self.layers.iter().fold(0_usize, |sum, l| sum.saturating_add(size(most, l)));
        let all_held: usize = self.layers.iter().map(held).sum();
        let free = self.device.free_memory()?.saturating_add(all_held);
        let room = match whole <= free / 2 {
            true => most,
            false if least >= slots => return Ok(()),
            false => least.saturating_mul(2).clamp(slots, most),
        };
        let filled = self.state.length() * rows;
        for layer in &mut self.layers {
            if have(layer) >= room {
                continue;
            }
            let bytes = size(room, layer);
            if begins {
                // Freed first: the two together may not fit.
                layer.kept = None;
            }
            let fresh = DeviceBuffer::new(&self.device, bytes)?;
            if let Some(old) = &layer.kept {
                stream.copy(&fresh, 0, old, 0, filled * layer.slot)?;
                stream.synchronize()?;
            }
            layer.kept = Some(fresh);
        }
        Ok(())
    }
}

impl Layer {
    /// Where new slots of all `of` rows are written in place: if there is one time for them, and they begin at an address
    /// that TensorRT takes.
    fn in_place(&self, of: usize, time: Option<usize>) -> Option<usize> {
        time.map(|time| time * of * self.slot).filter(|at| at.is_multiple_of(ALIGNMENT))
    }
}

/// Slots that lie together on both sides of a copy.
#[derive(Debug, PartialEq, Eq)]
struct SlotRun {
    /// First slot in the call's order.
    from: usize,
    /// First slot in the cache's order.
    to: usize,
    slots: usize,
}

/// The copies that bring `new` slots of each of the `kept` of a call's rows to their times in a cache of `of` rows.
fn pieces(of: usize, rows: &[CallRow], kept: &[usize], new: usize) -> Vec<SlotRun> {
    let mut pieces: Vec<SlotRun> = Vec::new();
    for (k, i) in (0..new).flat_map(|k| kept.iter().map(move |i| (k, *i))) {
        let (from, to) = (k * rows.len() + i, (rows[i].past + k) * of + rows[i].row);
        match pieces.last_mut() {
            Some(last) if last.to + last.slots == to && last.from + last.slots == from => last.slots += 1,
            _ => pieces.push(SlotRun { from, to, slots: 1 }),
        }
    }
    pieces
}

#[cfg(test)]
mod tests;
