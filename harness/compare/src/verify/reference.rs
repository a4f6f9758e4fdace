//! The files of a golden folder: arrays in one of two formats, and `golden.json` beside them.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::Arithmetic;
use dpar_export_bundle::digest;
use dpar_export_decode::generate::sampler::Method;
use dpar_export_decode::loaded::RunError;
use dpar_export_files::arrays::{ArrayError, ArrayFile};
use dpar_export_spec::{Numbers, Precision, RuleChange, SystemSpec, text};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::drawing::{Drawing, SettingKeys};
use crate::names::{ARRAYS, GOLDEN_JSON};
use crate::tolerance::Recorded;
use crate::{CompareError, ReferenceError};

/// The arrays that are read of a golden folder.
const KNOWN: [&str; 12] = [
    "tokens",
    "class_labels",
    "logits",
    "entropy",
    "patch_lengths",
    "greedy_tokens",
    "greedy_class_labels",
    "greedy_patch_lengths",
    "greedy_image",
    "greedy_image_u8",
    "encode_image",
    "encode_codes",
];
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

/// The keys of `golden.json` that are read; all may be missing.
const KEYS: [&str; 16] = [
    "threshold",
    "max_patch_length",
    "patch_size",
    "cfg_scale",
    "cfg_interval",
    "seed",
    "sampler",
    "temperature",
    "top_k",
    "top_p",
    "steps_teacher",
    "steps_greedy",
    "files",
    "arithmetic",
    "device",
    "provenance",
];

/// What is read of `golden.json`.
#[derive(Debug, Default)]
pub(crate) struct GoldenSettings {
    /// Guidance of the greedy images.
    pub(super) cfg_scale: Option<f32>,
    /// Its last decode index.
    pub(super) cfg_interval: Option<usize>,
    /// How `tokens` were drawn, where the file says that this project's sampler did it.
    pub(crate) drawing: Option<Drawing>,
    /// Numbers of its patch rule, where it says them.
    pub(super) rule: RuleChange,
    /// Steps of each teacher-forced and greedy image, where the reference counted them itself.
    pub(super) steps_teacher: Option<Vec<usize>>,
    pub(super) steps_greedy: Option<Vec<usize>>,
    /// Sizes and digests, where the reference was recorded with them.
    files: Vec<RecordedFile>,
    /// What it was computed in, where it says so.
    arithmetic: Option<ArithmeticWord>,
    /// What computed it: `cpu`, or the name of a GPU.
    device: Option<String>,
    /// What it was computed with, where it says so.
    provenance: Option<ProvenancePrecision>,
    /// Arrays that nothing is compared with.
    pub(crate) others: Vec<String>,
}

/// The arithmetic of a reference: what its numbers were rounded to, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArithmeticWord {
    /// Nothing was rounded further.
    Float32,
    /// Everything, to fp16.
    Fp16,
    /// Everything, to bfloat16.
    Bf16,
    /// Products, to fp16: `torch.autocast(float16)`.
    Fp16Autocast,
    /// Products, to bfloat16: `torch.autocast(bfloat16)`.
    Bf16Autocast,
}

impl From<Precision> for ArithmeticWord {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Float32,
            Precision::Fp16 => Self::Fp16,
            Precision::Bf16 => Self::Bf16,
            Precision::Fp16Autocast => Self::Fp16Autocast,
            Precision::Bf16Autocast | Precision::Bf16AutocastExplicit => Self::Bf16Autocast,
        }
    }
}

impl From<ArithmeticWord> for Precision {
    fn from(word: ArithmeticWord) -> Self {
        match word {
            ArithmeticWord::Float32 => Self::Fp32,
            ArithmeticWord::Fp16 => Self::Fp16,
            ArithmeticWord::Bf16 => Self::Bf16,
            ArithmeticWord::Fp16Autocast => Self::Fp16Autocast,
            ArithmeticWord::Bf16Autocast => Self::Bf16Autocast,
        }
    }
}

/// The part of a provenance that a comparison depends on.
#[derive(Debug, Deserialize)]
struct ProvenancePrecision {
    precision: Option<Precision>,
}

/// What a reference was computed with that says this precision and device: float32 and a CPU where it says none.
pub(super) fn recorded(precision: Option<Precision>, device: Option<&str>) -> Recorded {
    let on_gpu = device.is_some_and(|d| !d.eq_ignore_ascii_case("cpu"));
    Recorded { precision: precision.unwrap_or_default(), on_gpu }
}

/// What a comparison can show where a reference and a bundle are of unlike arithmetic.
pub(crate) fn conclusion(recorded: Recorded, found: &Numbers, arithmetic: &Arithmetic) -> Option<String> {
    let reference = Numbers::from(recorded.precision);
    let own = found.in_any_form();
    // One word is all that a reference can say of itself.
    let exported = format!("this checkpoint exported in {reference} against this one");
    let better = match own.precision.one() {
        Some(_) => format!(
            "a reference in {own} would, in its own folder or in a sub-folder of that name, and so would {exported}"
        ),
        None => format!("{exported} would"),
    };
    let gpu = if recorded.on_gpu { " from a GPU" } else { "" };
    (reference != own).then(|| {
        format!(
            "the reference is in {reference}{gpu}, these graphs in {own} ({}): decisions far from ties are shown to agree, and \
             what lies within that rounding proves nothing; {better}",
            arithmetic.text
        )
    })
}

impl GoldenSettings {
    /// What the reference was computed with: in float32 on a CPU unless it says otherwise.
    pub(crate) fn recorded(&self) -> Recorded {
        recorded(self.said_precision(), self.device.as_deref())
    }

    /// Arithmetic of the reference, where it says one.
    pub(super) fn said_precision(&self) -> Option<Precision> {
        self.arithmetic.map(Precision::from).or(self.provenance_precision())
    }

    fn provenance_precision(&self) -> Option<Precision> {
        self.provenance.as_ref().and_then(|s| s.precision).map(Precision::numbers)
    }
}

/// The array file of a golden folder.
///
/// # Errors
/// When the folder has none of the two, or both.
pub fn array_file(folder: &Utf8Path) -> Result<Utf8PathBuf, CompareError> {
    let found: Vec<Utf8PathBuf> = ARRAYS.iter().map(|n| folder.join(n)).filter(|p| p.is_file()).collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(ReferenceError::NoArrays { folder: folder.to_owned() }.into()),
        _ => Err(ReferenceError::TwoArrays { folder: folder.to_owned() }.into()),
    }
}

/// Opens a golden folder and checks what its `golden.json` says about the arrays.
///
/// # Errors
/// When a file cannot be read, does not have its recorded size and SHA-256, or an array has nearly the name of one that is
/// compared.
pub(crate) fn open(folder: &Utf8Path) -> Result<(ArrayFile, GoldenSettings), CompareError> {
    let arrays = array_file(folder)?;
    let mut settings = settings(folder)?;
    for file in &settings.files {
        let path = folder.join(&file.name);
        let wrong = |message: String| {
            let record = GOLDEN_JSON.to_owned();
            CompareError::from(RunError::Integrity { path: path.clone(), record, message })
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
    let file = ArrayFile::open(&arrays)?;
    settings.others = file.others(&KNOWN)?.into_iter().map(str::to_owned).collect();
    Ok((file, settings))
}

/// Columns of the logits of a reference: V, or as many as the model has rows where research code kept that of the end of an
/// image (`predict_eoi_token`), which no token is drawn from.
pub(crate) fn logits_shape(
    file: &ArrayFile,
    system: &SystemSpec,
    images: usize,
) -> Result<[Option<usize>; 3], ArrayError> {
    let rows = system.dpar().map(|d| d.token_rows).or(system.llamagen().map(|g| g.token_rows));
    let last = file.info("logits")?.shape.last().copied();
    let columns = rows.filter(|rows| Some(*rows) == last).unwrap_or(system.vocab);
    Ok([images, system.tokens(), columns].map(Some))
}

/// The logits of V codes, of rows of `columns`.
pub(crate) fn own_columns(logits: Vec<f32>, columns: usize, vocab: usize) -> Vec<f32> {
    match columns == vocab {
        true => logits,
        false => logits.chunks(columns).flat_map(|row| &row[..vocab]).copied().collect(),
    }
}

/// What a file of a reference holds beside what is compared, in words.
pub(crate) fn not_compared(others: &[impl AsRef<str>]) -> String {
    format!("no array of these names is compared: {}", text::list(others))
}

/// The refusal of a reference that no check can be made with.
pub(super) fn holds_nothing(file: &ArrayFile) -> ReferenceError {
    ReferenceError::Nothing { file: file.path().to_owned(), has: file.listing() }
}

/// Guidance of a golden folder's greedy images, where its settings say it.
///
/// # Errors
/// When `golden.json` is there and cannot be read.
pub fn guidance_of(folder: &Utf8Path) -> Result<Option<f32>, CompareError> {
    Ok(settings(folder)?.cfg_scale)
}

fn settings(folder: &Utf8Path) -> Result<GoldenSettings, CompareError> {
    let path = folder.join(GOLDEN_JSON);
    if !path.is_file() {
        return Ok(GoldenSettings::default());
    }
    let keys = SettingKeys::read(&path, MOST_SETTINGS, &KEYS)?;
    let cfg_scale = keys.cfg_scale()?;
    let settings = GoldenSettings {
        cfg_scale,
        // No guidance where the file says none: an end of it contradicts that.
        cfg_interval: keys.cfg_interval(cfg_scale.unwrap_or(1.0))?,
        drawing: match keys.get("sampler")? {
            Some(method) => Some(keys.drawing(method)?),
            // Tokens that something else drew, with a seed of its own; what the file says of it makes sense at least.
            None => keys.sampler(Method::default()).map(|_| None)?,
        },
        rule: keys.rule()?,
        steps_teacher: keys.get("steps_teacher")?,
        steps_greedy: keys.get("steps_greedy")?,
        files: keys.get("files")?.unwrap_or_default(),
        arithmetic: keys.get("arithmetic")?,
        device: keys.get("device")?,
        // What this tool records; or words for people, of which nothing is read.
        provenance: match keys.get("provenance")? {
            Some(Value::String(_)) => None,
            _ => keys.get("provenance")?,
        },
        others: Vec::new(),
    };
    if let Some((arithmetic, provenance)) =
        settings.arithmetic.map(Precision::from).zip(settings.provenance_precision())
        && arithmetic != provenance
    {
        return Err(ReferenceError::Contradiction { path, arithmetic, provenance }.into());
    }
    Ok(settings)
}
