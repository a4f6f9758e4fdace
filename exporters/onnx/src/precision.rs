//! What precision a graph file has: the types of its weights and ports against the word in a manifest.

use std::collections::BTreeMap;

use dpar_export_spec::{DType, Dialect, GraphSpec, Port, Precision, Quantized, Role, WeightBits};
use prost::Message;

use crate::error::FileFault;
use crate::proto::{
    BFLOAT16, FLOAT, FLOAT16, GraphProto, INT64, ModelProto, NodeProto, UINT4, UINT8, ValueInfoProto,
    elem_type,
};

/// The name of the constant that graphs with explicit rounding to bfloat16 have, and no others.
pub(crate) const EXPLICIT_BF16: &str = "const/f32(65537.0)";

/// The normalised codebook, transposed: float32 in graphs of every precision.
pub(crate) const NEAREST_TABLE: &str = "codebook.T";

/// Initializers that are float32 in graphs of every precision.
pub(crate) fn is_float_table(name: &str) -> bool {
    name.starts_with("rotary.") || name.starts_with("const/") || name == NEAREST_TABLE
}

/// Initializers that are matrices of linear layers; all other weights lie between products.
pub(crate) fn is_matrix(name: &str) -> bool {
    name.ends_with(".weight.T")
}

/// Initializers that are codes of quantized weights, or the codes of their zeros.
fn is_coded(name: &str) -> bool {
    name.ends_with(".weight.codes") || name.starts_with("const/zeros/")
}

/// Initializers that are scales of quantized weights.
fn is_scales(name: &str) -> bool {
    name.ends_with(".weight.scales")
}

fn word(data_type: i32) -> String {
    match data_type {
        FLOAT => "float32".to_owned(),
        FLOAT16 => "float16".to_owned(),
        BFLOAT16 => "bfloat16".to_owned(),
        INT64 => "int64".to_owned(),
        UINT8 => "uint8".to_owned(),
        UINT4 => "uint4".to_owned(),
        other => format!("ONNX type {other}"),
    }
}

/// What the manifest of a bundle says of a graph's file.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// Precision of its component.
    pub precision: Precision,
    /// What quantization made of its component.
    pub quantized: Option<&'a Quantized>,
    /// The form that the file is in.
    pub dialect: Dialect,
}

/// Checks that `bytes`, an `.onnx` file with this interface, holds such a graph: weights, KV caches and every other port
/// have the types that the exporter gives them, rounding is explicit where it is said to be, and quantized weights and
/// their products are of the kind, blocks and accuracy that are said.
///
/// # Errors
/// What is not as it is said: the weight, port or node, its type, and the type that the exporter has there.
pub fn check_precision(bytes: &[u8], spec: &GraphSpec, said: Said<'_>) -> Result<(), FileFault> {
    let precision = said.precision;
    let model = ModelProto::decode(bytes).map_err(|e| format!("not a readable ONNX file: {e}"))?;
    let Some(graph) = model.graph else { return Err("the file holds no graph".into()) };
    let wrong = |what: &str, name: &str, found: i32, wanted: i32| {
        Err(format!("{what} `{name}` is {}, in {precision} it is {}", word(found), word(wanted)).into())
    };
    let own = precision.of_component(&spec.component);
    let (mut products, mut explicit) = (false, false);
    for weight in &graph.initializer {
        let name = weight.name.as_deref().unwrap_or_default();
        let found = weight.data_type.unwrap_or_default();
        let wanted = match name {
            _ if is_coded(name) && said.quantized.is_some() => code_type(said),
            _ if is_scales(name) && said.quantized.is_some() => FLOAT,
            _ if is_coded(name) || is_scales(name) => {
                return Err(
                    format!("weight `{name}` is quantized, the manifest says of no such weights").into()
                );
            }
            _ if is_float_table(name) => FLOAT,
            _ if is_matrix(name) => elem_type(own.dtype()),
            _ => elem_type(own.stream()),
        };
        if found != wanted && found != INT64 {
            return wrong("weight", name, found, wanted);
        }
        products |= is_matrix(name);
        explicit |= name == EXPLICIT_BF16;
    }
    check_quantized(&graph, said)?;
    match (explicit, own == Precision::Bf16AutocastExplicit) {
        (true, false) => {
            return Err(format!("it rounds to bfloat16 in float32, in {precision} it does not").into());
        }
        (false, true) if products => {
            return Err(
                format!("it does not round, in {precision} every product is rounded to bfloat16").into()
            );
        }
        _ => {}
    }
    let sides = [("input", &spec.inputs, &graph.input), ("output", &spec.outputs, &graph.output)];
    for (side, ports, infos) in sides {
        let found: BTreeMap<&str, &ValueInfoProto> =
            infos.iter().rev().filter_map(|i| Some((i.name.as_deref()?, i))).collect();
        for Port { name, dtype, .. } in ports {
            let float = if Role::cache(name).is_some() { own.dtype() } else { DType::F32 };
            let wanted = elem_type(if dtype.is_float() { float } else { *dtype });
            if elem_type(*dtype) != wanted {
                return wrong(&format!("in the manifest, {side}"), name, elem_type(*dtype), wanted);
            }
            let found = found.get(name.as_str()).and_then(|i| data_type(i));
            if let Some(found) = found.filter(|f| *f != wanted) {
                return wrong(side, name, found, wanted);
            }
        }
    }
    Ok(())
}

/// The type of codes in a file.
fn code_type(said: Said<'_>) -> i32 {
    match (said.dialect, said.quantized.map(|q| q.weights)) {
        (Dialect::Portable, Some(WeightBits::Int4)) => UINT4,
        _ => UINT8,
    }
}

/// The matrices of a quantized component are, but for those that are said to stay, and no node is another dialect's.
fn check_quantized(graph: &GraphProto, said: Said<'_>) -> Result<(), FileFault> {
    for node in &graph.node {
        let name = node.name.as_deref().unwrap_or_default();
        let wrong = |what: &str| Err(format!("node `{name}` {what}").into());
        let int = |key: &str| attribute(node, key);
        let (packed, blocked) = match (node.domain.is_some(), node.op_type.as_deref()) {
            (true, Some("MatMulNBits")) => (true, false),
            (true, _) => return wrong("is no operator that this exporter writes"),
            (false, op) => (false, op == Some("DequantizeLinear")),
        };
        if packed && said.dialect == Dialect::Portable {
            return wrong("is not of the ONNX standard, and the file is said to be portable");
        }
        let Some(quantized) = said.quantized else {
            if packed || blocked {
                return wrong("has quantized weights, the manifest says of none");
            }
            continue;
        };
        if (packed || blocked)
            && !int("block_size")
                .is_some_and(|b| usize::try_from(b).is_ok_and(|b| quantized.matrices.contains_key(&b)))
        {
            return wrong("has blocks that the manifest does not know");
        }
        if packed && int("bits") != Some(quantized.weights.bits() as i64) {
            return wrong(&format!("has no {} weights, as the manifest says", quantized.weights));
        }
        if packed && int("accuracy_level") != Some(quantized.accuracy_level.number()) {
            return wrong(&format!(
                "has not the accuracy level {} of the manifest",
                quantized.accuracy_level.number()
            ));
        }
        if blocked && said.dialect != Dialect::Portable {
            return wrong("makes a float matrix, which is for portable graphs");
        }
    }
    let Some(quantized) = said.quantized else { return Ok(()) };
    let matrices = graph.initializer.iter().filter_map(|w| Some((w.name.as_deref()?.strip_suffix(".T")?, w)));
    for (matrix, weight) in matrices.filter(|(name, _)| name.ends_with(".weight")) {
        let size = |i: usize| weight.dims.get(i).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0);
        // It is stored transposed.
        if quantized.takes(size(1), size(0)) {
            return Err(
                format!("weight `{matrix}` is in float32, and quantization would have taken it").into()
            );
        }
        if quantized.kept.iter().all(|kept| kept != matrix) {
            return Err(format!(
                "weight `{matrix}` is not quantized, and is none that the manifest says stays"
            )
            .into());
        }
    }
    Ok(())
}

fn attribute(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name.as_deref() == Some(name)).and_then(|a| a.i)
}

fn data_type(info: &ValueInfoProto) -> Option<i32> {
    info.r#type.as_ref()?.tensor_type.as_ref()?.elem_type
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{GraphProto, TensorProto, TensorTypeProto, TypeProto};

    fn info(name: &str, data_type: i32) -> ValueInfoProto {
        let tensor_type = TensorTypeProto { elem_type: Some(data_type), shape: None };
        ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(TypeProto { tensor_type: Some(tensor_type) }),
            doc_string: None,
        }
    }

    /// A graph with a matrix, a weight of a norm, one mask and one cache input; `explicit` gives it the constant of rounding.
    fn graph(matrix: i32, norm: i32, [mask, past]: [i32; 2], explicit: bool) -> Vec<u8> {
        let initializer = |name: &str, data_type| TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(data_type),
            ..TensorProto::default()
        };
        let mut graph = GraphProto {
            initializer: vec![
                initializer("layers.0.w.weight.T", matrix),
                initializer("norm.weight", norm),
                initializer("rotary.token.cos", FLOAT),
                initializer("const/i64[0]", INT64),
            ],
            input: vec![info("mask", mask), info("past_key_0", past)],
            ..GraphProto::default()
        };
        if explicit {
            graph.initializer.push(initializer(EXPLICIT_BF16, FLOAT));
        }
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    /// The graph that the exporter writes in a precision.
    fn own(precision: Precision) -> Vec<u8> {
        let (matrix, stream) = (elem_type(precision.dtype()), elem_type(precision.stream()));
        graph(matrix, stream, [FLOAT, matrix], precision == Precision::Bf16AutocastExplicit)
    }

    fn plain(precision: Precision) -> Said<'static> {
        Said { precision, quantized: None, dialect: Dialect::Portable }
    }

    fn spec(component: &str, past: DType) -> GraphSpec {
        GraphSpec {
            name: "g".into(),
            component: component.into(),
            inputs: vec![Port::new("mask", DType::F32, vec![]), Port::new("past_key_0", past, vec![])],
            outputs: vec![],
            axes: vec![],
        }
    }

    /// Every precision takes its own graph and no other's, but for the tokenizer, which autocast leaves in float32.
    #[test]
    fn a_graph_is_of_one_precision() {
        for (a, b) in Precision::ALL.iter().flat_map(|a| Precision::ALL.map(|b| (*a, b))) {
            let found = check_precision(&own(a), &spec("dpar", a.dtype()), plain(b));
            assert_eq!(found.is_ok(), a == b, "{a} as {b}: {found:?}");
            if b.is_autocast() {
                let found = check_precision(&own(a), &spec("vq", a.dtype()), plain(b));
                assert_eq!(found.is_ok(), a == Precision::Fp32, "{a} as the tokenizer of {b}: {found:?}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |bytes: &[u8], past, precision, text: &str| {
            let e = check_precision(bytes, &spec("dpar", past), plain(precision)).unwrap_err();
            assert_eq!(e.to_string(), text);
        };
        let half = own(Precision::Fp16);
        let weight = "weight `layers.0.w.weight.T` is";
        let text = format!("{weight} float32, in fp16 it is float16");
        refused(&own(Precision::Fp32), DType::F32, Precision::Fp16, &text);
        refused(&half, DType::F16, Precision::Fp32, &format!("{weight} float16, in fp32 it is float32"));
        refused(&half, DType::F16, Precision::Bf16, &format!("{weight} float16, in bf16 it is bfloat16"));
        let text = "weight `norm.weight` is bfloat16, in bf16-autocast it is float32";
        refused(&own(Precision::Bf16), DType::BF16, Precision::Bf16Autocast, text);
        let text = "in the manifest, input `past_key_0` is float32, in fp16 it is float16";
        refused(&half, DType::F32, Precision::Fp16, text);
        let text = "input `mask` is float16, in fp16 it is float32";
        refused(&graph(FLOAT16, FLOAT16, [FLOAT16; 2], false), DType::F16, Precision::Fp16, text);
        let text = "it rounds to bfloat16 in float32, in fp32 it does not";
        refused(&own(Precision::Bf16AutocastExplicit), DType::F32, Precision::Fp32, text);
        let text = "it does not round, in bf16-autocast-explicit every product is rounded to bfloat16";
        refused(&own(Precision::Fp32), DType::F32, Precision::Bf16AutocastExplicit, text);
        assert!(check_precision(b"\xff", &spec("dpar", DType::F32), plain(Precision::Fp32)).is_err());
    }
}
