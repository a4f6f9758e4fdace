//! The interface of an ONNX file that another tool wrote.

use prost::Message;

use crate::proto::{DimensionValue, FLOAT, ModelProto, ValueInfoProto};

/// An input or output of a foreign graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPort {
    /// Tensor name.
    pub name: String,
    /// Whether its elements are float32.
    pub float: bool,
    /// Sizes, `None` where dynamic; `None` as a whole if the file gives no shape.
    pub dims: Option<Vec<Option<usize>>>,
}

/// What a foreign file promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Opset of the default domain.
    pub opset: i64,
    /// Inputs without the initializers that old files list among them.
    pub inputs: Vec<ForeignPort>,
    /// Outputs.
    pub outputs: Vec<ForeignPort>,
    /// Elements of all initializers together.
    pub parameters: u64,
    /// Whether weights lie in other files.
    pub external: bool,
}

/// Reads the interface of an ONNX model. Nothing but its table of contents is judged; engines refuse what they cannot run.
///
/// # Errors
/// In words, when the bytes are no ONNX model.
pub fn read_foreign(bytes: &[u8]) -> Result<Foreign, String> {
    let model = ModelProto::decode(bytes).map_err(|e| format!("not an ONNX model: {e}"))?;
    let graph = model.graph.ok_or("not an ONNX model: it has no graph")?;
    let default = |domain: &Option<String>| domain.as_deref().unwrap_or_default().is_empty();
    let opset = model.opset_import.iter().find(|o| default(&o.domain)).and_then(|o| o.version);
    let opset = opset.ok_or("not an ONNX model: it names no opset")?;
    let own = |v: &&ValueInfoProto| graph.initializer.iter().all(|i| i.name != v.name);
    let count = |dims: &[i64]| {
        dims.iter().try_fold(1_u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?)).unwrap_or(0)
    };
    Ok(Foreign {
        opset,
        inputs: graph.input.iter().filter(own).map(port).collect(),
        outputs: graph.output.iter().map(port).collect(),
        parameters: graph.initializer.iter().fold(0, |n, i| n.saturating_add(count(&i.dims))),
        external: graph.initializer.iter().any(|i| i.data_location == Some(1)),
    })
}

fn port(info: &ValueInfoProto) -> ForeignPort {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let size = |v: &Option<DimensionValue>| match v {
        Some(DimensionValue::Value(n)) => usize::try_from(*n).ok(),
        _ => None,
    };
    ForeignPort {
        name: info.name.clone().unwrap_or_default(),
        float: tensor.is_some_and(|t| t.elem_type == Some(FLOAT)),
        dims: tensor.and_then(|t| t.shape.as_ref()).map(|s| s.dim.iter().map(|d| size(&d.value)).collect()),
    }
}
