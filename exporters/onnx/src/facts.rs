//! What a graph says about itself in its file, for who has the file alone: `metadata_props`, which Netron, Polygraphy and ONNX
//! Runtime show. Engines ignore them. Numbers that the decoding loop alone reads, such as the threshold, are not the graph's.

use dpar_export_spec::{Blocks, Dialect, GraphSpec, Precision, SystemSpec};

use crate::proto::StringStringEntryProto;

/// What all keys begin with.
const PREFIX: &str = "dpar_export.";

/// How a graph was written.
pub(crate) struct GraphForm {
    pub(crate) precision: Precision,
    pub(crate) blocks: Option<Blocks>,
    pub(crate) dialect: Dialect,
}

/// The facts of a graph, as the manifest has them; a feature network has no system.
pub(crate) fn facts(
    spec: &GraphSpec,
    system: Option<&SystemSpec>,
    form: &GraphForm,
) -> Vec<StringStringEntryProto> {
    let mut facts = Vec::new();
    let mut add = |key: &str, value: String| {
        facts.push(StringStringEntryProto { key: Some(format!("{PREFIX}{key}")), value: Some(value) });
    };
    add("graph", spec.name.clone());
    add("component", spec.component.clone());
    if let Some(system) = system {
        add("system", system.kind.to_string());
        add("patch_mode", system.patch_rule.mode.word().to_owned());
        add("grid", system.grid().to_string());
        add("image_size", system.image_size.to_string());
        add("vocab", system.vocab.to_string());
        add("num_classes", system.num_classes.to_string());
    }
    add("precision", form.precision.to_string());
    if let Some(blocks) = form.blocks {
        add("quantize", blocks.to_string());
    }
    add("dialect", form.dialect.to_string());
    for axis in &spec.axes {
        add(&format!("axis.{}", axis.name), format!("min={} opt={} max={}", axis.min, axis.opt, axis.max));
    }
    facts
}
