//! `doctor`: what runs here, and why not.

use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::Precision;

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, export, export_as};
use crate::trt_files::forge;

#[test]
fn every_engine_is_reported_and_the_default_decides() {
    let out = run(&["doctor", "--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let report = json(&out);
    let engine =
        |name: &str| report["engines"].as_array().unwrap().iter().find(|e| e["name"] == name).unwrap();
    assert_eq!(engine("tract")["works"], true);
    let ort = engine("ort");
    assert!(
        ort["works"] == true && ort["libraries"][0]["version"].as_str().unwrap().starts_with("1."),
        "{ort}"
    );
    assert!(ort["providers"].as_array().unwrap().iter().any(|p| p == "CPUExecutionProvider"), "{ort}");
    let taken: Vec<bool> = ort["searched"].as_array().unwrap().iter().map(|p| p["taken"] == true).collect();
    assert!(taken.ends_with(&[true]) && taken.iter().filter(|t| **t).count() == 1, "{ort}");
    let text = run(&["doctor", "--engine", "ort"]);
    assert!(text.code == 0 && text.stdout.ends_with("ort runs here\n"), "{}", text.stdout);
}

#[test]
fn a_library_that_does_not_fit_is_exit_3_and_named_on_stdout() {
    let temp = Temp::new();
    let wrong = temp.path("libonnxruntime.so");
    fs_err::write(&wrong, "this is no library").unwrap();
    let args = ["doctor", "--engine", "ort", "--ort-lib", wrong.as_str()];
    let out = run(&args);
    assert!(out.code == 3 && out.stdout.contains("libonnxruntime.so"), "{}", out.stdout);
    assert!(out.stdout.ends_with("ort does NOT run here\n"), "{}", out.stdout);
    let report = json(&run(&[&args[..], &["--json"]].concat()));
    let ort = report["engines"].as_array().unwrap().iter().find(|e| e["name"] == "ort").unwrap();
    assert!(ort["works"] == false && ort["hint"].as_str().unwrap().contains("cargo xtask setup"), "{ort}");
    // The default engine still runs: another engine's library is no reason to fail.
    assert_eq!(run(&["doctor", "--ort-lib", wrong.as_str()]).code, 0);
    assert_eq!(run(&["doctor", "--engine", "nothing"]).code, 2);
}

/// A download that was cut off, or that has its length and not its end: loading either would end the process.
#[test]
fn half_a_library_is_exit_3_and_is_not_loaded() {
    let report = json(&run(&["doctor", "--json"]));
    let ort = report["engines"].as_array().unwrap().iter().find(|e| e["name"] == "ort").unwrap();
    let whole = fs_err::read(ort["libraries"][0]["path"].as_str().unwrap()).unwrap();
    let temp = Temp::new();
    let library = temp.path("libonnxruntime.so");
    let mut hollow = whole.clone();
    hollow[whole.len() / 2..].fill(0);
    for (bytes, why) in [(&whole[..whole.len() / 2], "is cut short"), (&hollow, "is not whole")] {
        fs_err::write(&library, bytes).unwrap();
        let out = run(&["doctor", "--engine", "ort", "--ort-lib", library.as_str()]);
        assert!(out.code == 3 && out.stdout.contains(why), "{}: {}{}", out.code, out.stdout, out.stderr);
        assert!(out.stdout.ends_with("ort does NOT run here\n"), "{}", out.stdout);
    }
}

#[test]
fn a_bundle_is_checked_first() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let out = run(&["doctor", bundle.as_str()]);
    assert!(out.code == 0 && out.stdout.ends_with("tract runs this bundle here\n"), "{}", out.stdout);
    forge(&bundle, "onnx/start.onnx", |b| b);
    fs_err::write(bundle.join("onnx/start.onnx"), "x").unwrap();
    let out = run(&["doctor", bundle.as_str()]);
    assert!(out.code == 5 && out.stderr.contains("start.onnx"), "{}", out.stderr);
    assert_eq!(run(&["doctor", temp.path("none").as_str()]).code, 2);
}

/// What `verify` refuses, `doctor` does not promise.
#[test]
fn an_engine_that_cannot_compute_the_bundles_precision_does_not_run_it() {
    let temp = Temp::new();
    let (checkpoint, options) = ("variants/combined/dpar", LoadOptions::default());
    export_as(checkpoint, Precision::Bf16, &options, &temp.path("bf16"));
    export_as(checkpoint, Precision::Fp16, &options, &temp.path("fp16"));
    for engine in ENGINES {
        let args = ["doctor", "--engine", engine];
        let out = run(&[&args[..], &[temp.path("bf16").as_str()]].concat());
        assert_eq!(out.code, 3, "{engine}: {}", out.stdout);
        let end = format!("{engine} does NOT run this bundle here\n");
        assert!(out.stdout.ends_with(&end), "{}", out.stdout);
        assert!(out.stdout.contains("reason: cannot run bf16 graphs"), "{}", out.stdout);
        assert_eq!(run(&[&args[..], &[temp.path("fp16").as_str()]].concat()).code, 0, "{engine}");
        assert_eq!(run(&args).code, 0, "{engine}");
    }
}

#[test]
#[cfg(not(feature = "tensorrt"))]
fn an_engine_that_is_not_built_in_is_exit_3_with_its_feature() {
    let out = run(&["doctor", "--engine", "tensorrt"]);
    assert!(out.code == 3 && out.stdout.contains("feature `tensorrt`"), "{}", out.stdout);
}

#[cfg(feature = "tensorrt")]
mod tensorrt {
    use super::*;
    use crate::trt::engines;

    /// Reason of the engine, and reasons of the bundle's files.
    fn reasons(bundle: &str, code: i32) -> (String, Vec<String>) {
        let out = run(&["doctor", bundle, "--engine", "tensorrt", "--json"]);
        assert_eq!(out.code, code, "{}", out.stdout);
        let report = json(&out);
        let engine = report["engines"].as_array().unwrap().iter().find(|e| e["name"] == "tensorrt").unwrap();
        let files = engine["files"].as_array().unwrap();
        let files = files.iter().filter_map(|f| f["reason"].as_str().map(str::to_owned)).collect();
        (engine["reason"].as_str().unwrap_or_default().to_owned(), files)
    }

    #[test]
    fn libraries_driver_and_engine_files_are_held_against_each_other() {
        let temp = Temp::new();
        let driver = std::path::Path::new("/dev/nvidiactl").exists();
        let out = run(&["doctor", "--engine", "tensorrt"]);
        assert!(out.stdout.contains("libtensorrt_rtx.so.1 (1.7."), "{}", out.stdout);
        assert!(out.stdout.contains("libtensorrt_onnxparser_rtx.so.1"), "{}", out.stdout);
        if !driver {
            assert_eq!(out.code, 3);
            assert!(out.stdout.contains("NVIDIA driver: no NVIDIA driver was found"), "{}", out.stdout);
        }
        let wrong = temp.path("wrong");
        fs_err::create_dir(&wrong).unwrap();
        let out = run(&["doctor", "--engine", "tensorrt", "--trt-lib", wrong.as_str()]);
        assert!(out.code == 3 && out.stdout.contains("has no `libtensorrt_rtx.so.1`"), "{}", out.stdout);

        let bundle = temp.path("b");
        export("variants/token/dpar", &LoadOptions::default(), &bundle);
        assert!(reasons(bundle.as_str(), 3).0.contains("no engine of graph"));
        let built = temp.path("e");
        assert_eq!(engines(&built, &["--compute-capability", "8.9"]).code, 0);
        let out = run(&["doctor", built.as_str(), "--engine", "tensorrt"]);
        assert!(out.stdout.contains("trt/score.engine (1.7.1.116, 8.9)"), "{}", out.stdout);

        // Of another version; cut short; both with digests that match. Only the second is damage.
        forge(&built, "trt/score.engine", |mut b| {
            b[25] = 6;
            b
        });
        let (reason, _) = reasons(built.as_str(), 3);
        assert!(reason.contains("`score`") && reason.contains("1.6.1.116"), "{reason}");
        forge(&built, "trt/start.engine", |b| b[..b.len() / 2].to_vec());
        let (reason, files) = reasons(built.as_str(), 5);
        assert!(reason.contains("`start`") && reason.contains("the engine is damaged"), "{reason}");
        assert!(
            files.iter().any(|r| r.contains("start.engine") && r.contains("the engine is damaged")),
            "{files:?}"
        );
        assert!(files.iter().any(|r| r.contains("built by TensorRT-RTX 1.6.1.116")), "{files:?}");
        // Whoever asks for another engine is told of it and runs.
        let out = run(&["doctor", built.as_str()]);
        assert!(out.code == 0 && out.stdout.contains("the engine is damaged"), "{}", out.stdout);
        // `inspect --layers` refuses each before it asks for a driver.
        let out = run(&["inspect", built.as_str(), "--layers"]);
        assert!(out.code == 3 || out.code == 5, "{}: {}", out.code, out.stderr);
        assert_eq!(run(&["inspect", bundle.as_str(), "--layers"]).code, 2);
    }
}
