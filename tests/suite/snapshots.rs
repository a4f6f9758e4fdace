//! The graphs of every fixture as text, so that a change of the exporter is a diff in review: `tests/snapshots` has a file for
//! each export (opsets, inputs, outputs, operators of its graphs) and one for each list of nodes that some of them share.
//! `INSTA_UPDATE=always` writes what the exporter makes now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use camino::Utf8Path;
use dpar_export_onnx::derive::read_model;
use dpar_export_onnx::proto::{AttributeProto, AttributeType, ModelProto, NodeProto};
use dpar_export_spec::{Dialect, GraphSpec, Port};

use crate::graphs::every_export;

/// Exports whose nodes are written out too: in one other precision for its casts, the other graphs' bytes are listed in
/// `fixtures/graphs.sha256`.
fn has_nodes(export: &str) -> bool {
    export.ends_with(" fp32")
        || export == "variants/combined/dpar bf16-autocast"
        || export == "efficientnet-lite0"
}

fn attribute(a: &AttributeProto) -> String {
    let value = match a.r#type() {
        AttributeType::Int => a.i().to_string(),
        AttributeType::Ints => format!("{:?}", a.ints),
        AttributeType::String => String::from_utf8_lossy(a.s()).into_owned(),
        AttributeType::Undefined => "?".to_owned(),
    };
    format!("{}={value}", a.name())
}

fn node(n: &NodeProto) -> String {
    let attributes: Vec<String> = n.attribute.iter().map(attribute).collect();
    let attributes =
        if attributes.is_empty() { String::new() } else { format!("[{}]", attributes.join(" ")) };
    format!("{} = {}{attributes}({})", n.output.join(", "), n.op_type(), n.input.join(", "))
}

fn ports(what: &str, ports: &[Port]) -> String {
    let lines = ports.iter().map(|port| {
        let dims: Vec<String> = port.dims.iter().map(ToString::to_string).collect();
        format!("  {what} {}: {}[{}]\n", port.name, port.dtype, dims.join(", "))
    });
    lines.collect()
}

fn interface(spec: &GraphSpec, model: &ModelProto) -> String {
    let mut text = format!("{}\n", spec.name);
    for opset in &model.opset_import {
        let domain = if opset.domain().is_empty() { "ai.onnx" } else { opset.domain() };
        writeln!(text, "  opset {domain} {}", opset.version()).unwrap();
    }
    for fact in &model.metadata_props {
        writeln!(text, "  {} = {}", fact.key(), fact.value()).unwrap();
    }
    text += &ports("in ", &spec.inputs);
    text += &ports("out", &spec.outputs);
    for axis in &spec.axes {
        writeln!(text, "  axis {}: {} to {}, {} to tune for", axis.name, axis.min, axis.max, axis.opt)
            .unwrap();
    }
    let mut operators: BTreeMap<&str, usize> = BTreeMap::new();
    model.graph.iter().flat_map(|g| &g.node).for_each(|n| *operators.entry(n.op_type()).or_default() += 1);
    let operators: Vec<String> = operators.iter().map(|(op, n)| format!("{op} {n}")).collect();
    writeln!(text, "  operators: {}", operators.join(", ")).unwrap();
    text
}

/// Compares a snapshot, and remembers its name.
fn compare(names: &mut BTreeSet<String>, name: &str, text: &str) {
    let name = name.replace([' ', '/'], "-");
    insta::assert_snapshot!(name.as_str(), text);
    names.insert(format!("{name}.snap"));
}

#[test]
fn every_graph_is_as_reviewed() {
    let folder = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path(&folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    let mut names = BTreeSet::new();
    // Lists of nodes, by their text, with the name of the graph that has it first.
    let mut lists: BTreeMap<String, String> = BTreeMap::new();
    every_export(|export, folder, manifest| {
        let mut text = String::new();
        for entry in &manifest.graphs {
            // A network of others is copied as it is.
            if entry.spec.name == "features" {
                text += &interface(&entry.spec, &ModelProto::default());
                continue;
            }
            for (dialect, file) in entry.files() {
                let model = read_model(&fs_err::read(folder.join(file)).unwrap()).unwrap();
                text += &interface(&entry.spec, &model);
                // The forms of a quantized graph, one of each.
                let shown = export.contains("int") && entry.spec.name == "patch_embed";
                if has_nodes(export) || shown {
                    let nodes: Vec<String> = model.graph.unwrap_or_default().node.iter().map(node).collect();
                    let nodes = nodes.join("\n");
                    let form = if dialect == Dialect::Portable { "" } else { dialect.name() };
                    let name = format!("nodes {export} {} {form}", entry.spec.name).trim_end().to_owned();
                    let first = lists.entry(nodes.clone()).or_insert_with(|| name.clone()).clone();
                    if first == name {
                        compare(&mut names, &name, &nodes);
                    }
                    writeln!(text, "  {first}").unwrap();
                }
            }
        }
        compare(&mut names, export, &text);
    });
    let there = fs_err::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let stale: Vec<String> = there.filter(|n| !names.contains(n)).collect();
    assert!(stale.is_empty(), "snapshots of nothing: {stale:?}");
}
