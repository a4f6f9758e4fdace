//! Graphs that do what torch autocast does: against the authors' code under autocast, and which engines take which form.

use dpar_engine_api::ArithmeticKind;
use dpar_export::arrays::ArrayFile;
use dpar_export::bundle::Bundle;
use dpar_export::tolerance::{Quantity, Rounding};
use dpar_export::verify::{Check, Status, verify_golden};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::{DType, Precision};
use serde_json::Value;

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, export, export_as, fixture, llamagen, on, quiet};

const DPAR: &str = "emoji32/dpar";
const GOLDEN: &str = "emoji32-autocast";

fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no {name}: {checks:#?}"))
}

/// Mean distance of what a bundle gives to an array of the golden.
fn mean_distance(array: &str, found: &[f32]) -> f32 {
    let file = ArrayFile::open(fixture(GOLDEN).join("golden.safetensors")).unwrap();
    let dims: &[Option<usize>] = if array == "logits" { &[None; 3] } else { &[None; 2] };
    let reference = file.f32(array, dims).unwrap();
    assert_eq!(reference.len(), found.len());
    reference.iter().zip(found).map(|(r, f)| (r - f).abs()).sum::<f32>() / found.len() as f32
}

/// The published arithmetic on every engine: what the authors' code gave under `torch.autocast(bfloat16)`.
#[test]
fn every_engine_computes_what_the_authors_computed_under_autocast() {
    let temp = Temp::new();
    let bundle = export_as(DPAR, Precision::Bf16AutocastExplicit, &LoadOptions::default(), &temp.path("b"));
    for engine in ENGINES {
        let checks = verify_golden(&on(&bundle, engine), &fixture(GOLDEN), 8, &mut quiet).unwrap();
        for name in ["patch rule", "entropy", "patch lengths", "mean steps", "logits"] {
            assert_eq!(named(&checks, name).status, Status::Pass, "{engine}: {checks:#?}");
        }
        assert!(checks.iter().all(|c| c.status != Status::Fail), "{engine}: {checks:#?}");
        let boundaries = named(&checks, "patch lengths");
        assert!(boundaries.flips.len() <= 1, "{engine}: {boundaries:#?}");
    }
}

/// Without rounding the same model is far outside of what the roundings leave, so that passing means something.
#[test]
fn float32_graphs_are_told_apart_from_autocast() {
    let temp = Temp::new();
    let bundle = export(DPAR, &LoadOptions::default(), &temp.path("b"));
    let runtime = on(&bundle, "ort");
    let file = ArrayFile::open(fixture(GOLDEN).join("golden.safetensors")).unwrap();
    let ids: Vec<i64> = file.i64("tokens", &[None; 2]).unwrap().iter().copied().collect();
    let labels: Vec<i64> = file.i64("class_labels", &[None]).unwrap().iter().copied().collect();
    let lengths = file.i64("patch_lengths", &[None; 2]).unwrap();
    let lengths: Vec<Vec<usize>> = lengths
        .outer_iter()
        .map(|row| row.iter().map(|l| *l as usize).filter(|l| *l > 0).collect())
        .collect();
    let scores = runtime.score(&ids, &labels, Some(&lengths), 8, &mut quiet).unwrap();
    let entropy = mean_distance("entropy", scores.entropy.as_deref().unwrap());
    let logits = mean_distance("logits", &scores.logits);
    let same = Rounding::between(Precision::Bf16Autocast, Precision::Bf16Autocast, ArithmeticKind::AsGraph);
    let limit = |quantity| same.limit(quantity).value() as f32;
    assert!(entropy > 2.0 * limit(Quantity::EntropyMean), "{entropy}");
    assert!(logits > 1.2 * limit(Quantity::LogitsMean), "{logits}");
    // And are no defect: the reference says what it was computed in.
    let checks = verify_golden(&runtime, &fixture(GOLDEN), 8, &mut quiet).unwrap();
    assert!(checks.iter().all(|c| c.status != Status::Fail), "{checks:#?}");
}

/// What is wrong in a model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    /// The threshold is 1 % off.
    Threshold,
    /// One layer's weights are.
    Layer,
    /// One layer's queries and keys have their pairs the other way round, so that each is turned by another's angle.
    Rope,
}

/// The trained system with a fault in the entropy model or in the DPAR.
fn seeded(temp: &Temp, fault: Fault, part: &str, precision: Precision) -> Bundle {
    let weights = "checkpoints/final/model.safetensors";
    let (layer, heads) = ("layers.1", if part == "entropy" { 2 } else { 3 });
    for folder in ["entropy", "dpar"] {
        let (from, to) = (fixture("emoji32").join(folder), temp.path(folder));
        fs_err::create_dir_all(to.join("checkpoints/final")).unwrap();
        let mut config = fs_err::read_to_string(from.join("config.yaml")).unwrap();
        if fault == Fault::Threshold {
            config = config.replace("threshold: 4.35", "threshold: 4.3935");
        }
        fs_err::write(to.join("config.yaml"), config).unwrap();
        let mut bytes = fs_err::read(from.join(weights)).unwrap();
        if folder == part {
            let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
            let tensor = |name: &str| {
                let tensor = &header[format!("{layer}.{name}.weight")];
                let [from, to] = [0, 1].map(|i| start + tensor["data_offsets"][i].as_u64().unwrap() as usize);
                (from..to, tensor["shape"][1].as_u64().unwrap() as usize)
            };
            if fault == Fault::Layer {
                for value in bytes[tensor("feed_forward.w2").0].as_chunks_mut::<4>().0 {
                    *value = (f32::from_le_bytes(*value) * 1.01).to_le_bytes();
                }
            }
            if fault == Fault::Rope {
                let (range, width) = tensor("attention.wqkv");
                let head = width / heads;
                let rows = bytes[range.clone()].to_vec();
                let rows: Vec<&[u8]> = rows.chunks(4 * width).collect();
                let row = |to: usize| match to / width {
                    // q and k; v is not turned.
                    0 | 1 => to / head * head + (head - 2 - to % head / 2 * 2) + to % 2,
                    _ => to,
                };
                bytes[range]
                    .copy_from_slice(&(0..rows.len()).map(row).map(|i| rows[i]).collect::<Vec<_>>().concat());
            }
        }
        fs_err::write(to.join(weights), bytes).unwrap();
    }
    let options = LoadOptions { vq: Some(fixture("emoji32/vq.pt")), ..LoadOptions::default() };
    export_as(temp.path("dpar").as_str(), precision, &options, &temp.path("b"))
}

/// The table of docs/reference.md: what the checks make of each fault, given the arithmetic of bundle and reference.
#[test]
fn seeded_faults_show_through_what_roundings_leave() {
    use Fault::{Layer, Nothing, Rope, Threshold};
    let same = (Precision::Bf16AutocastExplicit, GOLDEN);
    let apart = (Precision::Fp32, GOLDEN);
    let exact = (Precision::Fp32, "emoji32");
    for ((precision, golden), fault, part, caught) in [
        (same, Nothing, "", None),
        (same, Threshold, "", Some("patch rule")),
        (same, Layer, "entropy", Some("entropy")),
        (same, Layer, "dpar", Some("logits")),
        (same, Rope, "entropy", Some("entropy")),
        (same, Rope, "dpar", Some("logits")),
        (apart, Nothing, "", None),
        (apart, Threshold, "", Some("patch rule")),
        // The one that hides behind the reference's rounding.
        (apart, Layer, "entropy", None),
        (apart, Layer, "dpar", None),
        (apart, Rope, "entropy", Some("entropy")),
        (apart, Rope, "dpar", Some("logits")),
        (exact, Nothing, "", None),
        (exact, Threshold, "", Some("patch rule")),
        (exact, Layer, "entropy", Some("entropy")),
        (exact, Layer, "dpar", Some("logits")),
        (exact, Rope, "entropy", Some("entropy")),
        (exact, Rope, "dpar", Some("logits")),
    ] {
        let temp = Temp::new();
        let bundle = seeded(&temp, fault, part, precision);
        let checks = verify_golden(&on(&bundle, "ort"), &fixture(golden), 8, &mut quiet).unwrap();
        let at = format!("{fault:?} {part} in {precision} against {golden}: {checks:#?}");
        match caught {
            Some(name) => assert_eq!(named(&checks, name).status, Status::Fail, "{at}"),
            None => assert!(checks.iter().all(|c| c.status != Status::Fail), "{at}"),
        }
        if fault == Layer && (precision, golden) == same {
            assert!(named(&checks, part_of(part)).detail.contains("mean difference"), "{at}");
        }
        // Flips are counted, with the number that rounding makes.
        let boundaries = named(&checks, "patch lengths");
        assert_eq!(boundaries.expected.is_some(), (precision, golden) == apart, "{at}");
        if fault == Nothing && (precision, golden) == apart {
            let expected = boundaries.expected.unwrap();
            assert!(expected > 1.0 && (boundaries.flips.len() as f64) < 3.0 * expected, "{at}");
            // What can be concluded, and how the rest can be.
            let concluded = &named(&checks, "fp32 reference").detail;
            assert!(concluded.contains("the reference is in bf16-autocast, these graphs in fp32"), "{at}");
            assert!(concluded.contains("this checkpoint exported in bf16-autocast"), "{at}");
        }
    }
}

/// The check of what a model gives.
fn part_of(part: &str) -> &'static str {
    if part == "entropy" { "entropy" } else { "logits" }
}

#[test]
fn the_command_line_gives_each_target_its_form() {
    let temp = Temp::new();
    let (checkpoint, golden) = (fixture(DPAR), fixture(GOLDEN));
    let (onnx, trt) = (temp.path("onnx"), temp.path("trt"));
    let export = ["--precision", "bf16-autocast", checkpoint.as_str(), "-o"];
    let out = run(&[&["--target", "onnx"], &export[..], &[onnx.as_str()]].concat());
    assert_eq!(out.code, 0, "{}", out.stderr);
    let out = run(&["verify", onnx.as_str(), "--reference", golden.as_str(), "--no-probes", "--json"]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    assert_eq!(report["precision"], "bf16-autocast-explicit");
    assert_eq!(report["arithmetic"]["text"], "float32 with every rounding of bf16 autocast");
    let text = run(&["inspect", onnx.as_str()]).stdout;
    assert!(text.contains("KV caches are numbers of bf16, held in f32"), "{text}");
    // It is not for TensorRT, which may simplify the roundings and has the type.
    for more in [&[][..], &["--dry-run"], &["--emit-trtexec"]] {
        let out = run(&[&["--target", "trt", onnx.as_str()], more].concat());
        assert_eq!(out.code, 2, "{more:?}: {}", out.stderr);
        assert!(out.stderr.contains("--target trt --precision bf16-autocast"), "{more:?}: {}", out.stderr);
    }

    let out = run(&[&["--target", "trt", "--emit-trtexec"], &export[..], &[trt.as_str()]].concat());
    assert_eq!(out.code, 0, "{}", out.stderr);
    let manifest: Value = serde_json::from_slice(&fs_err::read(trt.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["precision"], "bf16-autocast");
    for engine in ENGINES {
        let out = run(&["verify", trt.as_str(), "--reference", golden.as_str(), "--engine", engine]);
        assert_eq!(out.code, 3, "{engine}: {}", out.stderr);
        assert!(out.stderr.contains("cannot run bf16-autocast graphs"), "{}", out.stderr);
        assert!(out.stderr.contains("--target onnx"), "{}", out.stderr);
    }
}

/// Only what products see is narrow: half the bytes of the transformers' matrices, and caches of the half type.
#[test]
fn products_and_caches_have_the_half_type_and_nothing_else() {
    let temp = Temp::new();
    let sizes =
        [Precision::Fp32, Precision::Bf16Autocast, Precision::Bf16AutocastExplicit].map(|precision| {
            let bundle = export_as(
                "variants/combined/dpar",
                precision,
                &LoadOptions::default(),
                &temp.path(precision.name()),
            );
            for port in
                bundle.manifest().graphs.iter().flat_map(|g| g.spec.inputs.iter().chain(&g.spec.outputs))
            {
                let cache = ["past_", "new_"].iter().any(|p| port.name.starts_with(p));
                let float = if cache { precision.dtype() } else { DType::F32 };
                assert!(!port.dtype.is_float() || port.dtype == float, "{precision}: {port:?}");
            }
            let size = |part: &str| {
                let name = format!("onnx/{part}.onnx_data");
                bundle.manifest().files.iter().find(|f| f.path == name).unwrap().size
            };
            (size("dpar"), size("vq"), bundle.manifest().opset)
        });
    let [float, typed, explicit] = sizes;
    assert_eq!((float.1, float.1, float.2, float.2), (typed.1, explicit.1, typed.2, explicit.2));
    assert!(typed.0 < float.0 && explicit.0 == float.0, "{sizes:?}");
}

#[test]
fn fp16_autocast_runs_where_fp16_does() {
    let temp = Temp::new();
    let (file, options) = llamagen("emoji32");
    let bundle = export_as(file, Precision::Fp16Autocast, &options, &temp.path("b"));
    for engine in ENGINES {
        let golden = fixture("emoji32/llamagen");
        let checks = verify_golden(&on(&bundle, engine), &golden, 4, &mut quiet).unwrap();
        for name in ["logits", "greedy tokens"] {
            assert_eq!(named(&checks, name).status, Status::Pass, "{engine}: {checks:#?}");
        }
        assert_eq!(named(&checks, "fp16-autocast reference").status, Status::NotRun);
    }
}

/// What an engine records is a reference for another, with its arithmetic in it.
#[test]
fn a_recorded_reference_says_its_arithmetic() {
    let temp = Temp::new();
    let bundle = export_as(
        "variants/combined/dpar",
        Precision::Bf16AutocastExplicit,
        &LoadOptions::default(),
        &temp.path("b"),
    );
    let (folder, golden) = (bundle.folder(), temp.path("golden"));
    let out = run(&["reference", folder.as_str(), "--engine", "ort", "--num", "2", "-o", golden.as_str()]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let path = golden.join("golden.json");
    let mut settings: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    assert_eq!((&settings["arithmetic"], &settings["device"]), (&"bf16-autocast".into(), &"cpu".into()));
    let verify = || run(&["verify", folder.as_str(), "--reference", golden.as_str(), "--no-probes"]);
    assert_eq!(verify().code, 0, "{}", verify().stdout);
    let mut changed = |key: &str, value: Value, text: &str| {
        settings[key] = value;
        fs_err::write(&path, serde_json::to_vec(&settings).unwrap()).unwrap();
        let out = verify();
        assert!(out.code == 2 && out.stderr.contains(text), "{key}: {} {}", out.code, out.stderr);
    };
    let text = "arithmetic says fp32, provenance.precision says bf16-autocast";
    changed("arithmetic", "float32".into(), text);
    changed("arithmetic", "bfloat".into(), "unknown variant `bfloat`");
}

/// Every graph becomes an engine of a strongly typed network: each cast is where the types ask for one.
#[cfg(feature = "tensorrt")]
#[test]
fn tensorrt_builds_engines_of_autocast_graphs() {
    for precision in ["bf16-autocast", "fp16-autocast"] {
        let temp = Temp::new();
        let (checkpoint, out) = (fixture("variants/combined/dpar"), temp.path("b"));
        let args = ["--target", "trt", "--precision", precision, "--builder-optimization-level", "0"];
        let built = run(&[&args[..], &[checkpoint.as_str(), "-o", out.as_str(), "--json"]].concat());
        assert_eq!(built.code, 0, "{}", built.stderr);
        let manifest = &json(&built)["manifest"];
        let engines = manifest["engines"].as_array().unwrap();
        assert_eq!(engines.len(), 9);
        assert!(engines.iter().all(|e| e["precision"] == precision), "{engines:#?}");
    }
}
