//! `--emit-trtexec` and the sizes that engines are tuned for. Nothing of TensorRT takes part.

use std::collections::BTreeMap;

use camino::Utf8Path;
use dpar_export::arrays::{ArrayRef, write_npz};
use dpar_export_checkpoint::LoadOptions;
use serde_json::Value;

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture};
use crate::trt_files::{names, schema_errors};

fn emit(bundle: &Utf8Path, more: &[&str]) -> Value {
    let out = run(&[&["--target", "trt", bundle.as_str(), "--emit-trtexec", "--json"], more].concat());
    assert_eq!(out.code, 0, "{more:?}: {}", out.stderr);
    json(&out)
}

/// The words of a command line that begin with `prefix`, without it.
fn after<'v>(command: &'v Value, prefix: &str) -> Vec<&'v str> {
    command.as_array().unwrap().iter().filter_map(|w| w.as_str()?.strip_prefix(prefix)).collect()
}

/// `a:1x2,b:3`.
fn shapes(text: &str) -> BTreeMap<String, Vec<u64>> {
    let one = |part: &str| {
        let (name, sizes) = part.split_once(':').unwrap();
        (name.to_owned(), sizes.split('x').map(|n| n.parse().unwrap()).collect())
    };
    text.split(',').map(one).collect()
}

fn graph<'v>(list: &'v Value, key: &str, name: &str) -> &'v Value {
    list.as_array().unwrap().iter().find(|g| g[key] == name).unwrap()
}

#[test]
fn every_graph_gets_command_lines_whose_shapes_are_the_manifests() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let result = emit(&bundle, &["--profile", "decode", "--profile", "default"]);
    let commands = &result["commands"];
    for spec in result["manifest"]["graphs"].as_array().unwrap() {
        let name = spec["name"].as_str().unwrap();
        let c = graph(commands, "graph", name);
        let cached = spec["axes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|a| a["name"] == "past_tokens" || a["name"] == "past_patches");
        for tool in ["tensorrt_rtx", "trtexec"] {
            assert_eq!(after(&c[tool], "--onnx="), [spec["file"].as_str().unwrap()]);
            assert_eq!(after(&c[tool], "--saveEngine="), [format!("$OUT/{name}.engine")]);
            assert_eq!(after(&c[tool], "--noTF32").len(), 1, "{name}");
            let want: &[&str] = if cached { &["0", "1"] } else { &[] };
            assert_eq!(after(&c[tool], "--profile="), want, "{name}");
            for point in ["min", "opt", "max"] {
                let given = after(&c[tool], &format!("--{point}Shapes="));
                assert_eq!(given.len(), if cached { 2 } else { 1 }, "{name}");
                for (profile, text) in given.iter().enumerate() {
                    check_shapes(spec, &shapes(text), cached && profile == 0);
                }
            }
        }
        assert_eq!(after(&c["trtexec"], "--stronglyTyped").len(), 1);
        for option in ["--trt-min-shapes", "--trt-opt-shapes", "--trt-max-shapes"] {
            assert_eq!(after(&c["polygraphy"], option).len(), if cached { 2 } else { 1 }, "{name}");
        }
        // The same shapes in Polygraphy's spelling, in the same order.
        let by_x: Vec<String> = ["min", "opt", "max"]
            .map(|p| after(&c["trtexec"], &format!("--{p}Shapes="))[0].to_owned())
            .into();
        let first = shapes(&by_x[0]);
        let ports = spec["inputs"].as_array().unwrap().len();
        let lists: Vec<&str> = after(&c["polygraphy"], "").into_iter().filter(|w| w.contains(":[")).collect();
        assert_eq!(lists.len(), ports * 3 * if cached { 2 } else { 1 });
        for text in &lists[..ports] {
            let (port, sizes) = text.split_once(':').unwrap();
            assert_eq!(serde_json::from_str::<Vec<u64>>(sizes).unwrap(), first[port]);
        }
    }
    assert!(schema_errors(&bundle).is_empty(), "{:?}", schema_errors(&bundle));
}

/// Every shape fits the port; a sum is the sum of its axes' sizes; `decode` has one new slot.
fn check_shapes(spec: &Value, shapes: &BTreeMap<String, Vec<u64>>, decode: bool) {
    let inputs = spec["inputs"].as_array().unwrap();
    assert_eq!(shapes.len(), inputs.len());
    let mut axes: BTreeMap<&str, u64> = BTreeMap::new();
    for pass in 0..2 {
        for port in inputs {
            let (name, dims) = (port["name"].as_str().unwrap(), port["dims"].as_array().unwrap());
            assert_eq!(dims.len(), shapes[name].len(), "{name}");
            for (dim, size) in dims.iter().zip(&shapes[name]) {
                match (dim.as_u64(), dim.as_str().map(|d| d.split_once(" + ").ok_or(d))) {
                    (Some(fixed), _) => assert_eq!(fixed, *size, "{name}"),
                    (_, Some(Err(axis))) => {
                        assert_eq!(axes.entry(axis).or_insert(*size), size, "{name}: {axis}")
                    }
                    (_, Some(Ok((a, b)))) if pass == 1 => assert_eq!(axes[a] + axes[b], *size, "{name}"),
                    _ => {}
                }
            }
        }
    }
    for range in spec["axes"].as_array().unwrap() {
        let (name, size) = (range["name"].as_str().unwrap(), axes.get(range["name"].as_str().unwrap()));
        if let Some(size) = size {
            assert!(
                (range["min"].as_u64().unwrap()..=range["max"].as_u64().unwrap()).contains(size),
                "{name}"
            );
        }
        if decode && ["tokens", "patches"].contains(&name) {
            assert_eq!(size, Some(&1), "{name}");
        }
    }
}

#[test]
#[cfg(unix)]
fn the_script_passes_the_words_on_and_is_part_of_the_bundle() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let before = fs_err::read(bundle.join("manifest.json")).unwrap();
    let dry = run(&["--target", "trt", bundle.as_str(), "--emit-trtexec", "--dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    assert!(fs_err::read(bundle.join("manifest.json")).unwrap() == before, "a dry run writes nothing");
    let out = run(&["--target", "trt", bundle.as_str(), "--emit-trtexec"]);
    let script = fs_err::read_to_string(bundle.join("trt/trtexec.sh")).unwrap();
    assert!(
        out.code == 0 && out.stdout.starts_with(&script) && script.starts_with("#!/bin/sh"),
        "{}",
        out.stdout
    );
    assert_eq!(run(&["inspect", bundle.as_str()]).code, 0);
    assert_eq!(names(&temp.path("")), ["b"]);

    // A program that writes down how it was called stands where the tool would.
    let tools = temp.path("tools");
    fs_err::create_dir(&tools).unwrap();
    for tool in ["tensorrt_rtx", "trtexec", "polygraphy"] {
        let path = tools.join(tool);
        fs_err::write(&path, "#!/bin/sh\nfor w in \"$@\"; do echo \"$w\" >> \"$OUT/called\"; done\n")
            .unwrap();
        fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let commands = emit(&bundle, &[])["commands"].clone();
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap());
    let call = |args: &[&str], out: &str| {
        let script = bundle.join("trt/trtexec.sh");
        let mut command = std::process::Command::new("sh");
        command.arg(script).args(args).env("PATH", &path).env("OUT", temp.path(out));
        command.output().unwrap()
    };
    for tool in ["tensorrt_rtx", "trtexec", "polygraphy"] {
        let output = call(&[tool, "decoder_step"], tool);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let called = fs_err::read_to_string(temp.path(tool).join("called")).unwrap();
        let out = temp.path(tool).canonicalize_utf8().unwrap();
        let want = graph(&commands, "graph", "decoder_step")[tool].as_array().unwrap()[1..]
            .iter()
            .map(|w| w.as_str().unwrap().replace("$OUT", out.as_str()))
            .collect::<Vec<_>>();
        assert_eq!(called.lines().collect::<Vec<_>>(), want, "{tool}");
    }
    assert_eq!(call(&["nothing"], "x").status.code(), Some(2));
    assert_eq!(call(&["trtexec", "nothing"], "x").status.code(), Some(2));
}

#[test]
fn opt_points_come_from_the_table_a_trace_or_images() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("emoji32/dpar", &LoadOptions::default(), &bundle);
    let opt = |result: &Value, name: &str, input: &str| {
        let c = graph(&result["commands"], "graph", name);
        shapes(after(&c["trtexec"], "--optShapes=")[0])[input].clone()
    };
    // 64 tokens of an unpublished system: 36 patches, 8 x 36 / 64 = 4 or 5 images open one at a slot.
    let table = emit(&bundle, &[]);
    assert_eq!(opt(&table, "global_step", "mask"), [10, 1, 1, 19]);
    assert_eq!(opt(&table, "patch_embed", "patch_mask"), [5, 2]);
    assert_eq!(opt(&table, "encoder_step", "mask"), [8, 1, 1, 33]);
    // Two images: 16 patches of 4, and 64 of 1.
    let mut lengths = vec![4_i64; 16];
    lengths.resize(64, 0);
    lengths.extend([1; 64]);
    let trace = temp.path("trace.npz");
    write_npz(&trace, &[("patch_lengths", ArrayRef::i64(&[2, 64], &lengths))]).unwrap();
    let traced = emit(&bundle, &["--calibrate-from", trace.as_str(), "--profile", "decode"]);
    // 40 patches on average: half of them lie behind a step, 5 of 8 images open one, and the longest of 5 closing
    // patches, each 4 with probability 1/5, is 1 + 3 (1 - 0.8^5) = 3.02.
    assert_eq!(opt(&traced, "global_step", "mask"), [10, 1, 1, 21]);
    assert_eq!(opt(&traced, "patch_embed", "patch_mask"), [5, 3]);
    assert_eq!(opt(&traced, "score", "global_index")[1], 40);

    let calibrated = emit(&bundle, &["--calibrate", "2"]);
    let past = opt(&calibrated, "global_step", "mask")[3];
    assert!((9..=32).contains(&past), "{past}");
    let script = fs_err::read_to_string(bundle.join("trt/trtexec.sh")).unwrap();
    assert!(script.contains("patches of 64 tokens in an image"), "{script}");

    write_npz(&trace, &[("patch_lengths", ArrayRef::i64(&[1, 2], &[60, 4]))]).unwrap();
    for (file, message) in [(trace.as_path(), "a patch of 60 tokens"), (&temp.path("none.npz"), "none.npz")] {
        let out =
            run(&["--target", "trt", bundle.as_str(), "--emit-trtexec", "--calibrate-from", file.as_str()]);
        assert!(out.code == 2 && out.stderr.contains(message), "{}", out.stderr);
    }
}

#[test]
fn options_that_cannot_be_met_are_explained() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    for (more, message) in [
        (vec!["--timing-cache", "t.cache"], "--engine-cache DIR"),
        (vec!["--int8"], "every tensor's type from the graph"),
        (vec!["--fp8"], "quantised"),
        (vec!["--emit-trtexec", "--engine-cache", "c"], "builds nothing"),
        (vec!["--emit-trtexec", "--compute-capability", "89"], "not a compute capability"),
        (vec!["--emit-trtexec", "--compute-capability", "9.0"], "9.0; it does for 8.0"),
        (vec!["--emit-trtexec", "--compute-capability", "8.9,7.5"], "Turing"),
        (vec!["--emit-trtexec", "--dry-run", "--profile", "fast"], "is no profile"),
        (vec!["--emit-trtexec", "--dry-run", "--compute-capability", "9.0"], "9.0; it does for 8.0"),
        (vec!["--emit-trtexec", "--dry-run", "--opt-shapes", "tokens:3x900"], "900"),
        (vec!["--emit-trtexec", "--profile", "colour=3"], "no graph has an axis `colour`"),
        (vec!["--emit-trtexec", "--profile", "decode", "--profile", "decode"], "given twice"),
        (vec!["--emit-trtexec", "--opt-shapes", "tokens:3x900"], "900"),
        (vec!["--refit", "--strip-weights"], "cannot be used with"),
    ] {
        let out = run(&[&["--target", "trt", bundle.as_str()], &more[..]].concat());
        assert!(out.code == 2 && out.stderr.contains(message), "{more:?}: {} {}", out.code, out.stderr);
    }
    let out = run(&[bundle.as_str(), "--emit-trtexec", "-o", temp.path("o").as_str()]);
    assert!(out.code == 2 && out.stderr.contains("--target trt"), "{}", out.stderr);
    // --target trt would not help here.
    let out = run(&["--target", "onnx", bundle.as_str(), "--fp8", "-o", temp.path("o").as_str()]);
    assert!(out.code == 2 && out.stderr.contains("quantised"), "{}", out.stderr);
    assert!(!out.stderr.contains("--target trt"), "{}", out.stderr);
    let out = run(&[
        "--target",
        "trt",
        fixture("variants/token/dpar").as_str(),
        "--emit-trtexec",
        "-o",
        temp.path("n").as_str(),
    ]);
    assert!(out.code == 0 && temp.path("n/trt/trtexec.sh").is_file(), "{}", out.stderr);
}
