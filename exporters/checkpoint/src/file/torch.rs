//! PyTorch's zip container: finds the state dict and places every tensor in the file.

use std::ops::Range;

use super::pickle::{self, Heap, PickleError, PickleValue, TensorDesc};
use super::state::{self, StateDict, malformed};
use super::zip::{self, ZipError};
use super::{Contents, TensorEntry, Unread, WeightFormat, foreign};
use crate::{CheckpointError, ErrorKind};

/// Reads the table of contents of a `.pt` file; the state dict is the one under `wanted`, if that is given.
pub(super) fn contents(file: &[u8], wanted: Option<&str>) -> Result<Contents, CheckpointError> {
    if !file.starts_with(b"PK\x03\x04") {
        // Before 2017 a tar archive; a bare pickle is what `pickle.dump` writes.
        let old = matches!(file, [0x80, 2..=5, ..]) || file.get(257..262) == Some(b"ustar");
        return Err(match foreign::recognise(file) {
            _ if old => ErrorKind::LegacyTorch.into(),
            Some(found) => foreign::error(WeightFormat::Torch, found),
            None => malformed("it does not start with a ZIP header").into(),
        });
    }
    let records = zip::records(file).map_err(|e| match e {
        ZipError::Truncated(problem) => ErrorKind::Truncated { format: WeightFormat::Torch, problem },
        ZipError::Malformed(problem) => malformed(problem),
        ZipError::Unsupported(problem) => ErrorKind::UnsupportedFile(problem),
    })?;
    let mut pickles = records
        .iter()
        .filter(|(n, _)| n.strip_suffix("data.pkl").is_some_and(|p| p.is_empty() || p.ends_with('/')));
    let (Some((name, range)), None) = (pickles.next(), pickles.next()) else {
        return Err(match foreign::archive(records.keys().copied()) {
            Some(found) => foreign::error(WeightFormat::Torch, found),
            None => malformed("there is not exactly one record `data.pkl`").into(),
        });
    };
    let prefix = name.strip_suffix("data.pkl").unwrap_or_default();
    let record = |n: &str| records.get(format!("{prefix}{n}").as_str());
    if record("constants.pkl").is_some() {
        return Err(ErrorKind::UnsupportedFile(
            "a TorchScript archive; save the state dict instead: torch.save({'model': m.state_dict()}, FILE)"
                .to_owned(),
        )
        .into());
    }
    if let Some(r) = record("byteorder") {
        let order = file.get(r.clone()).unwrap_or_default();
        if order != b"little" {
            return Err(ErrorKind::UnsupportedFile(format!(
                "byte order `{}`; only little endian is read",
                String::from_utf8_lossy(order.get(..16.min(order.len())).unwrap_or_default()).escape_debug()
            ))
            .into());
        }
    }
    let program = file.get(range.clone()).unwrap_or_default();
    let heap = parse(program)?;
    let state = state::find(&heap, wanted)?;
    place_all(&heap, state, file.len(), |key| {
        let place = record(&format!("data/{key}")).cloned();
        place.ok_or_else(|| format!("its storage `data/{key}` is not in the archive"))
    })
}

/// Names of the tensors that a checkpoint's pickle declares, sorted.
///
/// This is the pickle part of [`crate::TensorFile::open`] alone: nothing is executed, no storage is looked up.
///
/// # Errors
/// [`ErrorKind::HostilePickle`], [`ErrorKind::Truncated`] or [`ErrorKind::Malformed`].
pub fn pickle_tensor_names(bytes: &[u8]) -> Result<Vec<String>, CheckpointError> {
    let heap = parse(bytes)?;
    let state = state::find(&heap, None)?;
    let mut names: Vec<String> = state.tensors.into_iter().map(|(n, _)| n.to_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

fn parse(program: &[u8]) -> Result<Heap<'_>, ErrorKind> {
    parse_prefix(program).map(|(heap, _)| heap)
}

/// The pickle that `bytes` start with, and its length in bytes; what follows it is not looked at.
pub(super) fn parse_prefix(bytes: &[u8]) -> Result<(Heap<'_>, usize), ErrorKind> {
    pickle::run(bytes).map_err(|e| match e {
        PickleError::Truncated => {
            ErrorKind::Truncated { format: WeightFormat::Torch, problem: "its pickle has no end".to_owned() }
        }
        PickleError::Malformed(at, why) => malformed(format!("pickle byte {at}: {why}")),
        PickleError::Hostile(global) => ErrorKind::HostilePickle { global },
    })
}

/// Places the tensors of a state dict; `place` gives a storage's bytes in the file.
pub(super) fn place_all(
    heap: &Heap<'_>,
    state: StateDict<'_>,
    file_len: usize,
    place: impl Fn(&str) -> Result<Range<usize>, String>,
) -> Result<Contents, CheckpointError> {
    let mut contents = Contents { key: state.key, others: state.others, ..Contents::default() };
    for (name, desc) in state.tensors {
        let PickleValue::Storage(storage) = heap.get(desc.storage) else { continue };
        let entry = place(&storage.key).and_then(|place| view(desc, storage, place, file_len)).map_err(
            |problem| CheckpointError::new(ErrorKind::MalformedTensor(problem)).tensor_named(name),
        )?;
        if contents.entries.insert(name.to_owned(), entry).is_some() {
            return Err(malformed(format!("tensor `{}` is there twice", name.escape_debug())).into());
        }
    }
    for (name, what, tensor) in state.unread {
        if !contents.entries.contains_key(name) {
            contents.unread.insert(name.to_owned(), Unread { what, tensor });
        }
    }
    Ok(contents)
}

/// Checks a view against its storage and places it in the file.
fn view(
    desc: &TensorDesc,
    storage: &pickle::Storage,
    place: Range<usize>,
    file_len: usize,
) -> Result<TensorEntry, String> {
    let item = desc.dtype.size().ok_or("its element type has no size")?;
    let unit = storage.class.size().ok_or("its storage's element type has no size")?;
    let units = usize::try_from(storage.elements).map_err(|_| "its storage has a negative size")?;
    let bytes = units.checked_mul(unit).ok_or("its storage does not fit an address")?;
    let elements = bytes / item;
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
    let entry = |shape, range, strides| TensorEntry {
        dtype: desc.dtype,
        shape,
        range,
        strides,
        negated: desc.negated,
    };
    let too_big = || format!("its shape {shape:?} does not fit an address");
    // Zeros last, so that an empty tensor with absurd other sizes is still caught.
    let largest =
        shape.iter().filter(|n| **n > 0).try_fold(item, |a, n| a.checked_mul(*n)).ok_or_else(too_big)?;
    if shape.contains(&0) {
        return Ok(entry(shape, place.start..place.start, None));
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
        return Ok(entry(shape, start..start + largest, None));
    }
    // A gathered copy is made in memory: an expanded view must not make it larger than the file itself.
    if largest > file_len {
        return Err(format!("its shape {shape:?} repeats elements beyond the size of the file"));
    }
    let end = place.start + (last + 1) * item;
    Ok(entry(shape, start..end, Some(strides)))
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
