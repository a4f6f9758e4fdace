//! Checks of the cached level: the cache that an engine keeps is the one that a caller would have kept.

use dpar_engine_api::{
    CachePort, CacheState, CachedSession, CallRow, Engine, EngineErrorKind, Tensor, TensorData,
};
use dpar_export_spec::{Dim, Port};

use crate::checks::{run, text};
use crate::close::{EXACT, Tolerance};
use crate::inputs::{self, Inputs};
use crate::{CheckFailure, CheckResult, ConformanceCheck, GraphCase};

/// Steps of a walk: enough for a cache that was appended to, looked at and appended to again.
const STEPS: usize = 4;
/// Rows of a cache: with three, a call can leave one out and have the others in another order.
const ROWS: usize = 3;

const NO_CACHE: &str = "no cache";

pub(crate) fn all(
    engine: &dyn Engine,
    case: &GraphCase,
    note: &mut dyn FnMut(ConformanceCheck, CheckResult),
) {
    note(ConformanceCheck::CachedSteps, steps(engine, case));
    type Body = fn(&mut dyn CachedSession, &Walk<'_>) -> CheckResult;
    let table: [(ConformanceCheck, Body); 4] = [
        (ConformanceCheck::CachedRows, rows),
        (ConformanceCheck::CachedRestart, restart),
        (ConformanceCheck::CachedReset, reset),
        (ConformanceCheck::CachedRefused, refused),
    ];
    let walk = match Walk::of(case) {
        Ok(Some(walk)) => walk,
        Ok(None) => return table.into_iter().for_each(|(check, _)| note(check, Ok(Some(NO_CACHE)))),
        Err(why) => return note(ConformanceCheck::CachedRows, Err(why)),
    };
    let mut session = match engine.prepare_cached(case.file()).map_err(text) {
        Ok(session) => session,
        Err(why) => return note(ConformanceCheck::CachedRows, Err(why)),
    };
    for (check, body) in table {
        note(check, body(session.as_mut(), &walk));
    }
}

type NamedTensors = Vec<(String, Tensor)>;

fn step(
    session: &mut dyn CachedSession,
    inputs: &Inputs,
    rows: &[CallRow],
) -> Result<NamedTensors, CheckFailure> {
    session.step(&inputs.views(), rows).map(dpar_engine_api::Outputs::into_tensors).map_err(text)
}

fn compare(
    tolerance: Tolerance,
    actual: &NamedTensors,
    expected: &NamedTensors,
    what: &str,
) -> Result<(), CheckFailure> {
    if actual.len() != expected.len() || actual.is_empty() {
        return Err(format!("{what}: {} outputs, expected {}", actual.len(), expected.len()).into());
    }
    for ((name, a), (_, b)) in actual.iter().zip(expected) {
        tolerance.check(name, a, b).map_err(|e| format!("{what}: {e}"))?;
    }
    Ok(())
}

/// How a graph with a cache is called.
struct Walk<'a> {
    case: &'a GraphCase,
    state: CacheState,
    /// Axes: past slots, rows of the cache, new slots, rows of a call.
    past: &'a str,
    rows: &'a str,
    new: &'a str,
    batch: &'a str,
}

impl<'a> Walk<'a> {
    fn of(case: &'a GraphCase) -> Result<Option<Self>, CheckFailure> {
        let state = CacheState::new(&case.spec).map_err(text)?;
        let Some(port) = state.ports().first() else { return Ok(None) };
        let (old, fresh) = (case.spec.input(&port.past.name), &case.spec.outputs[port.fresh]);
        let axis = |port: Option<&'a Port>, i: usize| match port.and_then(|p| p.dims.get(i)) {
            Some(Dim::Axis(name)) => Ok(name.as_str()),
            _ => Err(CheckFailure::from("an axis of the cache has no name")),
        };
        let (past, rows) = (axis(old, 0)?, axis(old, 1)?);
        let (new, batch) = (axis(Some(fresh), 0)?, axis(Some(fresh), 1)?);
        let range = |axis: &str, smallest: usize, largest: usize| match case.spec.axis(axis) {
            Some(r) if r.min <= smallest && r.max >= largest => Ok(()),
            _ => Err(CheckFailure::from(format!("axis `{axis}` does not take {smallest} to {largest}"))),
        };
        range(past, 0, STEPS)?;
        range(new, 1, STEPS)?;
        range(rows, 1, ROWS)?;
        range(batch, 1, ROWS)?;
        Ok(Some(Self { case, state, past, rows, new, batch }))
    }

    /// A cache without slots, as an input.
    fn empty(&self, port: &CachePort) -> Result<Tensor, CheckFailure> {
        let dtype = port.past.dtype;
        let none = TensorData::zeros(dtype, 0).ok_or_else(|| format!("no empty tensor of {dtype}"))?;
        Ok(Tensor::new(port.shape(0, ROWS), none))
    }

    fn port(&self, name: &str) -> Option<&'a Port> {
        let mut all = self.case.spec.inputs.iter().chain(&self.case.spec.outputs);
        all.find(|p| p.name == name)
    }

    /// Random inputs of all [`ROWS`] rows, without those that the cache gives.
    fn inputs(&self, new: usize, salt: u64) -> Result<Inputs, CheckFailure> {
        let mut sizes = self.case.sizes(|a| a.opt);
        for (axis, size) in [(self.past, 0), (self.rows, ROWS), (self.new, new), (self.batch, ROWS)] {
            sizes.insert(axis.to_owned(), size);
        }
        let mut inputs = inputs::generate(self.case, &sizes, salt)?;
        inputs.0.retain(|(name, _)| !self.state.gives(name));
        Ok(inputs)
    }

    /// Picks along an axis of inputs or outputs; what does not have it stays.
    fn pick(&self, tensors: &NamedTensors, axis: &str, pick: &[usize]) -> NamedTensors {
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
    ) -> Result<Vec<NamedTensors>, CheckFailure> {
        session.reset(batch);
        let one = |time| {
            step(session, &self.at(&(0..batch).collect::<Vec<_>>(), time)?, &CallRow::all(batch, time))
        };
        (0..steps).map(one).collect()
    }

    /// Inputs of one new slot of these rows at `time`.
    fn at(&self, rows: &[usize], time: usize) -> Result<Inputs, CheckFailure> {
        Ok(Inputs(self.pick(&self.inputs(1, 20 + time as u64)?.0, self.batch, rows)))
    }
}

/// One slot a step gives what one run over all slots gives; without a cache, a step gives what a run gives.
fn steps(engine: &dyn Engine, case: &GraphCase) -> CheckResult {
    let mut session = engine.prepare(case.file()).map_err(text)?;
    let mut cached = engine.prepare_cached(case.file()).map_err(text)?;
    let Some(walk) = Walk::of(case)? else {
        let inputs = inputs::generate(case, &case.sizes(|a| a.opt), 8)?;
        let outputs = run(session.as_mut(), &inputs)?;
        let expected = case.spec.outputs.iter().map(|p| p.name.clone()).zip(outputs).collect();
        cached.reset(1);
        compare(EXACT, &step(cached.as_mut(), &inputs, &[])?, &expected, "a step")?;
        return Ok(None);
    };
    let (mut state, rows) = (walk.state.clone(), CallRow::all(ROWS, 0));
    state.reset(ROWS);
    let whole = walk.inputs(STEPS, 9)?;
    let checked = state.check(&case.spec, &whole.views(), &rows).map_err(text)?;
    let mut with_cache = whole.clone();
    let placement = state.placement(&checked, &rows).into_iter();
    with_cache.0.extend(placement.map(|(name, tensor)| (name.to_owned(), tensor)));
    for port in walk.state.ports() {
        let empty = walk.empty(port)?;
        with_cache.0.push((port.past.name.clone(), empty));
    }
    let outputs = run(session.as_mut(), &with_cache)?;
    let named = case.spec.outputs.iter().zip(outputs);
    let named: NamedTensors =
        named.filter(|(p, _)| !p.role().is_new_slots()).map(|(p, o)| (p.name.clone(), o)).collect();
    cached.reset(ROWS);
    for time in 0..STEPS {
        let one = Inputs(walk.pick(&whole.0, walk.new, &[time]));
        let outputs = step(cached.as_mut(), &one, &CallRow::all(ROWS, time))?;
        let expected = walk.pick(&named, walk.new, &[time]);
        compare(case.tolerances.engine, &outputs, &expected, &format!("slot {time}"))?;
    }
    // And in one step, in another order of rows: each of its slots sees those before it.
    let order: Vec<usize> = (0..ROWS).rev().collect();
    let turned: Vec<CallRow> = order.iter().map(|row| CallRow::new(*row, 0)).collect();
    let outputs = step(cached.as_mut(), &Inputs(walk.pick(&whole.0, walk.batch, &order)), &turned)?;
    compare(case.tolerances.engine, &outputs, &walk.pick(&named, walk.batch, &order), "all slots at once")?;
    Ok(None)
}

/// One step of some rows, each with its own length.
struct Ragged {
    rows: Vec<CallRow>,
    inputs: Inputs,
    outputs: NamedTensors,
}

/// Rows that grow at their own pace give what each gives alone.
fn rows(session: &mut dyn CachedSession, walk: &Walk<'_>) -> CheckResult {
    let mut lengths = [0; ROWS];
    let mut calls = Vec::new();
    session.reset(ROWS);
    for number in 0..2 * STEPS {
        // In another order than the cache has them; later calls leave one row out.
        let rows = (0..ROWS).rev().filter(|r| number == 0 || (number + r) % ROWS != 0);
        // Now and then a row sees only its last slots.
        let from = |past: usize| if number % 3 == 2 { past / 2 } else { 0 };
        let rows: Vec<CallRow> =
            rows.map(|row| CallRow { row, past: lengths[row], from: from(lengths[row]) }).collect();
        let picked: Vec<usize> = rows.iter().map(|r| r.row).collect();
        let all = walk.inputs(1, 40 + number as u64)?;
        let inputs = Inputs(walk.pick(&all.0, walk.batch, &picked));
        let outputs = step(session, &inputs, &rows).map_err(|e| format!("call {number}: {e}"))?;
        // Row r takes another slot every r + 1 calls, and in between the same one again.
        for row in picked {
            lengths[row] += usize::from(number % (row + 1) == 0 && lengths[row] < STEPS);
        }
        calls.push(Ragged { rows, inputs, outputs });
    }
    for row in 0..ROWS {
        session.reset(1);
        for (number, call) in calls.iter().enumerate() {
            let Some(i) = call.rows.iter().position(|r| r.row == row) else { continue };
            let inputs = Inputs(walk.pick(&call.inputs.0, walk.batch, &[i]));
            let alone = step(session, &inputs, &[CallRow { row: 0, ..call.rows[i] }])?;
            let expected = walk.pick(&call.outputs, walk.batch, &[i]);
            let what = format!("row {row} alone at call {number}");
            compare(walk.case.tolerances.engine, &alone, &expected, &what)?;
        }
    }
    Ok(None)
}

/// A row that begins again is as one that never was, while the others go on.
fn restart(session: &mut dyn CachedSession, walk: &Walk<'_>) -> CheckResult {
    let expected = walk.walk(session, ROWS, STEPS)?;
    walk.walk(session, ROWS, STEPS - 1)?;
    for time in 0..STEPS {
        // Row 1 begins again when the others take their last slot.
        let mut rows = vec![(1, time)];
        if time == 0 {
            rows = vec![(0, STEPS - 1), (1, 0), (2, STEPS - 1)];
        }
        let mut inputs = walk.at(&[rows[0].0], rows[0].1)?;
        for (row, time) in &rows[1..] {
            let more = walk.at(&[*row], *time)?;
            for ((name, into), (_, from)) in inputs.0.iter_mut().zip(&more.0) {
                if let Some(axis) = walk.port(name).and_then(|p| inputs::axis_at(p, walk.batch)) {
                    *into = inputs::joined(into, from, axis)?;
                }
            }
        }
        let call: Vec<CallRow> = rows.iter().map(|(row, past)| CallRow::new(*row, *past)).collect();
        let outputs = step(session, &inputs, &call)?;
        for (i, (row, time)) in rows.into_iter().enumerate() {
            let (found, expected) =
                (walk.pick(&outputs, walk.batch, &[i]), walk.pick(&expected[time], walk.batch, &[row]));
            let what = format!("row {row} at slot {time}, where row 1 began again");
            compare(walk.case.tolerances.engine, &found, &expected, &what)?;
        }
    }
    Ok(None)
}

/// Nothing of an earlier sequence is left after a reset, whatever its size was.
fn reset(session: &mut dyn CachedSession, walk: &Walk<'_>) -> CheckResult {
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
fn refused(session: &mut dyn CachedSession, walk: &Walk<'_>) -> CheckResult {
    let expected = walk.walk(session, ROWS, 3)?;
    walk.walk(session, ROWS, 2)?;
    let every: Vec<usize> = (0..ROWS).collect();
    let good = walk.at(&every, 2)?;
    let mut unknown = good.clone();
    unknown.0.push(("no_such_input".to_owned(), Tensor::f32([1], vec![0.0])));
    let mut own_cache = good.clone();
    for port in walk.state.ports().iter().take(1) {
        own_cache.0.push((port.past.name.clone(), walk.empty(port)?));
    }
    let mut missing = good.clone();
    missing.0.pop();
    let fewer = walk.at(&[0], 2)?;
    let row = CallRow::new;
    let from = |from| CallRow { from, ..row(2, 2) };
    let tries = [
        ("a past beyond a row", &good, [row(0, 2), row(1, 2), row(2, 3)]),
        ("a first slot behind the past", &good, [row(0, 2), row(1, 2), from(3)]),
        ("a row that is not there", &good, [row(0, 2), row(1, 2), row(ROWS, 2)]),
        ("a row given twice", &good, [row(0, 2), row(1, 2), row(1, 2)]),
        ("fewer inputs than rows", &fewer, [row(0, 2), row(1, 2), row(2, 2)]),
        ("an unknown input", &unknown, [row(0, 2), row(1, 2), row(2, 2)]),
        ("a cache of the caller's own", &own_cache, [row(0, 2), row(1, 2), row(2, 2)]),
        ("a missing input", &missing, [row(0, 2), row(1, 2), row(2, 2)]),
    ];
    for (what, inputs, rows) in tries {
        match session.step(&inputs.views(), &rows) {
            Err(e) if e.kind == EngineErrorKind::Input => {}
            Err(e) => return Err(format!("{what}: not an input error: {}", text(e)).into()),
            Ok(_) => return Err(format!("{what}: it was accepted").into()),
        }
    }
    let outputs = step(session, &good, &CallRow::all(ROWS, 2))?;
    compare(EXACT, &outputs, &expected[2], "after refused steps")?;
    Ok(None)
}
