//! What a graph file says of its ports, its weights and of sizes, held against the spec, against what is there and against
//! limits, before an engine sees the file.
//!
//! Engines trust these numbers: a `Transpose` whose `perm` is no permutation, or a `ConstantOfShape` of 2⁴⁰ elements, takes
//! all memory of the machine. What follows from constants is checked here, the same for every engine. What follows from
//! inputs is not: shapes that a graph computes are bounded by its engine alone.

mod data;
mod packed;
mod proto;

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;
use dpar_export_spec::DType;
use prost::Message;
use prost::bytes::Bytes;

use crate::{EngineError, FilePort, GraphFault, GraphFile, check_ports};
use data::DataFault;
use proto::{
    AttributeProto, BFLOAT16, FLOAT, FLOAT16, GraphProto, INT4, INT32, INT64, ModelProto, NodeProto,
    SparseTensorProto, TensorProto, UINT4, ValueInfoProto, is_sized, size_of,
};

/// Bytes of a `.onnx` file: protobuf ends there.
const MOST_BYTES: u64 = 2 << 30;
/// Axes of a tensor; engines have fewer.
const MOST_AXES: i64 = 64;
/// Elements of a tensor whose shape is a constant: 1 GiB of float32. An image of 4096 × 4096 pixels has 2²⁶.
const MOST_ELEMENTS: u64 = 1 << 28;
/// Kernels, strides, pads, dilations, blocks, outputs of a `Split`.
const MOST_STEP: i64 = 1 << 16;
/// Times that a tensor may be repeated or enlarged by constants.
const MOST_TIMES: u64 = 1 << 20;

/// The next step where a graph's weights are not there.
const DATA_HINT: &str =
    "the `.onnx_data` file must lie beside the `.onnx` file, as exported: copy both, or export again";

/// Refuses a graph file whose ports are not those of its spec, whose weights are not there, whose numbers do not fit
/// together, or ask for more than the limits of this module.
///
/// # Errors
/// [`EngineErrorKind::Graph`](crate::EngineErrorKind::Graph) naming the port, the node or the tensor.
pub fn check_graph(engine: &str, graph: GraphFile<'_>) -> Result<(), EngineError> {
    let refuse = |fault: GraphFault| EngineError::refused(engine, graph, fault);
    let model = read(engine, graph)?;
    for function in &model.functions {
        nodes(&function.node, Constants::default()).map_err(refuse)?;
    }
    let Some(found) = &model.graph else {
        return Err(export_again(engine, graph, "the file holds no graph".to_owned()));
    };
    ports(engine, graph, found)?;
    body(found, None).map_err(refuse)?;
    data::check(found, graph.path.parent().unwrap_or(Utf8Path::new(""))).map_err(|fault| match fault {
        DataFault::Place(message) => refuse(message.into()),
        DataFault::Missing(message) => refuse(message.into()).hint(DATA_HINT),
    })
}

/// Bytes of weights that a call of the graph reads whole: its initializers but the tables that rows are picked from.
///
/// # Errors
/// [`EngineErrorKind::Graph`](crate::EngineErrorKind::Graph) when the file cannot be read.
pub fn graph_bytes(graph: GraphFile<'_>) -> Result<u64, EngineError> {
    let model = read("engine contract", graph)?;
    let Some(found) = model.graph else { return Ok(0) };
    let tables: BTreeSet<&str> = found
        .node
        .iter()
        .filter(|n| n.op_type.as_deref() == Some("Gather"))
        .filter_map(|n| n.input.first().map(String::as_str))
        .collect();
    let read = found.initializer.iter().filter(|t| !t.name.as_deref().is_some_and(|n| tables.contains(n)));
    let bytes =
        |t: &TensorProto| elements(&t.dims).ok().and_then(|count| size_of(t.data_type?, count)).unwrap_or(0);
    Ok(read.map(bytes).fold(0, u64::saturating_add))
}

fn export_again(engine: &str, graph: GraphFile<'_>, message: String) -> EngineError {
    EngineError::refused(engine, graph, message).hint("export the graph again")
}

/// The file, its weights left where they are.
fn read(engine: &str, graph: GraphFile<'_>) -> Result<ModelProto, EngineError> {
    let unreadable = |e: String| export_again(engine, graph, format!("not a readable ONNX file: {e}"));
    let metadata = std::fs::metadata(graph.path).map_err(|e| unreadable(e.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is no regular file".to_owned()));
    }
    if metadata.len() > MOST_BYTES {
        return Err(unreadable(format!("{} bytes, at most {MOST_BYTES} are read", metadata.len())));
    }
    let bytes = std::fs::read(graph.path).map_err(|e| unreadable(e.to_string()))?;
    ModelProto::decode(Bytes::from(bytes)).map_err(|e| unreadable(e.to_string()))
}

/// The ports of the file against those of the spec. An input with an initializer is a weight.
fn ports(engine: &str, graph: GraphFile<'_>, found: &GraphProto) -> Result<(), EngineError> {
    let weights: BTreeSet<&str> = found.initializer.iter().filter_map(|w| w.name.as_deref()).collect();
    let own = found.input.iter().map(file_port).filter(|p| !weights.contains(p.name.as_str()));
    let inputs: Vec<FilePort> = own.collect();
    let outputs: Vec<FilePort> = found.output.iter().map(file_port).collect();
    check_ports(engine, graph.spec, &inputs, &outputs)
}

fn file_port(info: &ValueInfoProto) -> FilePort {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    FilePort {
        name: info.name.clone().unwrap_or_default(),
        dtype: tensor.and_then(|t| match t.elem_type? {
            FLOAT => Some(DType::F32),
            FLOAT16 => Some(DType::F16),
            BFLOAT16 => Some(DType::BF16),
            INT64 => Some(DType::I64),
            _ => None,
        }),
        dims: tensor.and_then(|t| t.shape.as_ref()).map(|shape| {
            let size = |n: i64| usize::try_from(n).ok();
            shape.dim.iter().map(|d| d.dim_value.and_then(size)).collect()
        }),
    }
}

/// Calls `visit` with every tensor of a graph, those of nodes and of inner graphs too.
fn tensors_of<E>(graph: &GraphProto, visit: &mut dyn FnMut(&TensorProto) -> Result<(), E>) -> Result<(), E> {
    let sparse = graph.sparse_initializer.iter().flat_map(data::parts);
    graph.initializer.iter().chain(sparse).try_for_each(&mut *visit)?;
    for attribute in graph.node.iter().flat_map(|n| &n.attribute) {
        let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).flat_map(data::parts);
        attribute.t.iter().chain(&attribute.tensors).chain(sparse).try_for_each(&mut *visit)?;
        attribute.g.iter().chain(&attribute.graphs).try_for_each(|g| tensors_of(g, visit))?;
    }
    Ok(())
}

/// Small constants by name, of a graph and of those around it.
#[derive(Default)]
struct Constants<'a> {
    own: BTreeMap<&'a str, Constant>,
    outer: Option<&'a Constants<'a>>,
}

impl Constants<'_> {
    fn get(&self, name: &str) -> Option<&Constant> {
        self.own.get(name).or_else(|| self.outer?.get(name))
    }
}

/// The elements of a constant that can be a shape or a list of axes.
#[derive(Debug, Clone)]
enum Constant {
    Ints(Vec<i64>),
    Floats(Vec<f32>),
}

fn body(graph: &GraphProto, outer: Option<&Constants<'_>>) -> Result<(), GraphFault> {
    let mut constants = Constants { own: BTreeMap::new(), outer };
    for tensor in &graph.initializer {
        let name = tensor.name.as_deref().unwrap_or_default();
        tensor_fits(tensor).map_err(|e| format!("tensor `{name}`: {e}"))?;
        constants.own.extend(constant(tensor).map(|c| (name, c)));
    }
    for tensor in &graph.sparse_initializer {
        sparse_fits(tensor).map_err(|e| format!("a sparse tensor: {e}"))?;
    }
    packed::check(graph)?;
    nodes(&graph.node, constants)
}

fn nodes<'a>(nodes: &'a [NodeProto], mut constants: Constants<'a>) -> Result<(), GraphFault> {
    for node in nodes {
        let op = node.op_type.as_deref().unwrap_or_default();
        let wrong = |e: GraphFault| {
            GraphFault::from(format!("node `{}` ({op}): {e}", node.name.as_deref().unwrap_or_default()))
        };
        for attribute in &node.attribute {
            let tensors = attribute.t.iter().chain(&attribute.tensors);
            tensors.into_iter().try_for_each(tensor_fits).map_err(wrong)?;
            let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
            sparse.into_iter().try_for_each(sparse_fits).map_err(wrong)?;
            attribute.g.iter().chain(&attribute.graphs).try_for_each(|g| body(g, Some(&constants)))?;
        }
        if matches!(node.domain.as_deref(), None | Some("" | "ai.onnx")) {
            Checked { node, constants: &constants }.all(op).map_err(wrong)?;
            let value = node.attribute.iter().find(|a| a.name.as_deref() == Some("value"));
            if let ("Constant", Some(made), Some(value)) =
                (op, node.output.first(), value.and_then(|a| a.t.as_ref()))
            {
                constants.own.extend(constant(value).map(|c| (made.as_str(), c)));
            }
        }
    }
    Ok(())
}

/// Elements of a shape.
fn elements(dims: &[i64]) -> Result<u64, GraphFault> {
    if dims.len() as i64 > MOST_AXES {
        return Err(format!("it has {} axes, at most {MOST_AXES} are read", dims.len()).into());
    }
    let size = |all: u64, n: &i64| u64::try_from(*n).ok().and_then(|n| all.checked_mul(n));
    let shape = dims.iter().try_fold(1, size);
    shape.ok_or_else(|| format!("the shape {dims:?} cannot be").into())
}

/// The tensor's elements are there: what it promises is no more than what the file, or its data file, holds.
fn tensor_fits(tensor: &TensorProto) -> Result<(), GraphFault> {
    let count = elements(&tensor.dims)?;
    let Some(data_type) = tensor.data_type.filter(|t| is_sized(*t)) else { return Ok(()) };
    let wanted = size_of(data_type, count).ok_or_else(|| format!("the shape {:?} cannot be", tensor.dims))?;
    let promised = |held: u64, what: &str| {
        Err(format!("its shape {:?} promises {count} elements, {held} {what} are there", tensor.dims).into())
    };
    if data::is_external(tensor) {
        let length = tensor.external_data.iter().find(|e| e.key.as_deref() == Some("length"));
        let length = length.and_then(|e| e.value.as_deref());
        return match length.map(str::parse::<u64>) {
            // Then the engine takes them from the data file, as far as it goes.
            None => Ok(()),
            Some(Ok(length)) if length == wanted => Ok(()),
            Some(Ok(length)) => promised(length, "bytes of the data file"),
            Some(Err(_)) => Err("the length of its external data is no number".into()),
        };
    }
    if let Some(raw) = &tensor.raw_data {
        return if raw.len() as u64 == wanted { Ok(()) } else { promised(raw.len() as u64, "bytes") };
    }
    let lists = [
        tensor.float_data.len(),
        tensor.int32_data.len(),
        tensor.int64_data.len(),
        tensor.double_data.len(),
        tensor.uint64_data.len(),
    ];
    let held = lists.into_iter().sum::<usize>() as u64;
    let values = match data_type {
        // A complex number is two values, and two numbers of 4 bits are one.
        14 | 15 => count.saturating_mul(2),
        UINT4 | INT4 => wanted,
        _ => count,
    };
    if held == values { Ok(()) } else { promised(held, "values") }
}

fn sparse_fits(sparse: &SparseTensorProto) -> Result<(), GraphFault> {
    data::parts(sparse).try_for_each(tensor_fits)?;
    // An engine fills the zeros in.
    at_most(elements(&sparse.dims)?, MOST_ELEMENTS, "elements")
}

fn at_most(found: u64, most: u64, what: &str) -> Result<(), GraphFault> {
    if found > most {
        Err(format!("it asks for {found} {what}, at most {most} are allowed").into())
    } else {
        Ok(())
    }
}

/// The elements of a tensor, where it is one axis of a few integers or floats.
fn constant(tensor: &TensorProto) -> Option<Constant> {
    if elements(&tensor.dims).ok()? > MOST_AXES as u64 {
        return None;
    }
    let raw = tensor.raw_data.as_deref();
    match tensor.data_type? {
        INT64 => Some(Constant::Ints(match raw {
            Some(raw) => raw.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            None => tensor.int64_data.clone(),
        })),
        INT32 => Some(Constant::Ints(match raw {
            Some(raw) => raw.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
            None => tensor.int32_data.iter().map(|v| i64::from(*v)).collect(),
        })),
        FLOAT => Some(Constant::Floats(match raw {
            Some(raw) => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            None => tensor.float_data.clone(),
        })),
        _ => None,
    }
}

/// A node with the constants before it.
struct Checked<'a, 'b> {
    node: &'a NodeProto,
    constants: &'b Constants<'a>,
}

impl Checked<'_, '_> {
    fn all(&self, op: &str) -> Result<(), GraphFault> {
        self.attributes(op)?;
        match op {
            "Transpose" => self.permutation(),
            "Squeeze" | "Unsqueeze" => self.axes(self.ints(1)),
            "Slice" => self.axes(self.ints(3)),
            _ if op.starts_with("Reduce") => self.axes(self.ints(1)),
            "ConstantOfShape" => self.shape(self.ints(0)),
            "Expand" => self.shape(self.ints(1)),
            "Reshape" => self.reshape(),
            "Tile" => self.repeats(),
            "Pad" => within(self.ints(1).unwrap_or_default(), -MOST_STEP..=MOST_STEP, "pads"),
            "Resize" => {
                self.shape(self.ints(3))?;
                [1, 2].into_iter().try_for_each(|i| scales(self.floats(i).unwrap_or_default()))
            }
            "Upsample" => {
                scales(self.floats(1).unwrap_or(self.attribute("scales").map_or(&[], |a| &a.floats)))
            }
            "Range" => self.range(),
            "OneHot" => within(self.ints(1).unwrap_or_default(), 1..=MOST_STEP, "depth"),
            "Split" => within(self.ints(1).unwrap_or_default(), 0..=i64::MAX, "split"),
            _ => Ok(()),
        }
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.node.attribute.iter().find(|a| a.name.as_deref() == Some(name))
    }

    /// The constant that is input `i`.
    fn input(&self, i: usize) -> Option<&Constant> {
        self.constants.get(self.node.input.get(i)?.as_str())
    }

    fn ints(&self, i: usize) -> Option<&[i64]> {
        match self.input(i)? {
            Constant::Ints(v) => Some(v),
            Constant::Floats(_) => None,
        }
    }

    fn floats(&self, i: usize) -> Option<&[f32]> {
        match self.input(i)? {
            Constant::Floats(v) => Some(v),
            Constant::Ints(_) => None,
        }
    }

    /// Numbers that mean the same wherever they stand.
    fn attributes(&self, op: &str) -> Result<(), GraphFault> {
        for attribute in &self.node.attribute {
            let ints = attribute.ints.as_slice();
            match attribute.name.as_deref().unwrap_or_default() {
                "axis" | "batch_axis" | "time_axis" => self.axes(Some(attribute.i.as_slice()))?,
                "axes" => self.axes(Some(ints))?,
                name @ ("kernel_shape" | "strides" | "dilations") => within(ints, 1..=MOST_STEP, name)?,
                // Those of `Pad` may crop.
                name @ ("pads" | "paddings") if op == "Pad" => within(ints, -MOST_STEP..=MOST_STEP, name)?,
                name @ ("pads" | "output_padding" | "output_shape") => within(ints, 0..=MOST_STEP, name)?,
                name @ ("blocksize" | "group" | "num_outputs") => {
                    within(attribute.i.as_slice(), 1..=MOST_STEP, name)?;
                }
                "shape" if op.starts_with("Random") => self.shape(Some(ints))?,
                "split" => within(ints, 0..=i64::MAX, "split")?,
                _ => {}
            }
        }
        Ok(())
    }

    fn axes(&self, axes: Option<&[i64]>) -> Result<(), GraphFault> {
        let axes = axes.unwrap_or_default();
        within(axes, -MOST_AXES..=MOST_AXES - 1, "axes")?;
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(format!("axis {} is given twice", twice[0]).into()),
            None => Ok(()),
        }
    }

    fn permutation(&self) -> Result<(), GraphFault> {
        let Some(perm) = self.attribute("perm").map(|a| a.ints.as_slice()) else { return Ok(()) };
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if sorted.len() as i64 <= MOST_AXES && sorted.iter().zip(0..).all(|(a, b)| *a == b) {
            return Ok(());
        }
        Err(format!("perm {} is no permutation of its axes", some(perm)).into())
    }

    /// A whole shape.
    fn shape(&self, dims: Option<&[i64]>) -> Result<(), GraphFault> {
        at_most(elements(dims.unwrap_or_default())?, MOST_ELEMENTS, "elements")
    }

    fn reshape(&self) -> Result<(), GraphFault> {
        let dims = self.ints(1).unwrap_or_default();
        within(dims, -1..=i64::MAX, "shape")?;
        if dims.iter().filter(|n| **n == -1).count() > 1 {
            return Err(format!("the shape {} leaves more than one size open", some(dims)).into());
        }
        // It makes no elements: the product only has to be a number.
        let given: Vec<i64> = dims.iter().copied().filter(|n| *n > 0).collect();
        elements(&given).map(|_| ())
    }

    fn repeats(&self) -> Result<(), GraphFault> {
        at_most(elements(self.ints(1).unwrap_or_default())?, MOST_TIMES, "copies")
    }

    fn range(&self) -> Result<(), GraphFault> {
        let number = |i| match self.input(i)? {
            Constant::Ints(v) => v.first().map(|v| *v as f64),
            Constant::Floats(v) => v.first().map(|v| f64::from(*v)),
        };
        let (Some(start), Some(limit), Some(delta)) = (number(0), number(1), number(2)) else {
            return Ok(());
        };
        let count = (limit - start) / delta;
        if count.is_finite() {
            at_most(count.max(0.0) as u64, MOST_ELEMENTS, "elements")
        } else {
            Err(format!("from {start} to {limit} in steps of {delta} has no end").into())
        }
    }
}

fn within(values: &[i64], range: std::ops::RangeInclusive<i64>, what: &str) -> Result<(), GraphFault> {
    match values.iter().find(|v| !range.contains(*v)) {
        Some(bad) => Err(format!("{what}: {bad} is not in {} to {}", range.start(), range.end()).into()),
        None => Ok(()),
    }
}

fn scales(scales: &[f32]) -> Result<(), GraphFault> {
    let times = scales.iter().fold(1.0_f64, |all, s| all * f64::from(*s).max(1.0));
    if scales.iter().any(|s| !s.is_finite() || *s <= 0.0) || times > MOST_TIMES as f64 {
        return Err(format!("the scales {:?} cannot be", &scales[..scales.len().min(8)]).into());
    }
    Ok(())
}

/// A list, cut where it is long.
fn some(values: &[i64]) -> String {
    let dots = if values.len() > 8 { ", .." } else { "" };
    let shown: Vec<String> = values.iter().take(8).map(ToString::to_string).collect();
    format!("[{}{dots}]", shown.join(", "))
}

#[cfg(test)]
mod tests;
