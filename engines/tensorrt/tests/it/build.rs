//! Engines are built, and how they are built is reported.

use dpar_engine_tensorrt::{
    BuildError, BuildProgress, BuildRequest, BuildSettings, BuiltEngine, Capability, Override, Point,
    Profile, read_plan_header,
};

use crate::{Graph, builder, graph};

fn built(graph: &Graph, settings: BuildSettings) -> BuiltEngine {
    let built = builder().build(BuildRequest { settings, ..BuildRequest::new(graph.file()) });
    built.unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_graph_builds_over_its_whole_ranges() {
    for name in ["attention_step", "head", "conv_decode"] {
        let graph = graph(name);
        let engine = built(&graph, BuildSettings::default());
        let header = read_plan_header(&engine.bytes).unwrap();
        assert_eq!(header.version, engine.version);
        assert_eq!(header.size, engine.bytes.len() as u64);
        assert!(engine.version.starts_with("1.7."), "{}", engine.version);
        assert_eq!(engine.graph, name);
        assert_eq!(engine.settings.profiles, [Profile::from_spec("default", &graph.spec)]);
        assert_eq!(engine.warnings, Vec::<String>::new());
        assert!(engine.layers > 0 && engine.seconds > 0.0, "{engine:?}");
    }
}

#[test]
fn several_profiles_devices_and_settings_are_taken() {
    let graph = graph("attention_step");
    let decode = Profile::decode("decode", &graph.spec).unwrap();
    let eight = [Override::Axis { axis: "batch".into(), point: Point::Max, size: 2 }];
    let small = Profile::from_spec("batch=2", &graph.spec).with(&graph.spec, &eight).unwrap();
    let settings = BuildSettings {
        profiles: vec![Profile::from_spec("default", &graph.spec), decode, small],
        compute_capabilities: Capability::known(),
        optimization_level: Some(0),
        workspace: Some(1 << 30),
        tf32: true,
        detailed: true,
        ..BuildSettings::default()
    };
    let one = built(&graph, BuildSettings::default());
    let many = built(&graph, settings.clone());
    assert_eq!(many.settings, settings);
    assert!(many.bytes.len() > one.bytes.len());
    let json = serde_json::to_string(&settings).unwrap();
    assert_eq!(serde_json::from_str::<BuildSettings>(&json).unwrap(), settings);
}

#[test]
fn progress_is_reported() {
    let graph = graph("head");
    let mut seen: Vec<(String, usize, usize, usize)> = Vec::new();
    let mut progress = |p: BuildProgress<'_>| {
        seen.push((p.phase.to_owned(), p.step, p.total, p.depth));
        true
    };
    let request = BuildRequest { progress: Some(&mut progress), ..BuildRequest::new(graph.file()) };
    builder().build(request).unwrap();
    let outer: Vec<_> = seen.iter().filter(|s| s.3 == 0 && !s.0.is_empty()).collect();
    assert!(outer.len() > 2, "{seen:?}");
    assert!(outer.iter().all(|s| s.0 == outer[0].0 && s.1 <= s.2), "{outer:?}");
    assert!(outer.windows(2).all(|w| w[0].1 <= w[1].1), "{outer:?}");
    assert!(seen.iter().any(|s| s.3 > 0), "{seen:?}");
}

#[test]
fn a_build_stops_when_it_is_told_to_and_leaves_the_library_usable() {
    let graph = graph("attention_step");
    for steps in [0, 3] {
        let mut left = steps;
        let mut progress = |_: BuildProgress<'_>| {
            left -= 1;
            left >= 0
        };
        let request = BuildRequest { progress: Some(&mut progress), ..BuildRequest::new(graph.file()) };
        let e = builder().build(request).unwrap_err();
        assert_eq!(e, BuildError::Stopped { graph: "attention_step".into() });
    }
    built(&crate::graph("head"), BuildSettings::default());
}
