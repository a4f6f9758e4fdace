//! `--target trt`: engines built here, with the library that `cargo xtask setup` fetches.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture};
use crate::trt_files::{names, schema_errors};

/// Every engine of a checkpoint is built, listed and bound to its graph; a second build takes them over.
fn all_engines(precision: &str, checkpoint: &[&str]) {
    let temp = Temp::new();
    let bundle = temp.path("b");
    let half: &[&str] = &["--precision", precision, "--builder-optimization-level", "0"];
    let more = if precision == "fp32" { &[] } else { half };
    let args = ["--target", "trt", "-o", bundle.as_str(), "--json"];
    let out = run(&[&args[..], more, checkpoint].concat());
    assert_eq!(out.code, 0, "{}", out.stderr);
    let result = json(&out);
    let manifest = &result["manifest"];
    let digest = |path: &str| {
        let file = manifest["files"].as_array().unwrap().iter().find(|f| f["path"] == path).unwrap();
        file["sha256"].clone()
    };
    let graphs = manifest["graphs"].as_array().unwrap();
    assert_eq!(manifest["engines"].as_array().unwrap().len(), graphs.len());
    assert_eq!(manifest["precision"], precision);
    for (engine, graph) in manifest["engines"].as_array().unwrap().iter().zip(graphs) {
        assert_eq!(engine["graph"], graph["name"]);
        assert_eq!(engine["graph_sha256"], digest(graph["file"].as_str().unwrap()));
        assert_eq!(engine["precision"], manifest["precision"]);
        assert!(
            engine["layers"].as_u64().unwrap() > 0 && engine["version"].as_str().unwrap().starts_with("1.7.")
        );
        assert_eq!(digest(engine["file"].as_str().unwrap()).as_str().unwrap().len(), 64);
        let weights =
            manifest["components"].as_array().unwrap().iter().find(|c| c["kind"] == graph["component"]);
        assert_eq!(engine["weights_sha256"], digest(weights.unwrap()["weights"].as_str().unwrap()));
    }
    let again = json(&run(&[&["--target", "trt", bundle.as_str(), "--json"], more].concat()));
    assert!(again["engines"].as_array().unwrap().iter().all(|e| e["reused"] == true), "{again}");
    assert_eq!(again["manifest"], *manifest);
    assert!(schema_errors(&bundle).is_empty(), "{:?}", schema_errors(&bundle));
}

#[test]
fn every_engine_of_the_trained_dpar_is_built() {
    all_engines("fp32", &[fixture("emoji32/dpar").as_str()]);
}

#[test]
fn every_engine_of_the_trained_dpar_is_built_in_fp16() {
    all_engines("fp16", &[fixture("emoji32/dpar").as_str()]);
}

fn trained_llamagen(precision: &str) {
    let (config, vq) = (fixture("emoji32/llamagen/config.yaml"), fixture("emoji32/vq.pt"));
    let file = fixture("emoji32/llamagen/c2i_emoji32.pt");
    all_engines(precision, &[file.as_str(), "--config", config.as_str(), "--vq", vq.as_str()]);
}

#[test]
fn every_engine_of_the_trained_llamagen_is_built() {
    trained_llamagen("fp32");
}

#[test]
fn every_engine_of_the_trained_llamagen_is_built_in_bf16() {
    trained_llamagen("bf16");
}

#[test]
fn every_engine_of_the_golden_dpar_is_built() {
    all_engines("fp32", &[fixture("dpar-small/dpar").as_str()]);
}

#[test]
fn every_engine_of_the_golden_dpar_is_built_in_bf16() {
    all_engines("bf16", &[fixture("dpar-small/dpar").as_str()]);
}

/// Exports a tiny DPAR with its engines.
pub(crate) fn engines(out: &Utf8Path, more: &[&str]) -> crate::cli::Run {
    let checkpoint = fixture("variants/token/dpar");
    let mut args = vec!["--target", "trt", checkpoint.as_str(), "-o", out.as_str(), "--json"];
    args.extend_from_slice(more);
    run(&args)
}

#[test]
fn engines_are_built_listed_checked_and_kept() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    let out =
        engines(&bundle, &["--profile", "decode", "--profile", "batch=2", "--compute-capability", "8.9"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let result = json(&out);
    let graphs = result["manifest"]["graphs"].as_array().unwrap().len();
    let listed = result["manifest"]["engines"].as_array().unwrap();
    assert_eq!(listed.len(), graphs);
    for engine in listed {
        assert_eq!(engine["compute_capabilities"], serde_json::json!(["8.9"]));
        let file = bundle.join(engine["file"].as_str().unwrap());
        assert!(fs_err::metadata(&file).unwrap().len() > 10_000, "{file}");
    }
    let step = listed.iter().find(|e| e["graph"] == "decoder_step").unwrap();
    let names: Vec<&str> =
        step["profiles"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["decode", "batch=2"]);

    // The same again takes every engine over; another setting builds them anew.
    let again = ["--target", "trt", bundle.as_str(), "--json", "--profile", "decode", "--profile", "batch=2"];
    let same = json(&run(&[&again[..], &["--compute-capability", "8.9"]].concat()));
    assert!(same["engines"].as_array().unwrap().iter().all(|e| e["reused"] == true), "{same}");
    assert_eq!(same["manifest"], result["manifest"]);
    let other = json(&run(&[&again[..], &["--compute-capability", "8.6"]].concat()));
    assert!(other["engines"].as_array().unwrap().iter().all(|e| e["reused"] == false), "{other}");
    let text = run(&["inspect", bundle.as_str()]).stdout;
    assert!(text.contains("TensorRT-RTX 1.7") && text.contains("decode, batch=2"), "{text}");
    assert!(text.contains("tuned for 16.00 patches of 16 tokens an image, from the patch rule"), "{text}");
    assert!(schema_errors(&bundle).is_empty(), "{:?}", schema_errors(&bundle));
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        let out = run(&["inspect", bundle.as_str(), "--layers"]);
        assert!(out.code == 3 && out.stderr.contains("driver"), "{}: {}", out.code, out.stderr);
    }

    // An engine that was changed is found by every command, whatever the engine that runs.
    let file = bundle.join("trt/start.engine");
    let mut bytes = fs_err::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_err::write(&file, bytes).unwrap();
    let out = run(&["inspect", bundle.as_str()]);
    assert!(out.code == 5 && out.stderr.contains("start.engine"), "{}", out.stderr);
}

#[test]
fn what_cannot_be_built_is_refused_before_the_build_and_leaves_nothing() {
    let temp = Temp::new();
    let wrong = temp.path("wrong");
    fs_err::create_dir(&wrong).unwrap();
    fs_err::write(wrong.join("libtensorrt_rtx.so.1"), "this is no library").unwrap();
    for (more, code, message) in [
        (vec!["--compute-capability", "9.0"], 2, "9.0"),
        (vec!["--compute-capability", "7.5"], 2, "Turing"),
        (vec!["--profile", "fast"], 2, "is no profile"),
        (vec!["--profile", "batch=100000"], 2, "batch"),
        (vec!["--max-shapes", "nothing:1x2"], 2, "no graph has an input `nothing`"),
        (vec!["--max-shapes", "tokens=1"], 2, "is no shape"),
        (vec!["--trt-lib", wrong.as_str()], 3, "libtensorrt_rtx"),
    ] {
        let out = engines(&temp.path("b"), &more);
        assert_eq!(out.code, code, "{more:?}: {}", out.stderr);
        assert!(out.stderr.contains(message), "{more:?}: {}", out.stderr);
        assert!(!temp.path("b").exists(), "{more:?}");
        // A dry run says the same, but for what only the graphs of a bundle or the library can say.
        if code == 2 && !message.starts_with("no graph") && message != "batch" {
            let out = engines(&temp.path("b"), &[&more[..], &["--dry-run"]].concat());
            assert!(out.code == 2 && out.stderr.contains(message), "{more:?}: {}", out.stderr);
        }
    }
}

#[test]
fn a_dry_run_checks_the_plan_against_the_graphs_of_a_bundle() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let dry = |more: &[&str]| run(&[&["--target", "trt", bundle.as_str(), "--dry-run"], more].concat());
    assert_eq!(dry(&["--profile", "decode", "--compute-capability", "8.9"]).code, 0);
    for (more, message) in [
        (["--profile", "batch=100000"], "batch"),
        (["--max-shapes", "nothing:1x2"], "no graph has an input `nothing`"),
        (["--compute-capability", "9.0"], "9.0; it does for"),
        (["--calibrate-from", "none.npz"], "none.npz"),
    ] {
        let out = dry(&more);
        assert!(out.code == 2 && out.stderr.contains(message), "{more:?}: {} {}", out.code, out.stderr);
    }
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        let out = dry(&["--refit"]);
        assert!(out.code == 3 && out.stderr.contains("driver"), "{}: {}", out.code, out.stderr);
    }
}

/// A bundle holds what its manifest lists, and replaces what was in its place.
#[test]
fn an_engine_cache_in_the_bundle_is_refused_and_none_is_made_without_the_library() {
    let temp = Temp::new();
    let (bundle, copy) = (temp.path("b"), temp.path("copy"));
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let before = fs_err::read(bundle.join("manifest.json")).unwrap();
    let build = |from: &Utf8Path, cache: &Utf8Path, more: &[&str]| {
        let args = ["--target", "trt", from.as_str(), "--engine-cache", cache.as_str()];
        run(&[&args[..], more].concat())
    };
    let checkpoint = fixture("variants/token/dpar");
    let out = ["-o", copy.as_str()];
    let cases: [(&Utf8Path, Utf8PathBuf, &[&str]); 6] = [
        (&bundle, bundle.join("cache"), &[]),
        (&bundle, bundle.clone(), &[]),
        (&bundle, bundle.join("a/b"), &out),
        (&bundle, copy.join("cache"), &out),
        (&checkpoint, copy.join("cache"), &out),
        (&checkpoint, bundle.join("cache"), &["-o", bundle.as_str(), "--force"]),
    ];
    for (from, cache, more) in cases {
        let out = build(from, &cache, more);
        assert!(
            out.code == 2 && out.stderr.contains("the engine cache"),
            "{cache}: {} {}",
            out.code,
            out.stderr
        );
        assert_eq!(names(&temp.path("")), ["b"], "{cache}");
        assert!(!bundle.join("cache").exists() && !bundle.join("a").exists());
    }
    assert!(fs_err::read(bundle.join("manifest.json")).unwrap() == before);
    // Without the library no folder is left for engines that cannot be built.
    fs_err::create_dir(temp.path("wrong")).unwrap();
    let out = build(&bundle, &temp.path("cache"), &["--trt-lib", temp.path("wrong").as_str()]);
    assert_eq!(out.code, 3, "{}", out.stderr);
    assert_eq!(names(&temp.path("")), ["b", "wrong"]);
}

#[test]
fn without_a_driver_running_is_exit_3_and_nothing_else_is_affected() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    assert_eq!(engines(&bundle, &["--profile", "decode"]).code, 0);
    let generate = |engine: &str, out: &str| {
        let out = temp.path(out);
        run(&[
            "generate",
            bundle.as_str(),
            "--no-images",
            "--num",
            "1",
            "--engine",
            engine,
            "-o",
            out.as_str(),
        ])
    };
    // Where a GPU is, the engines' own test suite runs them.
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        let out = generate("tensorrt", "t");
        assert!(out.code == 3 && out.stderr.contains("driver"), "{}: {}", out.code, out.stderr);
    }
    assert_eq!(generate("tract", "u").code, 0);
}
