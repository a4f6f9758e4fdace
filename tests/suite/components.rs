//! A precision for each component: in the manifest, in every report, and in what each output is held against.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::bundle::Bundle;
use dpar_export::tolerance::{Quantity, Rounding};
use dpar_export_spec::{DType, Precision};
use serde_json::Value;

use crate::cli::{json, run};
use crate::common::{Temp, fixture, limit};

const MIXED: &str = "entropy=fp32,dpar=fp16,vq=fp32";

fn export(checkpoint: &str, words: &[&str], out: &Utf8Path) -> Bundle {
    let from = fixture(checkpoint);
    let done = run(&[&[from.as_str(), "-o", out.as_str()], words].concat());
    assert_eq!(done.code, 0, "{words:?}: {}", done.stderr);
    Bundle::open(out).unwrap()
}

fn mixed(temp: &Temp) -> Utf8PathBuf {
    let out = temp.path("mixed");
    export("emoji32/dpar", &["--precision", MIXED], &out);
    out
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name}: {report:#}"))
}

#[test]
fn the_manifest_and_every_report_name_it_and_limits_follow_it() {
    let temp = Temp::new();
    let folder = mixed(&temp);
    let bundle = Bundle::open(&folder).unwrap();
    let manifest = bundle.manifest();
    assert_eq!((manifest.precision, manifest.opset), (Precision::Fp16, 17));
    assert_eq!(manifest.numbers().to_string(), "fp16 (entropy fp32, vq fp32)");
    for graph in &manifest.graphs {
        let wanted = if graph.spec.component == "dpar" { DType::F16 } else { DType::F32 };
        let mut caches = graph.spec.inputs.iter().filter(|p| p.name.starts_with("past_"));
        assert!(caches.all(|p| p.dtype == wanted), "{}", graph.spec.name);
    }
    let b = folder.as_str();
    let shown = run(&["inspect", b]);
    assert!(shown.stdout.contains("fp16 (entropy fp32, vq fp32)"), "{}", shown.stdout);
    assert!(shown.stdout.contains("entropy is fp32, opset 17"), "{}", shown.stdout);

    // Each output is held against the limit of its own component.
    let golden = fixture("emoji32").into_string();
    let out = run(&["verify", b, "--reference", &golden, "--no-probes", "--engine", "ort", "--json"]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    let own = serde_json::json!({ "entropy": "fp32", "vq": "fp32" });
    assert_eq!((&report["precision"], &report["component_precisions"]), (&"fp16".into(), &own));
    let text = report["arithmetic"]["text"].as_str().unwrap();
    assert!(
        text.contains("entropy in float32") && text.contains("dpar in float32 with fp16 weights"),
        "{text}"
    );
    let of = |name: &str| check(&report, name)["limit"].as_f64().unwrap() as f32;
    assert_eq!(of("entropy"), limit(Precision::Fp32, Quantity::Entropy));
    assert_eq!(of("logits"), limit(Precision::Fp16, Quantity::Logits));
    assert_eq!(of("images"), limit(Precision::Fp32, Quantity::Pixels));
    assert_eq!(check(&report, "fp16 (entropy fp32, vq fp32) reference")["status"], "not_run");

    let out = run(&["parity", b, "--engines", "tract,ort", "--num", "2", "--no-probes", "--json"]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let parity = json(&out);
    assert_eq!(parity["bundle"]["component_precisions"], own);
    let held = |graph: &str| {
        let tensors = parity["pairs"][0]["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["graph"] == graph).unwrap()["limit"].as_f64().unwrap()
    };
    let output = |precision: Precision| Rounding::engines(precision).limit(Quantity::Output).value();
    assert_eq!([held("entropy_step"), held("decoder_step")], [Precision::Fp32, Precision::Fp16].map(output));

    let card = temp.path("card");
    let out = run(&["card", b, "-o", card.as_str()]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let card = fs_err::read_to_string(card.join("README.md")).unwrap();
    assert!(card.contains("fp16 (entropy fp32, vq fp32)"), "{card}");

    // One word is all that a reference can say of itself.
    let out = run(&["reference", b, "-o", temp.path("golden").as_str(), "--num", "2", "--engine", "ort"]);
    assert!(out.code == 2 && out.stderr.contains("of one precision"), "{} {}", out.code, out.stderr);
}

/// A fault in the float component beside a half one is found: its limit is its own.
#[test]
fn a_fault_in_a_float_component_is_not_within_the_limits_of_another() {
    let temp = Temp::new();
    let folder = mixed(&temp);
    let path = folder.join("onnx/entropy.onnx_data");
    let mut data = fs_err::read(&path).unwrap();
    // Numbers of float32, each 0.1 % off: within what fp16 may do.
    for number in data.as_chunks_mut::<4>().0 {
        *number = (1.001 * f32::from_le_bytes(*number)).to_le_bytes();
    }
    fs_err::write(&path, data).unwrap();
    crate::faults::rehash(&folder);
    let golden = fixture("emoji32").into_string();
    let args =
        ["verify", folder.as_str(), "--reference", &golden, "--no-probes", "--engine", "ort", "--json"];
    let out = run(&args);
    assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
    assert_eq!(check(&json(&out), "entropy")["status"], "fail");
}

#[test]
fn what_is_the_same_in_other_words_is_the_same_bundle() {
    let temp = Temp::new();
    let manifest = |name: &str, words: &str| {
        let out = temp.path(name);
        export("dpar-small/dpar", &["--precision", words], &out);
        fs_err::read_to_string(out.join("manifest.json")).unwrap()
    };
    assert_eq!(manifest("a", "fp16"), manifest("b", "entropy=fp16,dpar=fp16,vq=fp16"));
    assert_eq!(manifest("c", "fp32"), manifest("d", "dpar=fp32"));
    let own = manifest("e", "dpar=bf16-autocast");
    assert!(
        own.contains("\"precision\": \"bf16-autocast-explicit\"") && own.contains("\"precision\": \"fp32\"")
    );
    // bf16 graphs have an opset of their own, in one component too.
    let bundle = export("dpar-small/dpar", &["--precision", "vq=bf16"], &temp.path("f"));
    assert_eq!([bundle.manifest().opset, bundle.manifest().opset_of("vq")], [17, 22]);
}

#[test]
fn a_wrong_label_of_a_component_is_refused() {
    let temp = Temp::new();
    let folder = mixed(&temp);
    let path = folder.join("manifest.json");
    let good: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    let at =
        |kind: &str| good["components"].as_array().unwrap().iter().position(|c| c["kind"] == kind).unwrap();
    let own = |precision: &str, opset: i64| serde_json::json!({ "precision": precision, "opset": opset });
    let (entropy, dpar, vq) = (at("entropy"), at("dpar"), at("vq"));
    for (component, arithmetic, text) in [
        (entropy, Value::Null, "graph `entropy_step` is not fp16"),
        (entropy, own("bf16", 17), "graph `entropy_step` is not bf16"),
        (entropy, own("fp32", 22), "its opset is 17"),
        (entropy, own("fp16", 17), "has an arithmetic of its own that no export gives it"),
        (vq, own("bf16-autocast", 17), "has an arithmetic of its own that no export gives it"),
        (dpar, own("fp32", 17), "has an arithmetic of its own that no export gives it"),
        (vq, serde_json::json!({ "precision": "fp32", "opset": 17, "kind": 1 }), "unknown field"),
    ] {
        let mut changed = good.clone();
        changed["components"][component]["arithmetic"] = arithmetic;
        if changed["components"][component]["arithmetic"].is_null() {
            changed["components"][component].as_object_mut().unwrap().remove("arithmetic");
        }
        fs_err::write(&path, serde_json::to_vec(&changed).unwrap()).unwrap();
        let out = run(&["inspect", folder.as_str()]);
        assert!(out.code == 5 && out.stderr.contains(text), "{text}: {} {}", out.code, out.stderr);
    }
    // The field came with the second layout.
    let mut old = good;
    old["schema_version"] = 1.into();
    fs_err::write(&path, serde_json::to_vec(&old).unwrap()).unwrap();
    let out = run(&["inspect", folder.as_str()]);
    assert!(
        out.code == 5 && out.stderr.contains("unknown field `arithmetic`"),
        "{} {}",
        out.code,
        out.stderr
    );
}

#[test]
fn quantized_weights_stand_beside_half_types_of_other_components() {
    let temp = Temp::new();
    let folder = temp.path("b");
    let words = ["--precision", "dpar=fp16", "--quantize", "entropy=int8"];
    let bundle = export("emoji32/dpar", &words, &folder);
    assert_eq!(bundle.manifest().numbers().to_string(), "fp16 (entropy fp32, vq fp32) with int8 weights");
    let golden = fixture("emoji32").into_string();
    let args =
        ["verify", folder.as_str(), "--reference", &golden, "--no-probes", "--engine", "ort", "--json"];
    let out = run(&args);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    let of = |name: &str| check(&report, name)["limit"].as_f64().unwrap() as f32;
    assert_eq!(of("logits"), limit(Precision::Fp16, Quantity::Logits));
    assert!(of("entropy") > limit(Precision::Fp16, Quantity::Entropy));
}

#[test]
fn what_cannot_be_asked_of_a_component_is_a_usage_error() {
    let temp = Temp::new();
    let (checkpoint, out) = (fixture("dpar-small/dpar"), temp.path("out"));
    for (words, message) in [
        (&["--precision", "gpt=fp16"][..], "`gpt` is none of dpar, entropy, llamagen and vq"),
        (&["--precision", "dpar=fp8"], "`fp8` is none of fp32"),
        (&["--precision", "llamagen=fp16"], "--precision names llamagen, which this system does not have"),
        (&["--precision", "vq=bf16-autocast"], "autocast leaves vq in float32"),
        (&["--precision", "entropy=fp16", "--quantize", "entropy=int8"], "fp32 graphs"),
    ] {
        let done = run(&[&[checkpoint.as_str(), "-o", out.as_str()], words].concat());
        assert!(done.code == 2 && done.stderr.contains(message), "{words:?}: {} {}", done.code, done.stderr);
        assert!(!out.exists());
    }
    let bundle = temp.path("b");
    export("dpar-small/dpar", &["--precision", "dpar=bf16-autocast"], &bundle);
    let b = bundle.as_str();
    let out = run(&["--target", "trt", b, "--emit-trtexec", "--precision", "dpar=fp16"]);
    let text = "bf16-autocast-explicit (entropy fp32), not fp16 (entropy fp32, vq fp32)";
    assert!(out.code == 2 && out.stderr.contains(text), "{} {}", out.code, out.stderr);
    let out = run(&["--target", "trt", b, "--emit-trtexec"]);
    assert!(out.code == 2 && out.stderr.contains("round in float32"), "{} {}", out.code, out.stderr);
}

/// Engines have the precision of their graph, and command lines say which there are.
#[cfg(feature = "tensorrt")]
#[test]
fn engines_are_built_in_the_precision_of_their_component() {
    let temp = Temp::new();
    let (checkpoint, out) = (fixture("dpar-small/dpar"), temp.path("b"));
    let words =
        ["--target", "trt", "--precision", "dpar=bf16-autocast,vq=fp16", "--builder-optimization-level", "0"];
    let built = run(&[&words[..], &[checkpoint.as_str(), "-o", out.as_str(), "--json"]].concat());
    assert_eq!(built.code, 0, "{}", built.stderr);
    let manifest = json(&built)["manifest"].clone();
    for (engine, graph) in
        manifest["engines"].as_array().unwrap().iter().zip(manifest["graphs"].as_array().unwrap())
    {
        let wanted = match graph["component"].as_str().unwrap() {
            "dpar" => "bf16-autocast",
            "vq" => "fp16",
            _ => "fp32",
        };
        assert_eq!(engine["precision"], wanted, "{engine:#}");
    }
    let emitted = run(&["--target", "trt", out.as_str(), "--emit-trtexec", "--force"]);
    let text = "(bf16-autocast (entropy fp32, vq fp16))";
    assert!(emitted.code == 0 && emitted.stdout.contains(text), "{}{}", emitted.stdout, emitted.stderr);
}
