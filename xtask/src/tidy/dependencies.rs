//! Which crate may depend on which: data flows one way, up through the layers, and each native dependency has one
//! owner.

use anyhow::{Context, Result};

/// One declared dependency of a workspace member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edge {
    from: String,
    to: String,
    /// Also built outside tests.
    normal: bool,
}

/// The layers, lowest first: a member depends on members of lower layers only.
const LAYERS: &[&[&str]] = &[
    &["dpar-export-spec", "dpar-export-inputs", "dpar-export-metrics"],
    &["dpar-engine-api", "dpar-export-checkpoint", "dpar-export-files"],
    &["dpar-engine-tract", "dpar-engine-ort", "dpar-engine-candle", "dpar-engine-tensorrt"],
    &["dpar-engine-table", "dpar-engine-conformance", "dpar-export-onnx"],
    &["dpar-export-bundle"],
    &["dpar-export-trt", "dpar-export-decode"],
    &["dpar-export-compare"],
    &["dpar-export-evaluate"],
    &["dpar-export"],
    &["xtask"],
];

/// Members that turn checkpoints into graphs.
const EXPORTERS: &[&str] = &["dpar-export-checkpoint", "dpar-export-onnx"];

/// Dependencies that only the named members may have.
const OWNERS: &[(&str, &[&str])] = &[
    ("ort", &["dpar-engine-ort"]),
    ("tract-onnx", &["dpar-engine-tract"]),
    ("tract-linalg", &["dpar-engine-tract"]),
    ("candle-core", &["dpar-engine-candle"]),
    ("candle-onnx", &["dpar-engine-candle"]),
    ("trtx", &["dpar-engine-tensorrt"]),
    ("clang-sys", &["dpar-engine-tensorrt"]),
    ("libloading", &["dpar-engine-api", "dpar-engine-ort", "dpar-engine-tensorrt"]),
    // The contract reads of a graph what it says of sizes.
    ("prost", &["dpar-export-onnx", "dpar-engine-api"]),
];

/// What `dpar-export-spec` must not use: it does no I/O.
const IO: &[&str] = &["fs-err", "camino", "memmap2", "tempfile"];

/// Reads the declared dependencies.
pub(crate) fn edges(metadata: &serde_json::Value) -> Result<Vec<Edge>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut edges = Vec::new();
    for package in packages {
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let name = |v: &serde_json::Value| v.as_str().map(str::to_owned).context("a package has no name");
            edges.push(Edge {
                from: name(&package["name"])?,
                to: name(&dependency["name"])?,
                normal: dependency["kind"].as_str() != Some("dev"),
            });
        }
    }
    Ok(edges)
}

fn is_engine(name: &str) -> bool {
    name.starts_with("dpar-engine-")
}

/// What a plain build must not compile: the optional engines and what they bind.
const OPTIONAL: &[&str] =
    &["dpar-engine-candle", "dpar-engine-tensorrt", "candle-core", "candle-onnx", "trtx", "trtx-sys"];

/// Problems in the packages of a plain build, `NAME vVERSION ..` a line.
pub(crate) fn plain(tree: &str) -> Vec<String> {
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let names: std::collections::BTreeSet<String> = tree.lines().map(name).collect();
    let mut problems: Vec<String> = OPTIONAL
        .iter()
        .filter(|o| names.contains(**o))
        .map(|o| format!("a plain build compiles {o}: it belongs behind a feature"))
        .collect();
    if !names.contains("dpar-engine-tract") {
        problems.push("a plain build has no embedded engine".to_owned());
    }
    problems
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|members| members.contains(&name))
}

/// Members that have no layer.
pub(crate) fn members(metadata: &serde_json::Value) -> Vec<String> {
    let names = metadata["packages"].as_array().into_iter().flatten().filter_map(|p| p["name"].as_str());
    let homeless = names.filter(|name| layer(name).is_none());
    homeless
        .map(|name| format!("{name} is in no layer: give it one in xtask/src/tidy/dependencies.rs"))
        .collect()
}

pub(crate) fn check(edges: &[Edge]) -> Vec<String> {
    let mut problems = Vec::new();
    for Edge { from, to, normal } in edges {
        let mut problem = |why: &str| problems.push(format!("{from} depends on {to}: {why}"));
        let up = layer(from).zip(layer(to)).is_some_and(|(from, to)| to >= from);
        if EXPORTERS.contains(&from.as_str()) && is_engine(to) {
            problem("exporters never depend on an engine");
        } else if is_engine(from) && to.starts_with("dpar-export-") && to != "dpar-export-spec" {
            problem("engines never see a checkpoint or an exporter");
        } else if from == "dpar-export-spec" && (IO.contains(&to.as_str()) || layer(to).is_some()) {
            problem("the spec does no I/O and depends on no other member");
        } else if *normal && up {
            problem("dependencies lead down: it is in the same layer or above");
        }
        if let Some((_, owners)) = OWNERS.iter().find(|(name, _)| name == to)
            && !owners.contains(&from.as_str())
        {
            problem(&format!("it belongs to {}", owners.join(", ")));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(from: &str, to: &str, normal: bool) -> Vec<String> {
        check(&[Edge { from: from.into(), to: to.into(), normal }])
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
            ("dpar-export", "ort", "belongs to dpar-engine-ort"),
            ("dpar-engine-ort", "tract-onnx", "belongs to dpar-engine-tract"),
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
            ("dpar-engine-ort", "ort", true),
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
    fn an_optional_engine_in_a_plain_build_fires() {
        let tree = "dpar-export v0.1.0\ndpar-engine-tract v0.1.0 (x)\n";
        assert!(plain(tree).is_empty());
        assert!(plain(&format!("{tree}trtx v0.9.1\n"))[0].contains("compiles trtx"));
        assert!(plain("dpar-export v0.1.0")[0].contains("no embedded engine"));
    }

    #[test]
    fn edges_are_read_from_cargo_metadata() {
        let metadata = serde_json::json!({"packages": [{"name": "a", "dependencies": [
            {"name": "b", "kind": null}, {"name": "c", "kind": "dev"}, {"name": "d", "kind": "build"}]}]});
        let found = edges(&metadata).unwrap();
        let edge = |to: &str, normal| Edge { from: "a".into(), to: to.into(), normal };
        assert_eq!(found, [edge("b", true), edge("c", false), edge("d", true)]);
        assert!(edges(&serde_json::json!({})).is_err());
    }
}
