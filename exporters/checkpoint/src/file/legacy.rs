//! PyTorch's format before 1.6: five parts one after the other, without an archive around them.
//!
//! Four pickles (a magic number, the protocol version, facts about the machine that wrote it, the saved object), then a
//! pickle with the list of storage keys, then the storages in that order, each an i64 count of elements and the elements.
//! The FID-Inception and EfficientNet-Lite weights that people pass around are such files.

use std::collections::HashMap;
use std::ops::Range;

use super::pickle::PickleValue;
use super::state::malformed;
use super::torch::{parse_prefix, place_all};
use super::{Contents, WeightFormat, state};
use crate::{CheckpointError, ErrorKind};

/// The first pickle, whole: PROTO 2, LONG1 of ten bytes, STOP. The number is 0x1950a86a20f9469cfc6c.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// The one protocol version that was ever written.
const VERSION: i64 = 1001;

/// Whether a file starts like one of this format.
pub(super) fn is_legacy(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// Reads the table of contents; the state dict is the one under `wanted`, if that is given.
pub(super) fn contents(file: &[u8], wanted: Option<&str>) -> Result<Contents, CheckpointError> {
    let fail = CheckpointError::new;
    let mut at = MAGIC.len();
    let mut next = || {
        let (heap, length) = parse_prefix(file.get(at..).unwrap_or_default())?;
        at += length;
        Ok::<_, ErrorKind>(heap)
    };
    let (version, machine, object, keys) =
        (next().map_err(fail)?, next().map_err(fail)?, next().map_err(fail)?, next().map_err(fail)?);
    if !matches!(version.get(version.root), PickleValue::Int(VERSION)) {
        return Err(fail(malformed("its protocol version is not 1001")));
    }
    let little = machine.dict(machine.root).and_then(|facts| {
        let named = facts.iter().find(|(k, _)| machine.str(*k) == Some("little_endian"))?;
        Some(machine.get(named.1))
    });
    if !matches!(little, Some(PickleValue::Int(1))) {
        let problem = "its byte order is not little endian, or not given".to_owned();
        return Err(fail(ErrorKind::UnsupportedFile(problem)));
    }
    let PickleValue::List(keys_in_order) = keys.get(keys.root) else {
        return Err(fail(malformed("its list of storages is not a list")));
    };
    // What the object's storages declare; only those can be placed, because the file has element counts only.
    let declared: HashMap<&str, usize> = object
        .values
        .iter()
        .filter_map(|v| match v {
            PickleValue::Storage(s) => Some((s.key.as_str(), s.class.size()?)),
            _ => None,
        })
        .collect();
    let mut places: HashMap<&str, Range<usize>> = HashMap::new();
    for id in keys_in_order {
        let key = keys.str(*id).ok_or_else(|| fail(malformed("a storage key is not a string")))?;
        let item = *declared.get(key).ok_or_else(|| {
            fail(malformed(format!("storage `{}` belongs to no tensor", key.escape_debug())))
        })?;
        let place = place(file, at, item).ok_or_else(|| {
            let problem = format!("storage `{}` lies beyond its end", key.escape_debug());
            fail(ErrorKind::Truncated { format: WeightFormat::Torch, problem })
        })?;
        at = place.end;
        places.insert(key, place);
    }
    let state = state::find(&object, wanted)?;
    let contents = place_all(&object, state, file.len(), |key| {
        places.get(key).cloned().ok_or_else(|| format!("its storage `{key}` is not in the file"))
    })?;
    if at != file.len() {
        return Err(fail(malformed(format!("{} bytes follow its last storage", file.len() - at))));
    }
    Ok(contents)
}

/// The elements of a storage whose count stands at `at`, `item` bytes each.
fn place(file: &[u8], at: usize, item: usize) -> Option<Range<usize>> {
    let count = file.get(at..)?.first_chunk::<8>()?;
    let elements = usize::try_from(i64::from_le_bytes(*count)).ok()?;
    let start = at.checked_add(8)?;
    let end = start.checked_add(elements.checked_mul(item)?)?;
    (end <= file.len()).then_some(start..end)
}
