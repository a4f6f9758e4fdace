use super::*;

fn edge(from: &str, to: &str, normal: bool, pinned: bool) -> Edge {
    Edge { from: from.into(), to: to.into(), normal, pinned }
}

fn problems(from: &str, to: &str, normal: bool) -> Vec<String> {
    check(&[edge(from, to, normal, false)])
}

#[test]
fn each_direction_fires() {
    for (from, to, why) in [
        ("dpar-export-onnx", "dpar-engine-api", "never depend on an engine"),
        ("dpar-engine-ort", "dpar-export-checkpoint", "never see a checkpoint"),
        ("dpar-engine-tract", "dpar-export-onnx", "never see a checkpoint"),
        ("dpar-engine-tract", "dpar-engine-ort", "lead down"),
        ("dpar-export-bundle", "dpar-export-trt", "lead down"),
        ("dpar-export-decode", "dpar-export-compare", "lead down"),
        ("dpar-export-trt", "dpar-export-decode", "lead down"),
        ("dpar-export-files", "dpar-export", "lead down"),
        ("dpar-export-spec", "fs-err", "no I/O"),
        ("dpar-export-spec", "camino", "no I/O"),
        ("dpar-export-spec", "dpar-export-onnx", "no other member"),
        ("dpar-export", "libloading", "belongs to dpar-engine-api"),
        ("dpar-engine-ort", "prost", "belongs to dpar-export-onnx"),
    ] {
        let found = problems(from, to, true);
        assert!(found.len() == 1 && found[0].contains(why), "{from} -> {to}: {found:?}");
    }
}

#[test]
fn what_is_allowed_does_not_fire() {
    for (from, to, normal) in [
        ("dpar-export", "dpar-engine-ort", true),
        ("dpar-export-onnx", "dpar-export-checkpoint", true),
        ("dpar-engine-ort", "dpar-export-spec", true),
        ("dpar-engine-ort", "dpar-engine-conformance", false),
        ("dpar-export-trt", "dpar-engine-tensorrt", true),
        ("dpar-export-compare", "dpar-export-decode", true),
        ("dpar-export-spec", "serde", true),
    ] {
        assert!(problems(from, to, normal).is_empty(), "{from} -> {to}");
    }
}

#[test]
fn a_member_without_a_layer_fires() {
    let metadata = serde_json::json!({"packages": [{"name": "dpar-export"}, {"name": "dpar-new"}]});
    let found = members(&metadata);
    assert!(found.len() == 1 && found[0].starts_with("dpar-new is in no layer"), "{found:?}");
}

#[test]
fn a_native_dependency_outside_its_engine_fires() {
    let native =
        |from: &[&str]| check(&from.iter().map(|f| edge(f, "runs-graphs", true, true)).collect::<Vec<_>>());
    assert!(native(&["dpar-engine-ort"]).is_empty());
    assert!(native(&["dpar-export"])[0].contains("native dependency of one engine"));
    assert!(native(&["dpar-engine-api"])[0].contains("native dependency of one engine"));
    let both = native(&["dpar-engine-ort", "dpar-engine-tract"]);
    assert!(both.len() == 2 && both[0].contains("dpar-engine-tract has it too"), "{both:?}");
}

#[test]
fn an_optional_engine_in_a_plain_build_fires() {
    let edges = [edge("dpar-engine-tensorrt", "trtx", true, true)];
    let mut tree = "dpar-export v0.1.0\n".to_owned();
    for engine in engines::all().iter().filter(|e| e.plain) {
        assert!(plain(&tree, &edges).iter().any(|p| p.contains(&format!("no {}, ", engine.name))));
        tree += &format!("{} v0.1.0 (x)\n", engine.package());
    }
    assert!(plain(&tree, &edges).is_empty());
    assert!(plain(&format!("{tree}trtx v0.9.1\n"), &edges)[0].contains("compiles trtx"));
    let candle = format!("{tree}dpar-engine-candle v0.1.0\n");
    assert!(plain(&candle, &edges)[0].contains("compiles dpar-engine-candle"));
}

#[test]
fn edges_are_read_from_cargo_metadata() {
    let metadata = serde_json::json!({"packages": [{"name": "a", "dependencies": [
        {"name": "b", "kind": null, "req": "^1"}, {"name": "c", "kind": "dev", "req": "*"},
        {"name": "d", "kind": "build", "req": "=1.2.3"}]}]});
    let found = edges(&metadata).unwrap();
    let want = [edge("a", "b", true, false), edge("a", "c", false, false), edge("a", "d", true, true)];
    assert_eq!(found, want);
    assert!(edges(&serde_json::json!({})).is_err());
}
