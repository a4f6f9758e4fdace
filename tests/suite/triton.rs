//! `--target triton`: a repository that stands for itself. `cargo xtask triton` runs a server on one.

use camino::Utf8Path;
use dpar_export::bundle::Bundle;
use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture};

fn read(path: &Utf8Path) -> String {
    fs_err::read_to_string(path).unwrap()
}

#[test]
fn a_repository_has_the_loop_the_bundle_and_a_model_for_each_graph() {
    let temp = Temp::new();
    let (b, repository) = (temp.path("b"), temp.path("repository"));
    let bundle = export("variants/combined/dpar", &LoadOptions::default(), &b);
    let write =
        |more: &[&str]| run(&[&["--target", "triton", b.as_str(), "-o", repository.as_str()], more].concat());
    let options = ["--engine", "ort", "--rows", "4", "--threads", "2", "--graphs", "--json"];
    let out = write(&options);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let models = json(&out)["models"].as_array().unwrap().len();
    assert_eq!(models, 1 + bundle.manifest().graphs.len());

    let model = repository.join("dpar");
    let config = read(&model.join("config.pbtxt"));
    let size = bundle.system().image_size;
    for line in [
        "backend: \"python\"".to_owned(),
        "max_batch_size: 0".to_owned(),
        "model_transaction_policy { decoupled: true }".to_owned(),
        format!("  {{ name: \"image\", data_type: TYPE_UINT8, dims: [ -1, {size}, {size}, 3 ] }},"),
        "parameters { key: \"engine\", value { string_value: \"ort\" } }".to_owned(),
        "parameters { key: \"rows\", value { string_value: \"4\" } }".to_owned(),
        "  { count: 1, kind: KIND_CPU }".to_owned(),
    ] {
        assert!(config.lines().any(|l| l == line), "no `{line}` in\n{config}");
    }
    let copy = Bundle::open(&model.join("1/bundle")).unwrap();
    assert_eq!(copy.manifest_sha256(), bundle.manifest_sha256());
    for graph in &bundle.manifest().graphs {
        let folder = repository.join(format!("dpar_{}", graph.spec.name));
        let config = read(&folder.join("config.pbtxt"));
        for port in graph.spec.inputs.iter().chain(&graph.spec.outputs) {
            assert!(config.contains(&format!("{{ name: \"{}\", data_type: TYPE_", port.name)), "{config}");
        }
        let bytes = fs_err::read(folder.join("1/model.onnx")).unwrap();
        assert_eq!(bytes, fs_err::read(b.join(&graph.file)).unwrap());
        let beside: Vec<String> =
            folder.join("1").read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
        assert_eq!(beside.len(), 2, "the weights lie beside the graph: {beside:?}");
    }

    let before = read(&repository.join("dpar-export.json"));
    assert_eq!(write(&options).code, 2, "it is there already");
    assert_eq!(write(&[&options[..], &["--force"]].concat()).code, 0);
    assert_eq!(read(&model.join("config.pbtxt")), config);
    assert_eq!(read(&repository.join("dpar-export.json")), before);
    let elsewhere = ["--force", "--server-path", "/srv/a \"b\"", "--device", "cuda:1", "--instances", "2"];
    assert_eq!(write(&elsewhere).code, 0);
    let config = read(&model.join("config.pbtxt"));
    assert!(
        config.contains("string_value: \"/srv/a \\\"b\\\"\"") && config.contains("count: 2, kind: KIND_GPU")
    );
    assert!(!model.join("1/bundle").exists() && !repository.join("dpar_start").exists());

    // A folder of the user's that has a `dpar` too.
    let mine = temp.path("mine");
    fs_err::create_dir_all(mine.join("dpar")).unwrap();
    assert_eq!(run(&["--target", "triton", b.as_str(), "-o", mine.as_str(), "--force"]).code, 2);
    assert!(mine.join("dpar").is_dir());
}

#[test]
fn what_triton_cannot_be_told_is_refused() {
    let temp = Temp::new();
    let (b, out) = (temp.path("b"), temp.path("out"));
    export("variants/combined/dpar", &LoadOptions::default(), &b);
    let checkpoint = fixture("variants/combined/dpar");
    let (b, out, checkpoint) = (b.as_str(), out.as_str(), checkpoint.as_str());
    for (args, word) in [
        (&["--target", "triton", checkpoint, "-o", out][..], "is no bundle"),
        (&["--target", "triton", b], "no output folder"),
        (&["--target", "triton", b, "-o", out, "--precision", "fp16"], "cannot be chosen"),
        (&["--target", "triton", b, "-o", out, "--quantize", "int8"], "cannot be chosen"),
        (&["--target", "triton", b, "-o", out, "--calibrate", "4"], "TensorRT options"),
        (&["--target", "triton", b, "-o", out, "--rows", "0"], "--rows"),
        (&["--target", "triton", b, "-o", out, "--graphs", "--server-path", "x"], "--graphs"),
        (&["--target", "trt", b, "-o", out, "--rows", "4"], "Triton options"),
        (&[checkpoint, "-o", out, "--graphs"], "Triton options"),
        (&["--target", "triton", b, "-o", b], "is the checkpoint"),
    ] {
        let ran = run(args);
        assert!(ran.code == 2 && ran.stderr.contains(word), "{args:?}: {} {}", ran.code, ran.stderr);
    }
    assert!(!Utf8Path::new(out).exists());
    assert_eq!(run(&["--target", "triton", b, "--dry-run"]).code, 0);
}
