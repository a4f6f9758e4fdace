//! Files that are something else than their name says, recognised by how they begin.

use super::WeightFormat;
use crate::{CheckpointError, ErrorKind};

/// What a file is instead, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForeignFormat {
    pub(super) what: &'static str,
    hint: &'static str,
}

const UNPACK: &str = "unpack it and give the weight file in it";
const DOWNLOAD: &str =
    "download the file again, as it is and not as a page about it; what came may say why it failed";
const STATE_DICT: &str =
    "save the weights as a state dict: torch.save({'model': m.state_dict()}, FILE), or as safetensors";

/// Bytes at the start of a file: its format.
const MAGIC: &[(&[u8], &str, &str)] = &[
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file it points to",
        "fetch the file itself: git lfs pull",
    ),
    (b"PK\x03\x04", "a ZIP archive, as PyTorch writes it", "rename it to .pt"),
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "a PyTorch file of the format before 1.6",
        "rename it to .pt",
    ),
    (b"\x1f\x8b\x08", "packed with gzip", UNPACK),
    (b"BZh", "packed with bzip2", UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"GGUF", "a GGUF file", STATE_DICT),
    (b"\x89HDF", "an HDF5 file", STATE_DICT),
    (b"\x93NUMPY", "a NumPy array (.npy)", STATE_DICT),
    (b"\x89PNG", "a PNG image", "give the weight file"),
    (b"%PDF", "a PDF document", "give the weight file"),
];

/// What a file is that its own format's reader does not know.
pub(super) fn recognise(file: &[u8]) -> Option<ForeignFormat> {
    let head = file.get(..16)?;
    if let Some((_, what, hint)) = MAGIC.iter().find(|(magic, ..)| file.starts_with(magic)) {
        return Some(ForeignFormat { what, hint });
    }
    let tensors = file.get(8) == Some(&b'{')
        && head.first_chunk::<8>().is_some_and(|n| u64::from_le_bytes(*n) < file.len() as u64);
    if tensors {
        return Some(ForeignFormat { what: "a safetensors file", hint: "rename it to .safetensors" });
    }
    if file.get(257..262) == Some(b"ustar") {
        return Some(ForeignFormat { what: "a tar archive", hint: UNPACK });
    }
    if file.iter().take(4096).all(|b| *b == 0) {
        let hint = "the download was interrupted: copy or download the file again";
        return Some(ForeignFormat {
            what: "zeros at its start, where its table of contents should be",
            hint,
        });
    }
    let text =
        std::str::from_utf8(head).ok()?.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if text.contains('\0') {
        return None;
    }
    let starts = |words: &[&str]| words.iter().any(|w| text.starts_with(w));
    if starts(&["<!doctype", "<html", "<head", "<body"]) {
        Some(ForeignFormat { what: "an HTML page", hint: DOWNLOAD })
    } else if starts(&["<?xml", "<error"]) {
        Some(ForeignFormat { what: "an XML document", hint: DOWNLOAD })
    } else if starts(&["{", "[{"]) {
        Some(ForeignFormat { what: "JSON text", hint: DOWNLOAD })
    } else {
        None
    }
}

/// What a ZIP archive is that holds no pickle of PyTorch's.
pub(super) fn archive<'n>(mut names: impl Iterator<Item = &'n str> + Clone) -> Option<ForeignFormat> {
    let any = |end: &str| names.clone().any(|n| n.ends_with(end));
    if any("models/model.json") || any("serialized_exported_program.json") {
        return Some(ForeignFormat { what: "a program of torch.export (.pt2)", hint: STATE_DICT });
    }
    if any("model.weights.h5") {
        return Some(ForeignFormat { what: "a Keras archive", hint: STATE_DICT });
    }
    if any("") && names.all(|n| n.ends_with(".npy")) {
        return Some(ForeignFormat { what: "a NumPy archive (.npz)", hint: STATE_DICT });
    }
    None
}

/// The error that calls a file by its name.
pub(super) fn error(expected: WeightFormat, found: ForeignFormat) -> CheckpointError {
    let kind = ErrorKind::OtherFormat { expected, found: found.what };
    CheckpointError::new(kind).with_hint(found.hint)
}
