//! The command line as users and CI systems call it.

use assert_cmd::Command;
use dpar_export::arrays::{ArrayFile, ArrayRef, write_npz};
use dpar_export::tolerance::Quantity;
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::Precision;
use serde_json::Value;

use crate::common::{Temp, export, fixture, limit};

/// What a run left behind.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

fn command() -> Command {
    let mut command = Command::cargo_bin("dpar-export").unwrap();
    command.env_remove("RUST_LOG").env_remove("GITHUB_ACTIONS").env("NO_COLOR", "1");
    command
}

fn finish(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the binary with variables of the environment.
pub(crate) fn run_with(args: &[String], env: &[(&str, String)]) -> Run {
    let run = finish(command().args(args).envs(env.iter().map(|(name, value)| (*name, value))));
    held(args, run)
}

/// Runs the binary.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Run {
    held(args, finish(command().args(args)))
}

/// A run whose document, if it has one, is what the schema of its command says.
fn held<S: AsRef<std::ffi::OsStr>>(args: &[S], run: Run) -> Run {
    let words: Vec<&str> = args.iter().map(|a| a.as_ref().to_str().unwrap_or_default()).collect();
    crate::documents::hold(&words, &run.stdout);
    run
}

pub(crate) fn json(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", run.stdout, run.stderr))
}

#[test]
fn the_main_job_end_to_end() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    let checkpoint = fixture("emoji32/dpar");
    let dry = run(&["--target", "onnx", checkpoint.as_str(), "--dry-run"]);
    assert!(dry.code == 0 && dry.stdout.contains("dpar 3.7M"), "{}{}", dry.stdout, dry.stderr);
    let out = run(&["--target", "onnx", checkpoint.as_str(), "-o", bundle.as_str(), "--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(json(&out)["manifest"]["graphs"].as_array().unwrap().len(), 9);
    assert!(out.stderr.is_empty(), "no progress bar without a terminal: {}", out.stderr);

    let again = run(&[checkpoint.as_str(), "-o", bundle.as_str()]);
    assert!(again.code == 2 && again.stderr.contains("--force"), "{}", again.stderr);

    let inspected = json(&run(&["inspect", bundle.as_str(), "--json"]));
    assert_eq!(inspected["manifest"]["components"][0]["parameters"], 3_716_736);
    let text = run(&["inspect", checkpoint.as_str()]).stdout;
    assert!(text.contains("entropy_row_boundary, threshold 4.35, at most 4 tokens"), "{text}");

    let images = temp.path("images");
    let out = run(&[
        "generate",
        bundle.as_str(),
        "--classes",
        "0,2,8",
        "--cfg-scale",
        "2",
        "--greedy",
        "--overlay",
        "--batch",
        "2",
        "--class-names",
        fixture("emoji32/reference.json").as_str(),
        "-o",
        images.as_str(),
        "--json",
    ]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    // Greedy images of classes 0, 2 and 8 are in the golden file.
    let golden = ArrayFile::open(fixture("emoji32/golden.safetensors")).unwrap();
    let want = golden.i64("greedy_tokens", &[Some(9), Some(64)]).unwrap();
    let trace = ArrayFile::open(images.join("trace.npz")).unwrap();
    let got = trace.i64("tokens", &[Some(3), Some(64)]).unwrap();
    for (row, class) in [0, 2, 8].into_iter().enumerate() {
        assert_eq!(got.index_axis(ndarray::Axis(0), row), want.index_axis(ndarray::Axis(0), class));
    }
    let steps = trace.i64("steps", &[Some(3)]).unwrap();
    let lengths = trace.i64("patch_lengths", &[Some(3), None]).unwrap();
    for (row, steps) in lengths.outer_iter().zip(&steps) {
        assert_eq!(row.sum(), 64);
        assert_eq!(row.iter().filter(|l| **l > 0).count() as i64, *steps);
    }
    let entropy = trace.f32("entropy", &[Some(3), Some(64)]).unwrap();
    assert!(entropy[[0, 0]].is_nan() && entropy.iter().skip(1).filter(|e| e.is_nan()).count() == 2);
    assert!(trace.i64("class_labels", &[Some(3)]).unwrap().iter().eq(&[0, 2, 8]));
    for name in ["000000.png", "000002.png", "grid.png", "samples.npz"] {
        assert!(images.join(name).is_file(), "{name}");
    }

    // The same tokens through `decode` are the same pixels, and `encode` takes them.
    let decoded = temp.path("decoded");
    let out = run(&[
        "decode",
        bundle.as_str(),
        "--tokens",
        images.join("trace.npz").as_str(),
        "-o",
        decoded.as_str(),
    ]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let samples = |folder: &camino::Utf8Path| {
        let file = ArrayFile::open(folder.join("samples.npz")).unwrap();
        file.u8("arr_0", &[Some(3), Some(32), Some(32), Some(3)]).unwrap()
    };
    assert_eq!(samples(&images), samples(&decoded));

    // `encode` takes f32 images and u8 samples; the codes of the golden images are known.
    let pixels = golden.f32("encode_image", &[Some(6), Some(3), Some(32), Some(32)]).unwrap();
    let flat: Vec<f32> = pixels.iter().copied().collect();
    let input = temp.path("images.npz");
    write_npz(&input, &[("images", ArrayRef::f32(pixels.shape(), &flat))]).unwrap();
    let codes = temp.path("codes.npz");
    let samples = images.join("samples.npz");
    for (file, n) in [(samples.as_path(), 3), (input.as_path(), 6)] {
        let out =
            run(&["encode", bundle.as_str(), "--images", file.as_str(), "-o", codes.as_str(), "--force"]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        let codes = ArrayFile::open(&codes).unwrap().i64("tokens", &[Some(n), Some(64)]).unwrap();
        if n == 6 {
            assert_eq!(codes, golden.i64("encode_codes", &[Some(6), Some(64)]).unwrap());
        }
    }
}

#[test]
fn random_classes_and_batches_do_not_change_an_image() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    let mut seen = Vec::new();
    for (name, batch, engine) in [("t1", "1", "tract"), ("t5", "5", "tract"), ("o3", "3", "ort")] {
        let out = temp.path(name);
        let run = run(&[
            "generate",
            bundle.as_str(),
            "--num",
            "5",
            "--seed",
            "0",
            "--cfg-scale",
            "2",
            "--sampler",
            "cdf",
            "--no-images",
            "--batch",
            batch,
            "--engine",
            engine,
            "-o",
            out.as_str(),
        ]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(!out.join("samples.npz").exists());
        seen.push(
            ArrayFile::open(out.join("trace.npz")).unwrap().i64("tokens", &[Some(5), Some(64)]).unwrap(),
        );
    }
    let reference = ArrayFile::open(fixture("emoji32/streams_dpar.safetensors")).unwrap();
    let reference = reference.i64("tokens", &[None, Some(64)]).unwrap();
    for tokens in seen {
        assert!(tokens.iter().eq(reference.slice(ndarray::s![..5, ..]).iter()));
    }
}

#[test]
fn score_writes_what_the_golden_file_holds() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let golden = fixture("dpar-small/golden.safetensors");
    let out = temp.path("scores.npz");
    let run =
        run(&["score", bundle.as_str(), "--inputs", golden.as_str(), "-o", out.as_str(), "--batch", "3"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let (want, got) = (ArrayFile::open(golden).unwrap(), ArrayFile::open(out).unwrap());
    for (name, shape) in
        [("logits", vec![Some(4), Some(64), Some(256)]), ("entropy", vec![Some(4), Some(64)])]
    {
        let (want, got) = (want.f32(name, &shape).unwrap(), got.f32(name, &shape).unwrap());
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let allowed = limit(Precision::Fp32, Quantity::Logits);
        assert!(worst <= allowed, "{name}: {worst}");
    }
    let shape = [Some(4), Some(35)];
    assert_eq!(want.i64("patch_lengths", &shape).unwrap(), got.i64("patch_lengths", &shape).unwrap());
}

#[test]
fn a_mismatch_is_exit_1_and_named() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    // Epoch 3 has other weights than the golden outputs.
    let options = LoadOptions { epoch: Some(3), ..LoadOptions::default() };
    export("wrappings/experiment", &options, &bundle);
    let reference = fixture("wrappings");
    let run = run(&["verify", bundle.as_str(), "--reference", reference.as_str()]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stdout.contains("logits") && run.stdout.contains("FAIL"), "{}", run.stdout);
    assert!(run.stdout.contains("DEFECT"), "{}", run.stdout);
}

#[test]
fn files_are_replaced_only_when_asked_and_never_in_the_bundle() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let golden = fixture("dpar-small/golden.safetensors");
    let score = |out: &str, force: bool| {
        let mut args = vec!["score", bundle.as_str(), "--inputs", golden.as_str(), "-o", out];
        args.extend(force.then_some("--force"));
        run(&args)
    };
    let out = temp.path("mine.npz");
    fs_err::write(&out, "precious").unwrap();
    let refused = score(out.as_str(), false);
    assert!(refused.code == 2 && refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(fs_err::read_to_string(&out).unwrap(), "precious");
    assert_eq!(score(out.as_str(), true).code, 0);
    for (path, force, message) in [
        (bundle.join("x.npz"), true, "lies in the bundle"),
        (bundle.join("manifest.json"), true, "lies in the bundle"),
        (temp.path("x.json"), true, ".npz"),
        (temp.path("no/folder/x.npz"), false, "folder"),
    ] {
        let refused = score(path.as_str(), force);
        assert!(refused.code == 2 && refused.stderr.contains(message), "{path}: {}", refused.stderr);
    }
    // A link is followed, and what is no regular file is left alone.
    #[cfg(unix)]
    {
        let link = temp.path("link.npz");
        std::os::unix::fs::symlink(&out, &link).unwrap();
        assert_eq!(score(link.as_str(), true).code, 0);
        assert!(link.is_symlink());
        let pipe = temp.path("pipe.npz");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let refused = score(pipe.as_str(), true);
        assert!(refused.code == 2 && pipe.exists() && !pipe.is_file(), "{}", refused.stderr);
    }
}

#[test]
fn a_configuration_that_does_not_fit_is_refused() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let (config, manifest) = (bundle.join("config.json"), bundle.join("manifest.json"));
    let text = fs_err::read_to_string(&config).unwrap();
    let listing = fs_err::read_to_string(&manifest).unwrap();
    let digest = |text: &str| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text.as_bytes()));
    // No export writes any of these, whatever the digests say.
    for (from, to, code) in [
        ("\"image_size\": 64", "\"image_size\": 0", 5),
        ("\"image_size\": 64", "\"image_size\": 32", 5),
        ("\"grid\": 8", "\"grid\": 0", 5),
        ("\"grid\": 8", "\"grid\": 1099511627776", 5),
        ("\"vocab\": 256", "\"vocab\": 100", 5),
        ("\"width\": 64", "\"width\": 32", 5),
        ("\"kind\": \"entropy\"", "\"kind\": \"vq\"", 5),
        ("{", "[", 5),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        fs_err::write(&config, &changed).unwrap();
        // A forger would also correct the manifest.
        let size = |text: &str| format!("\"size\": {}", text.len());
        let listing =
            listing.replace(&digest(&text), &digest(&changed)).replace(&size(&text), &size(&changed));
        fs_err::write(&manifest, listing).unwrap();
        let run = run(&["inspect", bundle.as_str()]);
        assert!(run.code == code && run.stderr.contains("config.json"), "{to}: {} {}", run.code, run.stderr);
        assert!(!run.stderr.contains("panicked"), "{to}: {}", run.stderr);
    }
}

#[test]
fn bad_input_is_exit_2_with_the_next_step() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let b = bundle.as_str();
    let bad_tokens = temp.path("bad.npz");
    write_npz(
        &bad_tokens,
        &[("tokens", ArrayRef::i64(&[1, 16], &[99; 16])), ("class_labels", ArrayRef::i64(&[1], &[0]))],
    )
    .unwrap();
    let text = temp.path("text.npz");
    fs_err::write(&text, "not an archive").unwrap();
    let missing = temp.path("nothing");
    let (out, npz) = (temp.path("o"), temp.path("o.npz"));
    let hostile = fixture("wrappings/hostile.pt");
    let config = fixture("wrappings/config.yaml");
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["inspect", missing.as_str()], "nothing"),
        (vec!["generate", missing.as_str(), "--num", "1", "-o", out.as_str()], "not a bundle"),
        (vec!["generate", b, "-o", out.as_str()], "--classes"),
        (vec!["generate", b, "--num", "1", "-o", out.as_str()], "--vq FILE"),
        (vec!["generate", b, "--no-images", "--classes", "4", "-o", out.as_str()], "class 4"),
        (vec!["generate", b, "--no-images", "--num", "1", "--top-p", "nan", "-o", out.as_str()], "top"),
        (
            vec!["generate", b, "--no-images", "--num", "1", "--temperature", "nan", "-o", out.as_str()],
            "finite",
        ),
        (
            vec!["score", b, "--inputs", bad_tokens.as_str(), "-o", npz.as_str()],
            "bad.npz: array `tokens`: token 99 at [0, 0] is not in 0..32",
        ),
        (vec!["score", b, "--inputs", text.as_str(), "-o", npz.as_str()], "text.npz"),
        (vec!["generate", b, "--num", "99999999999999", "-o", out.as_str()], "99999999999999"),
        (vec!["generate", b, "--num", "0", "-o", out.as_str()], "0 is not in"),
        (vec!["generate", b, "--no-images", "--classes=-1", "-o", out.as_str()], "class -1"),
        (vec!["generate", b, "--no-images", "--overlay", "--num", "1", "-o", out.as_str()], "--overlay"),
        (vec!["generate", b, "--greedy", "--top-k", "3", "--num", "1", "-o", out.as_str()], "--greedy"),
        (
            vec!["generate", b, "--no-images", "--num", "1", "--cfg-interval", "3", "-o", out.as_str()],
            "--cfg-scale",
        ),
        (
            vec!["generate", b, "--no-images", "--num", "1", "--ort-lib", "x", "-o", out.as_str()],
            "--engine ort",
        ),
        (vec!["inspect", b, "--epoch", "3"], "is a bundle"),
        (vec!["verify", b], "--reference"),
        (vec!["verify", b, "--reference", missing.as_str()], "golden.safetensors"),
        (vec![hostile.as_str(), "--config", config.as_str(), "-o", out.as_str()], "hostile.pt"),
        (vec![b], "config.yaml"),
        (vec!["--target", "onnx"], "CHECKPOINT"),
    ];
    for (args, message) in cases {
        let run = run(&args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(message), "{args:?}: {}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{args:?}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{args:?}: {}", run.stdout);
    }
    assert!(!out.exists() && !npz.exists(), "nothing is written by a command that fails");
}

#[test]
fn a_missing_onnx_runtime_is_exit_3_with_the_way_to_get_it() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let wrong = temp.path("libonnxruntime.so");
    fs_err::write(&wrong, "this is no library").unwrap();
    for library in [wrong.as_str(), temp.path("absent.so").as_str()] {
        let run = run(&[
            "generate",
            bundle.as_str(),
            "--no-images",
            "--num",
            "1",
            "--engine",
            "ort",
            "--ort-lib",
            library,
            "-o",
            temp.path("o").as_str(),
        ]);
        assert_eq!(run.code, 3, "{}", run.stderr);
        assert!(run.stderr.contains("hint:") && run.stderr.contains("onnxruntime"), "{}", run.stderr);
    }
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_nothing_behind() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    let out = temp.path("out/images");
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("dpar-export"))
        .args(["generate", bundle.as_str(), "--num", "20000", "-o", out.as_str()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The staging folder appears when decoding starts.
    let started = std::time::Instant::now();
    while temp.path("out").read_dir_utf8().map_or(0, Iterator::count) == 0 {
        assert!(started.elapsed().as_secs() < 60, "generation did not start");
        assert!(child.try_wait().unwrap().is_none(), "generation ended early");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert_eq!(temp.path("out").read_dir_utf8().unwrap().count(), 0);
}

#[test]
fn help_and_completions_teach() {
    let help = run(&["--help"]).stdout;
    for word in ["--target", "CHECKPOINT", "generate", "verify", "Exit codes", "manifest.json"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    let help = run(&["generate", "--help"]).stdout;
    for word in ["--cfg-scale", "--classes", "tract", "ort", "--seed"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(run(&["completions", "bash"]).stdout.contains("dpar-export"));
    assert!(run(&["manual"]).stdout.contains(".TH dpar-export 1"), "{}", run(&["manual"]).stdout);
    let page = run(&["manual", "verify"]).stdout;
    assert!(page.contains("dpar\\-export\\-verify") && page.contains("\\-\\-reference"), "{page}");
    assert_eq!(run(&["manual", "nothing"]).code, 2);
}

#[test]
fn a_log_filter_that_is_none_is_said() {
    let args = ["inspect".to_owned(), fixture("emoji32/dpar").to_string()];
    let with = |value: &str| run_with(&args, &[("RUST_LOG", value.to_owned())]);
    let bad = with("dpar=loud=very");
    assert!(bad.code == 0 && bad.stderr.contains("RUST_LOG is not read"), "{}", bad.stderr);
    for good in ["", "warn", "dpar=debug"] {
        assert!(!with(good).stderr.contains("RUST_LOG"), "{good}");
    }
}

/// As a hub's cache keeps a repository: names that are links to blobs.
#[cfg(unix)]
#[test]
fn a_bundle_behind_links_is_to_be_copied_and_works_then() {
    let temp = Temp::new();
    let bundle = temp.path("blobs");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let snapshot = temp.path("snapshot");
    fs_err::create_dir_all(snapshot.join("onnx")).unwrap();
    for folder in ["", "onnx"] {
        for entry in bundle.join(folder).read_dir_utf8().unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                let link = snapshot.join(folder).join(entry.file_name());
                std::os::unix::fs::symlink(entry.path(), link).unwrap();
            }
        }
    }
    let refused = run(&["inspect", snapshot.as_str()]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("cp -rL") && !refused.stderr.contains("export it again"),
        "{}",
        refused.stderr
    );
    let copy = temp.path("copy");
    let copied = std::process::Command::new("cp").args(["-rL", snapshot.as_str(), copy.as_str()]).status();
    assert!(copied.unwrap().success());
    assert_eq!(run(&["inspect", copy.as_str()]).code, 0);
}

/// `--force` is advised only where it helps.
#[test]
fn force_is_advised_where_an_earlier_output_lies() {
    let temp = Temp::new();
    let checkpoint = fixture("variants/combined/dpar");
    let out = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &out);
    let with = |more: &[&str]| {
        let failed = run(&[&[checkpoint.as_str(), "-o", out.as_str()], more].concat());
        assert_eq!(failed.code, 2, "{}", failed.stderr);
        failed.stderr
    };
    assert!(with(&[]).contains("replace an earlier output of this tool with --force"));
    fs_err::write(out.join("notes.txt"), "mine").unwrap();
    for more in [&[][..], &["--force"]] {
        let said = with(more);
        assert!(said.contains("holds `notes.txt`, which is of no earlier output"), "{said}");
        assert!(said.contains("--force replaces nothing but earlier outputs"), "{said}");
    }
    assert_eq!(fs_err::read_to_string(out.join("notes.txt")).unwrap(), "mine");
}
