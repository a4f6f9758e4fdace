//! tract and ONNX Runtime under the suite, on the graphs in `fixtures/`.

#![allow(clippy::unwrap_used)]

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{Engine, EngineErrorKind, GraphFile, Tensor};
use dpar_engine_conformance::{
    ConformanceCheck, ConformanceOutcome, ConformanceVerdict, Exception, FIXTURES, GraphCase, agree,
    assert_passed, fixture, run, run_with,
};
use dpar_engine_ort::{Hardware, OrtDevice, OrtEngine, OrtOptions, PlugInDevice};
use dpar_engine_tract::TractEngine;

fn case(name: &str) -> GraphCase {
    fixture(name).unwrap()
}

fn cases() -> Vec<GraphCase> {
    FIXTURES.map(case).into()
}

/// Never skipped: without the library this fails and says how to get it.
fn ort(threads: usize) -> OrtEngine {
    let engine = OrtEngine::new(OrtOptions { threads: Some(threads), ..OrtOptions::default() });
    if let Err(e) = engine.probe() {
        panic!("{e}\n  next step: {}", e.hint.as_deref().unwrap_or_default());
    }
    engine
}

/// OpenVINO's provider, from the library that setup fetched.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn openvino(threads: usize) -> OrtEngine {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../third_party/openvino");
    let library = format!("{folder}/libonnxruntime_providers_openvino_plugin.so").into();
    let device = OrtDevice::PlugIn(PlugInDevice { library, hardware: Hardware::Cpu });
    OrtEngine::new(OrtOptions { threads: Some(threads), device, ..OrtOptions::default() })
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn openvino_conforms() {
    let engine = openvino(2);
    let info = engine.probe().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((info.provider.as_str(), info.device.as_str()), ("OpenVINOExecutionProvider", "cpu:0"));
    let outcomes = run(&engine, &cases());
    assert_passed(&outcomes);
    applied(&outcomes);
    assert_passed(&agree(&engine, &TractEngine::new(Some(2)), &cases()));
}

/// What is no provider's library, and a device that the provider does not have: the engine is not there, and says why.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn other_libraries_and_devices_are_refused() {
    let on = |library: &str, hardware| {
        let device = OrtDevice::PlugIn(PlugInDevice { library: library.into(), hardware });
        OrtEngine::new(OrtOptions { device, ..OrtOptions::default() }).probe().unwrap_err()
    };
    let runtime = ort(1).probe().unwrap().library.unwrap();
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for library in ["/none/libnone.so", here, runtime.as_str()] {
        let e = on(library, Hardware::First);
        assert_eq!(e.kind, EngineErrorKind::Unavailable, "{e}");
        assert!(e.message.contains(library) && e.hint.unwrap().contains("openvino"), "{}", e.message);
    }
    let found = openvino(1);
    found.probe().unwrap();
    let library = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../third_party/openvino/libonnxruntime_providers_openvino_plugin.so"
    );
    let e = on(library, Hardware::Gpu(3));
    assert_eq!(e.kind, EngineErrorKind::Unavailable);
    assert!(e.message.contains("it lists cpu"), "{e}");
}

/// The suite itself must not shrink: these checks apply to these graphs.
fn applied(outcomes: &[ConformanceOutcome]) {
    let passed = |graph: &str, check| {
        outcomes.iter().any(|o| o.graph == graph && o.check == check && o.verdict == ConformanceVerdict::Pass)
    };
    for check in [
        ConformanceCheck::Prepare,
        ConformanceCheck::Shapes,
        ConformanceCheck::Repeat,
        ConformanceCheck::EquivalentRows,
        ConformanceCheck::BatchOne,
        ConformanceCheck::Reference,
        ConformanceCheck::BadInputs,
        ConformanceCheck::OtherSpec,
        ConformanceCheck::TruncatedGraph,
        ConformanceCheck::Garbage,
        ConformanceCheck::MissingData,
        ConformanceCheck::TruncatedData,
        ConformanceCheck::CachedSteps,
    ] {
        for graph in ["attention_step", "head", "conv_decode"] {
            assert!(passed(graph, check), "{check:?} did not pass on {graph}");
        }
    }
    assert!(passed("", ConformanceCheck::Probe) && passed("attention_step", ConformanceCheck::MaskedPast));
    for check in [
        ConformanceCheck::CachedRows,
        ConformanceCheck::CachedRestart,
        ConformanceCheck::CachedReset,
        ConformanceCheck::CachedRefused,
    ] {
        assert!(passed("attention_step", check), "{check:?} did not pass");
    }
    assert!(passed("conv_decode", ConformanceCheck::IdenticalRows));
}

#[test]
fn tract_conforms_with_one_thread() {
    let outcomes = run(&TractEngine::new(Some(1)), &cases());
    assert_passed(&outcomes);
    applied(&outcomes);
}

#[test]
fn tract_conforms_with_many_threads() {
    assert_passed(&run(&TractEngine::new(Some(3)), &cases()));
}

#[test]
fn ort_conforms_with_one_thread() {
    let outcomes = run(&ort(1), &cases());
    assert_passed(&outcomes);
    applied(&outcomes);
}

#[test]
fn ort_conforms_with_many_threads() {
    assert_passed(&run(&ort(3), &cases()));
}

#[test]
fn tract_and_ort_agree() {
    assert_passed(&agree(&TractEngine::new(None), &ort(1), &cases()));
}

#[test]
fn the_number_of_threads_changes_no_bit_in_tract() {
    let inputs = |case: &GraphCase| case.references[0].inputs.clone();
    let outputs = |threads, case: &GraphCase| {
        let file = GraphFile::new(&case.spec, &case.path);
        let mut session = TractEngine::new(Some(threads)).prepare(file).unwrap();
        session.run(&inputs(case).views()).unwrap()
    };
    for case in cases() {
        assert_eq!(outputs(1, &case), outputs(4, &case), "{}", case.spec.name);
    }
}

#[test]
fn ort_reports_the_library_it_runs() {
    let info = ort(2).probe().unwrap();
    assert!(info.version.starts_with("1."), "{}", info.version);
    assert_eq!((info.provider.as_str(), info.threads), ("CPUExecutionProvider", Some(2)));
    assert!(info.library.is_some());
}

#[test]
fn a_second_library_in_one_process_is_refused() {
    let first = ort(1).probe().unwrap().library.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let copy = Utf8Path::from_path(dir.path()).unwrap().join("libonnxruntime.so");
    std::fs::copy(&first, &copy).unwrap();
    let second = OrtEngine::new(OrtOptions { library: Some(copy.clone()), ..OrtOptions::default() });
    let e = second.probe().unwrap_err();
    assert_eq!(e.kind, EngineErrorKind::Unavailable);
    assert!(e.message.contains(&first) && e.message.contains(copy.as_str()), "{e}");
    // The same library under its own name is the one that runs.
    OrtEngine::new(OrtOptions { library: Some(first.into()), ..OrtOptions::default() }).probe().unwrap();
}

#[test]
fn a_library_that_does_not_exist_is_unavailable_with_the_next_step() {
    let library = Some(Utf8PathBuf::from("no/such/libonnxruntime.so"));
    let e = OrtEngine::new(OrtOptions { library, ..OrtOptions::default() }).probe().unwrap_err();
    assert_eq!(e.kind, EngineErrorKind::Unavailable);
    assert!(e.hint.unwrap().contains("cargo xtask setup"));
}

#[test]
fn an_exception_is_reported_and_a_stale_one_fails() {
    let exception = |check| Exception { engine: "tract", graph: None, check, always: true, reason: "known" };
    let mut wrong = case("head");
    wrong.references[0].outputs[0] = Tensor::f32([2, 2, 32], vec![9.0; 128]);
    let engine = TractEngine::new(Some(1));
    let verdict = |check| {
        let outcomes = run_with(&engine, std::slice::from_ref(&wrong), &[exception(check)]);
        outcomes.into_iter().find(|o| o.check == check).unwrap().verdict
    };
    assert_eq!(verdict(ConformanceCheck::Reference), ConformanceVerdict::Excepted("known"));
    assert!(
        matches!(verdict(ConformanceCheck::Repeat), ConformanceVerdict::Fail(why) if why.contains("listed as an exception"))
    );
    let failed = run(&engine, &[wrong]);
    let caught = std::panic::catch_unwind(|| assert_passed(&failed)).unwrap_err();
    let text = caught.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("tract head Reference: FAIL: `logits`[") && text.contains("expected 9.0"),
        "{text}"
    );
}
