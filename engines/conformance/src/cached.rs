//! Checks of the cached level: the cache that an engine keeps is the one that a caller would have kept.

use dpar_engine_api::{
    Append, CachePort, CacheState, CachedSession, Engine, EngineErrorKind, Tensor, TensorData,
};
use dpar_export_spec::{Dim, Port};

use crate::checks::{run, text};
use crate::close::{EXACT, Tolerance};
use crate::inputs::{self, Inputs, MASKED, is_mask};
use crate::{Case, Check, Found};

/// Steps of a walk: enough for a cache that was appended to, looked at and appended to again.
const STEPS: usize = 4;
/// Rows of a cache: with three, keeping two moves rows over themselves.
const ROWS: usize = 3;

const NO_CACHE: &str = "no cache";

pub(crate) fn all(engine: &dyn Engine, case: &Case, note: &mut dyn FnMut(Check, Found)) {
    note(Check::CachedSteps, steps(engine, case));
    type Body = fn(&mut dyn CachedSession, &Walk<'_>) -> Found;
    let table: [(Check, Body); 4] = [
        (Check::CachedRows, rows),
        (Check::CachedKeep, keep),
        (Check::CachedReset, reset),
        (Check::CachedRefused, refused),
    ];
    let walk = match Walk::of(case) {
        Ok(Some(walk)) => walk,
        Ok(None) => return table.into_iter().for_each(|(check, _)| note(check, Ok(Some(NO_CACHE)))),
        Err(why) => return note(Check::CachedRows, Err(why)),
    };
    let mut session = match engine.prepare_cached(case.file()).map_err(text) {
        Ok(session) => session,
        Err(why) => return note(Check::CachedRows, Err(why)),
    };
    for (check, body) in table {
        note(check, body(session.as_mut(), &walk));
    }
}

type Named = Vec<(String, Tensor)>;

fn step(
    session: &mut dyn CachedSession,
    inputs: &Inputs,
    past: usize,
    append: Append<'_>,
) -> Result<Named, String> {
    session.step(&inputs.views(), past, append).map(dpar_engine_api::Outputs::into_tensors).map_err(text)
}

fn compare(tolerance: Tolerance, actual: &Named, expected: &Named, what: &str) -> Result<(), String> {
    if actual.len() != expected.len() || actual.is_empty() {
        return Err(format!("{what}: {} outputs, expected {}", actual.len(), expected.len()));
    }
    for ((name, a), (_, b)) in actual.iter().zip(expected) {
        tolerance.check(name, a, b).map_err(|e| format!("{what}: {e}"))?;
    }
    Ok(())
}

/// How a graph with a cache is called.
struct Walk<'a> {
    case: &'a Case,
    state: CacheState,
    /// Axes: past slots, rows of the cache, new slots, rows of a call.
    past: &'a str,
    rows: &'a str,
    new: &'a str,
    batch: &'a str,
}

impl<'a> Walk<'a> {
    fn of(case: &'a Case) -> Result<Option<Self>, String> {
        let state = CacheState::new(&case.spec).map_err(text)?;
        let Some(port) = state.ports().first() else { return Ok(None) };
        let (old, fresh) = (case.spec.input(&port.past.name), &case.spec.outputs[port.fresh]);
        let axis = |port: Option<&'a Port>, i: usize| match port.and_then(|p| p.dims.get(i)) {
            Some(Dim::Axis(name)) => Ok(name.as_str()),
            _ => Err("an axis of the cache has no name".to_owned()),
        };
        let (past, rows) = (axis(old, 0)?, axis(old, 1)?);
        let (new, batch) = (axis(Some(fresh), 0)?, axis(Some(fresh), 1)?);
        let range = |axis: &str, smallest: usize, largest: usize| match case.spec.axis(axis) {
            Some(r) if r.min <= smallest && r.max >= largest => Ok(()),
            _ => Err(format!("axis `{axis}` does not take {smallest} to {largest}")),
        };
        range(past, 0, STEPS)?;
        range(new, 1, STEPS)?;
        range(rows, 1, ROWS)?;
        range(batch, 1, ROWS)?;
        Ok(Some(Self { case, state, past, rows, new, batch }))
    }

    /// Whether a call picks its rows from those of the cache; if not, it always has all of them.
    fn picks(&self) -> bool {
        self.rows != self.batch
    }

    /// A cache without slots, as an input.
    fn empty(&self, port: &CachePort) -> Result<Tensor, String> {
        let dtype = port.past.dtype;
        let none = TensorData::zeros(dtype, 0).ok_or_else(|| format!("no empty tensor of {dtype}"))?;
        Ok(Tensor::new(port.shape(0, ROWS), none))
    }

    fn port(&self, name: &str) -> Option<&'a Port> {
        let mut all = self.case.spec.inputs.iter().chain(&self.case.spec.outputs);
        all.find(|p| p.name == name)
    }

    /// The mask of `past + new` keys from its rows, each given as whether (new slot, key) is seen.
    fn mask(
        &self,
        batch: usize,
        new: usize,
        past: usize,
        seen: &dyn Fn(usize, usize, usize) -> bool,
    ) -> Tensor {
        let keys = past + new;
        let lines = (0..batch).flat_map(|row| (0..new).map(move |slot| (row, slot)));
        let values = lines.flat_map(|(row, slot)| (0..keys).map(move |key| (row, slot, key)));
        let values: Vec<f32> = values.map(|(r, s, k)| if seen(r, s, k) { 0.0 } else { MASKED }).collect();
        Tensor::f32([batch, 1, new, keys], values)
    }

    /// Replaces the mask and the picked rows.
    fn with(&self, inputs: &Inputs, mask: &Tensor, picked: &[usize]) -> Inputs {
        let change = |(name, tensor): &(String, Tensor)| {
            let tensor = match self.port(name) {
                Some(port) if is_mask(port) => mask.clone(),
                Some(_) if self.picks() && name == "rows" => {
                    Tensor::i64([picked.len()], picked.iter().map(|r| *r as i64).collect::<Vec<_>>())
                }
                _ => tensor.clone(),
            };
            (name.clone(), tensor)
        };
        Inputs(inputs.0.iter().map(change).collect())
    }

    /// Random inputs of all `batch` rows of a cache that see everything before them; those of the cache are left out.
    fn inputs(&self, batch: usize, new: usize, past: usize, salt: u64) -> Result<Inputs, String> {
        let mut sizes = self.case.sizes(|a| a.opt);
        for (axis, size) in [(self.past, past), (self.rows, batch), (self.new, new), (self.batch, batch)] {
            sizes.insert(axis.to_owned(), size);
        }
        let mut inputs = inputs::generate(self.case, &sizes, salt)?;
        inputs.0.retain(|(name, _)| self.state.ports().iter().all(|p| p.past.name != *name));
        let mask = self.mask(batch, new, past, &|_, slot, key| key <= past + slot);
        Ok(self.with(&inputs, &mask, &(0..batch).collect::<Vec<_>>()))
    }

    /// Picks along an axis of inputs or outputs; what does not have it stays.
    fn pick(&self, tensors: &Named, axis: &str, pick: &[usize]) -> Named {
        let one = |(name, tensor): &(String, Tensor)| {
            let at = self.port(name).and_then(|p| inputs::axis_at(p, axis));
            (name.clone(), at.map_or_else(|| tensor.clone(), |at| inputs::rows(tensor, at, pick)))
        };
        tensors.iter().map(one).collect()
    }

    /// The first `steps` steps of `batch` rows; the inputs of row i do not depend on how many rows there are.
    fn walk(
        &self,
        session: &mut dyn CachedSession,
        batch: usize,
        steps: usize,
    ) -> Result<Vec<Named>, String> {
        session.reset(batch);
        (0..steps).map(|time| step(session, &self.at(batch, time)?, time, Append::At(time))).collect()
    }

    /// Inputs of one new slot at `time`, of the first `batch` of all rows.
    fn at(&self, batch: usize, time: usize) -> Result<Inputs, String> {
        let rows: Vec<usize> = (0..batch).collect();
        let all = self.inputs(ROWS, 1, time, 20 + time as u64)?;
        let mask = self.mask(batch, 1, time, &|_, _, _| true);
        Ok(self.with(&Inputs(self.pick(&all.0, self.batch, &rows)), &mask, &rows))
    }
}

/// One slot a step gives what one run over all slots gives; without a cache, a step gives what a run gives.
fn steps(engine: &dyn Engine, case: &Case) -> Found {
    let mut session = engine.prepare(case.file()).map_err(text)?;
    let mut cached = engine.prepare_cached(case.file()).map_err(text)?;
    let Some(walk) = Walk::of(case)? else {
        let inputs = inputs::generate(case, &case.sizes(|a| a.opt), 8)?;
        let outputs = run(session.as_mut(), &inputs)?;
        let expected = case.spec.outputs.iter().map(|p| p.name.clone()).zip(outputs).collect();
        cached.reset(1);
        compare(EXACT, &step(cached.as_mut(), &inputs, 0, Append::At(0))?, &expected, "a step")?;
        return Ok(None);
    };
    let whole = walk.inputs(ROWS, STEPS, 0, 9)?;
    let mut with_cache = whole.clone();
    for port in walk.state.ports() {
        let empty = walk.empty(port)?;
        with_cache.0.push((port.past.name.clone(), empty));
    }
    let outputs = run(session.as_mut(), &with_cache)?;
    let named = case.spec.outputs.iter().zip(outputs);
    let named: Named =
        named.filter(|(p, _)| !p.role().is_new_slots()).map(|(p, o)| (p.name.clone(), o)).collect();
    cached.reset(ROWS);
    for time in 0..STEPS {
        let mask = walk.mask(ROWS, 1, time, &|_, _, _| true);
        let one = walk.with(&Inputs(walk.pick(&whole.0, walk.new, &[time])), &mask, &[0, 1, 2]);
        let outputs = step(cached.as_mut(), &one, time, Append::At(time))?;
        let expected = walk.pick(&named, walk.new, &[time]);
        compare(case.tolerances.engine, &outputs, &expected, &format!("slot {time}"))?;
    }
    Ok(None)
}

/// One step of some rows, each with its own length.
struct Ragged {
    rows: Vec<usize>,
    times: Vec<usize>,
    inputs: Inputs,
    outputs: Named,
}

/// Rows that grow at their own pace give what each gives alone.
fn rows(session: &mut dyn CachedSession, walk: &Walk<'_>) -> Found {
    let mut lengths = [0; ROWS];
    let mut calls = Vec::new();
    session.reset(ROWS);
    for number in 0..2 * STEPS {
        // In another order than the cache has them where a call can pick; later calls leave one row out.
        let mut rows: Vec<usize> = (0..ROWS).collect();
        if walk.picks() {
            rows.reverse();
            rows.retain(|r| number == 0 || (number + r) % ROWS != 0);
        }
        let times: Vec<usize> = rows.iter().map(|r| lengths[*r]).collect();
        let past = times.iter().copied().max().unwrap_or(0);
        let all = walk.inputs(ROWS, 1, past, 40 + number as u64)?;
        let mask = walk.mask(rows.len(), 1, past, &|i, _, key| key < times[i] || key == past);
        let inputs = walk.with(&Inputs(walk.pick(&all.0, walk.batch, &rows)), &mask, &rows);
        let append = Append::Rows { rows: &rows, times: &times };
        let outputs = step(session, &inputs, past, append).map_err(|e| format!("call {number}: {e}"))?;
        // Row r takes another slot every r + 1 calls, and in between the same one again.
        for row in &rows {
            lengths[*row] += usize::from(number % (row + 1) == 0 && lengths[*row] < STEPS);
        }
        calls.push(Ragged { rows, times, inputs, outputs });
    }
    for row in 0..ROWS {
        session.reset(1);
        for (number, call) in calls.iter().enumerate() {
            let Some(i) = call.rows.iter().position(|r| *r == row) else { continue };
            let time = call.times[i];
            let mask = walk.mask(1, 1, time, &|_, _, _| true);
            let inputs = walk.with(&Inputs(walk.pick(&call.inputs.0, walk.batch, &[i])), &mask, &[0]);
            let alone = step(session, &inputs, time, Append::At(time))?;
            let expected = walk.pick(&call.outputs, walk.batch, &[i]);
            let what = format!("row {row} alone at call {number}");
            compare(walk.case.tolerances.engine, &alone, &expected, &what)?;
        }
    }
    Ok(None)
}

/// Rows that are kept go on as if the others had never been there.
fn keep(session: &mut dyn CachedSession, walk: &Walk<'_>) -> Found {
    for kept in 1..ROWS {
        let expected = walk.walk(session, kept, STEPS)?;
        walk.walk(session, ROWS, STEPS - 1)?;
        session.keep_rows(kept).map_err(text)?;
        let time = STEPS - 1;
        let outputs = step(session, &walk.at(kept, time)?, time, Append::At(time))?;
        compare(walk.case.tolerances.engine, &outputs, &expected[time], &format!("{kept} rows kept"))?;
    }
    Ok(None)
}

/// Nothing of an earlier sequence is left after a reset, whatever its size was.
fn reset(session: &mut dyn CachedSession, walk: &Walk<'_>) -> Found {
    let first = walk.walk(session, 2, STEPS)?;
    walk.walk(session, ROWS, STEPS)?;
    walk.walk(session, 1, 1)?;
    let again = walk.walk(session, 2, STEPS)?;
    for (time, (again, first)) in again.iter().zip(&first).enumerate() {
        compare(EXACT, again, first, &format!("slot {time} after a reset"))?;
    }
    Ok(None)
}

/// What does not fit the cache is an input error and leaves it as it was.
fn refused(session: &mut dyn CachedSession, walk: &Walk<'_>) -> Found {
    let expected = walk.walk(session, ROWS, 3)?;
    walk.walk(session, ROWS, 2)?;
    let (good, longer) = (walk.at(ROWS, 2)?, walk.at(ROWS, 3)?);
    let mut unknown = good.clone();
    unknown.0.push(("no_such_input".to_owned(), Tensor::f32([1], vec![0.0])));
    let mut own_cache = good.clone();
    for port in walk.state.ports().iter().take(1) {
        own_cache.0.push((port.past.name.clone(), walk.empty(port)?));
    }
    let mut missing = good.clone();
    missing.0.pop();
    let fewer = walk.at(1, 2)?;
    let some = |rows, times| Append::Rows { rows, times };
    let tries = [
        ("a past beyond the cache", &longer, 3, Append::At(3)),
        ("a gap", &good, 2, Append::At(3)),
        ("new slots over the past", &good, 2, Append::At(1)),
        ("a row that is not there", &good, 2, some(&[0, 1, ROWS], &[2; ROWS])),
        ("a row given twice", &good, 2, some(&[0, 1, 1], &[2; ROWS])),
        ("a gap in a row", &good, 2, some(&[0, 1, 2], &[2, 2, 3])),
        ("a time too few", &good, 2, some(&[0, 1, 2], &[2, 2])),
        ("fewer rows than the cache", &fewer, 2, Append::At(2)),
        ("an unknown input", &unknown, 2, Append::At(2)),
        ("a cache of the caller's own", &own_cache, 2, Append::At(2)),
        ("a missing input", &missing, 2, Append::At(2)),
    ];
    let verdicts = tries
        .map(|(what, inputs, past, append)| (what, session.step(&inputs.views(), past, append).map(|_| ())));
    let more_rows = ("more rows to keep than there are", session.keep_rows(ROWS + 1));
    for (what, verdict) in verdicts.into_iter().chain([more_rows]) {
        match verdict {
            Err(e) if e.kind == EngineErrorKind::Input => {}
            Err(e) => return Err(format!("{what}: not an input error: {}", text(e))),
            Ok(()) => return Err(format!("{what}: it was accepted")),
        }
    }
    let outputs = step(session, &good, 2, Append::At(2))?;
    compare(EXACT, &outputs, &expected[2], "after refused steps")?;
    Ok(None)
}
