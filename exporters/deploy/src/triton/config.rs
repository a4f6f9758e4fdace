//! `config.pbtxt`: Triton's model configuration, a Protocol Buffers message in text.

use std::fmt::Write;

use dpar_engine_api::device::Device;
use dpar_export_bundle::Bundle;
use dpar_export_spec::{DType, Dim, GraphSpec, Port};

use super::TritonPlan;

/// The file of each model. It does not repeat the model's name, which is its folder's.
pub(super) const NAME: &str = "config.pbtxt";
/// The bundle, in the folder of the model's version.
pub(super) const BUNDLE: &str = "bundle";
/// The back end of ONNX files.
pub(super) const ONNX_RUNTIME: &str = "backend: \"onnxruntime\"";
/// That of TensorRT's plans.
const TENSORRT: &str = "backend: \"tensorrt\"";

/// Images that wait, of one request, and seconds, as `serve` has them by default.
const LIMITS: [(&str, &str); 4] =
    [("queue", "256"), ("request_images", "64"), ("queue_time", "60"), ("decode_time", "600")];

/// Tensors of a request, as in the KServe v2 protocol of `serve`, and those of streams: name, type, whether it may be missing.
const INPUTS: [(&str, &str, bool); 10] = [
    ("class", "TYPE_INT64", false),
    ("seed", "TYPE_INT64", true),
    ("first", "TYPE_INT64", true),
    ("cfg_scale", "TYPE_FP32", true),
    ("threshold", "TYPE_FP32", true),
    ("temperature", "TYPE_FP32", true),
    ("top_k", "TYPE_INT64", true),
    ("top_p", "TYPE_FP64", true),
    ("stream", "TYPE_BOOL", true),
    ("preview_every", "TYPE_INT64", true),
];

/// A text in quotes.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii_control() => {
                // Writing to a text cannot fail.
                let _ = write!(out, "\\{:03o}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A tensor of a list.
fn tensor(name: &str, kind: &str, dims: &[i64], optional: bool) -> String {
    let dims = dims.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    let optional = if optional { ", optional: true" } else { "" };
    format!("  {{ name: {}, data_type: {kind}, dims: [ {dims} ]{optional} }}", quoted(name))
}

fn list(name: &str, items: &[String]) -> String {
    format!("{name} [\n{}\n]\n", items.join(",\n"))
}

/// The model that draws images.
pub(super) fn of_loop(bundle: &Bundle, plan: &TritonPlan) -> String {
    let system = bundle.system();
    let (size, tokens) = (system.image_size as i64, system.tokens() as i64);
    let inputs = INPUTS.map(|(name, kind, optional)| {
        let dims = if name == "class" { -1 } else { 1 };
        tensor(name, kind, &[dims], optional)
    });
    let outputs = [
        tensor("image", "TYPE_UINT8", &[-1, size, size, 3], false),
        tensor("tokens", "TYPE_INT64", &[-1, tokens], false),
        tensor("steps", "TYPE_INT64", &[-1], false),
        tensor("event", "TYPE_STRING", &[1], false),
        tensor("place", "TYPE_INT64", &[1], false),
        tensor("patch", "TYPE_INT64", &[2], false),
        tensor("entropy", "TYPE_FP32", &[1], false),
    ];
    let folder = plan.bundle_path.as_ref().map_or(BUNDLE, |path| path.as_str());
    let mut told = vec![("bundle", folder.to_owned()), ("engine", plan.engine.clone())];
    told.extend(plan.device.map(|device| ("device", device.to_string())));
    told.extend(plan.threads.map(|threads| ("threads", threads.to_string())));
    told.push(("rows", plan.rows.to_string()));
    told.extend(LIMITS.map(|(name, value)| (name, value.to_owned())));
    let kind = match plan.device {
        Some(Device::Index(_) | Device::Cuda(_) | Device::TensorRt(_) | Device::NvRtx(_)) => "KIND_GPU",
        // Triton's GPUs are NVIDIA's.
        None | Some(Device::Cpu | Device::Gpu(_) | Device::Npu(_)) => "KIND_CPU",
    };
    let mut out = format!("# {} {}, decoded by dpar-export.\n", system.name.escape_default(), size);
    out.push_str("backend: \"python\"\n");
    out.push_str("# The scheduler of the model batches: a request joins the others at the next step.\n");
    out.push_str("max_batch_size: 0\n");
    out.push_str("model_transaction_policy { decoupled: true }\n");
    out.push_str(&list("input", &inputs));
    out.push_str(&list("output", &outputs));
    out.push_str(&list("instance_group", &[format!("  {{ count: {}, kind: {kind} }}", plan.instances)]));
    for (name, value) in told {
        // Writing to a text cannot fail.
        let _ = writeln!(
            out,
            "parameters {{ key: {}, value {{ string_value: {} }} }}",
            quoted(name),
            quoted(&value)
        );
    }
    out
}

fn word(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "TYPE_FP32",
        DType::F16 => "TYPE_FP16",
        DType::BF16 => "TYPE_BF16",
        DType::I64 => "TYPE_INT64",
    }
}

/// A graph on one of Triton's own back ends. Axes that vary are -1; their ranges are said in front.
pub(super) fn of_graph(graph: &GraphSpec, backend: &str) -> String {
    let mut out = String::new();
    for axis in &graph.axes {
        // Writing to a text cannot fail.
        let _ = writeln!(out, "# {}: {} to {}", axis.name, axis.min, axis.max);
    }
    let dims = |port: &Port| -> Vec<i64> {
        let dim = |dim: &Dim| match dim {
            Dim::Fixed(n) => i64::try_from(*n).unwrap_or(i64::MAX),
            Dim::Axis(_) | Dim::Sum(..) => -1,
        };
        port.dims.iter().map(dim).collect()
    };
    let ports = |ports: &[Port]| -> Vec<String> {
        ports.iter().map(|port| tensor(&port.name, word(port.dtype), &dims(port), false)).collect()
    };
    let _ = writeln!(out, "{backend}");
    out.push_str("# The first axis is not always the batch: keys and values have time in front.\n");
    out.push_str("max_batch_size: 0\n");
    out.push_str(&list("input", &ports(&graph.inputs)));
    out.push_str(&list("output", &ports(&graph.outputs)));
    out
}

/// An engine of a graph, with its optimization profiles.
pub(super) fn of_engine(graph: &GraphSpec, profiles: &[String]) -> String {
    let profiles: Vec<String> = profiles.iter().map(|p| quoted(p)).collect();
    let group = format!("  {{ count: 1, kind: KIND_GPU, profile: [ {} ] }}", profiles.join(", "));
    of_graph(graph, TENSORRT) + &list("instance_group", &[group])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_one() {
        assert_eq!(quoted("a\"b\\c\nd\u{7f}ä"), "\"a\\\"b\\\\c\\012d\\177ä\"");
        assert_eq!(
            tensor("x", "TYPE_BOOL", &[-1, 3], true),
            "  { name: \"x\", data_type: TYPE_BOOL, dims: [ -1, 3 ], optional: true }"
        );
    }

    #[test]
    fn an_engine_names_its_profiles() {
        let graph = GraphSpec {
            name: "start".into(),
            component: "dpar".into(),
            inputs: vec![Port::new("class_labels", DType::I64, vec![Dim::axis("batch")])],
            outputs: vec![Port::new("x", DType::BF16, vec![Dim::sum("past", "new"), Dim::Fixed(4)])],
            axes: Vec::new(),
        };
        let text = of_engine(&graph, &["0".into(), "1".into()]);
        assert!(
            text.contains("dims: [ -1, 4 ]")
                && text.contains("TYPE_BF16")
                && text.contains("profile: [ \"0\", \"1\" ]"),
            "{text}"
        );
    }
}
