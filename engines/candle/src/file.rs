//! Reading an `.onnx` file and finding its ports.

use std::collections::BTreeSet;

use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::tensor_shape_proto::dimension::Value as DimValue;
use candle_onnx::onnx::{ModelProto, ValueInfoProto, type_proto};
use dpar_engine_api::{EngineError, FilePort, GraphFile, check_ports};
use dpar_export_spec::DType;

use crate::refusal;

/// The next step where a file is unusable.
const EXPORT_AGAIN: &str = "export the graph again";

/// Reads the file and checks its ports, before any weight is read.
pub(crate) fn read(graph: GraphFile<'_>) -> Result<ModelProto, EngineError> {
    let model = candle_onnx::read_file(graph.path)
        .map_err(|e| refusal(graph, format!("not a readable ONNX file: {e}")).hint(EXPORT_AGAIN))?;
    let Some(body) = &model.graph else {
        return Err(refusal(graph, "the file holds no graph".to_owned()).hint(EXPORT_AGAIN));
    };
    let weights: BTreeSet<&str> = body.initializer.iter().map(|w| w.name.as_str()).collect();
    let own = body.input.iter().filter(|i| !weights.contains(i.name.as_str()));
    let inputs: Vec<FilePort> = own.map(file_port).collect();
    let outputs: Vec<FilePort> = body.output.iter().map(file_port).collect();
    check_ports(crate::NAME, graph.spec, &inputs, &outputs)?;
    Ok(model)
}

fn file_port(info: &ValueInfoProto) -> FilePort {
    let value = info.r#type.as_ref().and_then(|t| t.value.as_ref());
    let tensor = match value {
        Some(type_proto::Value::TensorType(t)) => Some(t),
        _ => None,
    };
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
