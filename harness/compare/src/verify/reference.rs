//! The files of a golden folder: arrays in one of two formats, and `golden.json` beside them.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_bundle::digest;
use dpar_export_decode::runtime::RunError;
use dpar_export_files::arrays::ArrayFile;
use dpar_export_spec::Precision;
use serde::{Deserialize, Serialize};

/// The arrays, in the order of preference: a folder holds one of the two.
pub const ARRAYS: [&str; 2] = ["golden.safetensors", "golden.npz"];
/// The settings beside the arrays.
pub const GOLDEN_JSON: &str = "golden.json";
/// Larger settings are refused unread.
const MOST_SETTINGS: u64 = 16 << 20;

/// A file that `golden.json` vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// File name in the folder.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// What `verify` reads of `golden.json`; all of it may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// Guidance of the greedy images.
    pub(super) cfg_scale: Option<f32>,
    /// Steps of each teacher-forced and greedy image, where the reference counted them itself.
    pub(super) steps_teacher: Option<Vec<usize>>,
    pub(super) steps_greedy: Option<Vec<usize>>,
    /// Sizes and digests, where the reference was recorded with them.
    files: Vec<RecordedFile>,
    /// What it was computed with, where it says so.
    provenance: Option<Source>,
}

/// The part of a provenance that a comparison depends on.
#[derive(Debug, Deserialize)]
struct Source {
    precision: Option<Precision>,
}

impl Settings {
    /// Arithmetic of the reference: fp32 unless it says otherwise.
    pub(crate) fn precision(&self) -> Precision {
        self.said_precision().unwrap_or_default()
    }

    /// Arithmetic of the reference, where it says one.
    pub(super) fn said_precision(&self) -> Option<Precision> {
        self.provenance.as_ref().and_then(|s| s.precision)
    }
}

/// The array file of a golden folder.
///
/// # Errors
/// When the folder has none of the two, or both.
pub fn array_file(folder: &Utf8Path) -> Result<Utf8PathBuf, RunError> {
    let found: Vec<Utf8PathBuf> = ARRAYS.iter().map(|n| folder.join(n)).filter(|p| p.is_file()).collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(RunError::Input(format!("{folder} has no {} and no {}", ARRAYS[0], ARRAYS[1]))),
        _ => Err(RunError::Input(format!(
            "{folder} has both {} and {}: which one is meant? remove the other",
            ARRAYS[0], ARRAYS[1]
        ))),
    }
}

/// Opens a golden folder and checks what its `golden.json` says about the arrays.
///
/// # Errors
/// When a file cannot be read, or does not have its recorded size and SHA-256.
pub(crate) fn open(folder: &Utf8Path) -> Result<(ArrayFile, Settings), RunError> {
    let arrays = array_file(folder)?;
    let settings = settings(folder)?;
    for file in &settings.files {
        let path = folder.join(&file.name);
        let wrong = |message: String| RunError::Integrity {
            path: path.clone(),
            record: GOLDEN_JSON.to_owned(),
            message,
        };
        if !ARRAYS.contains(&file.name.as_str()) {
            return Err(wrong("it is no file of a golden folder".to_owned()));
        }
        if path != arrays {
            return Err(wrong("it is missing".to_owned()));
        }
        let (size, sha256) = digest(&path)?;
        if (size, &sha256) != (file.size, &file.sha256) {
            let message = format!(
                "it has {size} bytes and SHA-256 {sha256}, recorded are {} and {}",
                file.size, file.sha256
            );
            return Err(wrong(message));
        }
    }
    Ok((ArrayFile::open(&arrays)?, settings))
}

/// Guidance of a golden folder's greedy images, where its settings say it.
///
/// # Errors
/// When `golden.json` is there and cannot be read.
pub fn guidance_of(folder: &Utf8Path) -> Result<Option<f32>, RunError> {
    Ok(settings(folder)?.cfg_scale)
}

fn settings(folder: &Utf8Path) -> Result<Settings, RunError> {
    let path = folder.join(GOLDEN_JSON);
    if !path.is_file() {
        return Ok(Settings::default());
    }
    let bad = |e: &dyn std::fmt::Display| RunError::Input(format!("{path}: {e}"));
    let text = dpar_export_inputs::read_to_string(&path, MOST_SETTINGS).map_err(|e| bad(&e))?;
    serde_json::from_str(&text).map_err(|e| bad(&e))
}
