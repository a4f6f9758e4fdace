//! Recording a golden folder from an engine: what [`verify_golden`](super::verify_golden) compares with later.

use camino::Utf8Path;
use dpar_engine_api::EngineInfo;
use dpar_export_spec::{PatchRule, Precision};
use serde::Serialize;

use super::reference::{ARRAYS, ArithmeticWord, GOLDEN_JSON, RecordedFile};
use crate::arrays::{ArrayRef, write_atomic, write_safetensors};
use crate::bundle::{ToolEntry, digest};
use crate::generate::sampler::SamplerOptions;
use crate::generate::{DecodeOptions, Request, Stream, shift_entropy};
use crate::patches::pad;
use crate::picture::{from_u8_nhwc, to_u8_nhwc};
use crate::runtime::{Progress, RunError, Runtime};

/// More logits than this in one reference are refused: they are held in memory, there and when it is read.
const MOST_LOGIT_BYTES: u64 = 4 << 30;

/// What to record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recording {
    /// Images.
    pub num: u64,
    /// Guidance of the sampled and the greedy images.
    pub cfg_scale: f32,
    /// Seed of the classes and of the sampled tokens.
    pub seed: u64,
    /// Images in one call of a graph.
    pub batch: usize,
}

/// `golden.json`: the settings that `verify` needs, and where the arrays came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Golden {
    /// Name of the model.
    pub name: String,
    /// Guidance of the greedy images.
    pub cfg_scale: f32,
    /// Seed of classes and teacher-forced tokens.
    pub seed: u64,
    /// Smallest gap between the two largest guided logits of a greedy image; null where none is known.
    pub min_greedy_margin: Option<f32>,
    /// Smallest distance of a compared entropy to the threshold, in nats; null where none is compared.
    pub min_entropy_threshold_distance: Option<f32>,
    /// Steps of each teacher-forced image.
    pub steps_teacher: Vec<usize>,
    /// Steps of each greedy image.
    pub steps_greedy: Vec<usize>,
    /// What the arrays are rounded to.
    pub arithmetic: ArithmeticWord,
    /// What computed them, e.g. `cpu`.
    pub device: String,
    /// The library that computed them, and its version.
    pub library: String,
    /// What recorded it.
    pub provenance: Provenance,
    /// The arrays' size and SHA-256, which `verify` checks.
    pub files: Vec<RecordedFile>,
}

/// What a reference was recorded with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provenance {
    /// The tool and its version.
    pub tool: ToolEntry,
    /// SHA-256 of the bundle's manifest.
    pub bundle: String,
    /// Arithmetic of the graphs.
    pub precision: Precision,
    /// The engine; its library by file name only.
    pub engine: EngineInfo,
}

/// Records `golden.safetensors` and `golden.json` in `folder`: N images sampled from the seed (the last of several
/// with the null class), their teacher-forced outputs, and greedy images of the same classes.
///
/// # Errors
/// When the reference would be too large, the engine fails, or writing fails.
pub fn record(
    runtime: &Runtime<'_>,
    recording: &Recording,
    folder: &Utf8Path,
    progress: Progress<'_>,
) -> Result<Golden, RunError> {
    let bundle = runtime.bundle();
    let system = bundle.system();
    let (t, vocab) = (system.tokens(), system.vocab);
    let bytes = recording.num.saturating_mul((t * vocab * 4) as u64);
    if bytes > MOST_LOGIT_BYTES {
        let message = format!(
            "the logits of {} images would take {:.1} GiB; {} GiB are allowed: record fewer images",
            recording.num,
            bytes as f64 / (1_u64 << 30) as f64,
            MOST_LOGIT_BYTES >> 30
        );
        return Err(RunError::Input(message));
    }
    let requests = requests(recording, system.num_classes);
    let labels: Vec<i64> = requests.iter().map(|r| r.class).collect();
    let decode = |greedy: bool, progress: Progress<'_>| {
        let options = DecodeOptions {
            cfg_scale: recording.cfg_scale,
            cfg_interval: None,
            sampler: SamplerOptions { greedy, ..SamplerOptions::default() },
            seed: recording.seed,
        };
        runtime.decode(&requests, &options, recording.batch, progress)
    };
    let ids = flat_tokens(&decode(false, progress)?);
    let scores = runtime.score(&ids, &labels, None, recording.batch, progress)?;
    let greedy = decode(true, progress)?;
    let greedy_ids = flat_tokens(&greedy);

    let n = labels.len();
    let (lengths, columns) = pad(scores.patch_lengths.iter().map(Vec::as_slice));
    let (greedy_lengths, greedy_columns) = pad(greedy.iter().map(|s| s.patch_lengths.as_slice()));
    let (vector, matrix, cube) = ([n], [n, t], [n, t, vocab]);
    let (rows, greedy_rows) = ([n, columns], [n, greedy_columns]);
    let mut arrays = vec![
        ("tokens", ArrayRef::i64(&matrix, &ids)),
        ("class_labels", ArrayRef::i64(&vector, &labels)),
        ("logits", ArrayRef::f32(&cube, &scores.logits)),
        ("greedy_class_labels", ArrayRef::i64(&vector, &labels)),
        ("greedy_tokens", ArrayRef::i64(&matrix, &greedy_ids)),
    ];
    if let Some(entropy) = &scores.entropy {
        arrays.push(("entropy", ArrayRef::f32(&matrix, entropy)));
    }
    if system.dpar().is_some() {
        arrays.push(("patch_lengths", ArrayRef::i64(&rows, &lengths)));
        arrays.push(("greedy_patch_lengths", ArrayRef::i64(&greedy_rows, &greedy_lengths)));
    }
    let size = system.image_size;
    let (nchw, nhwc) = ([n, 3, size, size], [n, size, size, 3]);
    let (images, pixels, inputs, codes);
    if bundle.has_graph("vq_decode") {
        images = runtime.images(&greedy_ids, recording.batch, progress)?;
        pixels = to_u8_nhwc(&images, n, size, size);
        arrays.push(("greedy_image", ArrayRef::f32(&nchw, &images)));
        arrays.push(("greedy_image_u8", ArrayRef::u8(&nhwc, &pixels)));
        if bundle.has_graph("vq_encode") {
            inputs = from_u8_nhwc(&pixels, n, size, size);
            codes = runtime.codes(&inputs, recording.batch, progress)?;
            arrays.push(("encode_image", ArrayRef::f32(&nchw, &inputs)));
            arrays.push(("encode_codes", ArrayRef::i64(&matrix, &codes)));
        }
    }
    let path = folder.join(ARRAYS[0]);
    write_safetensors(&path, &arrays)?;
    let (size, sha256) = digest(&path)?;

    let teacher = scores.entropy.iter().flat_map(|e| e.chunks(t)).map(shift_entropy);
    let distances = teacher.chain(greedy.iter().map(|s| s.entropy.clone()));
    let golden = Golden {
        name: system.name.clone(),
        cfg_scale: recording.cfg_scale,
        seed: recording.seed,
        min_greedy_margin: smallest(greedy.iter().flat_map(|s| s.margin.iter().copied())),
        min_entropy_threshold_distance: smallest(
            distances.flat_map(|e| threshold_distances(&system.patch_rule, &e)),
        ),
        steps_teacher: scores.patch_lengths.iter().map(Vec::len).collect(),
        steps_greedy: greedy.iter().map(Stream::steps).collect(),
        arithmetic: bundle.manifest().precision.into(),
        device: runtime.info().device.clone(),
        library: format!("{} {}", runtime.info().engine, runtime.info().version),
        provenance: Provenance {
            tool: ToolEntry::this(),
            bundle: bundle.manifest_sha256().to_owned(),
            precision: bundle.manifest().precision,
            engine: portable(runtime.info()),
        },
        files: vec![RecordedFile { name: ARRAYS[0].to_owned(), size, sha256 }],
    };
    let path = folder.join(GOLDEN_JSON);
    let io = |e: std::io::Error| RunError::Input(format!("{path}: {e}"));
    let mut json = serde_json::to_vec_pretty(&golden).map_err(|e| io(e.into()))?;
    json.push(b'\n');
    write_atomic(&path, &json).map_err(io)?;
    Ok(golden)
}

/// Classes from the seed; of several images, the last is one of the null class.
fn requests(recording: &Recording, classes: usize) -> Vec<Request> {
    let request = |index: u64| match index + 1 == recording.num && recording.num > 1 {
        true => Request { index, class: classes as i64 },
        false => Request::seeded(recording.seed, index, classes),
    };
    (0..recording.num).map(request).collect()
}

fn flat_tokens(streams: &[Stream]) -> Vec<i64> {
    streams.iter().flat_map(|s| s.tokens.iter().map(|t| i64::from(*t))).collect()
}

/// Distances of an image's entropies (`entropy[t]` = e_t) to the threshold, where they are compared.
fn threshold_distances(rule: &PatchRule, entropy: &[f32]) -> Vec<f32> {
    let distance = |t: usize| rule.margin(t, entropy[t], entropy[t - 1]).abs();
    (2..entropy.len()).map(distance).collect()
}

/// The smallest finite value.
fn smallest(values: impl Iterator<Item = f32>) -> Option<f32> {
    values.filter(|v| v.is_finite()).min_by(f32::total_cmp)
}

/// Without the folder of this machine's library.
fn portable(info: &EngineInfo) -> EngineInfo {
    let name = |path: &String| Utf8Path::new(path).file_name().unwrap_or_default().to_owned();
    EngineInfo { library: info.library.as_ref().map(name), ..info.clone() }
}
