//! Graphs derived from written ones: the same computation with its intermediate values as outputs.

use std::collections::{BTreeMap, BTreeSet};

use dpar_export_spec::{DType, Dim, GraphSpec, Port};
use prost::Message;

use crate::proto::{
    BFLOAT16, DimensionProto, FLOAT, FLOAT16, GraphProto, INT64, ModelProto, NodeProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, elem_type,
};

/// Why a graph cannot be read or derived from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeriveError {
    /// Not an ONNX file.
    #[error("not a readable ONNX file: {0}")]
    Unreadable(String),
    /// The file holds protobuf fields that this exporter does not write: they would be lost.
    #[error("the graph was not written by this exporter: it holds fields that a derived graph would lose")]
    Foreign,
}

/// A value of a graph and the node that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Name of the value.
    pub value: String,
    /// Name of the node.
    pub node: String,
    /// Operator of the node.
    pub op: String,
    /// Values that the node reads.
    pub inputs: Vec<String>,
}

/// A graph whose float values are all outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Exposed {
    /// The `.onnx` file. External data lies where it lay for the original.
    pub bytes: Vec<u8>,
    /// The interface: that of the original, and the values behind its outputs.
    pub spec: GraphSpec,
    /// Every float value that a node makes and that is an output now, in the order of the nodes.
    pub values: Vec<Made>,
}

/// Reads a graph that this exporter wrote.
///
/// # Errors
/// When it is not ONNX, or holds what this exporter does not write.
pub fn read_model(bytes: &[u8]) -> Result<ModelProto, DeriveError> {
    let model = ModelProto::decode(bytes).map_err(|e| DeriveError::Unreadable(e.to_string()))?;
    if model.encode_to_vec() != bytes {
        return Err(DeriveError::Foreign);
    }
    Ok(model)
}

/// The bytes of a model.
pub fn write_model(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

/// Makes every float value an output whose type and rank follow from the nodes before it.
///
/// # Errors
/// As [`read_model`].
pub fn expose(bytes: &[u8], spec: &GraphSpec) -> Result<Exposed, DeriveError> {
    let mut model = read_model(bytes)?;
    let mut spec = spec.clone();
    let mut values = Vec::new();
    if let Some(graph) = &mut model.graph {
        let known = infer(graph, &spec);
        let mut outputs: BTreeSet<String> = spec.outputs.iter().map(|p| p.name.clone()).collect();
        for node in &graph.node {
            for value in &node.output {
                let Some((dtype, rank)) = known.get(value).copied().and_then(float) else { continue };
                values.push(Made {
                    value: value.clone(),
                    node: node.name.clone().unwrap_or_default(),
                    op: node.op_type.clone().unwrap_or_default(),
                    inputs: node.input.clone(),
                });
                if !outputs.insert(value.clone()) {
                    continue;
                }
                graph.output.push(info(value, dtype, rank));
                let dims = (0..rank).map(|axis| Dim::axis(&format!("{value}#{axis}"))).collect();
                spec.outputs.push(Port::new(value.clone(), dtype, dims));
            }
        }
    }
    Ok(Exposed { bytes: model.encode_to_vec(), spec, values })
}

/// Axes of a value; engines have fewer.
const MOST_AXES: usize = 64;

/// `TensorProto.DataType` and rank of a value.
type TypeAndRank = (i32, usize);

fn float((elem, rank): TypeAndRank) -> Option<(DType, usize)> {
    match elem {
        FLOAT => Some((DType::F32, rank)),
        FLOAT16 => Some((DType::F16, rank)),
        BFLOAT16 => Some((DType::BF16, rank)),
        _ => None,
    }
}

fn info(name: &str, dtype: DType, rank: usize) -> ValueInfoProto {
    let dim = vec![DimensionProto { value: None }; rank];
    let tensor = TensorTypeProto { elem_type: Some(elem_type(dtype)), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { tensor_type: Some(tensor) }),
        doc_string: None,
    }
}

/// Types and ranks, node by node; a value of an operator that is not known here has none.
fn infer(graph: &GraphProto, spec: &GraphSpec) -> BTreeMap<String, TypeAndRank> {
    let mut known: BTreeMap<String, TypeAndRank> = BTreeMap::new();
    for tensor in &graph.initializer {
        if let (Some(name), Some(elem)) = (&tensor.name, tensor.data_type) {
            known.insert(name.clone(), (elem, tensor.dims.len()));
        }
    }
    for port in &spec.inputs {
        known.insert(port.name.clone(), (elem_type(port.dtype), port.dims.len()));
    }
    // Elements of a constant vector: a target shape, a list of axes.
    let first = |t: &TensorProto| usize::try_from(*t.dims.first()?).ok();
    let lengths: BTreeMap<&String, usize> =
        graph.initializer.iter().filter_map(|t| Some((t.name.as_ref()?, first(t)?))).collect();
    let length = |name: &String| lengths.get(name).copied();
    for node in &graph.node {
        let of = |i: usize| node.input.get(i).and_then(|name| known.get(name)).copied();
        let made = output(node, &of, &|i| node.input.get(i).and_then(length));
        // A rank that no tensor has is not one to write down.
        let made = made.filter(|(_, rank)| *rank <= MOST_AXES);
        for value in &node.output {
            if let Some(kind) = made {
                known.insert(value.clone(), kind);
            }
        }
    }
    known
}

fn attribute(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name.as_deref() == Some(name)).and_then(|a| a.i)
}

/// Type and rank of a node's outputs.
fn output(
    node: &NodeProto,
    of: &dyn Fn(usize) -> Option<TypeAndRank>,
    length: &dyn Fn(usize) -> Option<usize>,
) -> Option<TypeAndRank> {
    let (elem, rank) = of(0)?;
    let kept = |axes: usize| match attribute(node, "keepdims") {
        Some(0) => rank.checked_sub(axes),
        _ => Some(rank),
    };
    Some(match node.op_type.as_deref()? {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "MatMul" | "Max" | "Min" => (elem, rank.max(of(1)?.1)),
        "AveragePool" | "Concat" | "Conv" | "Exp" | "Identity" | "Log" | "MatMulNBits" | "MaxPool"
        | "Neg" | "Relu" | "Resize" | "Sigmoid" | "Slice" | "Softmax" | "Split" | "Sqrt" | "Tanh"
        | "Transpose" => (elem, rank),
        "DequantizeLinear" => (of(1)?.0, rank),
        "Cast" => (i32::try_from(attribute(node, "to")?).ok()?, rank),
        "Reshape" => (elem, length(1)?),
        "Unsqueeze" => (elem, rank.checked_add(length(1)?)?),
        "Gather" => (elem, rank.checked_sub(1)? + of(1)?.1),
        "ArgMax" | "ArgMin" => (INT64, kept(1)?),
        "ReduceMax" | "ReduceMean" => {
            let axes = node.attribute.iter().find(|a| a.name.as_deref() == Some("axes"));
            (elem, kept(axes.map(|a| a.ints.len()).or_else(|| length(1))?)?)
        }
        "ReduceSum" => (elem, kept(length(1)?)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{AttributeProto, AttributeType};

    fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: Some(format!("n/{output}")),
            op_type: Some(op.to_owned()),
            attribute,
            domain: None,
        }
    }

    fn spec() -> GraphSpec {
        GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::Fixed(4)])],
            outputs: vec![Port::new("y", DType::F32, vec![Dim::axis("batch")])],
            axes: Vec::new(),
        }
    }

    fn model() -> ModelProto {
        let shape = TensorProto {
            name: Some("shape".into()),
            dims: vec![3],
            data_type: Some(INT64),
            raw_data: Some([0_i64, 2, 2].iter().flat_map(|v| v.to_le_bytes()).collect()),
            ..TensorProto::default()
        };
        let axes = AttributeProto {
            name: Some("axes".into()),
            ints: vec![1, 2],
            r#type: Some(AttributeType::Ints as i32),
            ..AttributeProto::default()
        };
        let keep = AttributeProto {
            name: Some("keepdims".into()),
            i: Some(0),
            r#type: Some(AttributeType::Int as i32),
            ..AttributeProto::default()
        };
        let graph = GraphProto {
            node: vec![
                node("Reshape", &["x", "shape"], "r", vec![]),
                node("Other", &["r"], "o", vec![]),
                node("ReduceMax", &["r"], "y", vec![axes, keep]),
            ],
            initializer: vec![shape],
            ..GraphProto::default()
        };
        ModelProto { graph: Some(graph), ..ModelProto::default() }
    }

    #[test]
    fn every_float_value_of_known_rank_becomes_an_output() {
        let exposed = expose(&write_model(&model()), &spec()).unwrap();
        let names: Vec<&str> = exposed.values.iter().map(|v| v.value.as_str()).collect();
        assert_eq!(names, ["r", "y"], "the value of an unknown operator stays hidden");
        let ports: Vec<(&str, usize)> =
            exposed.spec.outputs.iter().map(|p| (p.name.as_str(), p.dims.len())).collect();
        assert_eq!(ports, [("y", 1), ("r", 3)], "an output stays what it was");
        let again = read_model(&exposed.bytes).unwrap();
        assert_eq!(again.graph.unwrap().output.len(), 1);
        assert_eq!((exposed.values[0].node.as_str(), exposed.values[0].op.as_str()), ("n/r", "Reshape"));
    }

    #[test]
    fn ranks_that_cannot_be_are_left_out() {
        let keep = AttributeProto { name: Some("keepdims".into()), i: Some(0), ..AttributeProto::default() };
        let axes =
            AttributeProto { name: Some("axes".into()), ints: vec![0; 9], ..AttributeProto::default() };
        let mut hostile = model();
        let graph = hostile.graph.as_mut().unwrap();
        let long = |name: &str, n| TensorProto {
            name: Some(name.into()),
            dims: vec![n],
            data_type: Some(INT64),
            ..TensorProto::default()
        };
        let scalar =
            TensorProto { name: Some("scalar".into()), data_type: Some(FLOAT), ..TensorProto::default() };
        graph.initializer.extend([long("all", i64::MAX), long("more", 65), scalar]);
        graph.node = vec![
            node("Gather", &["scalar", "scalar"], "a", vec![]),
            node("ReduceMax", &["x"], "b", vec![axes, keep.clone()]),
            node("ArgMax", &["scalar"], "c", vec![keep.clone()]),
            node("ReduceSum", &["x", "all"], "d", vec![keep]),
            node("Unsqueeze", &["x", "all"], "e", vec![]),
            node("Reshape", &["x", "all"], "f", vec![]),
            node("Reshape", &["x", "more"], "g", vec![]),
            node("Exp", &["x"], "h", vec![]),
        ];
        let exposed = expose(&write_model(&hostile), &spec()).unwrap();
        let names: Vec<&str> = exposed.values.iter().map(|v| v.value.as_str()).collect();
        assert_eq!(names, ["h"]);
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        let mut bytes = write_model(&model());
        assert!(matches!(read_model(&bytes[..bytes.len() - 1]), Err(DeriveError::Unreadable(_))));
        // Field 4 (`domain`), which this exporter does not write.
        bytes.extend([0x22, 1, b'x']);
        assert_eq!(read_model(&bytes), Err(DeriveError::Foreign));
    }
}
