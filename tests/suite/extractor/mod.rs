//! Feature extractors: parity with the networks that they stand for, bundles, the command line.

mod seeded;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::TensorView;
use dpar_export::arrays::ArrayFile;
use dpar_export::bundle::{ExtractorBundle, ExtractorSpec, write_extractor};
use dpar_export::engines;
use dpar_export::features::{Activations, ExtractorOptions, FeatureExtractor};
use dpar_export::reproduce::paper::Paper;
use dpar_export_checkpoint::{LoadOptions, load_extractor};
use dpar_export_metrics::Resize;
use dpar_export_onnx::derive::{read_model, write_model};
use dpar_export_onnx::proto::DimensionValue;
use dpar_export_spec::ComponentKind;
use serde_json::Value;

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, engine_options, fixture, quiet};
use crate::faults::{copy, rehash};

/// Largest difference to the reference network, relative to the larger of the value and the root mean square of the
/// output: 94 layers in float32, summed in another order.
const FEATURE_RELATIVE: f64 = 1e-4;

/// The weights that `cargo xtask setup` fetches.
pub(crate) fn efficientnet_weights() -> Utf8PathBuf {
    let path = Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("third_party/efficientnet-lite0/efficientnet-lite0-57934424.pth");
    assert!(path.is_file(), "{path} is missing: run `cargo xtask setup`");
    path
}

/// Exports a feature network with its own preparation.
pub(crate) fn export(weights: &Utf8Path, kind: ComponentKind, out: &Utf8Path) -> ExtractorBundle {
    let loaded = load_extractor(weights, kind, None, None).unwrap();
    let spec = ExtractorSpec::of(&loaded, None, None).unwrap();
    write_extractor(&loaded, &spec, out, false, &mut |_| true).unwrap();
    ExtractorBundle::open(out).unwrap()
}

/// An extractor on an engine.
pub(crate) fn open(path: &Utf8Path, engine: &str, options: &ExtractorOptions) -> FeatureExtractor {
    let engine = engines::create(engine, &engine_options(engine)).unwrap();
    FeatureExtractor::open(path, engine, options).unwrap()
}

fn facts(folder: &str) -> Value {
    let text = fs_err::read_to_string(fixture(folder).join("facts.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn assert_near(what: &str, found: &[f32], file: &ArrayFile, name: &str) {
    let reference: Vec<f32> = file.f32(name, &[Some(2), None]).unwrap().iter().copied().collect();
    assert_eq!(found.len(), reference.len(), "{what} {name}");
    let square: f64 = reference.iter().map(|v| f64::from(*v).powi(2)).sum();
    let rms = (square / reference.len() as f64).sqrt();
    for (i, (a, b)) in found.iter().zip(&reference).enumerate() {
        let (a, b) = (f64::from(*a), f64::from(*b));
        let off = (a - b).abs() / b.abs().max(rms);
        assert!(off <= FEATURE_RELATIVE, "{what} {name}[{i}]: {a}, reference {b}, off by {off:.2e}");
    }
}

/// Holds a network against its fixture on these engines.
fn check(engines: &[&str], bundle: &Utf8Path, folder: &str, (input, side): (&[f32], usize), features: &str) {
    let file = ArrayFile::open(fixture(folder).join("outputs.npz")).unwrap();
    for engine in engines {
        let mut extractor = open(bundle, engine, &ExtractorOptions::default());
        let found = extractor.call(2, TensorView::f32([2, 3, side, side], input)).unwrap();
        let what = format!("{folder} on {engine}");
        assert_near(&what, &found.features, &file, features);
        assert_near(&what, found.logits.as_deref().unwrap(), &file, "logits");
        assert_eq!(found.spatial.is_some(), file.contains("spatial"));
        if let Some(spatial) = &found.spatial {
            assert_near(&what, spatial, &file, "spatial");
        }
        // One image at a time gives the same rows.
        let single =
            extractor.call(1, TensorView::f32([1, 3, side, side], &input[3 * side * side..])).unwrap();
        assert_near_rows(&single, &found);
    }
}

/// `single` is the second row of `both`.
fn assert_near_rows(single: &Activations, both: &Activations) {
    for (a, b) in single.features.iter().zip(&both.features[both.width..]) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
    }
}

#[test]
fn inception_gives_what_pytorch_fid_gives() {
    let temp = Temp::new();
    let facts = facts("inception");
    let seed = facts["seed"].as_u64().unwrap();
    let weights = temp.path("weights.safetensors");
    assert_eq!(seeded::write_weights(seed, &weights), facts["weights_sha256"], "the generators differ");
    let images = seeded::images(seed, 1 << 20, 2, 299, 13, 128.0);
    assert_eq!(seeded::digest(&images), facts["images_sha256"], "the generators differ");
    let bundle = export(&weights, ComponentKind::Inception, &temp.path("b"));
    assert!(bundle.spec().is_fid() && bundle.manifest().patch_rule.is_none());
    another_normalisation_is_another_network(&temp, bundle.folder());
    assert_eq!(bundle.manifest().components[0].parameters, 23_885_392);
    let (pads, can): (Vec<&str>, Vec<&str>) = ENGINES.into_iter().partition(|e| *e == "candle");
    check(&can, bundle.folder(), "inception", (&images, 299), "pool_3");
    // candle has no padded pools: it says so, and runs nothing.
    for engine in pads {
        let engine = engines::create(engine, &engine_options(engine)).unwrap();
        let e = FeatureExtractor::open(bundle.folder(), engine, &ExtractorOptions::default()).err().unwrap();
        assert!(e.to_string().contains("does not support padding"), "{e}");
    }
}

/// The bundle of FID-Inception with bytes for what it should see: its distance is no FID, and no row of the published table is
/// held against it.
fn another_normalisation_is_another_network(temp: &Temp, inception: &Utf8Path) {
    let other = temp.path("other");
    copy(inception, &other);
    let config = other.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs_err::read(&config).unwrap()).unwrap();
    spec["normalise"] = serde_json::json!({ "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0] });
    fs_err::write(&config, serde_json::to_vec_pretty(&spec).unwrap()).unwrap();
    rehash(&other);
    let name = "Fréchet distance on inception normalised by mean [0.0, 0.0, 0.0], std [255.0, 255.0, 255.0]";
    let shown = run(&["inspect", other.as_str()]);
    assert!(shown.code == 0 && shown.stdout.contains(name), "{}{}", shown.stdout, shown.stderr);
    let system = crate::common::export("emoji32/dpar", &LoadOptions::default(), &temp.path("dpar"));
    let paper = Paper::table().unwrap();
    let row = paper.row("DPAR-B").unwrap();
    for (folder, distance, why) in [
        (inception, "FID", "makes images of 32 px"),
        (&other, name, "are on FID-Inception, the extractor is inception normalised by"),
    ] {
        let extractor = open(folder, "ort", &ExtractorOptions::default());
        assert_eq!(extractor.identity().distance, distance);
        let e = row.check_extractor(system.system(), &extractor).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    }
    // Another resize is another tool's, with a normalisation of its own.
    let resize = Some(Resize::HalfPixelBilinear);
    let moved = open(inception, "ort", &ExtractorOptions { resize, ..ExtractorOptions::default() });
    assert_eq!((moved.identity().distance.as_str(), moved.spec().resize), ("FID", Resize::HalfPixelBilinear));
}

#[test]
fn efficientnet_lite0_gives_what_its_own_package_gives() {
    let temp = Temp::new();
    let facts = facts("efficientnet-lite0");
    let seed = facts["seed"].as_u64().unwrap();
    let images = seeded::images(seed, 0, 2, 224, 14, 127.0);
    assert_eq!(seeded::digest(&images), facts["images_sha256"], "the generators differ");
    let bundle = export(&efficientnet_weights(), ComponentKind::EfficientnetLite0, &temp.path("b"));
    assert_eq!(bundle.manifest().sources[0].sha256, facts["weights_sha256"], "the generator's weights");
    assert_eq!(bundle.spec().distance_name(), "Fréchet distance on efficientnet-lite0");
    check(&ENGINES, bundle.folder(), "efficientnet-lite0", (&images, 224), "features");
}

#[test]
fn images_of_any_size_run_in_batches_and_the_identity_says_how() {
    let temp = Temp::new();
    let bundle = export(&efficientnet_weights(), ComponentKind::EfficientnetLite0, &temp.path("b"));
    let pixels: Vec<u8> = (0..3 * 20 * 32 * 3).map(|i| (i * 37 % 251) as u8).collect();
    let one = ExtractorOptions { batch: 1, ..ExtractorOptions::default() };
    let mut first = open(bundle.folder(), "tract", &one);
    let mut seen = Vec::new();
    let single = first
        .run(&pixels, (20, 32), &mut |done, of| {
            seen.push((done, of));
            true
        })
        .unwrap();
    assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
    assert_eq!((single.count, single.width, single.features.len()), (3, 1280, 3 * 1280));
    let two = ExtractorOptions { batch: 2, threads: 2, ..ExtractorOptions::default() };
    let mut second = open(bundle.folder(), "tract", &two);
    let batched = second.run(&pixels, (20, 32), &mut quiet).unwrap();
    for (a, b) in single.features.iter().zip(&batched.features) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let other = ExtractorOptions { resize: Some(Resize::Tf1Bilinear), ..one.clone() };
    let mut third = open(bundle.folder(), "tract", &other);
    let moved = third.run(&pixels, (20, 32), &mut quiet).unwrap();
    assert!(moved.features.iter().zip(&single.features).any(|(a, b)| (a - b).abs() > 1e-2));
    let identity = first.identity();
    assert_eq!(identity.digest, bundle.manifest_sha256());
    assert_ne!(identity, third.identity(), "another resize is another protocol");
    assert_eq!(identity, second.identity(), "batch and threads are not part of the protocol");
    assert!(first.run(&pixels[1..], (20, 32), &mut quiet).is_err());
}

#[test]
fn the_command_line_exports_inspects_and_refuses() {
    let temp = Temp::new();
    let (weights, out) = (efficientnet_weights(), temp.path("b"));
    let export = ["--target", "onnx", "--component", "efficientnet-lite0", weights.as_str()];
    let with = |more: &[&str]| run(&[&export[..], more].concat());
    let done = with(&["-o", out.as_str(), "--json"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(json(&done)["manifest"]["system"], "extractor");
    let shown = run(&["inspect", out.as_str()]);
    assert!(
        shown.code == 0 && shown.stdout.contains("resize pil-bicubic"),
        "{}{}",
        shown.stdout,
        shown.stderr
    );
    for (command, code, message) in [
        (vec!["generate", out.as_str(), "--num", "1", "-o", "x"], 2, "is a feature extractor"),
        (vec![weights.as_str(), "-o", "x"], 2, "--component efficientnet-lite0"),
        (vec!["--component", "inception", weights.as_str(), "-o", "x"], 2, "Conv2d_1a_3x3"),
        (vec!["--component", "features", weights.as_str(), "-o", "x"], 2, "not an ONNX model"),
        (vec!["--target", "trt", "--component", "inception", "w.pth", "-o", "x"], 2, "ONNX only"),
        (vec!["--component", "inception", "nowhere.pth", "-o", "x"], 2, "nowhere.pth"),
        (vec!["--resize", "tf1-bilinear", "w.pth", "-o", "x"], 2, "--component"),
    ] {
        let run = run(&command);
        assert!(run.code == code && run.stderr.contains(message), "{command:?}: {} {}", run.code, run.stderr);
    }
    let again = with(&["-o", out.as_str()]);
    assert!(again.code == 2 && again.stderr.contains("--force"), "{}", again.stderr);
    let dry = with(&["--dry-run", "--resize", "tf1-bilinear", "--mean", "127", "--std", "128", "--json"]);
    assert_eq!(json(&dry)["extractor"]["resize"], "tf1-bilinear", "{}", dry.stderr);
    // One changed byte is an integrity failure.
    let data = out.join("onnx/efficientnet-lite0.onnx_data");
    let mut bytes = fs_err::read(&data).unwrap();
    bytes[100_000] ^= 1;
    fs_err::write(&data, bytes).unwrap();
    let changed = run(&["inspect", out.as_str()]);
    assert!(changed.code == 5 && changed.stderr.contains("onnx_data"), "{}", changed.stderr);
}

#[test]
fn an_onnx_file_is_an_extractor_named_after_itself() {
    let temp = Temp::new();
    // EfficientNet-Lite0's graph has two outputs and external weights: the file of another tool has neither.
    let exported = temp.path("b");
    export(&efficientnet_weights(), ComponentKind::EfficientnetLite0, &exported);
    let external = exported.join("onnx/efficientnet-lite0.onnx");
    let refused = run(&["--component", "features", external.as_str(), "-o", temp.path("x").as_str()]);
    assert!(refused.code == 2 && refused.stderr.contains("other files"), "{}", refused.stderr);

    let tiny = fixture("features/tiny.onnx");
    let out = temp.path("features");
    let made = run(&["--component", "features", tiny.as_str(), "-o", out.as_str(), "--input-size", "16"]);
    assert!(made.code == 0 && made.stdout.contains("Fréchet distance on tiny.onnx"), "{}", made.stderr);
    let wrong = run(&["--component", "features", tiny.as_str(), "-o", out.as_str(), "--force"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("--input-size"), "{}", wrong.stderr);
    // A file whose size is fixed says it as a number.
    let mut model = read_model(&fs_err::read(&tiny).unwrap()).unwrap();
    let input = &mut model.graph.as_mut().unwrap().input[0];
    let dims = &mut input.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape.as_mut().unwrap().dim;
    dims[2..].iter_mut().for_each(|dim| dim.value = Some(DimensionValue::Value(16)));
    let fixed = temp.path("fixed.onnx");
    fs_err::write(&fixed, write_model(&model)).unwrap();
    let out_of = ["--component", "features", fixed.as_str(), "-o", out.as_str(), "--force"];
    let wrong = run(&[&out_of[..], &["--input-size", "20"]].concat());
    let text = "its input is 16 x 16 pixels, --input-size 20";
    assert!(wrong.code == 2 && wrong.stderr.contains(text), "{}", wrong.stderr);
    let pixels: Vec<u8> = (0..2 * 16 * 16 * 3).map(|i| (i % 256) as u8).collect();
    let options = ExtractorOptions { input_size: Some(16), ..ExtractorOptions::default() };
    let mut results = Vec::new();
    for engine in ENGINES {
        let mut bundled = open(&out, engine, &ExtractorOptions::default());
        let mut direct = open(&tiny, engine, &options);
        assert_eq!(bundled.identity().name, "tiny.onnx");
        let found = bundled.run(&pixels, (16, 16), &mut quiet).unwrap();
        assert_eq!(found, direct.run(&pixels, (16, 16), &mut quiet).unwrap());
        // The file's network is the mean of each channel.
        let mean = pixels[..768].iter().step_by(3).map(|v| f32::from(*v)).sum::<f32>() / 256.0;
        assert!((found.features[0] - (mean - 128.0) / 128.0).abs() < 1e-5, "{found:?}");
        results.push(found);
    }
    assert_eq!(results[0].count, 2);
}

#[test]
fn axes_of_other_tools_have_any_name_or_none() {
    let temp = Temp::new();
    let pixels: Vec<u8> = (0..3 * 16 * 16 * 3).map(|i| (i * 7 % 256) as u8).collect();
    let options = ExtractorOptions { input_size: Some(16), batch: 2, ..ExtractorOptions::default() };
    let known = open(&fixture("features/tiny.onnx"), "tract", &options);
    let known = { known }.run(&pixels, (16, 16), &mut quiet).unwrap();
    let names = [
        "",
        " ",
        "batch size",
        "?",
        "N:1",
        "a/b",
        "1st",
        "16",
        "изображения",
        "批",
        "N-1",
        "n + 1",
        "unk__0",
        "floor(n/2) + 1",
        "min(",
        "-",
        "Mod(s0, 8)",
        "batch",
    ];
    for (i, name) in names.map(Some).into_iter().chain([None]).enumerate() {
        let mut model = read_model(&fs_err::read(fixture("features/tiny.onnx")).unwrap()).unwrap();
        let graph = model.graph.as_mut().unwrap();
        for (port, axes) in [(&mut graph.input[0], &[0, 2, 3][..]), (&mut graph.output[0], &[0])] {
            let tensor = port.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
            for axis in axes {
                // An axis has one name wherever it is; height and width have others.
                let param = |n: &str| {
                    DimensionValue::Param(if *axis == 0 { n.to_owned() } else { format!("{n}{axis}") })
                };
                tensor.shape.as_mut().unwrap().dim[*axis].value = name.map(param);
            }
        }
        let (file, bundle) = (temp.path(&format!("{i}.onnx")), temp.path(&format!("b{i}")));
        fs_err::write(&file, write_model(&model)).unwrap();
        let export = ["--component", "features", file.as_str(), "-o", bundle.as_str(), "--input-size", "16"];
        let made = run(&export);
        assert_eq!(made.code, 0, "{name:?}: {}", made.stderr);
        for engine in ENGINES {
            let bundled =
                open(&bundle, engine, &ExtractorOptions { batch: 2, ..ExtractorOptions::default() });
            for mut extractor in [bundled, open(&file, engine, &options)] {
                let found = extractor.run(&pixels, (16, 16), &mut quiet).unwrap();
                for (a, b) in found.features.iter().zip(&known.features) {
                    assert!((a - b).abs() < 1e-5, "{name:?} on {engine}: {a} {b}");
                }
                assert_eq!(found.count, 3);
            }
        }
    }
}
