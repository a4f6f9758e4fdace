//! fp16 and bf16: what is exported, which engines take it, and how closely `verify` looks.

use camino::Utf8Path;
use dpar_export::arrays::ArrayFile;
use dpar_export::tolerance::Quantity;
use dpar_export::verify::{Status, verify_golden};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::{DType, Precision};
use serde_json::Value;

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, export, export_as, fixture, limit, llamagen, on, quiet};

fn read_json(path: &Utf8Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

/// Exports in fp16 and holds the bundle against `golden`; `ran` names checks that must have run.
fn check_fp16(checkpoint: &str, options: &LoadOptions, golden: &str, engines: &[&str], ran: &[&str]) {
    let temp = Temp::new();
    let bundle = export_as(checkpoint, Precision::Fp16, options, &temp.path("b"));
    for engine in engines {
        let checks = verify_golden(&on(&bundle, engine), &fixture(golden), 4, &mut quiet).unwrap();
        for name in ran {
            let check = checks.iter().find(|c| c.name == *name);
            assert_eq!(check.map(|c| c.status), Some(Status::Pass), "{golden} {engine} {name}: {checks:#?}");
        }
        for check in &checks {
            assert_ne!(check.status, Status::Fail, "{golden} on {engine}: {check:#?}");
        }
        // Half-precision arithmetic leaves its mark: a bundle that computed in fp32 would pass the fp32 tolerance.
        let logits = checks.iter().find(|c| c.name == "logits").unwrap();
        let float = f64::from(limit(Precision::Fp32, Quantity::Logits));
        assert!(logits.max_abs.unwrap() > 10.0 * float, "{golden} on {engine}: {logits:#?}");
    }
}

#[test]
fn fp16_against_both_references_on_every_engine() {
    let names = ["entropy", "patch lengths", "logits", "greedy tokens", "images", "codes"];
    let own: Vec<String> = names.iter().map(|n| format!("fp16 {n}")).collect();
    let ran: Vec<&str> = names.into_iter().chain(own.iter().map(String::as_str)).collect();
    check_fp16("variants/combined/dpar", &LoadOptions::default(), "variants/combined", &ENGINES, &ran);
}

#[test]
fn fp16_of_the_trained_dpar_and_of_dpar_small() {
    let ran = ["entropy", "patch lengths", "mean steps", "logits", "greedy tokens", "images", "codes"];
    // tract's fp16 convolutions take half a minute here; it runs the smaller systems.
    check_fp16("emoji32/dpar", &LoadOptions::default(), "emoji32", &["ort"], &ran);
    check_fp16("dpar-small/dpar", &LoadOptions::default(), "dpar-small", &["ort"], &ran);
}

#[test]
fn fp16_of_the_trained_llamagen() {
    let (file, options) = llamagen("emoji32");
    check_fp16(file, &options, "emoji32/llamagen", &ENGINES, &["logits", "greedy tokens"]);
}

#[test]
fn another_model_fails_in_fp16_too() {
    let temp = Temp::new();
    let options = LoadOptions { epoch: Some(3), ..LoadOptions::default() };
    let bundle = export_as("wrappings/experiment", Precision::Fp16, &options, &temp.path("b"));
    let checks = verify_golden(&on(&bundle, "ort"), &fixture("wrappings"), 4, &mut quiet).unwrap();
    let logits = checks.iter().find(|c| c.name == "logits").unwrap();
    assert_eq!(logits.status, Status::Fail, "{logits:#?}");
    let greedy = checks.iter().find(|c| c.name == "greedy tokens").unwrap();
    assert_eq!(greedy.status, Status::Fail, "{greedy:#?}");
}

/// The numpy reference in each half type against the float32 one: what the tolerances were made for, and that they tell
/// the types apart.
#[test]
fn the_tolerances_hold_for_the_reference_and_tell_the_types_apart() {
    let folder = fixture("variants/combined");
    let wide = ArrayFile::open(folder.join("golden.safetensors")).unwrap();
    let difference = |precision: &str, name: &str| {
        let file = ArrayFile::open(folder.join(precision).join("golden.safetensors")).unwrap();
        let dims: &[Option<usize>] = if name == "logits" { &[None; 3] } else { &[None; 2] };
        let (a, b) = (wide.f32(name, dims).unwrap(), file.f32(name, dims).unwrap());
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    for (name, quantity) in [("logits", Quantity::Logits), ("entropy", Quantity::Entropy)] {
        let [float, fp16, bf16] =
            [Precision::Fp32, Precision::Fp16, Precision::Bf16].map(|p| limit(p, quantity));
        let (half, brain) = (difference("fp16", name), difference("bf16", name));
        assert!(10.0 * float < half && half < fp16, "{name} fp16: {half}");
        assert!(fp16 < brain && brain < bf16, "{name} bf16: {brain}");
    }
}

#[test]
fn only_caches_have_the_half_type_and_the_bytes_repeat() {
    let temp = Temp::new();
    let halves = Precision::ALL.into_iter().filter(|p| p.dtype() != DType::F32);
    for (precision, dtype) in halves.map(|p| (p, p.dtype())) {
        let paths = ["one", "two"].map(|n| temp.path(&format!("{precision}-{n}")));
        let [bundle, _] = paths
            .clone()
            .map(|out| export_as("variants/combined/dpar", precision, &LoadOptions::default(), &out));
        let mut caches = 0;
        for port in bundle.manifest().graphs.iter().flat_map(|g| g.spec.inputs.iter().chain(&g.spec.outputs))
        {
            let cache = port.name.starts_with("past_key")
                || port.name.starts_with("past_value")
                || port.name.starts_with("new_");
            caches += usize::from(cache);
            assert_eq!(port.dtype.is_float() && port.dtype != DType::F32, cache, "{port:?}");
            assert!(!cache || port.dtype == dtype, "{port:?}");
        }
        assert!(caches > 0);
        let [one, two] = paths.map(|p| fs_err::read(p.join("manifest.json")).unwrap());
        assert!(one == two, "{precision}: another manifest, so other bytes");
        let text = run(&["inspect", bundle.folder().as_str()]).stdout;
        assert!(text.contains(&format!(", {precision}\n")) && text.contains(&format!("{dtype} ")), "{text}");
        let schema = read_json(&Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/manifest.schema.json"));
        let manifest = read_json(&bundle.folder().join("manifest.json"));
        let errors: Vec<String> = jsonschema::validator_for(&schema)
            .unwrap()
            .iter_errors(&manifest)
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn an_engine_without_bfloat16_refuses_it_and_says_what_to_use() {
    let temp = Temp::new();
    let bundle = export_as("variants/token/dpar", Precision::Bf16, &LoadOptions::default(), &temp.path("b"));
    let golden = fixture("variants/token");
    for engine in ENGINES {
        let args = ["verify", bundle.folder().as_str(), "--reference", golden.as_str(), "--engine", engine];
        let out = run(&args);
        assert_eq!(out.code, 3, "{}", out.stderr);
        assert!(out.stderr.contains(&format!("{engine}: cannot run bf16 graphs")), "{}", out.stderr);
        assert!(
            out.stderr.contains("--target trt") && out.stderr.contains("--precision fp32"),
            "{}",
            out.stderr
        );
    }
}

#[test]
fn a_report_says_what_was_computed_with() {
    let temp = Temp::new();
    let bundle = export_as("variants/token/dpar", Precision::Fp16, &LoadOptions::default(), &temp.path("b"));
    let golden = fixture("variants/token");
    for (engine, kind) in [("tract", "narrow_sums"), ("ort", "wider")] {
        let args = ["verify", bundle.folder().as_str(), "--reference", golden.as_str(), "--engine", engine];
        // tract's fp16 kernels take long at the largest sizes.
        let more: &[&str] = if engine == "tract" { &["--no-probes", "--json"] } else { &["--json"] };
        let out = run(&[&args[..], more].concat());
        assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
        let report = json(&out);
        assert_eq!((&report["precision"], &report["arithmetic"]["kind"]), (&"fp16".into(), &kind.into()));
        let missing = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "fp16 reference");
        assert_eq!(missing.unwrap()["status"], "not_run");
    }
}

/// The seeded fault "mislabelled precision": the word in the manifest, or a graph of the other export.
#[test]
fn a_mislabelled_precision_is_refused_by_name() {
    let temp = Temp::new();
    let golden = fixture("variants/token").to_string();
    let export = |precision: Precision| {
        let out = temp.path(precision.name());
        export_as("variants/token/dpar", precision, &LoadOptions::default(), &out);
        out
    };
    let folders = Precision::ALL.map(export);
    let refused = |folder: &Utf8Path, text: &[&str]| {
        for command in [vec!["inspect"], vec!["verify", "--reference", &golden, "--engine", "ort"]] {
            let args: Vec<&str> = [&command[..1], &[folder.as_str()], &command[1..]].concat();
            let out = run(&args);
            assert_eq!(out.code, 5, "{args:?}: {}", out.stderr);
            assert!(text.iter().all(|t| out.stderr.contains(t)), "{text:?}: {}", out.stderr);
        }
    };
    for folder in &folders {
        let path = folder.join("manifest.json");
        let good = fs_err::read_to_string(&path).unwrap();
        let own = read_json(&path)["precision"].as_str().unwrap().to_owned();
        for other in Precision::ALL.map(Precision::name).into_iter().filter(|p| *p != own) {
            let label = |p: &str| format!("\"precision\": \"{p}\"");
            fs_err::write(&path, good.replacen(&label(&own), &label(other), 1)).unwrap();
            refused(folder, &["graph `", &format!("` is not {other} as the manifest says")]);
        }
        fs_err::write(&path, good).unwrap();
    }
    // A graph of the fp32 export in the fp16 bundle, with its digest in the manifest.
    let [fp32, fp16, ..] = &folders;
    let name = "onnx/patch_embed.onnx";
    let bytes = fs_err::read(fp32.join(name)).unwrap();
    fs_err::write(fp16.join(name), &bytes).unwrap();
    let path = fp16.join("manifest.json");
    let mut manifest = read_json(&path);
    let entry = |manifest: &Value| {
        manifest["files"].as_array().unwrap().iter().find(|f| f["path"] == name).unwrap().clone()
    };
    let (wrong, right) = (entry(&manifest), entry(&read_json(&fp32.join("manifest.json"))));
    let files = manifest["files"].as_array_mut().unwrap();
    *files.iter_mut().find(|f| **f == wrong).unwrap() = right;
    fs_err::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    refused(fp16, &["graph `patch_embed`", "is float32, in fp16 it is float16"]);
}

#[test]
fn switches_of_weakly_typed_builders_are_explained() {
    let checkpoint = fixture("variants/token/dpar");
    for (flag, hint) in
        [("--fp16", "--precision fp16"), ("--bf16", "--precision bf16"), ("--best", "--precision fp32")]
    {
        for target in ["onnx", "trt"] {
            let out = run(&["--target", target, checkpoint.as_str(), "-o", "never", flag]);
            assert_eq!(out.code, 2, "{}", out.stderr);
            assert!(out.stderr.contains("strongly typed") && out.stderr.contains(hint), "{}", out.stderr);
        }
    }
    let temp = Temp::new();
    let bundle = export("variants/token/dpar", &LoadOptions::default(), &temp.path("b"));
    let out = run(&["--target", "trt", bundle.folder().as_str(), "--precision", "bf16"]);
    assert!(out.code == 2 && out.stderr.contains("fp32, not bf16"), "{}", out.stderr);
}

/// The hint does not lead back to where it came from.
#[test]
fn bf16_graphs_are_tuned_from_a_trace_where_no_engine_can_generate() {
    let temp = Temp::new();
    let bundle =
        export_as("variants/combined/dpar", Precision::Bf16, &LoadOptions::default(), &temp.path("b"));
    for more in [&["--emit-trtexec"][..], &["--emit-trtexec", "--dry-run"]] {
        let args = ["--target", "trt", bundle.folder().as_str(), "--calibrate", "2"];
        let out = run(&[&args[..], more].concat());
        assert_eq!(out.code, 3, "{more:?}: {}", out.stderr);
        assert!(out.stderr.contains("cannot run bf16 graphs"), "{more:?}: {}", out.stderr);
        assert!(out.stderr.contains("--calibrate-from"), "{more:?}: {}", out.stderr);
        assert!(!out.stderr.contains("--target trt"), "{more:?}: {}", out.stderr);
    }
}

#[test]
fn a_weight_beyond_fp16_is_named_and_bf16_takes_it() {
    let temp = Temp::new();
    let folder = temp.path("dpar");
    let from = fixture("variants/token/dpar");
    let weights = "checkpoints/final/model.safetensors";
    fs_err::create_dir_all(folder.join("checkpoints/final")).unwrap();
    fs_err::copy(from.join("config.yaml"), folder.join("config.yaml")).unwrap();
    let mut bytes = fs_err::read(from.join(weights)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let start = header["layers.0.feed_forward.w3.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = 8 + length + start + 5 * 4;
    bytes[at..at + 4].copy_from_slice(&(-70_000.0_f32).to_le_bytes());
    fs_err::write(folder.join(weights), bytes).unwrap();
    let export = |precision: &str| {
        let out = temp.path(precision);
        (run(&["--precision", precision, folder.as_str(), "-o", out.as_str()]), out)
    };
    let (out, path) = export("fp16");
    assert_eq!(out.code, 2, "{}", out.stderr);
    for part in ["`layers.0.feed_forward.w3.weight` holds -70000 at element 5", "65504", "--precision bf16"] {
        assert!(out.stderr.contains(part), "{}", out.stderr);
    }
    assert!(!path.exists());
    for precision in ["bf16", "fp32"] {
        let (out, _) = export(precision);
        assert_eq!(out.code, 0, "{}", out.stderr);
    }
}

/// Every graph of a bundle with all switches on becomes an engine, in both half types.
#[cfg(feature = "tensorrt")]
mod engines {
    use super::*;

    fn build(precision: &str, dtype: &str) {
        let temp = Temp::new();
        let (checkpoint, out) = (fixture("variants/combined/dpar"), temp.path("b"));
        let args = ["--target", "trt", "--precision", precision, "--builder-optimization-level", "0"];
        let built = run(&[&args[..], &[checkpoint.as_str(), "-o", out.as_str(), "--json"]].concat());
        assert_eq!(built.code, 0, "{}", built.stderr);
        let manifest = json(&built)["manifest"].clone();
        let (graphs, engines) =
            (manifest["graphs"].as_array().unwrap(), manifest["engines"].as_array().unwrap());
        assert_eq!((graphs.len(), engines.len()), (9, 9));
        assert!(engines.iter().all(|e| e["precision"] == precision), "{engines:#?}");
        assert!(manifest.to_string().contains(&format!("\"dtype\":\"{dtype}\"")));

        // An engine entry that names another precision is refused.
        let path = out.join("manifest.json");
        let mut changed = manifest;
        changed["engines"][3]["precision"] = "fp32".into();
        fs_err::write(&path, serde_json::to_vec(&changed).unwrap()).unwrap();
        let refused = run(&["inspect", out.as_str()]);
        let text = format!("is fp32, the graph is {precision}");
        assert!(refused.code == 5 && refused.stderr.contains(&text), "{}", refused.stderr);
    }

    #[test]
    fn of_fp16_graphs() {
        build("fp16", "f16");
    }

    #[test]
    fn of_bf16_graphs() {
        build("bf16", "bf16");
    }
}
