//! What cannot be built is refused with a reason and a next step.

use dpar_engine_api::{Engine, EngineError, EngineErrorKind};
use dpar_engine_tensorrt::{BuildError, BuildRequest, BuildSettings, Profile, TensorRtEngine};
use dpar_export_spec::AxisRange;
use dpar_export_spec::WeightMode;

use crate::{Copied, Graph, builder, graph};

fn refused(graph: &Graph, settings: BuildSettings) -> BuildError {
    builder().build(BuildRequest { settings, ..BuildRequest::new(graph.file()) }).unwrap_err()
}

fn unreadable(copied: &Copied) -> BuildError {
    refused(&copied.graph, BuildSettings::default())
}

#[test]
fn an_unknown_operator_is_named_with_graph_and_node() {
    let copied = Copied::new("attention_step");
    copied.replace("\"\u{7}Softmax", "\"\u{7}Softmix");
    let e = unreadable(&copied);
    let BuildError::Parse { graph, path, fault } = &e else { panic!("{e:?}") };
    assert_eq!((graph.as_str(), path), ("attention_step", &copied.graph.path));
    assert_eq!((fault.op.as_deref(), fault.count), (Some("Softmix"), 2));
    assert!(
        fault.node.is_some() && fault.name.as_deref().is_some_and(|n| n.starts_with("Softm")),
        "{fault:?}"
    );
    let text = e.to_string();
    assert!(text.contains("graph `attention_step`") && text.contains("(Softmix): "), "{text}");
    assert_eq!(EngineError::from(e).kind, EngineErrorKind::Graph);
}

#[test]
fn missing_weights_are_named_with_the_next_step() {
    let copied = Copied::new("head");
    std::fs::remove_file(copied.graph.path.with_file_name("step.onnx_data")).unwrap();
    let e = unreadable(&copied);
    assert!(matches!(&e, BuildError::Ports(_)) && e.to_string().contains("step.onnx_data"), "{e:?}");
    assert!(e.hint().unwrap().contains(".onnx_data"), "{e}");
}

#[test]
fn files_that_are_no_graphs_are_refused() {
    let copied = Copied::new("attention_step");
    let whole = std::fs::read(&copied.graph.path).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"a text", b""] {
        std::fs::write(&copied.graph.path, bytes).unwrap();
        let e = unreadable(&copied);
        // Bytes that happen to be an empty model are caught by the ports.
        assert!(matches!(e, BuildError::Parse { .. } | BuildError::Ports(_)), "{e:?}");
        assert!(e.hint().is_some(), "{e}");
    }
    std::fs::remove_file(&copied.graph.path).unwrap();
    let e = unreadable(&copied);
    assert!(e.to_string().contains("No such file"), "{e}");
}

#[test]
fn a_spec_that_is_not_the_files_is_refused() {
    let mut graph = graph("head");
    graph.spec.outputs[0].name = "scores".into();
    let e = refused(&graph, BuildSettings::default());
    assert!(matches!(e, BuildError::Ports(_)), "{e:?}");
    assert!(e.to_string().contains("the spec has output `scores`"), "{e}");
}

#[test]
fn profiles_are_checked_before_the_build() {
    let graph = graph("attention_step");
    let mut profile = Profile::from_spec("wide", &graph.spec);
    profile.axes.insert("batch".into(), AxisRange { name: "batch".into(), min: 1, opt: 2, max: 5 });
    let e = refused(&graph, BuildSettings { profiles: vec![profile], ..BuildSettings::default() });
    let text = "graph `attention_step`: profile `wide`: axis `batch` is 1 to 5, the graph takes 1 to 4";
    assert_eq!(e.to_string(), text);
    assert!(e.hint().unwrap().contains("manifest"));
    assert_eq!(EngineError::from(e).kind, EngineErrorKind::Setting);

    let twice = vec![Profile::from_spec("p", &graph.spec), Profile::from_spec("p", &graph.spec)];
    let e = refused(&graph, BuildSettings { profiles: twice, ..BuildSettings::default() });
    assert!(e.to_string().contains("two profiles of this name"), "{e}");
}

#[test]
fn settings_that_cannot_be_met_are_refused() {
    let graph = graph("head");
    let e = refused(&graph, BuildSettings { optimization_level: Some(6), ..BuildSettings::default() });
    assert_eq!(e.to_string(), "builder optimization level 6: TensorRT has levels 0 to 5");
    let e = refused(&graph, BuildSettings { workspace: Some(16), ..BuildSettings::default() });
    assert!(matches!(&e, BuildError::Build { message, .. } if message.contains("workspace")), "{e:?}");
    if let Err(driver) = TensorRtEngine::default().probe() {
        assert!(driver.message.contains("driver"), "{driver}");
        for weights in [WeightMode::Refittable, WeightMode::Stripped] {
            let e = refused(&graph, BuildSettings { weights, ..BuildSettings::default() });
            assert!(e.to_string().contains("no NVIDIA driver was found"), "{e}");
            assert!(e.hint().unwrap().contains("where a GPU is"));
        }
    }
}

#[test]
fn compute_capabilities_are_checked() {
    for (text, part) in
        [("7.5", "Turing"), ("9.0", "does not build for"), ("sm_89", "not a compute capability")]
    {
        let e = BuildError::from(text.parse::<dpar_engine_tensorrt::Capability>().unwrap_err());
        assert!(e.to_string().contains(part) && e.hint().is_some(), "{e}");
    }
}
