//! What candle-onnx 0.11.1 evaluates as ONNX means it, found by reading its evaluator. Everything else is refused:
//! it ignores attributes that it does not know, and the axes of `ReduceMean` where they are an input.

use candle_core::DType;
use candle_onnx::onnx::attribute_proto::AttributeType;
use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::{AttributeProto, NodeProto};
use dpar_engine_api::GraphFault;

/// The lowest opset whose operators mean what candle-onnx does (`Softmax` over one axis).
const MIN_OPSET: i64 = 13;

/// Operators with the attributes that count for them.
const OPERATORS: &[(&str, &[&str])] = &[
    ("Abs", &[]),
    ("Add", &[]),
    ("ArgMax", &["axis", "keepdims", "select_last_index"]),
    ("ArgMin", &["axis", "keepdims", "select_last_index"]),
    ("AveragePool", POOL),
    ("BatchNormalization", &["epsilon", "momentum", "training_mode"]),
    ("Cast", &["to"]),
    ("Clip", &[]),
    ("Concat", &["axis"]),
    ("Constant", &["value"]),
    ("Conv", &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    ("Cos", &[]),
    ("Div", &[]),
    ("Erf", &[]),
    ("Exp", &[]),
    ("Flatten", &["axis"]),
    ("Gather", &["axis"]),
    ("Gemm", &["alpha", "beta", "transA", "transB"]),
    ("Identity", &[]),
    ("Log", &[]),
    ("LogSoftmax", &["axis"]),
    ("MatMul", &[]),
    ("MaxPool", POOL),
    ("Mul", &[]),
    ("Neg", &[]),
    ("ReduceMax", &["axes", "keepdims"]),
    ("ReduceMean", &["axes", "keepdims"]),
    ("ReduceMin", &["axes", "keepdims"]),
    ("ReduceSum", &["keepdims", "noop_with_empty_axes"]),
    ("Relu", &[]),
    ("Reshape", &["allowzero"]),
    ("Resize", &["coordinate_transformation_mode", "mode", "nearest_mode"]),
    ("Sigmoid", &[]),
    ("Sin", &[]),
    ("Slice", &[]),
    ("Softmax", &["axis"]),
    ("Split", &["axis", "num_outputs"]),
    ("Sqrt", &[]),
    ("Squeeze", &[]),
    ("Sub", &[]),
    ("Tanh", &[]),
    ("Transpose", &["perm"]),
    ("Unsqueeze", &["axes"]),
    ("Where", &[]),
];

const POOL: &[&str] =
    &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"];

/// Checks the version of the default operator set.
pub(crate) fn check_opset(version: Option<i64>) -> Result<(), GraphFault> {
    match version {
        Some(v) if v >= MIN_OPSET => Ok(()),
        Some(v) => Err(format!("opset {v}; candle-onnx evaluates {MIN_OPSET} and later").into()),
        None => Err("the file names no opset".into()),
    }
}

/// How an error names a node.
pub(crate) fn name(node: &NodeProto) -> String {
    format!("node `{}` ({})", node.name, node.op_type)
}

/// Whether candle evaluates the node as ONNX means it.
pub(crate) fn check(node: &NodeProto) -> Result<(), GraphFault> {
    let refuse = |why: String| Err(GraphFault::from(format!("{}: {why}", name(node))));
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return refuse(format!("candle knows no operators of `{}`", node.domain));
    }
    let Some((_, known)) = OPERATORS.iter().find(|(op, _)| *op == node.op_type) else {
        return refuse("candle 0.11.1 does not have this operator, or not as ONNX defines it".to_owned());
    };
    if let Some(other) = node.attribute.iter().find(|a| !known.contains(&a.name.as_str())) {
        return refuse(format!("candle ignores the attribute `{}`", other.name));
    }
    if node.op_type != "Split" && node.output.len() != 1 {
        return refuse(format!("candle gives one output, the node has {}", node.output.len()));
    }
    if node.op_type != "Constant" && node.input.is_empty() {
        return refuse("it has no input".to_owned());
    }
    special(node).or_else(|why| refuse(why.to_string()))
}

/// The conditions beyond names.
fn special(node: &NodeProto) -> Result<(), GraphFault> {
    let unsupported = |what: &str| Err(format!("candle does not support {what}").into());
    let inputs = node.input.len();
    match node.op_type.as_str() {
        "AveragePool" | "MaxPool" | "Conv" => {
            let pool = node.op_type != "Conv";
            if !matches!(text(node, "auto_pad"), None | Some("NOTSET")) {
                return unsupported("auto_pad");
            }
            if pool && ints(node, "pads").iter().any(|p| *p != 0) {
                return unsupported("padding here");
            }
            if pool && (int(node, "ceil_mode", 0) != 0 || ints(node, "dilations").iter().any(|d| *d != 1)) {
                return unsupported("ceil_mode or dilations here");
            }
            if pool && (ints(node, "kernel_shape").len() != 2 || ints(node, "strides").len() != 2) {
                return unsupported("other than two dimensions with strides here");
            }
            let equal = |key: &str| ints(node, key).windows(2).all(|p| p[0] == p[1]);
            let even = equal("strides") && equal("dilations");
            if !pool && !even {
                return unsupported("strides or dilations that differ between axes");
            }
            if ints(node, "pads").iter().any(|p| *p < 0) {
                return unsupported("negative padding");
            }
        }
        "ReduceMean" if inputs > 1 => return unsupported("axes that are an input, and ignores them"),
        "ReduceSum" if int(node, "noop_with_empty_axes", 0) != 0 => {
            return unsupported("noop_with_empty_axes");
        }
        "Transpose" if ints(node, "perm").iter().any(|p| *p < 0) || ints(node, "perm").is_empty() => {
            return unsupported("a missing or negative perm");
        }
        "Gemm" if inputs < 3 || int(node, "transA", 0) != 0 => return unsupported("transA, or no C"),
        "Flatten" if int(node, "axis", 1) < 1 => return unsupported("this axis"),
        "Squeeze" if inputs < 2 => return unsupported("absent axes"),
        "ArgMax" | "ArgMin" if int(node, "select_last_index", 0) != 0 => {
            return unsupported("select_last_index");
        }
        "BatchNormalization" if int(node, "training_mode", 0) != 0 => return unsupported("training_mode"),
        "Cast" if cast_to(node).is_none() => return unsupported("a cast to this type"),
        "Resize" => {
            let mode = [
                ("mode", "nearest"),
                ("coordinate_transformation_mode", "asymmetric"),
                ("nearest_mode", "floor"),
            ];
            if let Some((key, want)) = mode.iter().find(|(key, want)| text(node, key) != Some(want)) {
                return Err(format!("candle needs `{key}` to be `{want}`").into());
            }
        }
        "Constant" if node.attribute.first().is_none_or(|a| a.r#type() != AttributeType::Tensor) => {
            return unsupported("a constant that is no tensor");
        }
        _ => {}
    }
    Ok(())
}

/// The type that a `Cast` casts to, where candle has it.
pub(crate) fn cast_to(node: &NodeProto) -> Option<DType> {
    match DataType::try_from(i32::try_from(int(node, "to", 0)).ok()?).ok()? {
        DataType::Float => Some(DType::F32),
        DataType::Float16 => Some(DType::F16),
        DataType::Bfloat16 => Some(DType::BF16),
        DataType::Double => Some(DType::F64),
        DataType::Int64 => Some(DType::I64),
        _ => None,
    }
}

/// The type of what a node makes from inputs of these types; `None` where one is not known.
///
/// # Errors
/// The node, where candle has no kernel for the type.
pub(crate) fn output_type(node: &NodeProto, inputs: &[Option<DType>]) -> Result<Option<DType>, GraphFault> {
    let first = inputs.first().copied().flatten();
    match node.op_type.as_str() {
        "MatMul" | "Gemm" | "Conv" if inputs.contains(&Some(DType::BF16)) => {
            Err(format!("{}: candle has no bfloat16 kernel for it on the CPU", name(node)).into())
        }
        "Cast" => Ok(cast_to(node)),
        "ArgMax" | "ArgMin" => Ok(Some(DType::I64)),
        "Where" => Ok(inputs.get(1).copied().flatten()),
        "Constant" => Ok(None),
        _ => Ok(first),
    }
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

pub(crate) fn int(node: &NodeProto, name: &str, or: i64) -> i64 {
    attribute(node, name).map_or(or, |a| a.i)
}

fn ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |a| &a.ints)
}

fn text<'a>(node: &'a NodeProto, name: &str) -> Option<&'a str> {
    attribute(node, name).and_then(|a| std::str::from_utf8(&a.s).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op: &str, inputs: usize, attributes: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            op_type: op.into(),
            name: "layer/it".into(),
            input: (0..inputs).map(|i| format!("i{i}")).collect(),
            output: vec!["o".into()],
            attribute: attributes,
            ..NodeProto::default()
        }
    }

    fn list(name: &str, values: &[i64]) -> AttributeProto {
        let r#type = AttributeType::Ints as i32;
        AttributeProto { name: name.into(), ints: values.to_vec(), r#type, ..AttributeProto::default() }
    }

    fn number(name: &str, value: i64) -> AttributeProto {
        let r#type = AttributeType::Int as i32;
        AttributeProto { name: name.into(), i: value, r#type, ..AttributeProto::default() }
    }

    #[test]
    fn what_candle_cannot_do_is_refused_by_name() {
        let pool = |pads| {
            let sizes = [list("kernel_shape", &[3, 3]), list("strides", &[1, 1]), list("pads", pads)];
            node("AveragePool", 1, sizes.to_vec())
        };
        check(&pool(&[0, 0, 0, 0])).unwrap();
        let e = check(&pool(&[1, 1, 1, 1])).unwrap_err();
        assert_eq!(e.to_string(), "node `layer/it` (AveragePool): candle does not support padding here");
        for (node, why) in [
            (node("Attention", 3, vec![]), "does not have this operator"),
            (node("GlobalAveragePool", 1, vec![]), "does not have this operator"),
            (node("ReduceMean", 2, vec![]), "axes that are an input"),
            (node("ReduceSum", 2, vec![number("noop_with_empty_axes", 1)]), "noop_with_empty_axes"),
            (node("Gemm", 3, vec![number("transA", 1)]), "transA"),
            (node("Softmax", 1, vec![number("other", 1)]), "ignores the attribute `other`"),
            (node("Resize", 3, vec![]), "`mode` to be `nearest`"),
            (node("Conv", 2, vec![list("strides", &[1, 2])]), "differ between axes"),
            (node("Cast", 1, vec![number("to", 6)]), "a cast to this type"),
            (NodeProto { domain: "com.x".into(), ..node("Add", 2, vec![]) }, "operators of `com.x`"),
            (NodeProto { output: vec!["a".into(), "b".into()], ..node("MaxPool", 1, vec![]) }, "one output"),
        ] {
            let e = check(&node).unwrap_err();
            assert!(e.to_string().starts_with("node `layer/it` (") && e.to_string().contains(why), "{e}");
        }
        let types = [Some(DType::BF16), Some(DType::BF16)];
        let e = output_type(&node("MatMul", 2, vec![]), &types).unwrap_err();
        assert!(e.to_string().starts_with("node `layer/it` (MatMul): candle has no bfloat16"), "{e}");
        assert_eq!(output_type(&node("Cast", 1, vec![number("to", 1)]), &types).unwrap(), Some(DType::F32));
        assert!(check_opset(Some(11)).is_err() && check_opset(None).is_err());
        check_opset(Some(17)).unwrap();
    }
}
