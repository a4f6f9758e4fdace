//! Recording a golden folder from an engine: what [`verify_golden`](super::verify_golden) compares with later.

use camino::Utf8Path;
use dpar_engine_api::EngineInfo;
use dpar_export_bundle::{ToolEntry, digest};
use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_decode::generate::{DecodeOptions, Request, Stream, shift_entropy};
use dpar_export_decode::loaded::{LoadedBundle, Progress, RunError};
use dpar_export_files::arrays::{ArrayRef, Elements, Spool, Spooled, write_atomic, write_safetensors};
use dpar_export_files::patches::pad;
use dpar_export_files::picture::{from_u8_nhwc, to_u8_nhwc};
use dpar_export_spec::{GraphName, PatchRule, Precision, RuleChange, SystemSpec};
use serde::Serialize;

use super::drawing::Drawing;
use super::reference::{ArithmeticWord, RecordedFile};
use crate::CompareError;
use crate::names::{ARRAYS, GOLDEN_JSON};

/// What to record.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Images.
    pub num: u64,
    /// How the teacher-forced tokens are drawn; the greedy images have the same guidance.
    pub decode: DecodeOptions,
    /// Images in one call of a graph.
    pub batch: usize,
}

/// `golden.json`: the settings that `verify` needs, and where the arrays came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Golden {
    /// Name of the model.
    pub name: String,
    /// How the teacher-forced tokens were drawn; the greedy images had the same guidance.
    #[serde(flatten)]
    pub drawing: Drawing,
    /// Numbers of the patch rule.
    #[serde(flatten)]
    pub rule: RuleChange,
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
    pub provenance: ReferenceProvenance,
    /// The arrays' size and SHA-256, which `verify` checks.
    pub files: Vec<RecordedFile>,
}

/// What a reference was recorded with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReferenceProvenance {
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
/// When the bundle has quantized weights or several precisions, the engine fails, or writing fails.
pub fn record(
    runtime: &LoadedBundle<'_>,
    recording: &Recording,
    folder: &Utf8Path,
    progress: Progress<'_>,
) -> Result<Golden, CompareError> {
    let bundle = runtime.bundle();
    let numbers = bundle.manifest().numbers();
    let (Some(precision), None) = (numbers.precision.one(), numbers.weights()) else {
        return Err(CompareError::NoReference(numbers));
    };
    let system = bundle.system();
    let io = CompareError::io(folder);
    let (t, vocab) = (system.tokens(), system.vocab);
    let requests = requests(recording, system);
    let labels: Vec<i64> = requests.iter().map(|r| r.class).collect();
    let decode = |greedy: bool, progress: Progress<'_>| {
        let sampler = SamplerOptions { greedy, ..recording.decode.sampler };
        let options = DecodeOptions { sampler, ..recording.decode.clone() };
        runtime.decode(&requests, &options, recording.batch, progress)
    };
    let ids = Stream::ids(&decode(false, progress)?);
    let scores = score(runtime, &ids, &labels, recording.batch, folder, progress)?;
    let greedy = decode(true, progress)?;
    let greedy_ids = Stream::ids(&greedy);

    let n = labels.len();
    let (lengths, columns) = pad(scores.patch_lengths.iter().map(Vec::as_slice));
    let (greedy_lengths, greedy_columns) = pad(greedy.iter().map(|s| s.patch_lengths.as_slice()));
    let (vector, matrix, cube) = ([n], [n, t], [n, t, vocab]);
    let (rows, greedy_rows) = ([n, columns], [n, greedy_columns]);
    let mut arrays = vec![
        ("tokens", ArrayRef::i64(&matrix, &ids)),
        ("class_labels", ArrayRef::i64(&vector, &labels)),
        ("logits", ArrayRef::f32(&cube, scores.logits.f32().map_err(&io)?)),
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
    let pictures;
    if bundle.has_graph(GraphName::VqDecode) {
        pictures = draw(runtime, &greedy_ids, recording.batch, folder, progress)?;
        arrays.push(("greedy_image", ArrayRef::f32(&nchw, pictures.images.f32().map_err(&io)?)));
        arrays.push(("greedy_image_u8", ArrayRef::u8(&nhwc, pictures.pixels.bytes())));
        if bundle.has_graph(GraphName::VqEncode) {
            arrays.push(("encode_image", ArrayRef::f32(&nchw, pictures.inputs.f32().map_err(&io)?)));
            arrays.push(("encode_codes", ArrayRef::i64(&matrix, &pictures.codes)));
        }
    }
    let path = folder.join(ARRAYS[0]);
    write_safetensors(&path, &arrays)?;
    let (size, sha256) = digest(&path)?;

    let teacher = scores.entropy.iter().flat_map(|e| e.chunks(t)).map(shift_entropy);
    let distances = teacher.chain(greedy.iter().map(|s| s.entropy.clone()));
    let golden = Golden {
        name: system.name.clone(),
        drawing: Drawing::from(&recording.decode),
        rule: system.patch_rule.numbers(),
        min_greedy_margin: smallest(greedy.iter().flat_map(|s| s.margin.iter().copied())),
        min_entropy_threshold_distance: smallest(
            distances.flat_map(|e| threshold_distances(&system.patch_rule, &e)),
        ),
        steps_teacher: scores.patch_lengths.iter().map(Vec::len).collect(),
        steps_greedy: greedy.iter().map(Stream::steps).collect(),
        arithmetic: precision.into(),
        device: runtime.info().device.clone(),
        library: format!("{} {}", runtime.info().engine, runtime.info().version),
        provenance: ReferenceProvenance {
            tool: ToolEntry::this(),
            bundle: bundle.manifest_sha256().to_owned(),
            precision,
            engine: portable(runtime.info()),
        },
        files: vec![RecordedFile { name: ARRAYS[0].to_owned(), size, sha256 }],
    };
    let path = folder.join(GOLDEN_JSON);
    let io = CompareError::io(&path);
    let mut json = serde_json::to_vec_pretty(&golden).map_err(CompareError::json(&path))?;
    json.push(b'\n');
    write_atomic(&path, &json).map_err(&io)?;
    Ok(golden)
}

/// Teacher-forced outputs, the logits on the disk.
struct Scored {
    logits: Spooled,
    entropy: Option<Vec<f32>>,
    patch_lengths: Vec<Vec<usize>>,
}

fn score(
    runtime: &LoadedBundle<'_>,
    ids: &[i64],
    labels: &[i64],
    batch: usize,
    folder: &Utf8Path,
    progress: Progress<'_>,
) -> Result<Scored, CompareError> {
    let io = CompareError::io(folder);
    let mut scoring = runtime.scoring(ids, labels, None, batch)?;
    let mut logits = Spool::create_in(folder).map_err(&io)?;
    let (mut entropy, mut patch_lengths) = (None, Vec::with_capacity(labels.len()));
    while let Some(scores) = scoring.next_images()? {
        logits.push(Elements::F32(&scores.logits)).map_err(&io)?;
        patch_lengths.extend(scores.patch_lengths);
        if let Some(more) = scores.entropy {
            entropy.get_or_insert_with(Vec::new).extend(more);
        }
        if !progress(patch_lengths.len(), labels.len()) {
            return Err(RunError::Interrupted.into());
        }
    }
    Ok(Scored { logits: logits.finish().map_err(&io)?, entropy, patch_lengths })
}

/// Tokens as images, and these as codes, on the disk but for the codes.
struct DrawnPictures {
    images: Spooled,
    pixels: Spooled,
    inputs: Spooled,
    codes: Vec<i64>,
}

/// Images that are drawn at a time.
const AT_ONCE: usize = 256;

fn draw(
    runtime: &LoadedBundle<'_>,
    ids: &[i64],
    batch: usize,
    folder: &Utf8Path,
    progress: Progress<'_>,
) -> Result<DrawnPictures, CompareError> {
    let io = CompareError::io(folder);
    let spool = || Spool::create_in(folder).map_err(&io);
    let (mut images, mut pixels, mut inputs, mut codes) = (spool()?, spool()?, spool()?, Vec::new());
    let (size, t) = (runtime.bundle().system().image_size, runtime.bundle().system().tokens());
    let encodes = runtime.bundle().has_graph(GraphName::VqEncode);
    // Whole batches, so that each is the one that it would be without pieces.
    let chunk = batch.max(1) * (AT_ONCE / batch.max(1)).max(1);
    let all = ids.len() / t;
    for (i, ids) in ids.chunks(chunk * t).enumerate() {
        let (n, before) = (ids.len() / t, i * chunk);
        let drawn = runtime.images(ids, batch, &mut |done, _| progress(before + done, all))?;
        let bytes = to_u8_nhwc(&drawn, n, size, size);
        images.push(Elements::F32(&drawn)).map_err(&io)?;
        pixels.push(Elements::U8(&bytes)).map_err(&io)?;
        if encodes {
            let floats = from_u8_nhwc(&bytes, n, size, size);
            codes.extend(runtime.codes(&floats, batch, &mut |done, _| progress(before + done, all))?);
            inputs.push(Elements::F32(&floats)).map_err(&io)?;
        }
    }
    let done = |spool: Spool| spool.finish().map_err(&io);
    Ok(DrawnPictures { images: done(images)?, pixels: done(pixels)?, inputs: done(inputs)?, codes })
}

/// Classes from the seed; of several images, the last is one of the null class where there is one.
fn requests(recording: &Recording, system: &SystemSpec) -> Vec<Request> {
    let null = system.null_class().filter(|_| recording.num > 1);
    let request = |index: u64| match null {
        Some(class) if index + 1 == recording.num => Request { index, class },
        _ => Request::seeded(recording.decode.seed, index, system.num_classes),
    };
    (0..recording.num).map(request).collect()
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
