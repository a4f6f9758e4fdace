//! Recorded streams: tokens drawn with the counter-based sampler by recomputing everything for every token.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_decode::generate::sampler::Method;
use dpar_export_decode::generate::{DecodeOptions, Request, Stream};
use dpar_export_decode::loaded::{LoadedBundle, Progress};
use dpar_export_files::arrays::{ArrayFile, Spooled};
use dpar_export_files::patches::unpad_row;
use dpar_export_inputs::limits;
use dpar_export_spec::{PatchRule, Precision, RuleChange, SystemKind, SystemSpec};
use serde::Deserialize;
use tempfile::TempDir;

use super::drawing::{Drawing, SettingKeys, unlike};
use super::logits::judge_by_logits;
use super::reference::{ArithmeticWord, not_compared, recorded};
use crate::CompareError;
use crate::decision::{Decision, DecisionKind, Observed, Trace, Widths, first_apart};
use crate::tolerance::{Recorded, Rounding};

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

/// Sampled streams of a reference, with the settings they were drawn with. Their values lie in files of their own: no more than
/// those of the stream at hand are in memory.
#[derive(Debug)]
pub struct ReferenceStreams {
    settings: StreamSettings,
    path: Utf8PathBuf,
    /// Tokens of one image, T.
    length: usize,
    /// Codes `[N, T]` in raster order.
    tokens: Spooled,
    /// Class of each image.
    pub labels: Vec<i64>,
    /// `[N, T]`: how near each draw was to another token.
    margins: Spooled,
    /// Patch lengths `[N, M]`, padded with 0; absent: every token is a patch.
    lengths: Option<(Spooled, usize)>,
    /// `[N, T]`, e_t at column t, where the file and the system have entropies.
    entropy: Option<Spooled>,
    /// Of the values; removed after them.
    _folder: TempDir,
}

/// What a reference decided for one image.
pub(super) struct RecordedStream<'a> {
    tokens: &'a [i64],
    margins: &'a [f32],
    pub(super) lengths: Vec<usize>,
    /// e_t at t; empty where the reference has none.
    pub(super) entropy: &'a [f32],
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
        let beside = || std::env::temp_dir().to_string_lossy().into_owned();
        let temp = TempDir::new().map_err(|e| CompareError::io(beside())(e))?;
        let folder = Utf8Path::from_path(temp.path())
            .ok_or_else(|| CompareError::io(beside())(io::Error::other("the folder is not UTF-8")))?;
        let t = system.tokens();
        let range = ("token", 0..system.vocab as i64);
        let tokens = file.i64_spooled("tokens", &[None, Some(t)], range, folder)?;
        let n = file.info("tokens")?.shape[0];
        let lengths = match file.contains("patch_lengths") {
            true => {
                let range = ("patch length", i64::MIN..i64::MAX);
                let given = file.i64_spooled("patch_lengths", &[Some(n), None], range, folder)?;
                let columns = file.info("patch_lengths")?.shape[1];
                let flat = given.i64().map_err(CompareError::io(path))?;
                for i in 0..n {
                    let row = flat[i * columns..][..columns].iter();
                    unpad_row(i, row, t, (path, "patch_lengths"))?;
                }
                Some((given, columns))
            }
            false => None,
        };
        let matrix = [Some(n), Some(t)];
        let entropy = match system.entropy().is_some() && file.contains("entropy") {
            true => Some(file.f32_spooled("entropy", &matrix, folder)?),
            false => None,
        };
        Ok(Self {
            settings,
            path: path.to_owned(),
            length: t,
            tokens,
            labels: file.i64("class_labels", &[Some(n)])?.iter().copied().collect(),
            margins: file.f32_spooled("margin", &matrix, folder)?,
            lengths,
            entropy,
            _folder: temp,
        })
    }

    /// Codes of all images in raster order, `[N, T]`, mapped.
    ///
    /// # Errors
    /// When they cannot be mapped.
    pub fn tokens(&self) -> Result<&[i64], CompareError> {
        self.tokens.i64().map_err(CompareError::io(&self.path))
    }

    /// Patch lengths of an image.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens).
    pub fn lengths(&self, image: usize) -> Result<Vec<usize>, CompareError> {
        let Some((lengths, columns)) = &self.lengths else { return Ok(vec![1; self.length]) };
        let flat = lengths.i64().map_err(CompareError::io(&self.path))?;
        let row = flat[image * columns..][..*columns].iter();
        // They were looked at when the file was opened.
        Ok(row.take_while(|l| **l != 0).map(|l| *l as usize).collect())
    }

    /// Entropies of all images, mapped, where there are some.
    pub(super) fn entropies(&self) -> Result<Option<&[f32]>, CompareError> {
        self.entropy.as_ref().map(Spooled::f32).transpose().map_err(CompareError::io(&self.path))
    }

    /// What the reference decided for an image.
    pub(super) fn stream(&self, image: usize) -> Result<RecordedStream<'_>, CompareError> {
        let row = image * self.length..(image + 1) * self.length;
        let margins = self.margins.f32().map_err(CompareError::io(&self.path))?;
        Ok(RecordedStream {
            tokens: &self.tokens()?[row.clone()],
            margins: &margins[row.clone()],
            lengths: self.lengths(image)?,
            entropy: self.entropies()?.map_or(&[][..], |e| &e[row]),
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

    /// The mean steps that the reference itself counted over all of its images, if it has so many.
    pub(super) fn mean_steps(&self, system: SystemKind, images: usize) -> Option<f64> {
        let own = match system {
            SystemKind::Dpar => &self.settings.dpar,
            SystemKind::Llamagen | SystemKind::Extractor => &self.settings.llamagen,
        };
        own.as_ref().filter(|own| own.images == images).map(|own| own.mean_steps)
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
        let (options, widths) = (self.options(), self.widths(runtime, rounding));
        let rule = runtime.bundle().patch_rule();
        let mut flips = Vec::new();
        for (image, stream) in streams.iter().enumerate() {
            flips.extend(self.stream(image)?.first_flip(rule, &widths, (image, stream)));
        }
        if options.sampler.filters() {
            judge_by_logits(runtime, &mut flips, &|image| streams.get(image), (&options, &widths), progress)?;
        }
        Ok(flips)
    }

    /// How wide near-ties are between it and a bundle.
    pub(super) fn widths(&self, runtime: &LoadedBundle<'_>, rounding: Rounding) -> Widths {
        let options = self.options();
        let rule = runtime.bundle().patch_rule();
        Widths::new(rounding, rule, options.cfg_scale, Observed::default()).of_draws(&options.sampler)
    }
}

impl RecordedStream<'_> {
    /// The first decision that a bundle's stream of that image makes otherwise, judged.
    pub(super) fn first_flip(
        &self,
        rule: &PatchRule,
        widths: &Widths,
        (image, stream): (usize, &Stream),
    ) -> Option<Decision> {
        let (tokens, lengths) = (self.tokens.into(), Some(&self.lengths[..]));
        let recorded = Trace { tokens, lengths, entropy: self.entropy };
        let margin = &mut |slot: usize, _| Some(f64::from(self.margins[slot]));
        first_apart(rule, widths, (image, DecisionKind::Draw), [&recorded, &stream.into()], margin)
    }
}
