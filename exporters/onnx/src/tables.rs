//! The tables that a graph looks indices up in, against the sizes of its component.

use dpar_export_spec::{ComponentSpec, SystemSpec};

use crate::error::FileFault;
use crate::parts;

/// Checks that the tables of tokens, classes and codes among the initializers of a graph of the component
/// ([`Own::tables`](crate::Own::tables)) have the rows that the component promises: then no index within its ranges is beyond
/// a table.
///
/// # Errors
/// The table, its rows and the rows promised.
pub fn check_tables(
    tables: &[(String, Option<i64>)],
    component: &ComponentSpec,
    system: &SystemSpec,
) -> Result<(), FileFault> {
    let wanted = parts(component, Some(system)).map_err(|e| e.to_string())?.tables;
    for (name, found) in tables {
        let Some((_, rows)) = wanted.iter().find(|(table, _)| table == name) else { continue };
        if *found != i64::try_from(*rows).ok() {
            let found = found.map_or_else(|| "no".to_owned(), |n| n.to_string());
            return Err(format!("table `{name}` has {found} rows, the configuration needs {rows}").into());
        }
    }
    Ok(())
}
