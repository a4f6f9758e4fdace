//! The memory of the caches, and the operator over it.

use std::sync::{Mutex, PoisonError, RwLock};

use dpar_engine_api::CallRow;
use pulp::Arch;

use crate::attend::attend;

/// Runs a function for 0..n, in any order, on the threads that an engine has.
pub type Parallel<'a> = dyn Fn(usize, &(dyn Fn(usize) + Sync)) + 'a;

/// The caches of all layers of a graph. A session notes which rows a call has, the operator of each layer reads and writes
/// them.
#[derive(Debug)]
pub struct Cache {
    layers: usize,
    heads: usize,
    head_dim: usize,
    /// Slots that a row has room for.
    slots: usize,
    call: RwLock<Call>,
    rows: RwLock<Vec<Mutex<RowCache>>>,
    arch: Arch,
}

/// Which rows the operators are about to be run on.
#[derive(Debug, Default)]
struct Call {
    rows: Vec<CallRow>,
    new: usize,
}

/// Keys and values of one row: `[layer][head][slot][head_dim]` each. It has no memory before its first call, and what of that
/// was never written is never touched.
#[derive(Debug, Default)]
struct RowCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    weights: Vec<f32>,
}

/// What new slots of a call are: q, k, v `[batch, new, heads, head_dim]`.
type Fresh<'a> = [&'a [f32]; 3];

impl Cache {
    pub(crate) fn new(layers: usize, heads: usize, head_dim: usize, slots: usize) -> Self {
        let (call, rows) = (RwLock::default(), RwLock::default());
        Self { layers, heads, head_dim, slots, call, rows, arch: Arch::new() }
    }

    /// Takes so many rows. What is in them stays, and is not looked at before it was written again.
    pub(crate) fn reset(&self, rows: usize) {
        let mut held = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        held.resize_with(rows, Mutex::default);
    }

    /// Bytes of keys and values, as far as rows have memory.
    pub(crate) fn bytes(&self) -> u64 {
        let held = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let of_row = |row: &Mutex<RowCache>| {
            let row = row.lock().unwrap_or_else(PoisonError::into_inner);
            ((row.keys.len() + row.values.len()) * size_of::<f32>()) as u64
        };
        held.iter().map(of_row).sum()
    }

    /// Gives the rows of a call memory.
    ///
    /// # Errors
    /// When the machine does not have so much.
    pub(crate) fn reserve(&self, rows: &[CallRow]) -> Result<(), String> {
        let sizes = [self.layers, self.heads, self.slots, self.head_dim];
        let elements = sizes.iter().try_fold(1_usize, |all, n| all.checked_mul(*n));
        let held = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        for row in rows.iter().filter_map(|r| held.get(r.row)) {
            let mut row = row.lock().unwrap_or_else(PoisonError::into_inner);
            if Some(row.keys.len()) == elements {
                continue;
            }
            // Zeroed memory comes from the system page by page, but where there is none the program ends: so it is asked
            // for first, and given back.
            let possible = |n: &usize| Vec::<[f32; 2]>::new().try_reserve_exact(*n).is_ok();
            let Some(elements) = elements.filter(possible) else {
                let [layers, heads, slots, width] = sizes;
                return Err(format!(
                    "there is no memory for {slots} slots of {heads} x {width} numbers in {layers} layers"
                ));
            };
            (row.keys, row.values) = (vec![0.0; elements], vec![0.0; elements]);
        }
        Ok(())
    }

    /// Notes the call that is about to be made.
    ///
    /// # Errors
    /// When a row is not there, or has no room for its new slots.
    pub(crate) fn begin(&self, rows: &[CallRow], new: usize) -> Result<(), String> {
        let held = self.rows.read().unwrap_or_else(PoisonError::into_inner).len();
        if let Some(bad) = rows.iter().find(|r| r.row >= held || r.past + new > self.slots) {
            return Err(format!("row {} has no room for {new} slots after {}", bad.row, bad.past));
        }
        let mut call = self.call.write().unwrap_or_else(PoisonError::into_inner);
        *call = Call { rows: rows.to_vec(), new };
        Ok(())
    }

    /// The operator: takes the new keys and values of a layer, and gives what their queries see. q, k, v and `out` are
    /// `[batch, new, heads, head_dim]` of the rows of the call.
    ///
    /// # Errors
    /// When the sizes are not those of the call, or there is no such layer.
    pub fn attend(
        &self,
        layer: usize,
        fresh: Fresh<'_>,
        out: &mut [f32],
        parallel: &Parallel<'_>,
    ) -> Result<(), String> {
        let call = self.call.read().unwrap_or_else(PoisonError::into_inner);
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let of_row = call.new * self.heads * self.head_dim;
        let expected = call.rows.len() * of_row;
        if layer >= self.layers || fresh.iter().any(|f| f.len() != expected) || out.len() != expected {
            let [q, k, v] = fresh.map(<[f32]>::len);
            return Err(format!(
                "layer {layer} of {}: {q}, {k} and {v} elements in and {} out, where the call has {expected}",
                self.layers,
                out.len()
            ));
        }
        if expected == 0 {
            return Ok(());
        }
        // A row and its part of the output belong to whoever runs that part.
        let parts: Vec<Mutex<&mut [f32]>> = out.chunks_exact_mut(of_row).map(Mutex::new).collect();
        parallel(parts.len(), &|i| {
            let at = i * of_row..(i + 1) * of_row;
            let row = &call.rows[i];
            let mut held = rows[row.row].lock().unwrap_or_else(PoisonError::into_inner);
            let mut out = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            self.attend_row(layer, row, &mut held, fresh.map(|f| &f[at.clone()]), &mut out);
        });
        Ok(())
    }

    fn attend_row(
        &self,
        layer: usize,
        row: &CallRow,
        held: &mut RowCache,
        fresh: Fresh<'_>,
        out: &mut [f32],
    ) {
        let (d, slot) = (self.head_dim, self.heads * self.head_dim);
        let RowCache { keys, values, weights } = held;
        let head_len = self.slots * d;
        let [q, k, v] = fresh;
        for head in 0..self.heads {
            let at = (layer * self.heads + head) * head_len;
            let (keys, values) = (&mut keys[at..at + head_len], &mut values[at..at + head_len]);
            let places = k.chunks_exact(slot).zip(v.chunks_exact(slot)).zip(row.past..);
            for ((k, v), time) in places {
                let (from, to) = (head * d..(head + 1) * d, time * d..(time + 1) * d);
                keys[to.clone()].copy_from_slice(&k[from.clone()]);
                values[to].copy_from_slice(&v[from]);
            }
            for ((q, out), time) in q.chunks_exact(slot).zip(out.chunks_exact_mut(slot)).zip(row.past..) {
                let (of_head, seen) = (head * d..(head + 1) * d, row.from * d..(time + 1) * d);
                let (keys, values) = (&keys[seen.clone()], &values[seen]);
                attend(self.arch, &q[of_head.clone()], keys, values, weights, &mut out[of_head]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On this thread, from the last to the first.
    fn backwards(n: usize, f: &(dyn Fn(usize) + Sync)) {
        (0..n).rev().for_each(f);
    }

    #[test]
    fn each_row_sees_its_own_slots_and_what_it_dropped_is_gone() {
        // One head of one element: with q = 0 all keys weigh the same, so that the output is the mean of the values seen.
        let cache = Cache::new(2, 1, 1, 4);
        cache.reset(2);
        let step = |rows: &[CallRow], new: usize, values: &[f32]| {
            let (zeros, mut out) = (vec![0.0; values.len()], vec![f32::NAN; values.len()]);
            cache.reserve(rows)?;
            cache.begin(rows, new)?;
            cache.attend(1, [&zeros, &zeros, values], &mut out, &backwards)?;
            // Thirds are not exact.
            Ok::<_, String>(out.into_iter().map(|v: f32| (v * 100.0).round() / 100.0).collect::<Vec<_>>())
        };
        let row = CallRow::new;
        assert_eq!(step(&CallRow::all(2, 0), 2, &[1.0, 3.0, 10.0, 30.0]), Ok(vec![1.0, 2.0, 10.0, 20.0]));
        assert_eq!(step(&[row(1, 2), row(0, 1)], 1, &[50.0, 5.0]), Ok(vec![30.0, 3.0]));
        assert_eq!(step(&[CallRow { row: 1, past: 3, from: 2 }], 1, &[70.0]), Ok(vec![60.0]));
        assert_eq!(step(&[row(0, 0)], 1, &[8.0]), Ok(vec![8.0]));
        assert!(step(&[row(1, 4)], 1, &[0.0]).unwrap_err().contains("row 1 has no room for 1 slots after 4"));
        assert!(step(&[row(2, 0)], 1, &[0.0]).is_err());
        assert!(step(&[row(1, 0)], 2, &[0.0]).unwrap_err().contains("where the call has 2"));
        assert!(cache.attend(2, [&[], &[], &[]], &mut [], &backwards).is_err());
    }

    #[test]
    fn memory_that_no_machine_has_is_an_error_and_rows_without_a_call_have_none() {
        for slots in [1 << 48, usize::MAX] {
            let cache = Cache::new(2, 3, 4, slots);
            cache.reset(1);
            let e = cache.reserve(&CallRow::all(1, 0)).unwrap_err();
            assert!(e.contains(&format!("no memory for {slots} slots of 3 x 4 numbers in 2 layers")), "{e}");
        }
        let cache = Cache::new(1, 1, 4, 2);
        cache.reset(3);
        cache.reserve(&[CallRow::new(1, 0)]).unwrap();
        let held = |row: usize| cache.rows.read().unwrap()[row].lock().unwrap().keys.len();
        assert_eq!([0, 1, 2].map(held), [0, 8, 0]);
        assert_eq!(cache.bytes(), 2 * 8 * 4);
    }
}
