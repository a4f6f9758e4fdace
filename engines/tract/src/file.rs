//! Reading an `.onnx` file, and the order of its ports.

use dpar_engine_api::{EngineError, GraphFile, no_precision};
use dpar_export_spec::{Port, Precision};
use tract_onnx::pb::ModelProto;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::prelude::*;

use crate::refusal;

/// Reads the file, before any weight is read.
pub(crate) fn read(graph: GraphFile<'_>) -> Result<ModelProto, EngineError> {
    let proto =
        tract_onnx::onnx().proto_model_for_path(graph.path).map_err(|e| refusal(graph, format!("{e:#}")))?;
    let mut weights = proto.graph.iter().flat_map(|g| &g.initializer);
    if weights.any(|w| w.data_type == DataType::Bfloat16 as i32) {
        let e = no_precision(crate::NAME, Precision::Bf16, crate::NO_BFLOAT16);
        return Err(e.in_graph(&graph.spec.name));
    }
    Ok(proto)
}

/// Input names in the plan's order.
pub(crate) fn input_order(graph: GraphFile<'_>, model: &InferenceModel) -> Result<Vec<String>, EngineError> {
    let outlets = model.input_outlets().map_err(|e| refusal(graph, format!("{e:#}")))?;
    Ok(outlets.iter().map(|o| model.node(o.node).name.clone()).collect())
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
