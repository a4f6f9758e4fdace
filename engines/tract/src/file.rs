//! Reading an `.onnx` file, and the order of its ports.

use dpar_engine_api::{EngineError, GraphFile, no_precision};
use dpar_engine_kv::Edited;
use dpar_export_spec::{Dim, Port, Precision};
use tract_onnx::Onnx;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::type_proto::Value;
use tract_onnx::pb::{ModelProto, TypeProto, ValueInfoProto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::ToDim;

use crate::refusal;

/// How files are read. The sizes of inner values follow from the inputs; what a file says of them is in the words of its
/// axes, which are not those of the spec.
pub(crate) fn reader() -> Onnx {
    tract_onnx::onnx().with_ignore_value_info(true)
}

/// Reads the file, or what was derived from it, before any weight is read.
pub(crate) fn read(graph: GraphFile<'_>, derived: Option<&Edited>) -> Result<ModelProto, EngineError> {
    let read = match derived {
        Some(edited) => reader().proto_model_for_read(&mut edited.model.as_slice()),
        None => reader().proto_model_for_path(graph.path),
    };
    let mut proto = read.map_err(|e| refusal(graph, format!("{e:#}")))?;
    for info in proto.graph.iter_mut().flat_map(|g| &mut g.input) {
        forget_shape(graph, info);
    }
    let mut weights = proto.graph.iter().flat_map(|g| &g.initializer);
    if weights.any(|w| w.data_type == DataType::Bfloat16 as i32) {
        let e = no_precision(crate::NAME, Precision::Bf16, crate::NO_BFLOAT16);
        return Err(e.in_graph(&graph.spec.name));
    }
    Ok(proto)
}

/// Takes the shape away from an input of the spec: see [`take_inputs`].
fn forget_shape(graph: GraphFile<'_>, info: &mut ValueInfoProto) {
    let Some(TypeProto { value: Some(Value::TensorType(tensor)), .. }) = &mut info.r#type else { return };
    if graph.spec.input(&info.name).is_some() {
        tensor.shape = None;
    }
}

/// Gives the inputs the sizes that the spec has for them, and returns their names in the plan's order. The file was held
/// against the spec; its own names of axes may be none, or any text, and tract reads some of them as expressions (`N-1`,
/// `a/b`) and takes nothing of others.
pub(crate) fn take_inputs(
    graph: GraphFile<'_>,
    model: &mut InferenceModel,
) -> Result<Vec<String>, EngineError> {
    let symbols = model.symbols.clone();
    let symbol = |name: &str| TDim::from(symbols.sym(name));
    let outlets = model.input_outlets().map_err(|e| refusal(graph, format!("{e:#}")))?.to_vec();
    let mut names = Vec::with_capacity(outlets.len());
    for (index, outlet) in outlets.into_iter().enumerate() {
        let name = model.node(outlet.node).name.clone();
        let Some(port) = graph.spec.input(&name) else {
            return Err(refusal(graph, format!("the spec has no input `{name}`")));
        };
        let shape: TVec<TDim> = port
            .dims
            .iter()
            .map(|dim| match dim {
                Dim::Fixed(n) => n.to_dim(),
                Dim::Axis(axis) => symbol(axis),
                Dim::Sum(a, b) => symbol(a) + symbol(b),
            })
            .collect();
        let fact = model.input_fact(index).map_err(|e| refusal(graph, format!("{e:#}")))?.clone();
        let fact = fact.with_shape(shape);
        model.set_input_fact(index, fact).map_err(|e| refusal(graph, format!("{e:#}")))?;
        names.push(name);
    }
    Ok(names)
}

/// Where the plan has each output of the spec: the plan keeps the order of the file.
pub(crate) fn output_order(graph: GraphFile<'_>, proto: &ModelProto) -> Result<Vec<usize>, EngineError> {
    let names: Vec<&str> = proto.graph.iter().flat_map(|g| &g.output).map(|o| o.name.as_str()).collect();
    let find = |port: &Port| {
        let at = names.iter().position(|n| *n == port.name);
        at.ok_or_else(|| refusal(graph, format!("the file has no output `{}`", port.name)))
    };
    graph.spec.outputs.iter().map(find).collect()
}
