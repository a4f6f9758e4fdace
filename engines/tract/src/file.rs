//! Reading an `.onnx` file and finding its ports.

use std::collections::BTreeSet;

use dpar_engine_api::{EngineError, FilePort, GraphFile, check_ports, no_precision};
use dpar_export_spec::{DType, Port, Precision};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as DimValue;
use tract_onnx::pb::{ModelProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::*;

use crate::refusal;

/// The next step where weights are missing.
pub(crate) const HINT: &str =
    "the `.onnx_data` file must lie beside the `.onnx` file, as exported: copy both, or export again";

/// Reads the file and checks its ports, before any weight is read.
pub(crate) fn read(graph: GraphFile<'_>) -> Result<ModelProto, EngineError> {
    let proto = tract_onnx::onnx().proto_model_for_path(graph.path).map_err(|e| {
        refusal(graph, format!("not a readable ONNX file: {e:#}")).hint("export the graph again")
    })?;
    let Some(body) = &proto.graph else {
        return Err(refusal(graph, "the file holds no graph".to_owned()).hint("export the graph again"));
    };
    let weights: BTreeSet<&str> = body.initializer.iter().map(|w| w.name.as_str()).collect();
    let own = body.input.iter().filter(|i| !weights.contains(i.name.as_str()));
    let inputs: Vec<FilePort> = own.map(file_port).collect();
    let outputs: Vec<FilePort> = body.output.iter().map(file_port).collect();
    check_ports(crate::NAME, graph.spec, &inputs, &outputs)?;
    if body.initializer.iter().any(|w| w.data_type == DataType::Bfloat16 as i32) {
        let e = no_precision(crate::NAME, Precision::Bf16, crate::NO_BFLOAT16);
        return Err(e.in_graph(&graph.spec.name));
    }
    Ok(proto)
}

fn file_port(info: &ValueInfoProto) -> FilePort {
    let value = info.r#type.as_ref().and_then(|t| t.value.as_ref());
    let tensor = value.map(|type_proto::Value::TensorType(t)| t);
    FilePort {
        name: info.name.clone(),
        dtype: tensor.and_then(|t| match DataType::try_from(t.elem_type) {
            Ok(DataType::Float) => Some(DType::F32),
            Ok(DataType::Float16) => Some(DType::F16),
            Ok(DataType::Bfloat16) => Some(DType::BF16),
            Ok(DataType::Int64) => Some(DType::I64),
            _ => None,
        }),
        dims: tensor.and_then(|t| t.shape.as_ref()).map(|shape| {
            let size = |d: &Option<DimValue>| match d {
                Some(DimValue::DimValue(n)) => usize::try_from(*n).ok(),
                _ => None,
            };
            shape.dim.iter().map(|d| size(&d.value)).collect()
        }),
    }
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
