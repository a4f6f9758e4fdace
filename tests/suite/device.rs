//! `--device` and the options of engines on a device: honoured, or an error that says who does not have them.

use dpar_export_checkpoint::LoadOptions;

use crate::cli::{Run, json, run};
use crate::common::{Temp, export};

#[test]
fn devices_are_honoured_or_refused() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let generate = |out: &str, more: &[&str]| -> Run {
        let out = temp.path(out);
        let args = ["generate", bundle.as_str(), "--no-images", "--num", "2", "--json", "-o", out.as_str()];
        run(&[&args[..], more].concat())
    };

    // The processor's ONNX Runtime has no GPU provider: exit 3 with its name, and nothing is written.
    for (device, provider) in [
        ("cuda", "CUDAExecutionProvider"),
        ("tensorrt:1", "TensorrtExecutionProvider"),
        ("nvrtx:0", "NvTensorRTRTXExecutionProvider"),
    ] {
        let out = generate("gpu", &["--engine", "ort", "--device", device]);
        assert_eq!(out.code, 3, "{device}: {}", out.stderr);
        assert!(out.stderr.contains(provider) && out.stderr.contains("built without"), "{}", out.stderr);
        assert!(out.stderr.contains("ORT_DYLIB_PATH"), "the next step: {}", out.stderr);
        assert!(out.stdout.is_empty() && !temp.path("gpu").exists(), "{device}");
    }

    // Asking for the processor changes nothing.
    let plain = generate("plain", &["--engine", "ort"]);
    let cpu = generate("cpu", &["--engine", "ort", "--device", "cpu"]);
    assert_eq!((plain.code, cpu.code), (0, 0), "{}{}", plain.stderr, cpu.stderr);
    let trace = |name: &str| fs_err::read(temp.path(name).join("trace.npz")).unwrap();
    assert_eq!(trace("plain"), trace("cpu"));
    assert_eq!(json(&plain)["engine"], json(&cpu)["engine"]);
    assert_eq!(json(&cpu)["engine"]["device"], "cpu");
    assert_eq!(json(&cpu)["engine"]["provider"], "CPUExecutionProvider");
    assert_eq!(generate("tract", &["--engine", "tract", "--device", "cpu"]).code, 0);

    let inside = bundle.join("cache");
    let mut refused = vec![
        (vec!["--engine", "tract", "--device", "cuda"], "tract: it does not run on `--device cuda:0`"),
        (vec!["--engine", "ort", "--device", "0"], "ort: it does not run on `--device 0`"),
        (vec!["--engine", "ort", "--device", "gpu0"], "expected cpu, an index"),
        (vec!["--engine", "ort", "--device", "gpu"], "name the library with --ep-lib"),
        (vec!["--engine", "ort", "--ep-lib", "x", "--device", "cuda"], "leave out --ep-lib"),
        (vec!["--engine", "ort", "--cuda-graphs"], "ort: it has no --cuda-graphs"),
        (vec!["--runtime-cache", "c"], "tract: it has no --runtime-cache"),
        (vec!["--ort-lib", "x"], "tract: it has no --ort-lib"),
        (vec!["--engine", "ort", "--trt-lib", "x"], "ort: it has no --trt-lib"),
        (vec!["--engine", "tensorrt", "--runtime-cache", inside.as_str()], "lies in the bundle"),
    ];
    if cfg!(feature = "tensorrt") {
        refused.extend([
            (vec!["--engine", "tensorrt", "--device", "cpu"], "it does not run on `--device cpu`"),
            (vec!["--engine", "tensorrt", "--device", "nvrtx"], "it does not run on `--device nvrtx:0`"),
            (vec!["--engine", "tensorrt", "--threads", "2"], "it has no --threads"),
        ]);
    }
    for (more, text) in refused {
        let out = generate("no", &more);
        assert_eq!(out.code, 2, "{more:?}: {}", out.stderr);
        assert!(out.stderr.contains(text), "{more:?}: {}", out.stderr);
        assert!(!temp.path("no").exists());
    }
}
