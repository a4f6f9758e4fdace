//! The tables that a graph looks indices up in, against the sizes of its component.

use dpar_export_spec::ComponentSpec;
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
        ComponentSpec::Inception(_) | ComponentSpec::EfficientnetLite0(_) | ComponentSpec::Features(_) => {
            Vec::new()
        }
    }
}

/// Checks that the tables of tokens, classes and codes among the initializers of a graph of the component
/// ([`Own::tables`](crate::Own::tables)) have the rows that the component promises: then no index within its ranges is beyond
/// a table.
///
/// # Errors
/// The table, its rows and the rows promised.
pub fn check_tables(tables: &[(String, Option<i64>)], component: &ComponentSpec) -> Result<(), String> {
    let wanted = rows(component);
    for (name, found) in tables {
        let Some((_, rows)) = wanted.iter().find(|(table, _)| table == name) else { continue };
        if *found != i64::try_from(*rows).ok() {
            let found = found.map_or_else(|| "no".to_owned(), |n| n.to_string());
            return Err(format!("table `{name}` has {found} rows, the configuration needs {rows}"));
        }
    }
    Ok(())
}
