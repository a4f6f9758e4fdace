//! What goes wrong while engines are built: a clear message, the right exit code, nothing left behind.

use camino::Utf8Path;
use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture};
use crate::trt::engines;
use crate::trt_files::{forge, manifest, names};

#[test]
fn an_operator_that_the_parser_refuses_is_named_with_graph_and_node() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let mut changed = 0;
    forge(&bundle, "onnx/decoder_step.onnx", |mut bytes| {
        for at in 0..bytes.len() - 8 {
            // The operator's name, with its length before it.
            if bytes[at..].starts_with(b"\x07Softmax") {
                bytes[at + 1..at + 8].copy_from_slice(b"Softmix");
                changed += 1;
            }
        }
        bytes
    });
    assert!(changed > 0);
    let before = fs_err::read(bundle.join("manifest.json")).unwrap();
    let out = run(&["--target", "trt", bundle.as_str()]);
    assert_eq!(out.code, 2, "{}", out.stderr);
    for part in ["graph `decoder_step`", "decoder_step.onnx", "node ", "(Softmix)"] {
        assert!(out.stderr.contains(part), "{part}: {}", out.stderr);
    }
    assert_eq!(fs_err::read(bundle.join("manifest.json")).unwrap(), before);
    assert_eq!(names(&temp.path("")), ["b"]);
    assert!(!bundle.join("trt").exists());
}

/// Such engines exist nowhere here: it is no fault of the bundle, and is known before anything is written.
#[test]
fn quantized_weights_are_refused_with_the_reason() {
    let temp = Temp::new();
    let (bundle, out) = (temp.path("b"), temp.path("out"));
    let checkpoint = fixture("emoji32/dpar");
    for (weights, why) in [("int8", "DequantizeLinear of uint8"), ("dpar=int4", "weights of uint4")] {
        for more in [&[][..], &["--dry-run"]] {
            let words = [checkpoint.as_str(), "--target", "trt", "--quantize", weights, "-o", out.as_str()];
            let refused = run(&[&words[..], more].concat());
            assert!(refused.code == 3 && refused.stderr.contains(why), "{weights}: {}", refused.stderr);
            assert!(!out.exists());
        }
    }
    assert_eq!(run(&[checkpoint.as_str(), "--quantize", "int8", "-o", bundle.as_str()]).code, 0);
    for more in [&[][..], &["--dry-run"]] {
        let refused = run(&[&["--target", "trt", bundle.as_str()], more].concat());
        assert!(refused.code == 3 && refused.stderr.contains("DequantizeLinear"), "{}", refused.stderr);
    }
    assert!(!bundle.join("trt").exists());
    let run_it =
        run(&["generate", bundle.as_str(), "--num", "1", "--engine", "tensorrt", "-o", out.as_str()]);
    assert!(run_it.code == 3 && run_it.stderr.contains("DequantizeLinear"), "{}", run_it.stderr);
}

#[test]
fn weights_in_other_modes_need_a_gpu_and_say_so() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let temp = Temp::new();
    for option in ["--refit", "--strip-weights"] {
        let out = engines(&temp.path("b"), &[option]);
        assert!(
            out.code == 3 && out.stderr.contains("no NVIDIA driver was found"),
            "{}: {}",
            out.code,
            out.stderr
        );
        assert!(out.stderr.contains("where a GPU is"), "{}", out.stderr);
        assert!(!temp.path("b").exists());
    }
}

#[test]
#[cfg(unix)]
fn a_full_disk_leaves_the_old_bundle_and_nothing_else() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let before = fs_err::read(bundle.join("manifest.json")).unwrap();
    // Files may not grow beyond 16 blocks of 512 bytes: engines are larger, and writing them fails as on a full disk.
    let program = assert_cmd::cargo::cargo_bin("dpar-export");
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --target trt \"$1\"";
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(&program)
        .arg(&bundle)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(".engine") && stderr.contains("File too large"), "{stderr}");
    assert_eq!(fs_err::read(bundle.join("manifest.json")).unwrap(), before);
    assert_eq!(names(&temp.path("")), ["b"]);
    assert_eq!(run(&["inspect", bundle.as_str()]).code, 0);
}

#[test]
#[cfg(unix)]
fn ctrl_c_during_a_build_leaves_the_old_bundle_and_nothing_else() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let before = fs_err::read(bundle.join("manifest.json")).unwrap();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("dpar-export"))
        .args(["--target", "trt", bundle.as_str()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // What is under construction has a `trt` once the library is loaded and building begins.
    let building =
        || names(&temp.path("")).iter().any(|n| n != "b" && temp.path(n).join("new/b/trt").is_dir());
    let started = std::time::Instant::now();
    while !building() {
        assert!(started.elapsed().as_secs() < 60, "the build did not start");
        assert!(child.try_wait().unwrap().is_none(), "the build ended early");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("stopped"), "{stderr}");
    assert_eq!(fs_err::read(bundle.join("manifest.json")).unwrap(), before);
    assert_eq!(names(&temp.path("")), ["b"]);
    assert_eq!(run(&["inspect", bundle.as_str()]).code, 0);
}

#[test]
fn a_shared_cache_serves_other_bundles_and_damage_in_it_is_built_anew() {
    let temp = Temp::new();
    let cache = temp.path("cache");
    let build = |out: &str| {
        let run = engines(&temp.path(out), &["--engine-cache", cache.as_str(), "--profile", "decode"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let from_cache: Vec<bool> =
            json(&run)["engines"].as_array().unwrap().iter().map(|e| e["from_cache"] == true).collect();
        (from_cache, run.stderr)
    };
    let bytes = |out: &str, file: &str| fs_err::read(temp.path(out).join(file)).unwrap();
    let (first, _) = build("a");
    assert!(first.iter().all(|c| !c), "{first:?}");
    let (second, _) = build("b");
    assert!(second.iter().all(|c| *c), "{second:?}");
    assert_eq!(bytes("a", "trt/score.engine"), bytes("b", "trt/score.engine"));
    assert_eq!(manifest(&temp.path("a")), manifest(&temp.path("b")));
    assert_eq!(run(&["inspect", temp.path("b").as_str()]).code, 0);

    // One byte of one engine.
    let sha256 = |out: &str| {
        let files = manifest(&temp.path(out))["files"].clone();
        let file = files.as_array().unwrap().iter().find(|f| f["path"] == "trt/score.engine").unwrap();
        file["sha256"].as_str().unwrap().to_owned()
    };
    let kept = cache.join(format!("{}.engine", sha256("a")));
    flip(&kept);
    let (third, stderr) = build("c");
    assert_eq!(third.iter().filter(|c| !**c).count(), 1, "{third:?}");
    assert!(stderr.contains("recorded SHA-256") && stderr.contains("built again"), "{stderr}");
    let (fourth, _) = build("d");
    assert!(fourth.iter().all(|c| *c), "{fourth:?}");
    // Other settings are another build.
    let run =
        engines(&temp.path("e"), &["--engine-cache", cache.as_str(), "--builder-optimization-level", "1"]);
    assert!(json(&run)["engines"].as_array().unwrap().iter().all(|e| e["reused"] == false));
    // A cache that cannot be one.
    let file = fixture("variants/token/dpar/config.yaml");
    let run = engines(&temp.path("f"), &["--engine-cache", file.as_str()]);
    assert!(run.code == 2 && run.stderr.contains("config.yaml"), "{}", run.stderr);
}

fn flip(path: &Utf8Path) {
    let mut bytes = fs_err::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_err::write(path, bytes).unwrap();
}
