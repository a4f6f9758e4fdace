//! Bundles with quantized weights: what is in them, what engines make of them, and that `verify` tells a fault from rounding.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineErrorKind;
use dpar_export::bundle::{self, Bundle, BundleError};
use dpar_export::engines;
use dpar_export::loaded::LoadedBundle;
use dpar_export::tolerance::{Quantity, Rounding};
use dpar_export_checkpoint::{LoadOptions, load};
use dpar_export_onnx::derive::read_model;
use dpar_export_onnx::proto::TensorProto;
use dpar_export_spec::{Dialect, Form, GraphName, Quantize, WeightBits};

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, engine_options, fixture, on, quiet};
use crate::faults::rehash;

/// Engines that compute with quantized weights.
const TAKING: [&str; 2] = ["tract", "ort"];

const PACKED: &[Dialect] = &[Dialect::Packed];

pub(crate) fn export_quantized(checkpoint: &str, quantize: &str, out: &Utf8Path) -> Bundle {
    let loaded = load(&fixture(checkpoint), &LoadOptions::default()).unwrap();
    let form = Form { quantize: Quantize::parse(quantize).unwrap(), ..Form::default() };
    bundle::write(&loaded, form, out, false, &mut |_| true, &mut |_, _| Ok(())).unwrap();
    Bundle::open(out).unwrap()
}

#[test]
fn the_manifest_says_what_was_quantized_and_every_form_of_a_graph_is_there() {
    let temp = Temp::new();
    let bundle = export_quantized("emoji32/dpar", "entropy=int8,dpar=int4", &temp.path("b"));
    let manifest = bundle.manifest();
    assert_eq!(manifest.numbers().weights(), Some(WeightBits::Int4));
    let [dpar, entropy] = ["dpar", "entropy"].map(|c| manifest.quantized(c).unwrap());
    assert_eq!((dpar.weights, entropy.weights), (WeightBits::Int4, WeightBits::Int8));
    assert!(manifest.quantized("vq").is_none());
    for quantized in [dpar, entropy] {
        assert_eq!((quantized.opset, quantized.accuracy_level.number()), (21, 4));
        let share = quantized.bytes_after as f64 / quantized.bytes_before as f64;
        assert!(share < quantized.weights.bits() as f64 / 32.0 + 0.05, "{quantized}");
    }
    for graph in &manifest.graphs {
        let forms: Vec<Dialect> = graph.files().map(|(dialect, _)| dialect).collect();
        let plain = ["start", "vq_decode", "vq_encode"].contains(&graph.spec.name.as_str());
        assert_eq!(forms == [Dialect::Portable], plain, "{}: {forms:?}", graph.spec.name);
        for (dialect, file) in graph.files() {
            let model = read_model(&fs_err::read(bundle.path(file)).unwrap()).unwrap();
            let nodes = model.graph.unwrap_or_default().node;
            let count = |op: &str| nodes.iter().filter(|n| n.op_type() == op).count();
            let packed = dialect == Dialect::Packed;
            assert_eq!(
                (count("MatMulNBits") > 0, count("DequantizeLinear") > 0),
                (packed, !packed && !plain)
            );
        }
    }
}

/// Entropies of the reference's tokens.
fn entropies(bundle: &Bundle, engine: &str) -> Vec<f32> {
    let tokens: Vec<i64> = (0..4 * 64).map(|i| (i * 37 + 11) % 1024).collect();
    on(bundle, engine).score(&tokens, &[0, 1, 2, 3], None, 4, &mut quiet).unwrap().entropy.unwrap()
}

fn mean_apart(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / a.len() as f64
}

#[test]
fn engines_compute_with_the_same_weights_or_say_that_they_cannot() {
    let temp = Temp::new();
    let float = crate::common::export("emoji32/dpar", &LoadOptions::default(), &temp.path("float"));
    let exact = entropies(&float, "tract");
    for (quantize, bits) in
        [("int8", WeightBits::Int8), ("int4", WeightBits::Int4), ("int4:128", WeightBits::Int4)]
    {
        let bundle = export_quantized("emoji32/dpar", quantize, &temp.path(quantize));
        for engine in ENGINES.iter().filter(|e| !TAKING.contains(e)) {
            let created = engines::create(engine, &engine_options(engine)).unwrap();
            let e = LoadedBundle::new(&bundle, created).err().unwrap();
            assert_eq!(e.kind, EngineErrorKind::Unavailable);
            assert!(e.message.contains(&format!("{bits} weights")), "{e}");
        }
        let [tract, ort] = TAKING.map(|engine| entropies(&bundle, engine));
        let (error, between) = (mean_apart(&exact, &tract), mean_apart(&tract, &ort));
        assert!(error > 1e-4, "{quantize}: {error}");
        // The activations of one are rounded to 8 bits: far less than what the weights lose, or as much where they have 8.
        assert!(between < 1.5 * error, "{quantize}: {between} of {error}");
        let text = on(&bundle, "ort").arithmetic().text.clone();
        assert!(
            text.contains(&format!("entropy with {bits} weights: activations rounded to 8 bits")),
            "{text}"
        );
    }
}

/// On one engine both forms of a graph compute with the same weights: where it does not round activations, to the last bits.
#[test]
fn the_portable_form_has_the_weights_of_the_packed_one() {
    use dpar_engine_api::{Engine, TensorView};
    let temp = Temp::new();
    for quantize in ["int8", "int4", "int8:32"] {
        let bundle = export_quantized("emoji32/dpar", quantize, &temp.path(quantize));
        let [packed, portable] = [("tract", PACKED), ("ort", &[])].map(|(engine, dialects)| {
            let engine: Box<dyn Engine> = engines::create(engine, &engine_options(engine)).unwrap();
            let graph = GraphName::PatchEmbed.as_str();
            bundle
                .with_graph::<_, BundleError>(graph, dialects, |file| Ok(engine.prepare(file).unwrap()))
                .unwrap()
        });
        let hidden: Vec<f32> = (0..2 * 3 * 192).map(|i| ((i * 7919 % 1000) as f32 / 500.0) - 1.0).collect();
        let mask = [0.0; 6];
        let inputs = [
            ("hidden_0", TensorView::f32([2, 3, 192], &hidden)),
            ("patch_mask", TensorView::f32([2, 3], &mask)),
        ];
        let [a, b] = [packed, portable].map(|mut s| s.run(&inputs).unwrap().swap_remove(0).to_f32().unwrap());
        let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        assert!(worst < 1e-4, "{quantize}: {worst}");
    }
}

#[test]
fn a_manifest_that_says_other_weights_than_the_graphs_have_is_refused() {
    let temp = Temp::new();
    let folder = temp.path("b");
    export_quantized("emoji32/dpar", "int8", &folder);
    let path = folder.join("manifest.json");
    let good = fs_err::read_to_string(&path).unwrap();
    for (from, to, message) in [
        ("\"accuracy_level\": 4", "\"accuracy_level\": 1", "accuracy level 1"),
        ("\"weights\": \"int8\"", "\"weights\": \"int4\"", "is uint8, in fp32 it is uint4"),
        ("\"opset\": 21", "\"opset\": 22", "its opset is 21"),
        ("\"dialect\": \"packed\"", "\"dialect\": \"portable\"", "listed twice"),
        ("\"kept\": []", "\"kept\": [], \"kept\": []", "kept"),
        ("\"block\": 128", "\"block\": 64", "quantized as no export does it"),
        ("\"bytes_after\": ", "\"bytes_after\": 99999999999", "quantized as no export does it"),
        ("\"matrices\": {", "\"matrices\": {\"128\": 18446744073709551615, ", "128"),
    ] {
        assert!(good.contains(from), "{from}");
        fs_err::write(&path, good.replacen(from, to, 1)).unwrap();
        let e = Bundle::open(&folder).unwrap_err().to_string();
        assert!(e.contains(message), "{to}: {e}");
    }
}

#[test]
fn what_cannot_be_quantized_is_a_usage_error() {
    let temp = Temp::new();
    let (checkpoint, out) = (fixture("dpar-small/dpar"), temp.path("out"));
    for (args, message) in [
        (&["--quantize", "int2"][..], "none of int8, int4 and none"),
        (&["--quantize", "vq=int8"], "convolutions"),
        (&["--quantize", "llamagen=int8"], "does not have"),
        (&["--quantize", "int8", "--precision", "fp16"], "fp32 graphs"),
    ] {
        let done = run(&[&[checkpoint.as_str(), "-o", out.as_str()], args].concat());
        assert_eq!(done.code, 2, "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(message), "{args:?}: {}", done.stderr);
        assert!(!out.exists());
    }
}

/// `verify` with the reference and the streams of a float model.
fn verify(bundle: &Utf8Path, engine: &str) -> (i32, serde_json::Value) {
    let (golden, streams) = (fixture("emoji32"), fixture("emoji32/streams_dpar.safetensors"));
    let args = ["--reference", golden.as_str(), "--streams", streams.as_str(), "--engine", engine];
    let out = run(&[
        &["verify", bundle.as_str(), "--no-probes", "--limit", "192", "--batch", "64", "--json"][..],
        &args,
    ]
    .concat());
    assert!([0, 1].contains(&out.code), "{}", out.stderr);
    (out.code, json(&out))
}

fn failed(report: &serde_json::Value) -> Vec<&str> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|c| c["status"] == "fail").map(|c| c["name"].as_str().unwrap()).collect()
}

#[test]
fn a_quantized_bundle_passes_the_gate_on_every_engine_that_takes_it() {
    let temp = Temp::new();
    for quantize in ["int8", "int4"] {
        let folder = temp.path(quantize);
        export_quantized("emoji32/dpar", quantize, &folder);
        for engine in TAKING {
            let (code, report) = verify(&folder, engine);
            assert_eq!((code, failed(&report)), (0, vec![]), "{quantize} on {engine}: {report:#}");
            let of = |id: &str| report["checks"].as_array().unwrap().iter().find(|c| c["id"] == id).unwrap();
            for id in ["stream_patch_lengths", "stream_mean_steps", "arg_max"] {
                assert_eq!(of(id)["status"], "pass", "{id}");
            }
        }
    }
}

/// Step graphs with quantized weights keep their caches in place like float ones, and joined caches give the same.
#[test]
fn caches_of_quantized_graphs_are_in_place() {
    use dpar_engine_api::CacheForm::InPlace;
    use dpar_export::verify::{CheckId, Status, probe};
    let temp = Temp::new();
    for (quantize, engine) in [("int8", "tract"), ("int8", "ort"), ("int4", "ort")] {
        let bundle = export_quantized("emoji32/dpar", quantize, &temp.path(&format!("{quantize}-{engine}")));
        let runtime = on(&bundle, engine);
        let checks = probe(&runtime, 4, &mut quiet).unwrap();
        let caches = checks.iter().find(|c| c.id == CheckId::Caches).unwrap();
        assert_eq!(caches.status, Status::Pass, "{quantize} on {engine}: {checks:#?}");
        let forms = runtime.caches();
        let names: Vec<&str> = forms.keys().map(String::as_str).collect();
        assert_eq!(names, ["decoder_step", "encoder_step", "entropy_step", "global_step"]);
        assert!(forms.values().all(|form| *form == InPlace), "{quantize} on {engine}: {forms:?}");
    }
}

/// What may be rounded is asked for at the export, written into every product and said by every report.
#[test]
fn the_accuracy_level_is_chosen_and_named() {
    let temp = Temp::new();
    let (checkpoint, golden) = (fixture("emoji32/dpar"), fixture("emoji32"));
    let mut logits = Vec::new();
    for (level, text) in
        [("1", "float32 activations and sums (accuracy level 1)"), ("4", "(accuracy level 4)")]
    {
        let out = temp.path(level);
        let words =
            [checkpoint.as_str(), "--quantize", "int8", "--accuracy-level", level, "-o", out.as_str()];
        let done = run(&words);
        assert!(
            done.code == 0 && done.stderr.contains(&format!("accuracy level {level}")),
            "{}",
            done.stderr
        );
        let model = read_model(&fs_err::read(out.join("onnx/decoder_step.packed.onnx")).unwrap()).unwrap();
        let nodes = model.graph.unwrap_or_default().node;
        let mut levels = nodes.iter().filter(|n| n.op_type() == "MatMulNBits").flat_map(|n| &n.attribute);
        assert!(levels.any(|a| a.name() == "accuracy_level" && a.i == level.parse().ok()));
        let args = ["verify", out.as_str(), "--reference", golden.as_str(), "--engine", "ort", "--json"];
        let ran = run(&[&args[..], &["--no-probes"]].concat());
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        let report = json(&ran);
        assert!(report["arithmetic"]["text"].as_str().unwrap().contains(text), "{report:#}");
        let check = report["checks"].as_array().unwrap().iter().find(|c| c["id"] == "logits").unwrap();
        logits.push(check["max_abs"].as_f64().unwrap());
    }
    assert!(logits[0] != logits[1], "{logits:?}");
    for (words, message) in [
        (&["--quantize", "int8", "--accuracy-level", "0"][..], "leaves it to the engine"),
        (&["--quantize", "int8", "--accuracy-level", "2"], "half type"),
        (&["--accuracy-level", "1"], "--quantize"),
    ] {
        let out = temp.path("never");
        let done = run(&[&[checkpoint.as_str(), "-o", out.as_str()], words].concat());
        assert!(done.code == 2 && done.stderr.contains(message), "{words:?}: {}", done.stderr);
    }
}

/// The bytes of an initializer of a graph in the data file of its component.
fn change(
    folder: &Utf8Path,
    graph: &str,
    component: &str,
    name: &str,
    edit: impl FnOnce(&TensorProto, &mut [u8]),
) {
    let model = read_model(&fs_err::read(folder.join(format!("onnx/{graph}.onnx"))).unwrap()).unwrap();
    let graph = model.graph.unwrap();
    let tensor = graph.initializer.iter().find(|t| t.name() == name).unwrap();
    let entry = |key: &str| -> usize {
        let found = tensor.external_data.iter().find(|e| e.key() == key).unwrap();
        found.value().parse().unwrap()
    };
    let path: Utf8PathBuf = folder.join(format!("onnx/{component}.onnx_data"));
    let mut data = fs_err::read(&path).unwrap();
    let start = entry("offset");
    edit(tensor, &mut data[start..start + entry("length")]);
    fs_err::write(&path, data).unwrap();
    rehash(folder);
}

/// A fault of the exporter: what it would write differently is in the hashes too.
#[test]
fn seeded_faults_of_quantization_fail() {
    let scale = |folder: &Utf8Path| {
        // The scales of one row of blocks: of one block of columns in every row.
        change(
            folder,
            "entropy_step",
            "entropy",
            "layers.0.attention.wqkv.weight.scales",
            |tensor, bytes| {
                let blocks = tensor.dims[1] as usize;
                for scale in bytes.chunks_mut(4).step_by(blocks) {
                    let wrong = 2.0 * f32::from_le_bytes((&*scale).try_into().unwrap());
                    scale.copy_from_slice(&wrong.to_le_bytes());
                }
            },
        );
    };
    let nibbles = |folder: &Utf8Path| {
        change(
            folder,
            "decoder_step",
            "dpar",
            "local_decoder.layers.0.feed_forward.w2.weight.codes",
            |_, bytes| {
                bytes.iter_mut().for_each(|b| *b = b.rotate_left(4));
            },
        );
    };
    type Fault<'a> = (&'a str, &'a dyn Fn(&Utf8Path), &'a str);
    let faults: [Fault<'_>; 3] = [
        ("int8", &scale, "stream entropy"),
        ("int4", &scale, "stream entropy"),
        ("int4", &nibbles, "logits"),
    ];
    let temp = Temp::new();
    for (i, (quantize, fault, check)) in faults.into_iter().enumerate() {
        let folder = temp.path(&format!("{i}"));
        export_quantized("emoji32/dpar", quantize, &folder);
        fault(&folder);
        let (code, report) = verify(&folder, "tract");
        assert_eq!(code, 1, "{quantize} {check}: {report:#}");
        assert!(failed(&report).contains(&check), "{quantize} {check}: {report:#}");
    }
}

/// A bundle that passes for a quantized one has wider limits: float matrices that quantization would have taken give it away.
#[test]
fn a_float_bundle_that_is_said_to_be_quantized_is_refused() {
    let temp = Temp::new();
    let folder = temp.path("b");
    export_quantized("emoji32/dpar", "entropy=int4", &folder);
    let path = folder.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    let components = manifest["components"].as_array_mut().unwrap();
    let quantized = components.iter().find_map(|c| c.get("quantized")).unwrap().clone();
    let dpar = components.iter_mut().find(|c| c["kind"] == "dpar").unwrap();
    dpar["quantized"] = quantized;
    let model = read_model(&fs_err::read(folder.join("onnx/score.onnx")).unwrap()).unwrap();
    let names = model.graph.unwrap().initializer;
    let kept: Vec<&str> = names.iter().filter_map(|t| t.name().strip_suffix(".T")).collect();
    dpar["quantized"]["kept"] = kept.into();
    dpar["quantized"]["opset"] = 17.into();
    fs_err::write(&path, manifest.to_string()).unwrap();
    let e = Bundle::open(&folder).unwrap_err().to_string();
    assert!(e.contains("is in float32, and quantization would have taken it"), "{e}");
}

/// The limits of one transformer's weights are not those of the other.
#[test]
fn a_fault_in_the_float_model_beside_a_quantized_one_is_found() {
    let temp = Temp::new();
    let (good, bad) = (temp.path("good"), temp.path("bad"));
    export_quantized("emoji32/dpar", "dpar=int4", &good);
    let (code, report) = verify(&good, "ort");
    assert_eq!((code, failed(&report)), (0, vec![]), "{report:#}");
    // Two engines on one bundle: each graph has the limit of its own weights.
    let out =
        run(&["parity", good.as_str(), "--engines", "tract,ort", "--num", "4", "--no-probes", "--json"]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let parity = json(&out);
    let limit = |graph: &str| {
        let tensors = parity["pairs"][0]["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["graph"] == graph).unwrap()["limit"].as_f64().unwrap()
    };
    assert_eq!(limit("entropy_step"), Rounding::FP32.limit(Quantity::Output).value());
    assert!(limit("decoder_step") > limit("entropy_step"));
    export_quantized("emoji32/dpar", "dpar=int4", &bad);
    // One layer of the entropy model, a hundredth off: within what 4 bits may do, and far beyond float32.
    change(&bad, "entropy_step", "entropy", "layers.0.feed_forward.w2.weight.T", |_, bytes| {
        for weight in bytes.chunks_mut(4) {
            let wrong = 1.01 * f32::from_le_bytes((&*weight).try_into().unwrap());
            weight.copy_from_slice(&wrong.to_le_bytes());
        }
    });
    let (code, report) = verify(&bad, "tract");
    assert_eq!(code, 1, "{report:#}");
    for check in ["entropy", "stream entropy"] {
        assert!(failed(&report).contains(&check), "{check}: {report:#}");
    }
}

/// A baseline has no entropies, and its streams say nothing of quantized weights: that is no pass.
#[test]
fn streams_of_which_nothing_is_compared_do_not_pass() {
    let temp = Temp::new();
    let folder = temp.path("b");
    let (file, options) = crate::common::llamagen("emoji32");
    let loaded = load(&fixture(file), &options).unwrap();
    let form = Form { quantize: Quantize::parse("int8").unwrap(), ..Form::default() };
    bundle::write(&loaded, form, &folder, false, &mut |_| true, &mut |_, _| Ok(())).unwrap();
    let streams = fixture("emoji32/streams_llamagen.safetensors");
    let out = run(&["verify", folder.as_str(), "--streams", streams.as_str(), "--no-probes", "--json"]);
    assert_eq!(out.code, 2, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    assert_eq!(report["verdict"], "incomplete");
    let statuses = report["checks"].as_array().unwrap().iter().map(|c| c["status"].as_str().unwrap());
    assert!(statuses.eq(["not_run"; 3]), "{report:#}");
}

/// What a node says of its weights is what is there, or no engine sees it.
#[test]
fn a_packed_product_that_lies_about_its_weights_is_refused() {
    for (key, value) in [("K", 192 * 64), ("N", 1 << 20), ("bits", 8), ("block_size", 16)] {
        let temp = Temp::new();
        let folder = temp.path("b");
        export_quantized("emoji32/dpar", "dpar=int4", &folder);
        crate::faults::graph(&folder, "patch_embed.packed", |model| {
            let nodes = &mut model.graph.as_mut().unwrap().node;
            let product = nodes.iter_mut().find(|n| n.op_type() == "MatMulNBits").unwrap();
            product.attribute.iter_mut().find(|a| a.name() == key).unwrap().i = Some(value);
        });
        rehash(&folder);
        let Ok(bundle) = Bundle::open(&folder) else { continue };
        for engine in TAKING {
            let e = on(&bundle, engine).prepare(GraphName::PatchEmbed).err().unwrap().to_string();
            assert!(e.contains("(MatMulNBits): ") && e.contains("weights"), "{key} on {engine}: {e}");
        }
    }
}
