//! Weights in several files, which an index lists: `model.safetensors.index.json`, `pytorch_model.bin.index.json`.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use crate::config::read_text;
use crate::{CheckpointError, ErrorKind};

/// Most files of one checkpoint.
const MOST: usize = 1 << 12;

/// Whether a file is such an index by its name.
pub(crate) fn is_index(path: &Utf8Path) -> bool {
    path.file_name().is_some_and(|n| n.ends_with(".safetensors.index.json") || n.ends_with(".bin.index.json"))
}

/// The files of an index in order, and which of them holds each tensor.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) files: Vec<Utf8PathBuf>,
    pub(super) place: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: Option<BTreeMap<String, String>>,
}

/// Reads an index.
pub(super) fn read(path: &Utf8Path) -> Result<Index, CheckpointError> {
    let fail = |problem: String| CheckpointError::in_file(ErrorKind::UnsupportedFile(problem), path);
    let text = read_text(path, "the index of a sharded checkpoint")?;
    let raw: IndexFile = serde_json::from_str(&text)
        .map_err(|e| fail(format!("the index of a sharded checkpoint is not what it should be: {e}")))?;
    let map = raw.weight_map.filter(|m| !m.is_empty());
    let map = map.ok_or_else(|| {
        fail("the index of a sharded checkpoint names no tensors (`weight_map`)".to_owned())
    })?;
    let names: BTreeSet<&String> = map.values().collect();
    if names.len() > MOST {
        return Err(fail(format!("the index of a sharded checkpoint names {} files", names.len())));
    }
    let folder = path.parent().unwrap_or(Utf8Path::new(""));
    let mut files = Vec::with_capacity(names.len());
    for name in &names {
        let mut parts = Utf8Path::new(name.as_str()).components();
        if !matches!((parts.next(), parts.next()), (Some(Utf8Component::Normal(_)), None)) {
            let problem = format!("the index of a sharded checkpoint names `{}`", name.escape_debug());
            return Err(fail(problem).with_hint("shards lie in the folder of their index"));
        }
        files.push(folder.join(name.as_str()));
    }
    let number: BTreeMap<&String, usize> = names.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let place = map.iter().map(|(tensor, file)| (tensor.clone(), number[file])).collect();
    Ok(Index { files, place })
}
