//! References recorded from an engine, and references written by numpy.

use camino::Utf8Path;
use dpar_export::arrays::{Array, ArrayFile, ArrayRef, write_safetensors};
use dpar_export::bundle::digest;
use dpar_export::generate::DecodeOptions;
use dpar_export::generate::sampler::{Method, SamplerOptions};
use dpar_export::verify::{CheckId, Recording, Status, record, verify_golden};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_onnx::derive::read_model;
use dpar_export_spec::Precision;
use serde_json::{Value, json};

use crate::cli::{json, run};
use crate::common::{Temp, export, export_as, fixture, llamagen, on, quiet};

fn read_json(path: &Utf8Path) -> Value {
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

/// Writes the arrays again with one of them changed, without the digest that `golden.json` holds of them.
pub(crate) fn change(folder: &Utf8Path, name: &str, change: impl FnOnce(&mut Array)) {
    let path = folder.join("golden.safetensors");
    let file = ArrayFile::open(&path).unwrap();
    let mut arrays: Vec<(String, Array)> =
        file.arrays().iter().map(|a| (a.name.clone(), file.get(&a.name).unwrap())).collect();
    change(&mut arrays.iter_mut().find(|(n, _)| n == name).unwrap().1);
    let refs: Vec<(&str, ArrayRef<'_>)> = arrays.iter().map(|(n, a)| (n.as_str(), a.into())).collect();
    write_safetensors(&path, &refs).unwrap();
    let path = folder.join("golden.json");
    let mut settings = read_json(&path);
    settings.as_object_mut().unwrap().remove("files");
    fs_err::write(&path, settings.to_string()).unwrap();
}

#[test]
fn what_one_engine_recorded_holds_on_the_other_and_a_change_is_found() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let golden = temp.path("golden");
    let record = |out: &Utf8Path, more: &[&str]| {
        let mut args = vec![
            "reference",
            bundle.as_str(),
            "--num",
            "3",
            "--cfg-scale",
            "2",
            "--seed",
            "2",
            "-o",
            out.as_str(),
        ];
        args.extend_from_slice(more);
        run(&args)
    };
    let out = record(&golden, &["--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let recorded = read_json(&golden.join("golden.json"));
    assert_eq!(json(&out)["golden"]["files"], recorded["files"]);
    assert_eq!(recorded["provenance"]["engine"]["engine"], "tract");
    assert_eq!(
        recorded["provenance"]["bundle"],
        json(&run(&["inspect", bundle.as_str(), "--json"]))["manifest_sha256"]
    );
    let drawing = json!({
        "seed": 2, "cfg_scale": 2.0, "cfg_interval": null, "sampler": "gumbel", "temperature": 1.0, "top_k": 0, "top_p": 1.0,
    });
    for (key, value) in drawing.as_object().unwrap() {
        assert_eq!(recorded[key], *value, "{key}");
    }
    for margin in ["min_greedy_margin", "min_entropy_threshold_distance"] {
        assert!(recorded[margin].as_f64().unwrap() > 0.0, "{recorded}");
    }
    let file = ArrayFile::open(golden.join("golden.safetensors")).unwrap();
    let labels = file.i64("class_labels", &[Some(3)]).unwrap();
    assert_eq!(labels[[2]], 10, "the last image is of the null class");
    assert_eq!(file.arrays().len(), 12, "{:?}", file.arrays());
    assert_eq!(record(&golden, &[]).code, 2, "an earlier recording is kept");
    let again = temp.path("again");
    assert_eq!(record(&again, &["--batch", "1"]).code, 0);
    // The batch changes roundings of the last bits at most: decisions are the same.
    let other = ArrayFile::open(again.join("golden.safetensors")).unwrap();
    for name in ["tokens", "greedy_tokens", "encode_codes"] {
        assert_eq!(file.get(name).unwrap(), other.get(name).unwrap(), "{name}");
    }

    let verify = |engine: &str| {
        run(&["verify", bundle.as_str(), "--reference", golden.as_str(), "--engine", engine, "--json"])
    };
    for engine in ["ort", "tract"] {
        let out = verify(engine);
        assert_eq!(out.code, 0, "{engine}: {}{}", out.stdout, out.stderr);
        let report = json(&out);
        let golden_checks =
            ["entropy", "patch lengths", "logits", "drawn tokens", "greedy tokens", "images", "codes"];
        for name in golden_checks {
            let check = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
            assert_eq!(check["status"], "pass", "{engine}: {check}");
        }
    }

    // One byte of the recorded arrays: exit 5. The same with a forged record: the comparison finds it.
    let arrays = golden.join("golden.safetensors");
    let good = fs_err::read(&arrays).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    fs_err::write(&arrays, &bad).unwrap();
    let out = verify("tract");
    assert!(out.code == 5 && out.stderr.contains("golden.safetensors"), "{}: {}", out.code, out.stderr);
    fs_err::write(&arrays, &good).unwrap();
    change(&golden, "logits", |array| {
        let Array::F32(a) = array else { panic!("{array:?}") };
        a[[1, 7, 3]] += 1e-3;
    });
    let out = verify("ort");
    assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    let failed: Vec<&Value> =
        report["checks"].as_array().unwrap().iter().filter(|c| c["status"] == "fail").collect();
    assert!(failed.len() == 1 && failed[0]["name"] == "logits", "{failed:?}");
    assert!(failed[0]["detail"].as_str().unwrap().contains("[1, 7, 3]"), "{failed:?}");
}

/// Tokens and greedy tokens of a reference come again with its own settings, and with no others.
#[test]
fn a_reference_is_replayed_with_the_settings_that_it_names() {
    let temp = Temp::new();
    let bundle = export("dpar-small/dpar", &LoadOptions::default(), &temp.path("b"));
    let runtime = on(&bundle, "tract");
    let sampler = SamplerOptions { temperature: 0.7, top_k: 40, top_p: 0.9, ..SamplerOptions::default() };
    for method in [Method::Gumbel, Method::Cdf] {
        let sampler = SamplerOptions { method, ..sampler };
        let decode = DecodeOptions { cfg_scale: 3.0, cfg_interval: Some(4), sampler, seed: 11 };
        let folder = temp.path(&format!("{method:?}"));
        fs_err::create_dir(&folder).unwrap();
        record(&runtime, &Recording { num: 2, decode, batch: 2 }, &folder, &mut quiet).unwrap();
        let good = read_json(&folder.join("golden.json"));
        let failing = |settings: &Value| -> Vec<CheckId> {
            fs_err::write(folder.join("golden.json"), settings.to_string()).unwrap();
            let checks = verify_golden(&on(&bundle, "ort"), &folder, 2, &mut quiet).unwrap();
            assert!(checks.iter().any(|c| c.id == CheckId::DrawnTokens && c.status != Status::NotRun));
            checks.into_iter().filter(|c| c.status == Status::Fail).map(|c| c.id).collect()
        };
        assert_eq!(failing(&good), []);
        let others = match method {
            Method::Gumbel => {
                vec![("temperature", json!(1.4)), ("top_k", json!(2)), ("sampler", json!("cdf"))]
            }
            Method::Cdf => vec![("seed", json!(12)), ("top_p", json!(0.2))],
        };
        for (key, other) in others {
            let mut changed = good.clone();
            changed[key] = other;
            assert_eq!(failing(&changed), [CheckId::DrawnTokens], "{key}");
        }
        let mut always = good.clone();
        always["cfg_interval"] = json!(-1);
        assert!(failing(&always).contains(&CheckId::GreedyTokens), "guidance ends in the recorded images");
    }
}

/// Models with a row for the end of an image: logits with its column are taken, and it is left out.
#[test]
fn logits_may_have_the_column_of_the_end_of_an_image() {
    let temp = Temp::new();
    let bundle = export("variants/eoi/dpar", &LoadOptions::default(), &temp.path("b"));
    let folder = temp.path("golden");
    fs_err::create_dir(&folder).unwrap();
    for name in ["golden.safetensors", "golden.json"] {
        fs_err::copy(fixture("variants/eoi").join(name), folder.join(name)).unwrap();
    }
    let widen = |columns: usize| {
        change(&folder, "logits", |array| {
            let Array::F32(a) = array else { panic!("{array:?}") };
            let (n, t, v) = (a.shape()[0], a.shape()[1], a.shape()[2]);
            let more = columns - v;
            let rows = a.as_slice().unwrap().chunks(v);
            let flat: Vec<f32> = rows.flat_map(|row| row.iter().copied().chain(vec![1e9; more])).collect();
            *a = ndarray::ArrayD::from_shape_vec(vec![n, t, columns], flat).unwrap();
        });
    };
    let vocab = bundle.system().vocab;
    assert_eq!(bundle.system().dpar().unwrap().token_rows, vocab + 1);
    widen(vocab + 1);
    let runtime = on(&bundle, "tract");
    let checks = verify_golden(&runtime, &folder, 2, &mut quiet).unwrap();
    let logits = checks.iter().find(|c| c.id == CheckId::Logits).unwrap();
    assert_eq!(logits.status, Status::Pass, "{logits:?}");
    widen(vocab + 2);
    let e = verify_golden(&runtime, &folder, 2, &mut quiet).unwrap_err().to_string();
    assert!(e.contains("logits") && e.contains(&format!("{vocab}]")), "{e}");
}

#[test]
fn a_baseline_without_patches_and_tokenizer_is_recorded_too() {
    let temp = Temp::new();
    let (file, options) = llamagen("llamagen-small");
    let bundle = temp.path("b");
    export(file, &options, &bundle);
    let golden = temp.path("golden");
    let out = run(&["reference", bundle.as_str(), "--num", "2", "--engine", "ort", "-o", golden.as_str()]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let file = ArrayFile::open(golden.join("golden.safetensors")).unwrap();
    assert!(!file.contains("patch_lengths") && !file.contains("entropy") && !file.contains("greedy_image"));
    let out = run(&["verify", bundle.as_str(), "--reference", golden.as_str()]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
}

#[test]
fn numpy_writes_a_reference_and_the_documentation_shows_how() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let folder = fixture("numpy-reference");
    let out = run(&["verify", bundle.as_str(), "--reference", folder.as_str(), "--json"]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    for check in report["checks"].as_array().unwrap() {
        assert_eq!(check["status"], "pass", "{check}");
    }
    // The same arrays from the other format.
    let npz = ArrayFile::open(folder.join("golden.npz")).unwrap();
    let tensors = ArrayFile::open(fixture("variants/combined/golden.safetensors")).unwrap();
    for array in tensors.arrays() {
        assert_eq!(npz.get(&array.name).unwrap(), tensors.get(&array.name).unwrap(), "{}", array.name);
    }
    let example = fs_err::read_to_string(folder.join("write_reference.py")).unwrap();
    let docs = fs_err::read_to_string(fixture("../docs/reference.md")).unwrap();
    assert!(docs.contains(&example), "docs/reference.md shows another write_reference.py");
}

#[test]
fn references_that_cannot_be_used_are_refused_with_the_reason() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let folder = temp.path("golden");
    fs_err::create_dir(&folder).unwrap();
    let source = fixture("numpy-reference");
    let verify = || run(&["verify", bundle.as_str(), "--reference", folder.as_str()]);
    let refused = |code: i32, message: &str| {
        let out = verify();
        assert!(out.code == code && out.stderr.contains(message), "{message}: {} {}", out.code, out.stderr);
        assert!(!out.stderr.contains("panicked") && out.stdout.is_empty(), "{}{}", out.stdout, out.stderr);
    };
    refused(2, "golden.npz");
    let npz = fs_err::read(source.join("golden.npz")).unwrap();
    fs_err::write(folder.join("golden.npz"), &npz).unwrap();
    refused(2, "cfg_scale");
    for (settings, code, message) in [
        ("{", 2, "golden.json"),
        ("{\"cfg_scale\": \"two\"}", 2, "golden.json: `cfg_scale`"),
        (
            "{\"cfg_scale\": -2}",
            2,
            "`cfg_scale`: the guidance scale must be a finite number of at least 0, not -2",
        ),
        ("{\"cfg_scale\": 1e39}", 2, "`cfg_scale`"),
        ("{\"cfg_scale\": 2, \"cfg_scale\": 3}", 2, "cfg_scale"),
        ("{\"cfg_scale\": 1, \"cfg_interval\": 4}", 2, "`cfg_interval`: a guidance interval has no effect"),
        ("{\"cfg_scale\": 2, \"sampler\": \"gumbel\"}", 2, "`seed`: it is missing"),
        ("{\"cfg_scale\": 2, \"top_p\": -1}", 2, "`top_p`"),
        ("{\"cfg-scale\": 2}", 2, "is `cfg_scale` meant?"),
        (
            "{\"files\": [{\"name\": \"../golden.npz\", \"size\": 1, \"sha256\": \"\"}]}",
            5,
            "no file of a golden",
        ),
        ("{\"files\": [{\"name\": \"golden.safetensors\", \"size\": 1, \"sha256\": \"\"}]}", 5, "missing"),
        ("{\"files\": [{\"name\": \"golden.npz\", \"size\": 1, \"sha256\": \"\"}]}", 5, "SHA-256"),
    ] {
        fs_err::write(folder.join("golden.json"), settings).unwrap();
        refused(code, message);
    }
    fs_err::write(folder.join("golden.json"), json!({ "cfg_scale": 2.0 }).to_string()).unwrap();
    fs_err::write(folder.join("golden.npz"), &npz[..npz.len() / 2]).unwrap();
    refused(2, "golden.npz");
    fs_err::write(folder.join("golden.npz"), &npz).unwrap();
    fs_err::copy(fixture("variants/combined/golden.safetensors"), folder.join("golden.safetensors")).unwrap();
    refused(2, "both");
    fs_err::remove_file(folder.join("golden.safetensors")).unwrap();
    assert_eq!(verify().code, 0);

    // Outputs: nowhere in the bundle, not over something else, not too large.
    let record = |out: &str, num: &str| run(&["reference", bundle.as_str(), "--num", num, "-o", out]);
    let inside = record(bundle.join("golden").as_str(), "1");
    assert!(inside.code == 2 && inside.stderr.contains("lies in the bundle"), "{}", inside.stderr);
    let foreign = record(folder.as_str(), "1");
    assert!(foreign.code == 2 && foreign.stderr.contains("--force"), "{}", foreign.stderr);
    assert_eq!(record(temp.path("o").as_str(), "0").code, 2);
    assert_eq!(record(temp.path("o").as_str(), "5000").code, 2);
    assert!(!temp.path("o").exists());
}

/// What lies in a sub-folder of a half type is held against that type's own tolerances, so it must be of it.
#[test]
fn a_sub_folder_of_a_half_type_says_its_precision_and_is_named_in_the_report() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export_as("variants/combined/dpar", Precision::Fp16, &LoadOptions::default(), &bundle);
    let (from, folder) = (fixture("variants/combined"), temp.path("golden"));
    let own = folder.join("fp16");
    fs_err::create_dir_all(&own).unwrap();
    for name in ["golden.safetensors", "golden.json"] {
        fs_err::copy(from.join(name), folder.join(name)).unwrap();
        fs_err::copy(from.join("fp16").join(name), own.join(name)).unwrap();
    }
    let args = ["verify", bundle.as_str(), "--reference", folder.as_str(), "--engine", "ort", "--no-probes"];
    let out = run(&[&args[..], &["--json"]].concat());
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    let files = report["references"].as_array().unwrap();
    let names: Vec<&str> = files.iter().map(|f| f["name"].as_str().unwrap()).collect();
    let wanted = ["golden.safetensors", "golden.json", "fp16/golden.safetensors", "fp16/golden.json"];
    assert_eq!(names, wanted);
    let sha256 =
        |path: &Utf8Path| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(fs_err::read(path).unwrap()));
    for (file, name) in files.iter().zip(wanted) {
        assert_eq!(file["sha256"], sha256(&folder.join(name)), "{name}");
    }

    let good = read_json(&own.join("golden.json"));
    let mut silent = good.clone();
    silent.as_object_mut().unwrap().remove("provenance");
    let mut other = good;
    other["provenance"]["precision"] = "bf16".into();
    for (settings, says) in [(silent, "says no precision"), (other, "says bf16")] {
        fs_err::write(own.join("golden.json"), settings.to_string()).unwrap();
        let out = run(&args);
        assert_eq!(out.code, 2, "{says}: {}{}", out.stdout, out.stderr);
        assert!(out.stderr.contains("is for outputs in fp16") && out.stderr.contains(says), "{}", out.stderr);
        assert!(out.stdout.is_empty(), "{}", out.stdout);
    }
}

/// Writes NaN to the start of every float32 weight of a graph, with digests that fit.
fn spoil(bundle: &Utf8Path, graph: &str, weights: &str) {
    /// `TensorProto.DataType.FLOAT`.
    const FLOAT: Option<i32> = Some(1);
    let model = read_model(&fs_err::read(bundle.join(format!("onnx/{graph}.onnx"))).unwrap()).unwrap();
    let path = bundle.join(weights);
    let mut bytes = fs_err::read(&path).unwrap();
    let tensors = model.graph.unwrap().initializer;
    let floats = tensors.iter().filter(|t| t.data_type == FLOAT && !t.external_data.is_empty());
    for tensor in floats {
        let offset = tensor.external_data.iter().find(|e| e.key.as_deref() == Some("offset")).unwrap();
        let at: usize = offset.value.as_ref().unwrap().parse().unwrap();
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs_err::write(&path, bytes).unwrap();
    let manifest = bundle.join("manifest.json");
    let mut value = read_json(&manifest);
    let files = value["files"].as_array_mut().unwrap();
    let file = files.iter_mut().find(|f| f["path"] == weights).unwrap();
    file["sha256"] = digest(&path).unwrap().1.into();
    fs_err::write(&manifest, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

/// Outputs that are no numbers are what a CI wants to see, so every report is written.
#[test]
fn outputs_that_are_no_numbers_fail_a_check_and_every_report_says_so() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    spoil(&bundle, "decoder_step", "onnx/dpar.onnx_data");
    let (golden, html, xml) = (fixture("variants/combined"), temp.path("r.html"), temp.path("r.xml"));
    let args = ["verify", bundle.as_str(), "--reference", golden.as_str(), "--engine", "ort", "--json"];
    let out = run(&[&args[..], &["--report", html.as_str(), "--junit", xml.as_str()]].concat());
    assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    assert_eq!(report["verdict"], "fail");
    let of = |name: &str| {
        let check = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no {name}: {report:#}"));
        (check["status"].as_str().unwrap().to_owned(), check["detail"].as_str().unwrap().to_owned())
    };
    for name in ["greedy tokens", "probe: steps = whole sequence", "sample images"] {
        let (status, detail) = of(name);
        assert!(status == "fail" && detail.contains("NaN"), "{name}: {status}: {detail}");
    }
    assert_eq!(of("images").0, "pass", "what does not depend on it is still compared");
    let page = fs_err::read_to_string(&html).unwrap();
    assert!(page.contains("Fail: verify of") && page.contains("NaN"));
    assert!(fs_err::read_to_string(&xml).unwrap().contains("<failure"));
}

/// The pictures of a report come last, and are no reason to write none.
#[test]
fn pictures_that_are_no_numbers_fail_a_check_of_parity_and_every_report_says_so() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    spoil(&bundle, "vq_decode", "onnx/vq.onnx_data");
    let (html, xml) = (temp.path("r.html"), temp.path("r.xml"));
    let args = ["parity", bundle.as_str(), "--engines", "tract,ort", "--num", "1", "--no-probes", "--json"];
    let out = run(&[&args[..], &["--report", html.as_str(), "--junit", xml.as_str()]].concat());
    assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
    let report = json(&out);
    let checks = report["engines"][0]["checks"].as_array().unwrap();
    let check = checks.iter().find(|c| c["id"] == "sample_images").unwrap_or_else(|| panic!("{report:#}"));
    assert!(check["status"] == "fail" && check["detail"].as_str().unwrap().contains("NaN"), "{check}");
    assert_eq!(report["verdict"], "fail");
    assert!(fs_err::read_to_string(&html).unwrap().contains("Fail: parity of"));
    let xml = fs_err::read_to_string(&xml).unwrap();
    assert!(xml.contains("sample images") && xml.contains("<failure"), "{xml}");
}
