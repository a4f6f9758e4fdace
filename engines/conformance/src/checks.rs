//! Checks of what a graph computes.

use dpar_engine_api::{Engine, EngineError, MASKED, Session, Tensor};
use dpar_export_spec::GraphSpec;

use crate::close::{EXACT, Tolerance};
use crate::inputs::{self, AxisSizes, BATCH, Inputs, Random};
use crate::{CheckFailure, CheckResult, ConformanceCheck, GraphCase};

pub(crate) fn text(e: EngineError) -> CheckFailure {
    CheckFailure::from(match &e.hint {
        Some(hint) => format!("{e} ({:?}; {hint})", e.kind),
        None => format!("{e} ({:?})", e.kind),
    })
}

pub(crate) fn probe(engine: &dyn Engine) -> CheckResult {
    let info = engine.probe().map_err(text)?;
    for (field, value) in [("version", &info.version), ("device", &info.device), ("provider", &info.provider)]
    {
        if value.is_empty() {
            return Err(format!("the {field} is empty").into());
        }
    }
    if info.engine != engine.name() {
        return Err(format!("it calls itself `{}` and `{}`", engine.name(), info.engine).into());
    }
    Ok(None)
}

/// Prepares a graph and runs it; gives the session where there is one.
pub(crate) fn all(
    engine: &dyn Engine,
    case: &GraphCase,
    note: &mut dyn FnMut(ConformanceCheck, CheckResult),
) -> Option<Box<dyn Session>> {
    let prepared = engine.prepare(case.file()).map_err(text);
    let mut session = prepared.map_err(|why| note(ConformanceCheck::Prepare, Err(why))).ok()?;
    let same = session.spec() == &case.spec;
    note(ConformanceCheck::Prepare, if same { Ok(None) } else { Err("the session has another spec".into()) });
    for (check, found) in without_reference(session.as_mut(), case) {
        note(check, found);
    }
    note(ConformanceCheck::Reference, reference(session.as_mut(), case));
    Some(session)
}

/// What can be asked of any prepared graph.
pub(crate) fn without_reference(
    session: &mut dyn Session,
    case: &GraphCase,
) -> Vec<(ConformanceCheck, CheckResult)> {
    type Body = fn(&mut dyn Session, &GraphCase) -> CheckResult;
    let table: [(ConformanceCheck, Body); 6] = [
        (ConformanceCheck::Shapes, shapes),
        (ConformanceCheck::Repeat, repeat),
        (ConformanceCheck::IdenticalRows, |session, case| identical_rows(session, case, true)),
        (ConformanceCheck::EquivalentRows, |session, case| identical_rows(session, case, false)),
        (ConformanceCheck::BatchOne, batch_one),
        (ConformanceCheck::MaskedPast, masked_past),
    ];
    table.map(|(check, body)| (check, body(session, case))).into()
}

/// One run through the contract, which checks names, dtypes and shapes.
pub(crate) fn run(session: &mut dyn Session, inputs: &Inputs) -> Result<Vec<Tensor>, CheckFailure> {
    session.run(&inputs.views()).map_err(text)
}

pub(crate) fn compare(
    spec: &GraphSpec,
    tolerance: Tolerance,
    actual: &[Tensor],
    expected: &[Tensor],
) -> Result<(), CheckFailure> {
    if actual.len() != expected.len() {
        return Err(format!("{} outputs, expected {}", actual.len(), expected.len()).into());
    }
    let mut pairs = spec.outputs.iter().zip(actual.iter().zip(expected));
    pairs.try_for_each(|(port, (a, b))| tolerance.check(&port.name, a, b))
}

fn at<T>(shape: &str, result: Result<T, CheckFailure>) -> Result<T, CheckFailure> {
    result.map_err(|e| format!("at {shape}: {e}").into())
}

fn shapes(session: &mut dyn Session, case: &GraphCase) -> CheckResult {
    for (name, sizes) in case.shapes() {
        let outputs = at(name, run(session, &inputs::generate(case, &sizes, 1)?))?;
        for (port, tensor) in case.spec.outputs.iter().zip(&outputs) {
            let shape = inputs::shape(port, &sizes)?;
            if tensor.shape() != shape || tensor.dtype() != port.dtype {
                let found = format!("{}{:?}", tensor.dtype(), tensor.shape());
                return Err(format!(
                    "at {name}: `{}` is {found}, expected {}{shape:?}",
                    port.name, port.dtype
                )
                .into());
            }
            if tensor.to_f32().is_some_and(|v| v.iter().any(|v| !v.is_finite())) {
                return Err(format!("at {name}: `{}` is not finite", port.name).into());
            }
        }
    }
    Ok(None)
}

fn repeat(session: &mut dyn Session, case: &GraphCase) -> CheckResult {
    let runs: Vec<(&str, Inputs)> = case
        .shapes()
        .iter()
        .map(|(name, sizes)| inputs::generate(case, sizes, 2).map(|i| (*name, i)))
        .collect::<Result<_, _>>()?;
    let first: Vec<Vec<Tensor>> =
        runs.iter().map(|(name, inputs)| at(name, run(session, inputs))).collect::<Result<_, _>>()?;
    // Backwards, so that each shape comes after another one than before.
    for ((name, inputs), first) in runs.iter().zip(&first).rev() {
        let again = at(name, run(session, inputs))?;
        at(name, compare(&case.spec, EXACT, &again, first))?;
    }
    Ok(None)
}

/// Sizes with at least two rows, at every shape; `None` if the graph has no rows that stand alone.
fn with_rows(case: &GraphCase) -> Option<Vec<(&'static str, AxisSizes)>> {
    let axis = case.spec.axis(BATCH).filter(|a| a.max >= 2 && !case.coupled_rows)?;
    let rows = |n: usize| n.clamp(2, axis.max.min(case.cap_of(axis).max(2)));
    let mut shapes = case.shapes();
    for (_, sizes) in &mut shapes {
        if let Some(n) = sizes.get_mut(BATCH) {
            *n = rows(*n);
        }
    }
    Some(shapes)
}

const NO_ROWS: &str = "no batch axis of 2 or more independent rows";

fn pick(case: &GraphCase, inputs: &Inputs, rows: &[usize]) -> Inputs {
    let tensors: Vec<Tensor> = inputs.0.iter().map(|(_, t)| t.clone()).collect();
    let picked = inputs::batch_rows(&case.spec.inputs, &tensors, rows);
    Inputs(inputs.0.iter().map(|(name, _)| name.clone()).zip(picked).collect())
}

fn identical_rows(session: &mut dyn Session, case: &GraphCase, exact: bool) -> CheckResult {
    let Some(shapes) = with_rows(case) else { return Ok(Some(NO_ROWS)) };
    for (name, sizes) in shapes {
        let n = sizes[BATCH];
        let inputs = pick(case, &inputs::generate(case, &sizes, 3)?, &vec![0; n]);
        let outputs = at(name, run(session, &inputs))?;
        let first = inputs::batch_rows(&case.spec.outputs, &outputs, &[0]);
        let tolerance = if exact { EXACT } else { case.batch_tolerance(&first) };
        for row in 1..n {
            let this = inputs::batch_rows(&case.spec.outputs, &outputs, &[row]);
            compare(&case.spec, tolerance, &this, &first)
                .map_err(|e| format!("at {name}: row {row} against row 0: {e}"))?;
        }
    }
    Ok(None)
}

fn batch_one(session: &mut dyn Session, case: &GraphCase) -> CheckResult {
    let Some(shapes) = with_rows(case) else { return Ok(Some(NO_ROWS)) };
    if case.spec.axis(BATCH).is_some_and(|a| a.min > 1) {
        return Ok(Some("no batch of 1"));
    }
    for (name, sizes) in shapes {
        let inputs = inputs::generate(case, &sizes, 4)?;
        let together = at(name, run(session, &inputs))?;
        for row in 0..sizes[BATCH] {
            let alone = at(name, run(session, &pick(case, &inputs, &[row])))?;
            let expected = inputs::batch_rows(&case.spec.outputs, &together, &[row]);
            compare(&case.spec, case.batch_tolerance(&expected), &alone, &expected)
                .map_err(|e| format!("at {name}: row {row} alone: {e}"))?;
        }
    }
    Ok(None)
}

fn masked_past(session: &mut dyn Session, case: &GraphCase) -> CheckResult {
    let Some((mask, past)) = inputs::past_of(&case.spec) else { return Ok(Some("no mask over a past axis")) };
    let mut sizes = with_rows(case).unwrap_or_else(|| case.shapes()).swap_remove(1).1;
    let Some(range) = case.spec.axis(past).filter(|a| a.max >= 2) else {
        return Ok(Some("no past of 2 or more"));
    };
    let steps = sizes.get(past).copied().unwrap_or_default().clamp(2, range.max);
    sizes.insert(past.to_owned(), steps);
    // Another pattern in each row, where a row has a past of its own; step 1 of row 0 stays visible, step 0 does not.
    let mut holding =
        case.spec.inputs.iter().filter(|p| !inputs::is_mask(p) && inputs::axis_at(p, past).is_some());
    let own = holding.all(|p| inputs::axis_at(p, BATCH).is_some());
    let hidden = |row: usize, step: usize| (if own { row + step } else { step }).is_multiple_of(2);
    let plain = inputs::generate(case, &sizes, 5)?;
    let masked = edit(case, &plain, |port, row, step, value| {
        let key = port.name == mask.name && step < steps && hidden(row, step);
        if key { MASKED } else { value }
    });
    let mut noise = Random::new(case.seed);
    let mut altered = |visible: bool| {
        edit(case, &masked, |port, row, step, value| {
            let held = !inputs::is_mask(port) && inputs::axis_at(port, past).is_some();
            if held && hidden(row, step) != visible { 10.0 * noise.float() } else { value }
        })
    };
    let expected = run(session, &masked)?;
    let outputs = run(session, &altered(false))?;
    compare(&case.spec, EXACT, &outputs, &expected).map_err(|e| format!("a masked past entry leaks: {e}"))?;
    let outputs = run(session, &altered(true))?;
    if compare(&case.spec, EXACT, &outputs, &expected).is_ok() {
        return Err("visible past entries have no influence either".into());
    }
    Ok(None)
}

/// Maps the float inputs that hold past steps or keys: the row and the step (for a mask: the key) are given.
fn edit(
    case: &GraphCase,
    inputs: &Inputs,
    mut f: impl FnMut(&dpar_export_spec::Port, usize, usize, f32) -> f32,
) -> Inputs {
    let Some((_, past)) = inputs::past_of(&case.spec) else { return inputs.clone() };
    let change = |(port, (name, tensor)): (&dpar_export_spec::Port, &(String, Tensor))| {
        let steps =
            if inputs::is_mask(port) { port.dims.len().checked_sub(1) } else { inputs::axis_at(port, past) };
        let Some(steps) = steps else { return (name.clone(), tensor.clone()) };
        let shape = tensor.shape();
        let index = |flat: usize, axis: usize| flat / inputs::stride(shape, axis) % shape[axis];
        let row = inputs::axis_at(port, BATCH);
        let mapped = inputs::map_f32(tensor, |i, value| {
            f(port, row.map_or(0, |axis| index(i, axis)), index(i, steps), value)
        });
        (name.clone(), mapped)
    };
    Inputs(case.spec.inputs.iter().zip(&inputs.0).map(change).collect())
}

fn reference(session: &mut dyn Session, case: &GraphCase) -> CheckResult {
    if case.references.is_empty() {
        return Ok(Some("no known results"));
    }
    for reference in &case.references {
        let outputs = run(session, &reference.inputs)?;
        compare(&case.spec, case.tolerances.engine, &outputs, &reference.outputs)?;
    }
    Ok(None)
}

pub(crate) fn agreement(engine: &dyn Engine, other: &dyn Engine, case: &GraphCase) -> CheckResult {
    let mut one = engine.prepare(case.file()).map_err(text)?;
    let mut two = other.prepare(case.file()).map_err(text)?;
    for (name, sizes) in case.shapes() {
        let inputs = inputs::generate(case, &sizes, 6)?;
        let (a, b) = (run(one.as_mut(), &inputs)?, run(two.as_mut(), &inputs)?);
        compare(&case.spec, case.tolerances.engine, &a, &b)
            .map_err(|e| format!("at {name}, against {}: {e}", other.name()))?;
    }
    Ok(None)
}
