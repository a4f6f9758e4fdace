//! A graph made ready: constants evaluated, every other node a step with the values that it uses last.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use camino::Utf8Path;
use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use dpar_engine_api::{EngineError, GraphFault, GraphFile, panics};

use crate::refusal;
use crate::support;
use crate::weights::MappedWeights;

/// Values by name.
pub(crate) type Values = HashMap<String, Tensor>;

/// A node as a model of its own, and what may be dropped after it.
struct PlanStep {
    model: ModelProto,
    drop: Vec<String>,
}

/// What a session runs.
pub(crate) struct ExecutionPlan {
    constants: Values,
    steps: Vec<PlanStep>,
}

impl ExecutionPlan {
    /// Checks every node, reads the initializers and evaluates what depends on nothing else.
    pub(crate) fn new(graph: GraphFile<'_>, model: ModelProto) -> Result<Self, EngineError> {
        let refuse = |fault: GraphFault| refusal(graph, fault);
        let version = model.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
        support::check_opset(version.map(|o| o.version)).map_err(refuse)?;
        let body = model.graph.unwrap_or_default();
        let mut source = MappedWeights::new(graph.path.parent().unwrap_or(Utf8Path::new("")));
        let mut constants = Values::new();
        for proto in &body.initializer {
            let tensor = source.tensor(proto).map_err(refuse)?;
            constants.insert(proto.name.clone(), tensor);
        }
        let mut known: BTreeMap<&str, Option<DType>> =
            constants.iter().map(|(name, tensor)| (name.as_str(), Some(tensor.dtype()))).collect();
        known.extend(graph.spec.inputs.iter().map(|p| (p.name.as_str(), dtype(p.dtype))));
        for node in &body.node {
            support::check(node).map_err(refuse)?;
            if let Some(missing) =
                node.input.iter().find(|i| !i.is_empty() && !known.contains_key(i.as_str()))
            {
                return Err(refuse(
                    format!("{}: no node, input or initializer makes `{missing}`", support::name(node))
                        .into(),
                ));
            }
            let types: Vec<Option<DType>> =
                node.input.iter().map(|i| known.get(i.as_str()).copied().flatten()).collect();
            let made = support::output_type(node, &types).map_err(refuse)?;
            known.extend(node.output.iter().map(|o| (o.as_str(), made)));
        }
        if let Some(port) = graph.spec.outputs.iter().find(|p| !known.contains_key(p.name.as_str())) {
            return Err(refuse(format!("nothing makes output `{}`", port.name).into()));
        }
        drop(known);
        let outputs: BTreeSet<&str> = graph.spec.outputs.iter().map(|p| p.name.as_str()).collect();
        let mut steps = Vec::new();
        for node in &body.node {
            let model = single(node);
            if node.input.iter().all(|i| i.is_empty() || constants.contains_key(i)) {
                let made = evaluate(&model, &constants).map_err(refuse)?;
                constants.extend(made);
            } else {
                steps.push(PlanStep { model, drop: Vec::new() });
            }
        }
        let mut last: BTreeMap<String, usize> = BTreeMap::new();
        for (i, step) in steps.iter().enumerate() {
            let node = only(&step.model);
            let used = node.iter().flat_map(|n| n.input.iter().chain(&n.output));
            last.extend(used.map(|name| (name.clone(), i)));
        }
        constants.retain(|name, _| last.contains_key(name) || outputs.contains(name.as_str()));
        for (name, i) in last {
            if !constants.contains_key(&name) && !outputs.contains(name.as_str()) {
                steps[i].drop.push(name);
            }
        }
        Ok(Self { constants, steps })
    }

    /// Evaluates the graph; the result holds the outputs, beside the constants.
    ///
    /// # Errors
    /// The node and what candle says.
    pub(crate) fn run(&self, inputs: Values) -> Result<Values, GraphFault> {
        let mut values = self.constants.clone();
        values.extend(inputs);
        for step in &self.steps {
            let made = evaluate(&step.model, &values)?;
            values.extend(made);
            for name in &step.drop {
                values.remove(name);
            }
        }
        Ok(values)
    }
}

/// The type of a port in candle.
fn dtype(port: dpar_export_spec::DType) -> Option<DType> {
    match port {
        dpar_export_spec::DType::F32 => Some(DType::F32),
        dpar_export_spec::DType::F16 => Some(DType::F16),
        dpar_export_spec::DType::BF16 => Some(DType::BF16),
        dpar_export_spec::DType::I64 => Some(DType::I64),
    }
}

/// A model of one node. Graph inputs are not declared: they would be checked again for every node.
fn single(node: &NodeProto) -> ModelProto {
    let named = node.output.iter().filter(|o| !o.is_empty());
    let output = named.map(|o| ValueInfoProto { name: o.clone(), ..ValueInfoProto::default() }).collect();
    let graph = GraphProto { node: vec![node.clone()], output, ..GraphProto::default() };
    ModelProto { graph: Some(graph), ..ModelProto::default() }
}

fn only(model: &ModelProto) -> Option<&NodeProto> {
    model.graph.as_ref().and_then(|g| g.node.first())
}

/// One node on the values that it reads.
fn evaluate(model: &ModelProto, values: &Values) -> Result<Values, GraphFault> {
    let Some(node) = only(model) else { return Ok(Values::new()) };
    let body = || match own(node, values) {
        Some(made) => made.map(|t| Values::from([(node.output[0].clone(), t)])),
        None => {
            let read = node.input.iter().filter_map(|i| values.get(i).map(|t| (i.clone(), t.clone())));
            candle_onnx::simple_eval(model, read.collect())
        }
    };
    let failed = |why: String| GraphFault::from(format!("{}: {why}", support::name(node)));
    match panics::guard(body) {
        Ok(made) => made.map_err(|e| failed(e.to_string())),
        Err(panic) => Err(failed(format!("candle gave up: {panic}"))),
    }
}

/// The operators that candle-onnx evaluates with a detour, or not where an axis is empty (a cache before its first
/// step), an axis is counted from the end, or the type is bfloat16.
fn own(node: &NodeProto, values: &Values) -> Option<candle_core::Result<Tensor>> {
    let value = |i: usize| node.input.get(i).and_then(|name| values.get(name));
    match node.op_type.as_str() {
        "Gather" => Some(gather(value(0)?, value(1)?, support::int(node, "axis", 0))),
        "Concat" => {
            let parts: Vec<&Tensor> = (0..node.input.len()).map(value).collect::<Option<_>>()?;
            Some(concat(&parts, support::int(node, "axis", 0)))
        }
        "ReduceSum" if node.input.len() > 1 => {
            Some(sum(value(0)?, value(1)?, support::int(node, "keepdims", 1) != 0))
        }
        "Cast" => {
            let dtype = support::cast_to(node).unwrap_or(DType::I64);
            Some(value(0)?.to_dtype(dtype))
        }
        _ => None,
    }
}

/// ONNX `Gather` for indices of any rank: rows of `table` along `axis`, negative indices from the end.
fn gather(table: &Tensor, indices: &Tensor, axis: i64) -> candle_core::Result<Tensor> {
    let axis = table.normalize_axis(axis)?;
    let size = table.dim(axis)? as i64;
    let mut flat = indices.flatten_all()?.to_vec1::<i64>()?;
    for index in &mut flat {
        if !(-size..size).contains(index) {
            candle_core::bail!("index {index} is not in an axis of {size}");
        }
        *index = index.rem_euclid(size);
    }
    let dims = table.dims();
    let shape = [&dims[..axis], indices.dims(), &dims[axis + 1..]].concat();
    if shape.contains(&0) {
        return Tensor::zeros(shape, table.dtype(), &Device::Cpu);
    }
    let count = flat.len();
    table.contiguous()?.index_select(&Tensor::from_vec(flat, count, &Device::Cpu)?, axis)?.reshape(shape)
}

/// ONNX `ReduceSum` over `axes`, which may be counted from the end.
fn sum(x: &Tensor, axes: &Tensor, keep: bool) -> candle_core::Result<Tensor> {
    let axes: Vec<i64> = axes.flatten_all()?.to_vec1()?;
    let axes = axes.into_iter().map(|a| x.normalize_axis(a)).collect::<candle_core::Result<Vec<_>>>()?;
    if keep { x.sum_keepdim(axes) } else { x.sum(axes) }
}

/// ONNX `Concat`: parts of size 0 add nothing.
fn concat(parts: &[&Tensor], axis: i64) -> candle_core::Result<Tensor> {
    let Some(first) = parts.first() else { candle_core::bail!("nothing to join") };
    let axis = first.normalize_axis(axis)?;
    let fits = |t: &Tensor| {
        t.rank() == first.rank()
            && t.dims().iter().zip(first.dims()).enumerate().all(|(i, (a, b))| i == axis || a == b)
    };
    if let Some(other) = parts.iter().find(|t| !fits(t)) {
        candle_core::bail!("shapes {:?} and {:?} along axis {axis}", first.dims(), other.dims());
    }
    let full: Vec<&Tensor> = parts.iter().copied().filter(|t| t.elem_count() > 0).collect();
    match full[..] {
        [] => {
            let mut shape = first.dims().to_vec();
            shape[axis] = parts.iter().map(|t| t.dims()[axis]).sum();
            Tensor::zeros(shape, first.dtype(), &Device::Cpu)
        }
        [one] => Ok(one.clone()),
        _ => Tensor::cat(&full, axis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(values: &[i64], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn gather_takes_any_rank_any_axis_and_empty_tables() {
        let table = ints(&[0, 1, 2, 10, 11, 12], &[2, 3]);
        let rows = gather(&table, &ints(&[1, -2, 0, 1], &[2, 2]), 0).unwrap();
        assert_eq!(rows.dims(), [2, 2, 3]);
        let found: Vec<i64> = rows.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found, [10, 11, 12, 0, 1, 2, 0, 1, 2, 10, 11, 12]);
        let columns = gather(&table, &ints(&[2], &[1]), -1).unwrap();
        assert_eq!(columns.to_vec2::<i64>().unwrap(), [[2], [12]]);
        let empty = Tensor::zeros((0, 2, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(gather(&empty, &ints(&[1, 0, 1], &[3]), 1).unwrap().dims(), [0, 3, 3]);
        assert!(gather(&table, &ints(&[2], &[1]), 0).unwrap_err().to_string().contains("index 2"));
    }

    #[test]
    fn sums_count_axes_from_either_end() {
        let x = ints(&[0, 1, 2, 10, 11, 12], &[2, 3]);
        assert_eq!(sum(&x, &ints(&[-1], &[1]), true).unwrap().to_vec2::<i64>().unwrap(), [[3], [33]]);
        assert_eq!(sum(&x, &ints(&[0], &[1]), false).unwrap().to_vec1::<i64>().unwrap(), [10, 12, 14]);
        assert!(sum(&x, &ints(&[2], &[1]), true).is_err());
    }

    #[test]
    fn concat_skips_empty_parts_and_checks_the_others() {
        let empty = Tensor::zeros((0, 2), DType::I64, &Device::Cpu).unwrap();
        let row = ints(&[1, 2], &[1, 2]);
        assert_eq!(concat(&[&empty, &row], 0).unwrap().to_vec2::<i64>().unwrap(), [[1, 2]]);
        assert_eq!(concat(&[&row, &row], -1).unwrap().dims(), [1, 4]);
        assert_eq!(concat(&[&empty, &empty], 1).unwrap().dims(), [0, 4]);
        assert!(concat(&[&row, &ints(&[1], &[1])], 0).is_err());
        assert!(concat(&[&row, &ints(&[1], &[1, 1])], 0).is_err());
    }
}
