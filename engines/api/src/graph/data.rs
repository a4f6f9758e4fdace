//! External data: the files beside a graph that hold its weights are there, as far as the graph reads them.

use std::collections::BTreeMap;

use camino::{Utf8Component, Utf8Path};

use super::proto::{GraphProto, SparseTensorProto, TensorProto, size_of};
use super::{elements, tensors_of};

/// Why weights cannot be read.
#[derive(Debug)]
pub(super) enum DataFault {
    /// The graph does not say where they are, or not beside it.
    Place(String),
    /// The file is not there, or ends too early.
    Missing(String),
}

/// Holds every tensor that lies in another file against that file. Nothing of it is read.
pub(super) fn check(graph: &GraphProto, folder: &Utf8Path) -> Result<(), DataFault> {
    let mut lengths = BTreeMap::new();
    tensors_of(graph, &mut |tensor| tensor_is_there(tensor, folder, &mut lengths))
}

fn tensor_is_there(
    tensor: &TensorProto,
    folder: &Utf8Path,
    lengths: &mut BTreeMap<String, u64>,
) -> Result<(), DataFault> {
    if !is_external(tensor) {
        return Ok(());
    }
    let name = tensor.name.as_deref().unwrap_or_default();
    let place = |why: String| DataFault::Place(format!("tensor `{name}`: {why}"));
    let field = |key: &str| {
        tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key)).and_then(|e| e.value.as_deref())
    };
    let number = |key: &str| match field(key).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(n)) => Ok(Some(n)),
        Some(Err(_)) => Err(place(format!("the {key} of its external data is no number"))),
    };
    let location = field("location").filter(|l| !l.is_empty());
    let location = location.ok_or_else(|| place("its external data has no location".to_owned()))?;
    let inside = |c: Utf8Component<'_>| matches!(c, Utf8Component::Normal(_) | Utf8Component::CurDir);
    if !Utf8Path::new(location).components().all(inside) {
        return Err(place(format!("`{location}` is not a path inside the graph's folder")));
    }
    let counted = || size_of(tensor.data_type?, elements(&tensor.dims).ok()?);
    let length = number("length")?.or_else(counted).unwrap_or(0);
    let end = number("offset")?.unwrap_or(0).saturating_add(length);
    let missing = |why: String| DataFault::Missing(format!("tensor `{name}`: {why}"));
    let held = match lengths.get(location) {
        Some(held) => *held,
        None => {
            // `fs_err` names the path.
            let file = fs_err::metadata(folder.join(location)).map_err(|e| missing(e.to_string()))?;
            *lengths.entry(location.to_owned()).or_insert(file.len())
        }
    };
    if end > held {
        return Err(missing(format!("it ends at byte {end} of `{location}`, which has {held}")));
    }
    Ok(())
}

/// Whether the elements lie in another file.
pub(super) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(1) || !tensor.external_data.is_empty()
}

/// The tensors of a sparse one.
pub(super) fn parts(sparse: &SparseTensorProto) -> impl Iterator<Item = &TensorProto> {
    sparse.values.iter().chain(&sparse.indices)
}
