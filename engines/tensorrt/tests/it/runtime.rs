//! What is said about running where there is no GPU, and about engine files.

use dpar_engine_api::{Engine, EngineErrorKind, EngineFile, GraphFile};
use dpar_engine_tensorrt::{BuildRequest, Profile, TensorRtEngine, engine_in_bundle, read_plan_header};

use crate::{Copied, builder};

/// A copied graph with its engine where a bundle has it.
fn with_engine() -> Copied {
    let copied = Copied::new("head");
    let engine = builder().build(BuildRequest::new(copied.graph.file())).unwrap();
    std::fs::create_dir(copied.root().join("trt")).unwrap();
    std::fs::write(copied.root().join("trt/head.engine"), engine.bytes).unwrap();
    copied
}

#[test]
fn without_a_driver_it_says_driver() {
    let copied = with_engine();
    let engine = TensorRtEngine::default();
    let Err(e) = engine.probe() else {
        engine.prepare(copied.graph.file()).map(|_| ()).unwrap();
        return;
    };
    assert_eq!(e.kind, EngineErrorKind::Unavailable);
    assert!(e.message.contains("no NVIDIA driver was found"), "{e}");
    assert!(e.hint.unwrap().contains("--engine"));
    let e = engine.prepare(copied.graph.file()).map(|_| ()).unwrap_err();
    assert_eq!((e.kind, e.graph.as_deref()), (EngineErrorKind::Unavailable, Some("head")));
    let e = engine.prepare_cached(copied.graph.file()).map(|_| ()).unwrap_err();
    assert_eq!((e.kind, e.graph.as_deref()), (EngineErrorKind::Unavailable, Some("head")));
    assert_eq!(engine.free_memory().unwrap_err().kind, EngineErrorKind::Unavailable);
    let e = engine.inspect(&copied.root().join("trt/head.engine")).unwrap_err();
    assert_eq!(e.kind, EngineErrorKind::Unavailable);
}

#[test]
fn a_missing_or_damaged_engine_is_refused_before_the_driver_is_asked() {
    let copied = with_engine();
    let path = copied.root().join("trt/head.engine");
    let whole = std::fs::read(&path).unwrap();
    let refused = |kind, text: &str| {
        let e = TensorRtEngine::default().prepare(copied.graph.file()).map(|_| ()).unwrap_err();
        assert_eq!((e.kind, e.graph.as_deref()), (kind, Some("head")), "{e}");
        assert!(e.message.contains(text) && e.message.contains("head.engine"), "{e}");
        assert!(e.hint.unwrap().contains("--target trt"));
    };
    for len in [0, 27, 28, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        match len {
            0..28 => refused(EngineErrorKind::Graph, "not a TensorRT engine"),
            _ => refused(EngineErrorKind::Damaged, "is damaged"),
        }
    }
    std::fs::copy(&copied.graph.path, &path).unwrap();
    refused(EngineErrorKind::Graph, "not a TensorRT engine");
    std::fs::remove_file(&path).unwrap();
    refused(EngineErrorKind::Graph, "No such file");
    read_plan_header(&whole).unwrap();
}

#[test]
fn the_engine_file_can_be_elsewhere_and_its_profiles_are_checked() {
    let copied = with_engine();
    let prepare = |profiles: Vec<Profile>| {
        let file = EngineFile { path: copied.root().join("here.engine"), profiles };
        let graph = GraphFile { engine: Some(&file), ..copied.graph.file() };
        TensorRtEngine::default().prepare(graph).map(|_| ()).unwrap_err()
    };
    let e = prepare(vec![Profile { name: "p".into(), axes: [].into() }]);
    assert_eq!(e.kind, EngineErrorKind::Setting);
    assert!(e.message.contains("no range for axis `batch` of input `hidden`"), "{e}");
    let e = prepare(Vec::new());
    assert!(e.message.contains("here.engine"), "{e}");
    let bundled = engine_in_bundle(copied.graph.file());
    assert_eq!(bundled.path, copied.root().join("trt/head.engine"));
}
