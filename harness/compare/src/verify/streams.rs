//! Comparison with sampled reference streams: tokens drawn with the counter-based sampler by recomputing
//! everything for every token.

use camino::Utf8Path;
use dpar_export_decode::generate::sampler::Method;
use dpar_export_decode::generate::{DecodeOptions, Request, Stream};
use dpar_export_decode::loaded::{LoadedBundle, Progress};
use dpar_export_files::arrays::ArrayFile;
use dpar_export_files::patches::unpad;
use dpar_export_inputs::limits;
use dpar_export_spec::{PatchRule, Precision, RuleChange, SystemSpec};
use serde::Deserialize;

use super::drawing::{Drawing, SettingKeys, unlike};
use super::given::{given_streams, not_given};
use super::logits::judge_by_logits;
use super::reference::{ArithmeticWord, not_compared, recorded};
use crate::check::{Check, CheckId, mean, or_failed};
use crate::decision::{Decision, DecisionKind, Observed, Trace, Widths, drawn_so, first_apart};
use crate::tolerance::{Quantity, Recorded, Rounding};
use crate::{CompareError, ReferenceError};

/// The arrays that are read of a streams file.
const KNOWN: [&str; 5] = ["tokens", "class_labels", "patch_lengths", "entropy", "margin"];

/// The keys of `reference.json` that are read.
const KEYS: [&str; 14] = [
    "threshold",
    "max_patch_length",
    "patch_size",
    "seed",
    "cfg_scale",
    "cfg_interval",
    "sampler",
    "temperature",
    "top_k",
    "top_p",
    "arithmetic",
    "device",
    "dpar",
    "llamagen",
];

/// `reference.json` beside the streams.
#[derive(Debug)]
struct StreamSettings {
    drawing: Drawing,
    rule: RuleChange,
    /// What it was computed in and by, as `golden.json` says it.
    arithmetic: Option<ArithmeticWord>,
    device: Option<String>,
    dpar: Option<Statistics>,
    llamagen: Option<Statistics>,
}

/// What the reference counted over all its images.
#[derive(Debug, Deserialize)]
struct Statistics {
    images: usize,
    mean_steps: f64,
}

/// Sampled streams of a reference, with the settings they were drawn with.
#[derive(Debug)]
pub struct ReferenceStreams {
    settings: StreamSettings,
    /// Tokens of one image, T.
    length: usize,
    /// Codes `[N, T]` in raster order.
    pub tokens: Vec<i64>,
    /// Class of each image.
    pub labels: Vec<i64>,
    /// `[N, T]`: how near each draw was to another token.
    margins: Vec<f32>,
    /// Patch lengths of each image.
    pub lengths: Vec<Vec<usize>>,
    /// `[N, T]`, e_t at column t, where the file and the system have entropies.
    entropy: Option<Vec<f32>>,
}

impl ReferenceStreams {
    /// Reads a streams file and the `reference.json` beside it.
    ///
    /// # Errors
    /// When a file cannot be read or does not fit the system.
    pub fn open(path: &Utf8Path, system: &SystemSpec) -> Result<Self, CompareError> {
        let settings_path = path.with_file_name("reference.json");
        let keys = SettingKeys::read(&settings_path, limits::TEXT, &KEYS)?;
        let settings = StreamSettings {
            // References from before there was a choice have no word for it.
            drawing: keys.drawing(Method::Cdf)?,
            rule: keys.rule()?,
            arithmetic: keys.get("arithmetic")?,
            device: keys.get("device")?,
            dpar: keys.get("dpar")?,
            llamagen: keys.get("llamagen")?,
        };
        let file = ArrayFile::open(path)?;
        let others = file.others(&KNOWN)?;
        if !others.is_empty() {
            tracing::warn!("{path}: {}", not_compared(&others));
        }
        let t = system.tokens();
        let tokens = file.i64("tokens", &[None, Some(t)])?;
        let n = tokens.shape()[0];
        let lengths = match file.contains("patch_lengths") {
            true => unpad(&file.i64("patch_lengths", &[Some(n), None])?, t, path, "patch_lengths")?,
            false => vec![vec![1; t]; n],
        };
        let entropy = match system.entropy().is_some() && file.contains("entropy") {
            true => Some(file.f32("entropy", &[Some(n), Some(t)])?.iter().copied().collect()),
            false => None,
        };
        Ok(Self {
            settings,
            length: t,
            tokens: tokens.iter().copied().collect(),
            labels: file.i64("class_labels", &[Some(n)])?.iter().copied().collect(),
            margins: file.f32("margin", &[Some(n), Some(t)])?.iter().copied().collect(),
            lengths,
            entropy,
        })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// How they were decoded.
    pub fn options(&self) -> DecodeOptions {
        self.settings.drawing.into()
    }

    /// What the reference says of a rule whose numbers are not its own.
    pub fn other_rule(&self, rule: &PatchRule) -> Option<String> {
        unlike(rule, &self.settings.rule)
    }

    /// What they were computed with.
    pub fn recorded(&self) -> Recorded {
        recorded(self.settings.arithmetic.map(Precision::from), self.settings.device.as_deref())
    }

    /// The first `n` images with the classes that follow from the seed.
    pub fn requests(&self, n: usize, num_classes: usize) -> Vec<Request> {
        Request::all_seeded(self.settings.drawing.seed, n as u64, num_classes)
    }

    /// The first decision of each stream that differs, judged; `streams` are the first images, as the bundle drew them.
    ///
    /// A token flip is judged by the reference's margin alone: the distance of u to the drawn token's interval does not say
    /// which token lies beyond it, and neither file nor stream keeps the distributions that would. In fp32, where the limit
    /// is the error of a cumulative sum, u so near to a boundary is the tie; in half types the share of such flips is what
    /// bounds them ([`Rounding::ties`]). Where top-k or top-p leave out tokens, the margin does not say how near their edge was,
    /// and the bundle's logits are asked.
    ///
    /// # Errors
    /// The engine's; when the caller asked to stop.
    pub fn first_flips(
        &self,
        runtime: &LoadedBundle<'_>,
        rounding: Rounding,
        streams: &[Stream],
        progress: Progress<'_>,
    ) -> Result<Vec<Decision>, CompareError> {
        let (options, rule) = (self.options(), runtime.bundle().patch_rule());
        let widths = Widths::new(rounding, rule, options.cfg_scale, Observed::default());
        let widths = widths.of_draws(&options.sampler);
        let of = |(i, stream): (usize, &Stream)| {
            let row = i * self.length..(i + 1) * self.length;
            let entropy = self.entropy.as_ref().map_or(&[][..], |e| &e[row.clone()]);
            let (tokens, lengths) = (self.tokens[row.clone()].into(), Some(&self.lengths[i][..]));
            let recorded = Trace { tokens, lengths, entropy };
            let margin = &mut |slot: usize, _| Some(f64::from(self.margins[row.start + slot]));
            first_apart(rule, &widths, (i, DecisionKind::Draw), [&recorded, &stream.into()], margin)
        };
        let mut flips: Vec<Decision> = streams.iter().enumerate().filter_map(of).collect();
        if options.sampler.filters() {
            judge_by_logits(runtime, &mut flips, streams, (&options, &widths), progress)?;
        }
        Ok(flips)
    }
}

/// Decodes the first `limit` images of a streams file with the seed and settings of the `reference.json` beside
/// it, and compares tokens, patch lengths and steps up to each image's first near-tie. A bundle with quantized weights is given
/// the tokens instead: boundaries are counted, and mean steps tested for equivalence.
///
/// # Errors
/// When the reference cannot be read, does not fit the bundle or gives no image to compare, or the engine fails.
pub fn verify_streams(
    runtime: &LoadedBundle<'_>,
    path: &Utf8Path,
    limit: Option<usize>,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<Check>, CompareError> {
    let system = runtime.bundle().system();
    let reference = ReferenceStreams::open(path, system)?;
    let numbers = runtime.bundle().manifest().numbers();
    let rounding = Rounding::between(reference.recorded(), numbers, runtime.arithmetic().kind);
    let t = system.tokens();
    let n = limit.unwrap_or(reference.len()).min(reference.len());
    if n == 0 {
        let held = reference.len();
        let (file, asked) = (path.to_owned(), limit.unwrap_or(held));
        return Err(ReferenceError::NoStreams { file, held, asked }.into());
    }
    let requests = reference.requests(n, system.num_classes);
    let label_flips = requests.iter().zip(&reference.labels).filter(|(r, l)| r.class != **l).count();
    let labels = Check {
        equal: Some([n - label_flips, n]),
        ..Check::holds(CheckId::StreamLabels, format!("{} of {n} equal", n - label_flips), label_flips == 0)
    };
    let other = reference.other_rule(runtime.bundle().patch_rule());
    let other = other.map(|why| Check::failed(CheckId::PatchRule, why));
    if numbers.weights.is_some() {
        let Some(entropy) = reference.entropy.as_deref() else { return Ok(not_given().into()) };
        let given = (&*reference.tokens, entropy, &*reference.lengths);
        let given =
            or_failed(CheckId::StreamEntropy, given_streams(runtime, given, n, (batch, rounding), progress))?;
        return Ok(std::iter::once(labels).chain(given).chain(other).collect());
    }
    let options = reference.options();
    let decoded = runtime.decode(&requests, &options, batch, progress).map_err(CompareError::from);
    let judged = decoded
        .and_then(|streams| Ok((reference.first_flips(runtime, rounding, &streams, progress)?, streams)));
    let (flips, streams) = match judged {
        Ok(judged) => judged,
        Err(e) => {
            let checks = or_failed(CheckId::StreamTokens, Err(e))?;
            // A file that was swapped may be why.
            runtime.bundle().unchanged()?;
            return Ok(checks);
        }
    };
    let mut entropies = (Vec::new(), Vec::new());
    if let Some(entropy) = &reference.entropy {
        for (i, stream) in streams.iter().enumerate().filter(|(i, _)| flips.iter().all(|f| f.image != *i)) {
            // Column 0 is NaN on both sides.
            entropies.0.extend_from_slice(&entropy[i * t + 1..(i + 1) * t]);
            entropies.1.extend_from_slice(&stream.entropy[1..]);
        }
    }
    let equal = n - flips.len();
    let ties = flips.iter().filter(|f| f.near_tie).count();
    let detail = format!("{equal} of {n} streams equal, {ties} part at a near-tie, batch {batch}");
    // Over all images the reference's own count holds, over a part that of its patch lengths.
    let settings = &reference.settings;
    let own = if system.dpar().is_some() { &settings.dpar } else { &settings.llamagen };
    let counted = match own.as_ref().filter(|s| s.images == n) {
        Some(own) => own.mean_steps,
        None => mean(reference.lengths[..n].iter().map(Vec::len)),
    };
    let found = mean(streams.iter().map(Stream::steps));
    let mut checks = vec![
        labels,
        Check::mean_steps(CheckId::StreamMeanSteps, [counted, found], &flips),
        Check::streams(CheckId::StreamTokens, detail, flips, (n, t), drawn_so(rounding, &options.sampler)),
    ];
    checks.extend(other);
    if reference.entropy.is_some() {
        let (shape, limit) = ([equal, t - 1], rounding.limit(Quantity::Entropy));
        checks.push(Check::tensor(CheckId::StreamEntropy, &shape, &entropies.0, &entropies.1, limit));
    }
    Ok(checks)
}
