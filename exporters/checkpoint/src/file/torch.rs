//! PyTorch's zip container: finds the state dict and places every tensor in the file.

use std::collections::BTreeMap;
use std::ops::Range;

use camino::Utf8Path;

use super::pickle::{self, Heap, Id, PickleError, TensorDesc, Value};
use super::zip::{self, ZipError};
use super::{Entry, WeightFormat};
use crate::{CheckpointError, ErrorKind};

/// Keys under which a state dict may lie, in the order they are tried; after them the root itself.
const WRAPPERS: [&str; 3] = ["model", "module", "state_dict"];

/// Reads the table of contents of a `.pt` file.
pub(super) fn entries(file: &[u8], path: &Utf8Path) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let fail = |kind: ErrorKind| CheckpointError::in_file(kind, path);
    if !file.starts_with(b"PK\x03\x04") {
        // Before 2017 a tar archive; a bare pickle is what `pickle.dump` writes.
        let old = matches!(file, [0x80, 2..=5, ..]) || file.get(257..262) == Some(b"ustar");
        return Err(fail(if old {
            ErrorKind::LegacyTorch
        } else {
            malformed("it does not start with a ZIP header")
        }));
    }
    let records = zip::records(file).map_err(|e| {
        fail(match e {
            ZipError::Truncated(problem) => ErrorKind::Truncated { format: WeightFormat::Torch, problem },
            ZipError::Malformed(problem) => malformed(problem),
            ZipError::Unsupported(problem) => ErrorKind::UnsupportedFile(problem),
        })
    })?;
    let mut pickles = records
        .iter()
        .filter(|(n, _)| n.strip_suffix("data.pkl").is_some_and(|p| p.is_empty() || p.ends_with('/')));
    let (Some((name, range)), None) = (pickles.next(), pickles.next()) else {
        return Err(fail(malformed("there is not exactly one record `data.pkl`")));
    };
    let prefix = name.strip_suffix("data.pkl").unwrap_or_default();
    let record = |n: &str| records.get(format!("{prefix}{n}").as_str());
    if record("constants.pkl").is_some() {
        return Err(fail(ErrorKind::UnsupportedFile(
            "a TorchScript archive; save the state dict instead: torch.save({'model': m.state_dict()}, FILE)"
                .to_owned(),
        )));
    }
    if let Some(r) = record("byteorder") {
        let order = file.get(r.clone()).unwrap_or_default();
        if order != b"little" {
            return Err(fail(ErrorKind::UnsupportedFile(format!(
                "byte order `{}`; only little endian is read",
                String::from_utf8_lossy(order.get(..16.min(order.len())).unwrap_or_default()).escape_debug()
            ))));
        }
    }
    let program = file.get(range.clone()).unwrap_or_default();
    let heap = parse(program).map_err(&fail)?;
    let mut found = BTreeMap::new();
    for (name, desc) in tensors(&heap).map_err(&fail)? {
        let Value::Storage(storage) = heap.get(desc.storage) else { continue };
        let place = record(&format!("data/{}", storage.key)).cloned();
        let entry = place
            .ok_or_else(|| format!("its storage `data/{}` is not in the archive", storage.key))
            .and_then(|place| view(desc, storage, place, file.len()))
            .map_err(|problem| fail(ErrorKind::MalformedTensor(problem)).tensor_named(name))?;
        if found.insert(name.to_owned(), entry).is_some() {
            return Err(fail(malformed(format!("tensor `{name}` is there twice"))));
        }
    }
    Ok(found)
}

/// Names of the tensors that a checkpoint's pickle declares, sorted.
///
/// This is the pickle part of [`crate::TensorFile::open`] alone: nothing is executed, no storage is looked up.
///
/// # Errors
/// [`ErrorKind::HostilePickle`], [`ErrorKind::Truncated`] or [`ErrorKind::Malformed`].
pub fn pickle_tensor_names(bytes: &[u8]) -> Result<Vec<String>, CheckpointError> {
    let heap = parse(bytes)?;
    let mut names: Vec<String> = tensors(&heap)?.into_iter().map(|(n, _)| n.to_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

pub(super) fn malformed(problem: impl Into<String>) -> ErrorKind {
    ErrorKind::Malformed { format: WeightFormat::Torch, problem: problem.into() }
}

fn parse(program: &[u8]) -> Result<Heap<'_>, ErrorKind> {
    if program.len() > pickle::MAX_LEN {
        return Err(malformed(format!(
            "its pickle has {} bytes; a checkpoint's holds names only",
            program.len()
        )));
    }
    parse_prefix(program).map(|(heap, _)| heap)
}

/// The pickle that `bytes` start with, and its length in bytes; what follows it is not looked at.
pub(super) fn parse_prefix(bytes: &[u8]) -> Result<(Heap<'_>, usize), ErrorKind> {
    let program = bytes.get(..pickle::MAX_LEN).unwrap_or(bytes);
    pickle::run(program).map_err(|e| match e {
        PickleError::Truncated => {
            ErrorKind::Truncated { format: WeightFormat::Torch, problem: "its pickle has no end".to_owned() }
        }
        PickleError::Malformed(at, why) => malformed(format!("pickle byte {at}: {why}")),
        PickleError::Hostile(global) => ErrorKind::HostilePickle { global },
    })
}

/// The tensors of the state dict, under its wrapper or bare.
pub(super) fn tensors<'h>(heap: &'h Heap<'_>) -> Result<Vec<(&'h str, &'h TensorDesc)>, ErrorKind> {
    let Some(root) = heap.dict(heap.root) else {
        return Err(malformed("the saved object is not a dictionary"));
    };
    for wrapper in WRAPPERS {
        let inner = root.iter().rev().find(|(k, _)| heap.str(*k) == Some(wrapper));
        let found =
            inner.and_then(|(_, v)| heap.dict(*v)).map(|pairs| direct(heap, pairs)).unwrap_or_default();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let found = direct(heap, root);
    if found.is_empty() {
        return Err(malformed("no state dict under `model`, `module` or `state_dict`, nor at the top"));
    }
    Ok(found)
}

fn direct<'h>(heap: &'h Heap<'_>, pairs: &'h [(Id, Id)]) -> Vec<(&'h str, &'h TensorDesc)> {
    pairs
        .iter()
        .filter_map(|(k, v)| match heap.get(*v) {
            Value::Tensor(desc) => Some((heap.str(*k)?, &**desc)),
            _ => None,
        })
        .collect()
}

/// Checks a view against its storage and places it in the file.
pub(super) fn view(
    desc: &TensorDesc,
    storage: &pickle::Storage,
    place: Range<usize>,
    file_len: usize,
) -> Result<Entry, String> {
    let item = storage.dtype.size().ok_or("its element type has no size")?;
    let elements = usize::try_from(storage.elements).map_err(|_| "its storage has a negative size")?;
    let bytes = elements.checked_mul(item).ok_or("its storage does not fit an address")?;
    if bytes != place.len() {
        return Err(format!(
            "its storage `data/{}` has {} bytes, {bytes} are declared",
            storage.key,
            place.len()
        ));
    }
    let offset = usize::try_from(desc.offset).map_err(|_| "its storage offset is negative")?;
    if desc.size.len() != desc.stride.len() {
        return Err(format!("it has {} sizes and {} strides", desc.size.len(), desc.stride.len()));
    }
    let unsigned = |v: &[i64], what: &str| {
        v.iter()
            .map(|x| usize::try_from(*x).map_err(|_| format!("it has a negative {what}: {v:?}")))
            .collect::<Result<Vec<usize>, String>>()
    };
    let (shape, strides) = (unsigned(&desc.size, "size")?, unsigned(&desc.stride, "stride")?);
    let too_big = || format!("its shape {shape:?} does not fit an address");
    // Zeros last, so that an empty tensor with absurd other sizes is still caught.
    let largest =
        shape.iter().filter(|n| **n > 0).try_fold(item, |a, n| a.checked_mul(*n)).ok_or_else(too_big)?;
    if shape.contains(&0) {
        return Ok(Entry { dtype: storage.dtype, shape, range: place.start..place.start, strides: None });
    }
    let last = shape
        .iter()
        .zip(&strides)
        .try_fold(offset, |at, (n, s)| at.checked_add((n - 1).checked_mul(*s)?))
        .ok_or_else(too_big)?;
    if last >= elements {
        return Err(format!(
            "offset {offset}, shape {shape:?} and strides {strides:?} reach element {last} of a storage of {elements}"
        ));
    }
    let start = place.start + offset * item;
    if contiguous(&shape, &strides) {
        return Ok(Entry { dtype: storage.dtype, shape, range: start..start + largest, strides: None });
    }
    // A gathered copy is made in memory: an expanded view must not make it larger than the file itself.
    if largest > file_len {
        return Err(format!("its shape {shape:?} repeats elements beyond the size of the file"));
    }
    let end = place.start + (last + 1) * item;
    Ok(Entry { dtype: storage.dtype, shape, range: start..end, strides: Some(strides) })
}

/// Row-major without gaps; the stride of a dimension of size 1 does not matter.
fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(n, s)| {
        let fits = *n == 1 || *s == expected;
        expected *= n;
        fits
    })
}
