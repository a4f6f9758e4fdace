//! Comparison with a golden folder: arrays and settings from the authors' own code, from other research
//! code, or recorded from an engine.

use std::borrow::Cow;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_decode::generate::{DecodeOptions, Request, Stream, shift_entropy};
use dpar_export_decode::loaded::{LoadedBundle, Progress, RunError};
use dpar_export_files::arrays::ArrayFile;
use dpar_export_files::patches::unpad;
use dpar_export_files::picture::to_u8_nhwc;
use dpar_export_spec::{GraphName, Precision};
use ndarray::ArrayD;

use super::drawing::unlike;
use super::logits::judge_by_logits;
use super::reference::{self, GoldenSettings, logits_shape, own_columns};
use crate::check::{Check, CheckId, Differences, Status, mean, or_failed};
use crate::decision::{Decision, DecisionKind, Observed, Trace, Widths, drawn_so, first_apart, starts};
use crate::tolerance::{Quantity, Rounding, guidance_gain};
use crate::{CompareError, ReferenceError};

/// Verifies a bundle against `folder`: logits, entropies, patch lengths, greedy tokens, images, codes, steps.
///
/// # Errors
/// When the reference cannot be read, holds nothing to compare with or does not fit the bundle, or the engine fails. A mismatch is no error: it
/// is in the checks.
pub fn verify_golden(
    runtime: &LoadedBundle<'_>,
    folder: &Utf8Path,
    batch: usize,
    progress: Progress<'_>,
) -> Result<Vec<Check>, CompareError> {
    let numbers = runtime.bundle().manifest().numbers();
    let precision = numbers.precision.one();
    // Before anything runs: what cannot be compared with is said at once.
    let own = own_folder(folder, precision)
        .map(|(own, precision)| GoldenCheck::open(runtime, &own, batch)?.of_precision(&own, precision))
        .transpose()?;
    let golden = GoldenCheck::open(runtime, folder, batch)?;
    let mut checks = golden.all(progress)?;
    match own {
        Some(own) => {
            for check in own.all(progress)? {
                let name = format!("{} {}", numbers.precision.numbers(), check.name);
                checks.push(check.named(name));
            }
        }
        None => {
            let why = reference::conclusion(golden.settings.recorded(), &numbers, runtime.arithmetic());
            let name = format!("{} reference", numbers.precision.numbers());
            checks.extend(why.map(|why| Check::not_run(CheckId::OwnReference, why).named(name)));
        }
    }
    runtime.bundle().unchanged()?;
    Ok(checks)
}

/// The sub-folder with outputs in a bundle's own arithmetic, and which that is, where the bundle has one and a reference has such
/// a folder.
pub fn own_folder(folder: &Utf8Path, precision: Option<Precision>) -> Option<(Utf8PathBuf, Precision)> {
    let precision = precision.filter(|p| *p != Precision::Fp32)?;
    let own = folder.join(precision.numbers().name());
    own.is_dir().then_some((own, precision))
}

/// An array's elements in row-major order.
fn flat<T: Copy>(array: &ArrayD<T>) -> Vec<T> {
    array.iter().copied().collect()
}

/// Decisions that a reference holds of its images.
struct Decided {
    /// `[N, T]`.
    tokens: Vec<i64>,
    labels: Vec<i64>,
    lengths: Option<Vec<Vec<usize>>>,
}

/// Where the largest of some logits is.
fn arg_max(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

struct GoldenCheck<'a> {
    runtime: &'a LoadedBundle<'a>,
    file: ArrayFile,
    batch: usize,
    settings: GoldenSettings,
    rounding: Rounding,
}

impl<'a> GoldenCheck<'a> {
    fn open(runtime: &'a LoadedBundle<'a>, folder: &Utf8Path, batch: usize) -> Result<Self, CompareError> {
        let (file, settings) = reference::open(folder)?;
        let found = runtime.bundle().manifest().numbers();
        let rounding = Rounding::between(settings.recorded(), found, runtime.arithmetic().kind);
        Ok(Self { runtime, file, batch, settings, rounding })
    }

    /// The same, unless its settings say another precision than its folder's name, or none: its tolerances are for
    /// outputs in that type.
    fn of_precision(self, folder: &Utf8Path, precision: Precision) -> Result<Self, CompareError> {
        let says = self.settings.said_precision();
        if says == Some(precision.numbers()) {
            return Ok(self);
        }
        let (folder, precision) = (folder.to_owned(), precision.numbers());
        Err(ReferenceError::OtherPrecision { folder, precision, says }.into())
    }

    fn all(&self, progress: Progress<'_>) -> Result<Vec<Check>, CompareError> {
        let mut observed = Observed::default();
        let given = self.teacher_forced(&mut observed, progress);
        let mut checks = or_failed(CheckId::TeacherForced, given)?;
        checks.extend(or_failed(CheckId::DrawnTokens, self.drawn(observed, progress))?);
        checks.extend(or_failed(CheckId::GreedyTokens, self.greedy(observed, progress))?);
        checks.extend(or_failed(CheckId::Images, self.images(progress).map(|c| vec![c]))?);
        checks.extend(or_failed(CheckId::Codes, self.codes(progress).map(|c| vec![c]))?);
        if checks.iter().all(|c| c.status == Status::NotRun) {
            return Err(reference::holds_nothing(&self.file).into());
        }
        if !self.settings.others.is_empty() {
            checks.push(Check::not_run(CheckId::OtherArrays, reference::not_compared(&self.settings.others)));
        }
        Ok(checks)
    }

    fn has(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    fn tokens(&self) -> usize {
        self.runtime.bundle().system().tokens()
    }

    /// How wide near-ties are at this guidance; `observed` is of unguided logits.
    fn widths(&self, cfg_scale: f32, observed: Observed) -> Widths {
        let logit = observed.logit.map(|e| e * guidance_gain(cfg_scale));
        let rule = self.runtime.bundle().patch_rule();
        Widths::new(self.rounding, rule, cfg_scale, Observed { logit, ..observed })
    }

    /// Logits, entropies and patch lengths over given tokens, and how far they were seen to be from the reference's.
    fn teacher_forced(
        &self,
        observed: &mut Observed,
        progress: Progress<'_>,
    ) -> Result<Vec<Check>, CompareError> {
        let names = [CheckId::Entropy, CheckId::PatchLengths, CheckId::Logits, CheckId::MeanSteps];
        if !self.has("tokens") || !self.has("logits") {
            let why = "the reference has no tokens and logits";
            return Ok(names.map(|id| Check::not_run(id, why)).into());
        }
        let system = self.runtime.bundle().system();
        let t = self.tokens();
        let ids = self.file.i64("tokens", &[None, Some(t)])?;
        let n = ids.shape()[0];
        let labels = self.file.i64("class_labels", &[Some(n)])?;
        let shape = [n, t, system.vocab];
        let stored = logits_shape(&self.file, system, n)?;
        self.file.fitting("logits", &stored)?;
        let lengths = if self.has("patch_lengths") {
            let array = self.file.i64("patch_lengths", &[Some(n), None])?;
            Some(unpad(&array, t, self.file.path(), "patch_lengths")?)
        } else {
            None
        };
        let rule = self.rule_check(n, lengths.as_deref())?;
        let longest = system.longest_patch();
        if lengths.iter().flatten().flatten().any(|l| *l > longest) {
            let why =
                format!("the reference has patches of more than {longest} tokens, this bundle has none");
            let rest = names.map(|id| Check::not_run(id, why.as_str()));
            return Ok(std::iter::once(rule).chain(rest).collect());
        }
        // The reference's own patches, so that a flipped boundary does not hide the logits' difference. Those of the
        // whole reference are too many for memory.
        let (ids, labels) = (ids.into_raw_vec_and_offset().0, labels.into_raw_vec_and_offset().0);
        let mut scoring = self.runtime.scoring(&ids, &labels, lengths.as_deref(), self.batch)?;
        let (mut logits, mut entropy, mut done) = (Differences::default(), None, 0);
        let columns = stored[2].unwrap_or(system.vocab);
        let mut moved = 0;
        self.file.f32_rows("logits", &stored, scoring.batch(), &mut |reference| {
            let Some(scores) = scoring.next_images()? else { return Ok(()) };
            let own = match columns == system.vocab {
                true => Cow::Borrowed(reference),
                false => own_columns(reference.to_vec(), columns, system.vocab).into(),
            };
            logits.add(&own, &scores.logits);
            let pairs = own.chunks(system.vocab).zip(scores.logits.chunks(system.vocab));
            moved += pairs.filter(|(r, f)| arg_max(r) != arg_max(f)).count();
            done += scores.patch_lengths.len();
            if let Some(more) = scores.entropy {
                entropy.get_or_insert_with(Vec::new).extend(more);
            }
            if progress(done, n) { Ok(()) } else { Err(CompareError::from(RunError::Interrupted)) }
        })?;
        observed.logit = logits.largest();
        let limit = |quantity| self.rounding.limit(quantity);
        let mut checks = vec![rule];
        let mut recorded = None;
        match (&entropy, self.has("entropy")) {
            (Some(found), true) => {
                let reference = flat(&self.file.f32("entropy", &[Some(n), Some(t)])?);
                let mut all = Differences::default();
                all.add(&reference, found);
                let limits = [Quantity::Entropy, Quantity::EntropyMean].map(limit);
                checks.push(all.check(CheckId::Entropy, &[n, t], limits[0], limits[1]));
                recorded = Some(reference);
            }
            (None, true) => {
                checks.push(Check::failed(CheckId::Entropy, "the bundle has no entropy model"));
            }
            (_, false) => checks.push(Check::not_run(CheckId::Entropy, "not in the reference")),
        }
        match &lengths {
            Some(reference) => {
                let entropy = [recorded.as_deref(), entropy.as_deref()];
                checks.extend(self.patch_checks(reference, entropy, observed));
            }
            None => checks.push(Check::not_run(CheckId::PatchLengths, "not in the reference")),
        }
        let limits = [Quantity::Logits, Quantity::LogitsMean].map(limit);
        checks.push(logits.check(CheckId::Logits, &shape, limits[0], limits[1]));
        // With float weights every flip is judged by itself, in the greedy images.
        if self.runtime.bundle().manifest().numbers().drawing().weights.is_some() {
            let limit = self.rounding.limit(Quantity::ArgMaxShare);
            checks.push(Check::share(CheckId::ArgMax, "arg-max tokens", (moved, n * t), limit, Vec::new())?);
        }
        Ok(checks)
    }

    /// The bundle's patch rule on the reference's own entropies gives the reference's patches: no rounding is involved,
    /// so nothing is a near-tie.
    fn rule_check(&self, n: usize, lengths: Option<&[Vec<usize>]>) -> Result<Check, CompareError> {
        let skip = |why: &str| Ok(Check::not_run(CheckId::PatchRule, why));
        let system = self.runtime.bundle().system();
        let (rule, t) = (&system.patch_rule, self.tokens());
        if let Some(why) = unlike(rule, &self.settings.rule) {
            return Ok(Check::failed(CheckId::PatchRule, why));
        }
        let Some(lengths) = lengths else { return skip("the reference has no patches") };
        let entropy = match (rule.mode.uses_entropy(), self.has("entropy")) {
            (true, false) => return skip("the reference has no entropies"),
            (true, true) => flat(&self.file.f32("entropy", &[Some(n), Some(t)])?),
            (false, _) => vec![f32::NAN; n * t],
        };
        let mut flips = Vec::new();
        for (image, (reference, next)) in lengths.iter().zip(entropy.chunks(t)).enumerate() {
            let (r, f) = (starts(reference), starts(&rule.lengths(t, &shift_entropy(next))));
            flips.extend((0..t).find(|slot| r.get(*slot) != f.get(*slot)).map(|slot| {
                let choices = [r.get(slot), f.get(slot)].map(|opens| i64::from(opens == Some(&true)));
                Decision::open(DecisionKind::Boundary, image, slot, choices, None)
            }));
        }
        let equal = n - flips.len();
        let detail = format!("{equal} of {n} images get the reference's patches from its entropies");
        let check = Check::holds(CheckId::PatchRule, detail, flips.is_empty());
        Ok(Check { equal: Some([equal, n]), flips, ..check })
    }

    /// Boundaries from this engine's entropies against the reference's patch lengths; `next` has those of the reference, where
    /// it recorded them, and this engine's.
    fn patch_checks(
        &self,
        reference: &[Vec<usize>],
        next: [Option<&[f32]>; 2],
        observed: &mut Observed,
    ) -> [Check; 2] {
        let rule = self.runtime.bundle().patch_rule();
        let t = self.tokens();
        let mut flips = Vec::new();
        let mut steps = Vec::with_capacity(reference.len());
        for (image, reference) in reference.iter().enumerate() {
            let own = |e: Option<&[f32]>| e.map(|e| shift_entropy(&e[image * t..(image + 1) * t]));
            let entropy = next.map(|e| own(e).unwrap_or_default());
            let found = rule.lengths(t, &entropy[1]);
            let (r, f) = (starts(reference), starts(&found));
            let apart = (0..t).find(|i| r.get(*i) != f.get(*i));
            let alike = entropy[0].iter().zip(&entropy[1]).take(apart.unwrap_or(t));
            let errors = alike.map(|(a, b)| f64::from((a - b).abs())).filter(|e| !e.is_nan());
            observed.entropy = errors.chain(observed.entropy).reduce(f64::max);
            flips.extend(apart.map(|slot| {
                let opens = r.get(slot) == Some(&true);
                Decision::boundary(rule, image, slot, opens, [&entropy[0], &entropy[1]])
            }));
            steps.push(found.len());
        }
        let widths = self.widths(1.0, *observed);
        let flips: Vec<Decision> = flips.into_iter().map(|f| f.judged(&widths)).collect();
        let n = reference.len();
        let own = self.settings.steps_teacher.clone();
        let counted = own.unwrap_or_else(|| reference.iter().map(Vec::len).collect());
        let means = [mean(counted.iter().copied()), mean(steps.iter().copied())];
        let steps = Check::mean_steps(CheckId::MeanSteps, means, &flips);
        let detail = format!("{} of {n} images equal", n - flips.len());
        [self.judged(CheckId::PatchLengths, detail, flips, n, self.rounding), steps]
    }

    /// The reference's tokens, drawn again from seed, class and settings, where it says that this project's sampler drew
    /// them.
    fn drawn(&self, observed: Observed, progress: Progress<'_>) -> Result<Vec<Check>, CompareError> {
        let (id, names) = (CheckId::DrawnTokens, ["tokens", "class_labels", "patch_lengths"]);
        let Some(drawing) = self.settings.drawing.filter(|_| self.has(names[0]) && self.has(names[1])) else {
            return Ok(Vec::new());
        };
        let reference = self.decided(names)?;
        let options = drawing.into();
        let (flips, _) = self.decode(&reference, &options, observed, progress)?;
        let n = reference.labels.len();
        let detail = format!(
            "{} of {n} images equal, seed {}, cfg {}",
            n - flips.len(),
            drawing.seed,
            drawing.cfg_scale
        );
        Ok(vec![self.judged(id, detail, flips, n, drawn_so(self.rounding, &options.sampler))])
    }

    /// Arg-max decoding with guidance, cached, from nothing but the class.
    fn greedy(&self, observed: Observed, progress: Progress<'_>) -> Result<Vec<Check>, CompareError> {
        if !self.has("greedy_tokens") {
            return Ok(vec![Check::not_run(CheckId::GreedyTokens, "not in the reference")]);
        }
        let Some(cfg_scale) = self.settings.cfg_scale else {
            return Err(ReferenceError::NoGuidance.into());
        };
        let own = "greedy_class_labels";
        let labels = if self.has(own) { own } else { "class_labels" };
        let reference = self.decided(["greedy_tokens", labels, "greedy_patch_lengths"])?;
        let options = DecodeOptions {
            cfg_scale,
            cfg_interval: self.settings.cfg_interval,
            sampler: SamplerOptions { greedy: true, ..SamplerOptions::default() },
            seed: 0,
        };
        let (flips, streams) = self.decode(&reference, &options, observed, progress)?;
        let n = streams.len();
        let detail = format!("{} of {n} images equal, cfg {cfg_scale}", n - flips.len());
        let mut checks = vec![self.judged(CheckId::GreedyTokens, detail, flips.clone(), n, self.rounding)];
        if let Some(lengths) = reference.lengths {
            let own = self.settings.steps_greedy.clone();
            let counted = own.unwrap_or_else(|| lengths.iter().map(Vec::len).collect());
            let means = [mean(counted.into_iter()), mean(streams.iter().map(Stream::steps))];
            checks.push(Check::mean_steps(CheckId::GreedyMeanSteps, means, &flips));
        }
        Ok(checks)
    }

    /// What the reference decided: arrays of tokens, class labels (the first of as many or more) and, where it has them, patch
    /// lengths.
    fn decided(&self, [tokens, labels, lengths]: [&str; 3]) -> Result<Decided, CompareError> {
        let t = self.tokens();
        let ids = self.file.i64(tokens, &[None, Some(t)])?;
        let n = ids.shape()[0];
        let mut classes = flat(&self.file.i64(labels, &[None])?);
        if classes.len() < n {
            let (file, labels) = (self.file.path().to_owned(), classes.len());
            return Err(ReferenceError::Labels { file, images: n, labels }.into());
        }
        classes.truncate(n);
        let lengths = match self.has(lengths) {
            true => Some(unpad(&self.file.i64(lengths, &[Some(n), None])?, t, self.file.path(), lengths)?),
            false => None,
        };
        Ok(Decided { tokens: flat(&ids), labels: classes, lengths })
    }

    /// Decodes the images of what a reference decided; of each, the first decision that differs, judged.
    fn decode(
        &self,
        reference: &Decided,
        options: &DecodeOptions,
        observed: Observed,
        progress: Progress<'_>,
    ) -> Result<(Vec<Decision>, Vec<Stream>), CompareError> {
        let requests: Vec<Request> =
            (0..).zip(&reference.labels).map(|(index, class)| Request { index, class: *class }).collect();
        let streams = self.runtime.decode(&requests, options, self.batch, progress)?;
        let kind = if options.sampler.greedy { DecisionKind::ArgMax } else { DecisionKind::Draw };
        let widths = self.widths(options.cfg_scale, observed).of_draws(&options.sampler);
        let rule = self.runtime.bundle().patch_rule();
        let mut flips = Vec::new();
        for (i, (stream, tokens)) in streams.iter().zip(reference.tokens.chunks(self.tokens())).enumerate() {
            let lengths = reference.lengths.as_ref().map(|l| &l[i][..]);
            let recorded = Trace { tokens: tokens.into(), lengths, entropy: &[] };
            // A token's margin is that of the stream until its logits are asked.
            let margin = &mut |slot: usize, _| stream.margin.get(slot).map(|m| f64::from(*m));
            flips.extend(first_apart(rule, &widths, (i, kind), [&recorded, &stream.into()], margin));
        }
        let stream_of = |image: usize| streams.get(image);
        judge_by_logits(self.runtime, &mut flips, &stream_of, (options, &widths), progress)?;
        Ok((flips, streams))
    }

    /// A check of the decisions of `images` images, of which each is compared up to its first flip.
    fn judged(
        &self,
        id: CheckId,
        detail: String,
        flips: Vec<Decision>,
        images: usize,
        rounding: Rounding,
    ) -> Check {
        Check::streams(id, detail, flips, (images, self.tokens()), rounding)
    }

    /// The reference's greedy tokens as pictures.
    fn images(&self, progress: Progress<'_>) -> Result<Check, CompareError> {
        let id = CheckId::Images;
        if !self.has("greedy_image_u8") || !self.has("greedy_tokens") {
            return Ok(Check::not_run(id, "not in the reference"));
        }
        if !self.runtime.bundle().has_graph(GraphName::VqDecode) {
            return Ok(Check::failed(id, "the bundle has no tokenizer"));
        }
        let size = self.runtime.bundle().system().image_size;
        let ids = self.file.i64("greedy_tokens", &[None, Some(self.tokens())])?;
        let n = ids.shape()[0];
        let shape = [Some(n), Some(size), Some(size), Some(3)];
        let (ids, t, image) = (flat(&ids), self.tokens(), 3 * size * size);
        let mut decoder = self.runtime.vq_decoder()?;
        let (mut worst, mut count, mut done) = (0, 0, 0);
        self.file.u8_rows("greedy_image_u8", &shape, self.batch, &mut |reference| {
            let rows = reference.len() / image;
            let found = to_u8_nhwc(&decoder.decode(&ids[done * t..(done + rows) * t])?, rows, size, size);
            for d in reference.iter().zip(&found).map(|(r, f)| r.abs_diff(*f)) {
                worst = worst.max(d);
                count += usize::from(d > 0);
            }
            done += rows;
            if progress(done, n) { Ok(()) } else { Err(CompareError::from(RunError::Interrupted)) }
        })?;
        let (limit, worst) = (self.rounding.limit(Quantity::Pixels), f64::from(worst));
        let detail = format!("{n} images, {count} of {} values differ (in steps of 1/255)", done * image);
        let check = Check::holds(id, detail, done == n && limit.holds(worst));
        Ok(Check { max_abs: Some(worst), limit: Some(limit.value()), ..check })
    }

    /// Codes of the reference's images.
    fn codes(&self, progress: Progress<'_>) -> Result<Check, CompareError> {
        let id = CheckId::Codes;
        if !self.has("encode_image") || !self.has("encode_codes") {
            return Ok(Check::not_run(id, "not in the reference"));
        }
        if !self.runtime.bundle().has_graph(GraphName::VqEncode) {
            return Ok(Check::failed(id, "the bundle has no tokenizer"));
        }
        let size = self.runtime.bundle().system().image_size;
        let shape = [None, Some(3), Some(size), Some(size)];
        let (n, t) = (self.file.fitting("encode_image", &shape)?.shape[0], self.tokens());
        let reference = flat(&self.file.i64("encode_codes", &[Some(n), Some(t)])?);
        let (mut encoder, mut found) = (self.runtime.vq_encoder()?, Vec::new());
        self.file.f32_rows("encode_image", &shape, self.batch, &mut |images| {
            found.extend(encoder.encode(images)?);
            if progress(found.len() / t, n) { Ok(()) } else { Err(CompareError::from(RunError::Interrupted)) }
        })?;
        let mut flips = Vec::new();
        for (i, (r, f)) in reference.iter().zip(&found).enumerate().filter(|(_, (r, f))| r != f) {
            flips.push(Decision::open(DecisionKind::Code, i / t, i % t, [*r, *f], None));
        }
        let same = reference.len() == found.len();
        let detail = format!("{} of {} codes equal", reference.len() - flips.len(), reference.len());
        Ok(Check::codes(detail, flips, (reference.len(), same), self.rounding))
    }
}
