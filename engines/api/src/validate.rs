//! Checks of inputs and outputs against a graph's ports, the same for every engine.

use std::collections::BTreeMap;

use dpar_export_spec::text::{list, names};
use dpar_export_spec::{DType, Dim, GraphSpec, Port};

use crate::{EngineError, EngineErrorKind, Tensor, TensorView};

/// The engine name in errors that the contract itself raises.
const CONTRACT: &str = "engine contract";

/// An error that the contract itself raises.
pub(crate) fn bad(spec: &GraphSpec, kind: EngineErrorKind, message: String) -> EngineError {
    EngineError::new(kind, CONTRACT, message).in_graph(&spec.name)
}

/// Solves the named axes from shapes: single names first, then the sums are checked.
///
/// # Errors
/// When a rank, a fixed size or a named axis is contradicted; the message names port, dimension and both sizes.
pub fn bind_axes<'a>(
    spec: &GraphSpec,
    ports: impl Iterator<Item = (&'a Port, &'a [usize])> + Clone,
    kind: EngineErrorKind,
    mut axes: BTreeMap<String, usize>,
) -> Result<BTreeMap<String, usize>, EngineError> {
    for (port, shape) in ports.clone() {
        if port.dims.len() != shape.len() {
            let want: Vec<String> = port.dims.iter().map(ToString::to_string).collect();
            return Err(bad(
                spec,
                kind,
                format!("`{}` has shape {shape:?} but the port is [{}]", port.name, list(want)),
            ));
        }
        for (i, (dim, &size)) in port.dims.iter().zip(shape).enumerate() {
            let expected = match dim {
                Dim::Fixed(n) => *n,
                Dim::Axis(name) => *axes.entry(name.clone()).or_insert(size),
                Dim::Sum(..) => continue,
            };
            if expected != size {
                return Err(bad(
                    spec,
                    kind,
                    format!("dimension {i} of `{}` ({dim}) is {size}, expected {expected}", port.name),
                ));
            }
        }
    }
    for (port, shape) in ports {
        for (i, (dim, &size)) in port.dims.iter().zip(shape).enumerate() {
            let Dim::Sum(a, b) = dim else { continue };
            let sum: Option<usize> = [a, b].into_iter().map(|n| axes.get(n).copied()).sum();
            if let Some(sum) = sum.filter(|s| *s != size) {
                return Err(bad(
                    spec,
                    kind,
                    format!("dimension {i} of `{}` ({dim}) is {size}, expected {sum}", port.name),
                ));
            }
        }
    }
    Ok(axes)
}

/// Checks inputs against the ports and axis ranges; returns the size of every named axis.
///
/// # Errors
/// [`EngineErrorKind::Input`] naming the port.
pub(crate) fn check_inputs(
    spec: &GraphSpec,
    inputs: &[(&str, TensorView<'_>)],
) -> Result<BTreeMap<String, usize>, EngineError> {
    let described: Vec<_> = inputs.iter().map(|(name, view)| (*name, view.dtype(), view.shape())).collect();
    check_input_shapes(spec, &described, &[])
}

/// The same for inputs that are known by name, type and shape only: their elements may lie anywhere. Those in `made`
/// need not be there: they are made from the axes that the others bind.
///
/// # Errors
/// [`EngineErrorKind::Input`] naming the port.
pub(crate) fn check_input_shapes(
    spec: &GraphSpec,
    inputs: &[(&str, DType, &[usize])],
    made: &[&str],
) -> Result<BTreeMap<String, usize>, EngineError> {
    let kind = EngineErrorKind::Input;
    for (i, (name, dtype, _)) in inputs.iter().enumerate() {
        let Some(port) = spec.input(name) else {
            let known: Vec<&str> = spec.inputs.iter().map(|p| p.name.as_str()).collect();
            return Err(bad(spec, kind, format!("no input `{name}`; it has {}", names(known))));
        };
        if inputs[..i].iter().any(|(n, ..)| n == name) {
            return Err(bad(spec, kind, format!("input `{name}` is given twice")));
        }
        if port.dtype != *dtype {
            return Err(bad(spec, kind, format!("input `{name}` is {dtype}, expected {}", port.dtype)));
        }
    }
    let absent = |p: &&Port| inputs.iter().all(|(n, ..)| *n != p.name) && !made.contains(&p.name.as_str());
    if let Some(port) = spec.inputs.iter().find(absent) {
        return Err(bad(spec, kind, format!("input `{}` is missing", port.name)));
    }
    let pairs = inputs.iter().filter_map(|(n, _, shape)| spec.input(n).map(|p| (p, *shape)));
    let axes = bind_axes(spec, pairs, kind, BTreeMap::new())?;
    for range in &spec.axes {
        if let Some(&size) = axes.get(&range.name)
            && !(range.min..=range.max).contains(&size)
        {
            return Err(bad(
                spec,
                kind,
                format!("axis `{}` is {size}, its range is {} to {}", range.name, range.min, range.max),
            ));
        }
    }
    Ok(axes)
}

/// Checks outputs against the ports, given the axes that the inputs bound.
///
/// # Errors
/// [`EngineErrorKind::Output`] naming the port.
pub fn check_outputs(
    spec: &GraphSpec,
    axes: &BTreeMap<String, usize>,
    outputs: &[Tensor],
) -> Result<(), EngineError> {
    let kind = EngineErrorKind::Output;
    if outputs.len() != spec.outputs.len() {
        return Err(bad(
            spec,
            kind,
            format!("{} outputs came back, expected {}", outputs.len(), spec.outputs.len()),
        ));
    }
    for (port, tensor) in spec.outputs.iter().zip(outputs) {
        if port.dtype != tensor.dtype() {
            return Err(bad(
                spec,
                kind,
                format!("output `{}` is {}, expected {}", port.name, tensor.dtype(), port.dtype),
            ));
        }
    }
    let pairs = spec.outputs.iter().zip(outputs).map(|(p, t)| (p, t.shape()));
    bind_axes(spec, pairs, kind, axes.clone()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_export_spec::AxisRange;

    fn spec() -> GraphSpec {
        GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![
                Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::axis("tokens"), Dim::Fixed(2)]),
                Port::new("past", DType::F32, vec![Dim::axis("past_tokens"), Dim::axis("batch")]),
                Port::new("mask", DType::F32, vec![Dim::axis("batch"), Dim::sum("past_tokens", "tokens")]),
            ],
            outputs: vec![Port::new("y", DType::I64, vec![Dim::axis("batch")])],
            axes: vec![AxisRange { name: "batch".into(), min: 1, opt: 1, max: 2 }],
        }
    }

    fn check(batch: usize, mask: usize) -> Result<BTreeMap<String, usize>, EngineError> {
        let data = vec![0.0; 64];
        let x = TensorView::f32([batch, 1, 2], &data[..batch * 2]);
        let past = TensorView::f32([3, batch], &data[..3 * batch]);
        let m = TensorView::f32([batch, mask], &data[..batch * mask]);
        check_inputs(&spec(), &[("x", x), ("past", past), ("mask", m)])
    }

    #[test]
    fn axes_are_solved_and_sums_checked() {
        assert_eq!(check(2, 4).unwrap()["past_tokens"], 3);
        let e = check(2, 5).unwrap_err();
        assert!(e.message.contains("past_tokens + tokens) is 5, expected 4"), "{e}");
        let e = check(3, 4).unwrap_err();
        assert!(e.message.contains("axis `batch` is 3, its range is 1 to 2"), "{e}");
    }

    #[test]
    fn wrong_names_dtypes_and_outputs_are_named() {
        let ints = [0_i64; 2];
        let e = check_inputs(&spec(), &[("x", TensorView::i64([1, 1, 2], &ints))]).unwrap_err();
        assert!(e.message.contains("`x` is i64, expected f32"), "{e}");
        let e = check_inputs(&spec(), &[("z", TensorView::i64([2], &ints))]).unwrap_err();
        assert!(e.message.contains("no input `z`; it has mask, past, x"), "{e}");
        let e = check_inputs(&spec(), &[]).unwrap_err();
        assert!(e.message.contains("`x` is missing"), "{e}");
        let axes = BTreeMap::from([("batch".to_owned(), 2)]);
        let e = check_outputs(&spec(), &axes, &[Tensor::i64([1], vec![0])]).unwrap_err();
        assert!(e.message.contains("`y` (batch) is 1, expected 2"), "{e}");
    }
}
