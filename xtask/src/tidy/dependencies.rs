//! Which crate may depend on which: data flows one way, up through the layers, and each native dependency has one
//! owner.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use dpar_engine_table as engines;

/// One declared dependency of a workspace member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edge {
    from: String,
    to: String,
    /// Also built outside tests.
    normal: bool,
    /// Asked for in one exact version.
    pinned: bool,
}

/// Stands in [`LAYERS`] for the crates of the engines that `engines/table` lists.
const EVERY_ENGINE: &str = "every engine of the table";

/// The layers, lowest first: a member depends on members of lower layers only.
const LAYERS: &[&[&str]] = &[
    &[
        "dpar-export-spec",
        "dpar-export-inputs",
        "dpar-export-metrics",
        "dpar-export-demo",
        "dpar-export-fixtures",
        "xtask-web",
    ],
    &["dpar-engine-api", "dpar-export-checkpoint", "dpar-export-files", "dpar-export-sampler"],
    &["dpar-engine-kv"],
    &[EVERY_ENGINE],
    &["dpar-engine-table", "dpar-engine-conformance", "dpar-export-onnx"],
    &["dpar-export-bundle"],
    &[
        "dpar-export-trt",
        "dpar-export-deploy",
        "dpar-export-decode",
        "dpar-export-doctor",
        "dpar-export-card",
    ],
    &["dpar-export-compare", "dpar-export-bench", "dpar-export-serve"],
    &["dpar-export-evaluate"],
    &["dpar-export-args"],
    &["dpar-export"],
    &["dpar-export-python", "xtask"],
];

/// Members that turn checkpoints into graphs.
const EXPORTERS: &[&str] = &["dpar-export-checkpoint", "dpar-export-onnx"];

/// Dependencies that only the named members may have. The native one of an engine needs no line: it is pinned.
const OWNERS: &[(&str, &[&str])] = &[
    ("axum", &["dpar-export-serve"]),
    ("clang-sys", &["dpar-engine-tensorrt"]),
    ("libloading", &["dpar-engine-api", "dpar-engine-tensorrt"]),
    // The contract reads of a graph what it says of sizes; caches in place are an edit of a graph that is loaded.
    ("prost", &["dpar-export-onnx", "dpar-engine-api", "dpar-engine-kv"]),
    ("tokio", &["dpar-export-serve"]),
    ("tokio-rustls", &["dpar-export-serve"]),
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
                pinned: dependency["req"].as_str().is_some_and(|req| req.starts_with('=')),
            });
        }
    }
    Ok(edges)
}

fn is_engine(name: &str) -> bool {
    name.starts_with("dpar-engine-")
}

/// Whether it is the crate of one of the engines.
fn is_one_engine(name: &str) -> bool {
    engines::all().iter().any(|e| e.package() == name)
}

/// What only engines that a plain build does not have bring: their crates and native dependencies.
fn optional(edges: &[Edge]) -> BTreeSet<String> {
    let crates = engines::all().iter().filter(|e| !e.plain).map(engines::TableEntry::package);
    let mut found: BTreeSet<String> = crates.collect();
    let native = edges.iter().filter(|e| e.pinned && found.contains(&e.from)).map(|e| e.to.clone());
    found.extend(native.collect::<Vec<_>>());
    found
}

/// Problems in the packages of a plain build, `NAME vVERSION ..` a line.
pub(crate) fn plain(tree: &str, edges: &[Edge]) -> Vec<String> {
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = tree.lines().map(name).collect();
    let optional = optional(edges);
    let compiled = optional.intersection(&names);
    let absent = engines::all().iter().filter(|e| e.plain && !names.contains(&e.package()));
    compiled
        .map(|o| format!("a plain build compiles {o}: it belongs behind a feature"))
        .chain(absent.map(|e| format!("a plain build has no {}, which the table says it has", e.name)))
        .collect()
}

fn layer(name: &str) -> Option<usize> {
    let name = if is_one_engine(name) { EVERY_ENGINE } else { name };
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
    for Edge { from, to, normal, pinned } in edges {
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
        let other = edges.iter().find(|e| e.pinned && e.to == *to && e.from != *from);
        if *pinned && !is_one_engine(from) {
            problem("it is pinned, so it is the native dependency of one engine");
        } else if let (true, Some(other)) = (*pinned, other) {
            problem(&format!("it is pinned, so it belongs to one engine, and {} has it too", other.from));
        }
    }
    problems
}

#[cfg(test)]
mod tests;
