//! The interface of an ONNX file that another tool wrote.

use std::collections::BTreeSet;

use prost::Message;

use crate::error::FileFault;
use crate::proto::{DimensionValue, FLOAT, ModelProto, ValueInfoProto};
use crate::walk::check_whole;

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
}

/// Opsets that there can be.
const OPSETS: std::ops::RangeInclusive<i64> = 1..=1 << 10;

/// Reads the interface of an ONNX model that is whole in its bytes: two networks never have the same. Nothing but its
/// table of contents is judged otherwise; engines refuse what they cannot run.
///
/// # Errors
/// In words, when the bytes are no ONNX model, refer to weights in another file (anywhere: in a constant, a subgraph, a
/// function), or hold what no known version of ONNX has.
pub fn read_foreign(bytes: &[u8]) -> Result<Foreign, FileFault> {
    check_whole(bytes)?;
    let model = ModelProto::decode(bytes).map_err(|e| format!("not an ONNX model: {e}"))?;
    let graph = model.graph.ok_or("not an ONNX model: it has no graph")?;
    let default = |domain: &Option<String>| domain.as_deref().unwrap_or_default().is_empty();
    let opset = model.opset_import.iter().find(|o| default(&o.domain)).and_then(|o| o.version);
    let opset = opset.ok_or("not an ONNX model: it names no opset")?;
    if !OPSETS.contains(&opset) {
        return Err(format!("not an ONNX model: there is no opset {opset}").into());
    }
    let initializers: BTreeSet<_> = graph.initializer.iter().map(|i| &i.name).collect();
    let own = |v: &&ValueInfoProto| !initializers.contains(&v.name);
    let count = |dims: &[i64]| {
        dims.iter().try_fold(1_u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?)).unwrap_or(0)
    };
    let parameters = graph.initializer.iter().fold(0, |n: u64, i| n.saturating_add(count(&i.dims)));
    // The smallest type that there is takes 4 bits.
    if parameters / 8 > bytes.len() as u64 {
        return Err(format!("its initializers claim {parameters} elements, more than the file holds").into());
    }
    Ok(Foreign {
        opset,
        inputs: graph.input.iter().filter(own).map(port).collect(),
        outputs: graph.output.iter().map(port).collect(),
        parameters,
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
