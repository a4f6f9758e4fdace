//! Comparison with sampled reference streams: tokens drawn with the counter-based sampler by recomputing
//! everything for every token.

use camino::Utf8Path;
use serde::Deserialize;

use super::tolerance::{BOUNDARY_TIE, DRAW_TIE, FP32_ABS};
use super::{Check, Decision, Flip, boundary_flip, mean, starts};
use crate::arrays::ArrayFile;
use crate::generate::sampler::{SamplerOptions, image_key, random_class};
use crate::generate::{DecodeOptions, Request, Stream};
use crate::patches::unpad;
use crate::runtime::{Progress, RunError, Runtime};

/// `reference.json` beside the streams.
#[derive(Debug, Deserialize)]
struct Settings {
    seed: u64,
    cfg_scale: f32,
    #[serde(default = "one")]
    temperature: f32,
    #[serde(default)]
    top_k: usize,
    #[serde(default = "one_f64")]
    top_p: f64,
    dpar: Option<Statistics>,
    llamagen: Option<Statistics>,
}

/// What the reference counted over all its images.
#[derive(Debug, Deserialize)]
struct Statistics {
    images: usize,
    mean_steps: f64,
}

fn one() -> f32 {
    1.0
}

fn one_f64() -> f64 {
    1.0
}

/// Decodes the first `limit` images of a streams file with the seed and settings of the `reference.json` beside
/// it, and compares tokens, patch lengths and steps up to each image's first near-tie.
///
/// # Errors
/// When the reference cannot be read or does not fit the bundle, or the engine fails.
pub fn verify_streams(
    runtime: &Runtime<'_>,
    path: &Utf8Path,
    limit: Option<usize>,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<Check>, RunError> {
    let system = runtime.bundle().system();
    let settings_path = path.with_file_name("reference.json");
    let bad = |e: &dyn std::fmt::Display| RunError::Input(format!("{settings_path}: {e}"));
    let text = fs_err::read_to_string(&settings_path).map_err(|e| bad(&e))?;
    let settings: Settings = serde_json::from_str(&text).map_err(|e| bad(&e))?;
    let file = ArrayFile::open(path)?;
    let t = system.tokens();
    let tokens = file.i64("tokens", &[None, Some(t)])?;
    let all = tokens.shape()[0];
    let n = limit.unwrap_or(all).min(all);
    let labels = file.i64("class_labels", &[Some(all)])?;
    let margins = file.f32("margin", &[Some(all), Some(t)])?;
    let lengths = match file.contains("patch_lengths") {
        true => unpad(&file.i64("patch_lengths", &[Some(all), None])?, t, path.as_str())?,
        false => vec![vec![1; t]; all],
    };
    let entropy = match system.entropy().is_some() && file.contains("entropy") {
        true => {
            let array = file.f32("entropy", &[Some(all), Some(t)])?;
            Some(array.into_dimensionality::<ndarray::Ix2>().map_err(|e| RunError::Input(e.to_string()))?)
        }
        false => None,
    };

    let mut label_flips = 0;
    let requests: Vec<Request> = (0..n)
        .map(|i| {
            let key = image_key(settings.seed, i as u64);
            let class = random_class(key, system.num_classes as u64) as i64;
            label_flips += usize::from(class != labels[i]);
            Request { index: i as u64, class }
        })
        .collect();
    let options = DecodeOptions {
        cfg_scale: settings.cfg_scale,
        cfg_interval: None,
        sampler: SamplerOptions {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            greedy: false,
        },
        seed: settings.seed,
    };
    let streams = runtime.decode(&requests, &options, batch, progress)?;

    let mut flips = Vec::new();
    let mut entropies = (Vec::new(), Vec::new());
    for (i, stream) in streams.iter().enumerate() {
        let row = |slot: usize| (tokens[[i, slot]], margins[[i, slot]]);
        let flip = first_flip(runtime, i, stream, &row, &lengths[i]);
        if let (Some(reference), None) = (&entropy, &flip) {
            // Column 0 is NaN on both sides.
            entropies.0.extend(reference.row(i).iter().skip(1));
            entropies.1.extend_from_slice(&stream.entropy[1..]);
        }
        flips.extend(flip);
    }
    let equal = n - flips.len();
    let ties = flips.iter().filter(|f| f.near_tie).count();
    let detail = format!("{equal} of {n} streams equal, {ties} part at a near-tie, batch {batch}");
    // Over all images the reference's own count holds, over a part that of its patch lengths.
    let own = if system.dpar().is_some() { &settings.dpar } else { &settings.llamagen };
    let counted = match own.as_ref().filter(|s| s.images == n) {
        Some(own) => own.mean_steps,
        None => mean(lengths[..n].iter().map(Vec::len)),
    };
    let found = mean(streams.iter().map(Stream::steps));
    let labels = format!("{} of {n} equal", n - label_flips);
    let mut checks = vec![
        Check::decisions("stream labels", labels, vec![], label_flips == 0),
        Check::mean_steps("stream mean steps", counted, found, &flips),
        Check::decisions("stream tokens", detail, flips, equal > 0),
    ];
    if entropy.is_some() {
        let shape = [equal, t - 1];
        checks.push(Check::tensor("stream entropy", &shape, &entropies.0, &entropies.1, FP32_ABS));
    }
    Ok(checks)
}

/// The first decision of a sampled stream that differs from the reference; `row(slot)` is the reference's token
/// and draw margin.
fn first_flip(
    runtime: &Runtime<'_>,
    image: usize,
    stream: &Stream,
    row: &dyn Fn(usize) -> (i64, f32),
    lengths: &[usize],
) -> Option<Flip> {
    let (reference, found) = (starts(lengths), starts(&stream.patch_lengths));
    for (slot, &token) in stream.tokens.iter().enumerate() {
        if reference.get(slot) != found.get(slot) {
            let rule = runtime.bundle().patch_rule();
            let opens = reference.get(slot) == Some(&true);
            return Some(boundary_flip(rule, image, slot, opens, &stream.entropy, BOUNDARY_TIE));
        }
        let (wanted, margin) = row(slot);
        if wanted != i64::from(token) {
            let flip = Flip {
                decision: Decision::Token,
                image,
                slot,
                reference: wanted,
                found: i64::from(token),
                margin: Some(margin),
                limit: DRAW_TIE,
                near_tie: false,
            };
            return Some(flip.judged());
        }
    }
    None
}
