//! The tables that a graph looks indices up in, against the sizes of its component.

use dpar_export_spec::ComponentSpec;
use prost::Message;

use crate::proto::ModelProto;

/// Names of the tables that a component's graphs share, with their rows: one for every index that the loop can ask for.
fn rows(spec: &ComponentSpec) -> Vec<(&'static str, usize)> {
    match spec {
        ComponentSpec::Dpar(s) => vec![
            ("tok_embeddings.weight", s.token_rows),
            ("cls_embedding.embedding_table.weight", s.class_rows()),
        ],
        ComponentSpec::Entropy(s) => vec![("tok_embeddings.weight", s.token_rows)],
        ComponentSpec::Llamagen(s) => {
            let classes = s.class_rows();
            vec![("slot_embeddings", s.token_rows.saturating_add(classes))]
        }
        ComponentSpec::Vq(s) => vec![("codebook", s.codebook)],
        // Feature networks look nothing up.
        _ => Vec::new(),
    }
}

/// Checks that the tables of tokens, classes and codes in `model`, the bytes of a graph of the component, have the rows that
/// the component promises: then no index within its ranges is beyond a table.
///
/// # Errors
/// When the bytes are no ONNX model; the table, its rows and the rows promised.
pub fn check_tables(model: &[u8], component: &ComponentSpec) -> Result<(), String> {
    let parsed = ModelProto::decode(model).map_err(|e| format!("it is no ONNX model: {e}"))?;
    let wanted = rows(component);
    for tensor in parsed.graph.iter().flat_map(|g| &g.initializer) {
        let name = tensor.name.as_deref().unwrap_or_default();
        let Some((_, rows)) = wanted.iter().find(|(table, _)| *table == name) else { continue };
        let found = tensor.dims.first().copied();
        if found != i64::try_from(*rows).ok() {
            let found = found.map_or_else(|| "no".to_owned(), |n| n.to_string());
            return Err(format!("table `{name}` has {found} rows, the configuration needs {rows}"));
        }
    }
    Ok(())
}
