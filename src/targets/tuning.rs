//! The sizes that engines are tuned for: how many patches an image has and how long they are.
//!
//! A profile's opt point should be what comes most often. Token axes follow from the loop alone (one new slot, half of
//! the sequence behind it on average). Patch axes depend on the images: they follow from the paper's table, from a
//! `generate` run, or from images generated for the purpose.

use camino::Utf8Path;
use dpar_engine_api::Engine;
use dpar_export_spec::{GraphSpec, PatchMode, Precision, Profile, SystemSpec};
use serde::{Deserialize, Serialize};

use super::{TargetError, TargetErrorKind};
use crate::arrays::ArrayFile;
use crate::bundle::{Bundle, digest};
use crate::engines::{self, EngineOptions};
use crate::generate::sampler::{SamplerOptions, image_key, random_class};
use crate::generate::{DecodeOptions, Request};
use crate::patches::unpad;
use crate::runtime::{Progress, RunError, Runtime};

/// Systems of the paper's table: tokens a row, threshold, longest patch, mean steps of an image.
const PUBLISHED: [(usize, f32, usize, f64); 2] = [(16, 7.8, 4, 142.0), (24, 7.9, 4, 280.0)];
/// Patches a token of the first of them, taken where nothing else is known.
const USUAL: f64 = 142.0 / 256.0;
/// Images of a call that the graphs are tuned for (their `batch` axis).
const IMAGES_OF_A_CALL: f64 = 8.0;
/// Guidance of generated images: in the middle of the published scales (1.75 to 2.1).
const CALIBRATION_CFG: f32 = 2.0;
/// Images decoded together.
const CALIBRATION_BATCH: usize = 8;

/// Where the numbers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuningSource {
    /// The patch rule leaves no choice: every token a patch, or a fixed patch size.
    Rule,
    /// The paper's table lists this grid with this patch rule.
    Table,
    /// Nothing is known of the system: the ratio of the paper's 256-px systems.
    Assumed,
    /// Measured on a `generate` run.
    Trace,
    /// Measured on images that were generated for it.
    Calibration,
}

/// What an image costs in patches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Where the numbers come from.
    pub source: TuningSource,
    /// Mean number of patches of an image.
    pub patches: f64,
    /// Longest patch to expect among those that close in one call.
    pub patch_length: f64,
    /// Tokens of an image.
    pub tokens: usize,
    /// Images that were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// SHA-256 of the trace that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_sha256: Option<String>,
}

impl From<RunError> for TargetError {
    fn from(e: RunError) -> Self {
        let (kind, hint) = match &e {
            RunError::Interrupted | RunError::Decode(crate::generate::DecodeError::Interrupted) => {
                (TargetErrorKind::Stopped, None)
            }
            RunError::Engine(e) if e.kind == dpar_engine_api::EngineErrorKind::Unavailable => {
                (TargetErrorKind::Unavailable, e.hint.clone())
            }
            _ => (TargetErrorKind::Refused, None),
        };
        Self { kind, message: format!("calibration: {e}"), hint }
    }
}

impl Tuning {
    /// What is known of a system without running it.
    pub fn of_system(system: &SystemSpec) -> Self {
        let (rule, tokens) = (&system.patch_rule, system.tokens());
        let table = PUBLISHED.iter().find(|(grid, threshold, longest, _)| {
            rule.mode == PatchMode::EntropyRowBoundary
                && !rule.monotonicity
                && rule.block_size.is_none()
                && (rule.grid, rule.threshold, rule.max_patch_length)
                    == (*grid, Some(*threshold), Some(*longest))
        });
        let (source, patches) = match (rule.mode, rule.patch_size, table) {
            (PatchMode::Token, ..) => (TuningSource::Rule, tokens as f64),
            (PatchMode::Static, Some(size), _) => (TuningSource::Rule, (tokens as f64 / size).ceil()),
            (_, _, Some((.., steps))) => (TuningSource::Table, *steps),
            _ => (TuningSource::Assumed, (tokens as f64 * USUAL).ceil()),
        };
        let mean = tokens as f64 / patches.max(1.0);
        let patch_length = mean.ceil().min(rule.longest_patch(tokens) as f64);
        Self { source, patches, patch_length, tokens, images: None, trace_sha256: None }
    }

    /// What the patch lengths of some images say.
    ///
    /// # Errors
    /// When there is no image.
    pub fn measured(
        source: TuningSource,
        lengths: &[Vec<usize>],
        tokens: usize,
    ) -> Result<Self, TargetError> {
        let count: usize = lengths.iter().map(Vec::len).sum();
        if count == 0 {
            return Err(TargetError::refused("no image to measure patches of", None));
        }
        let patches = count as f64 / lengths.len() as f64;
        // A call embeds the patches that close at one slot, padded to the longest of them. Of n lengths drawn from the
        // distribution F, the largest is on average the sum over l of P(largest >= l) = 1 - F(l - 1)^n.
        let closing = IMAGES_OF_A_CALL * patches / tokens.max(1) as f64;
        let below = |l: usize| lengths.iter().flatten().filter(|x| **x < l).count() as f64 / count as f64;
        let longest = lengths.iter().flatten().copied().max().unwrap_or(1);
        let patch_length = (1..=longest).map(|l| 1.0 - below(l).powf(closing.max(1.0))).sum();
        Ok(Self { source, patches, patch_length, tokens, images: Some(lengths.len()), trace_sha256: None })
    }

    /// Measures the `trace.npz` of a `generate` run.
    ///
    /// # Errors
    /// When the file has no patch lengths of images of this system.
    pub fn of_trace(path: &Utf8Path, system: &SystemSpec) -> Result<Self, TargetError> {
        let hint = Some("give the trace.npz that `dpar-export generate` wrote with this model");
        let refuse = |e: &dyn std::fmt::Display| TargetError::refused(e.to_string(), hint);
        let array = ArrayFile::open(path)
            .and_then(|file| file.i64("patch_lengths", &[None, None]))
            .map_err(|e| refuse(&e))?;
        let tokens = system.tokens();
        let lengths = unpad(&array, tokens, "patch_lengths").map_err(|e| refuse(&format!("{path}: {e}")))?;
        let allowed = system.patch_rule.longest_patch(tokens);
        if let Some(l) = lengths.iter().flatten().find(|l| **l > allowed) {
            let message = format!("{path}: a patch of {l} tokens; this model's longest is {allowed}");
            return Err(refuse(&message));
        }
        let (_, sha256) = digest(path).map_err(|e| refuse(&e))?;
        let measured = Self::measured(TuningSource::Trace, &lengths, tokens)?;
        Ok(Self { trace_sha256: Some(sha256), ..measured })
    }

    /// Generates images 0 to `images` - 1 of seed 0 on the embedded engine and measures them.
    ///
    /// # Errors
    /// When the engine is not there, the model fails, or `progress` returns false.
    pub fn of_images(bundle: &Bundle, images: u32, progress: Progress<'_>) -> Result<Self, TargetError> {
        let system = bundle.system();
        let options = EngineOptions { bundle: Some(bundle), ..EngineOptions::default() };
        let engine = embedded(bundle.manifest().precision, &options)?;
        let runtime = Runtime::new(bundle, engine).map_err(RunError::from)?;
        let decode = DecodeOptions {
            cfg_scale: CALIBRATION_CFG,
            cfg_interval: None,
            sampler: SamplerOptions::default(),
            seed: 0,
        };
        let classes = system.num_classes as u64;
        let request =
            |index: u64| Request { index, class: random_class(image_key(0, index), classes) as i64 };
        let requests: Vec<Request> = (0..u64::from(images)).map(request).collect();
        let streams = runtime.decode(&requests, &decode, CALIBRATION_BATCH, progress)?;
        let lengths: Vec<Vec<usize>> = streams.into_iter().map(|s| s.patch_lengths).collect();
        Self::measured(TuningSource::Calibration, &lengths, system.tokens())
    }

    /// Moves the opt point of the patch axes of a profile. Sizes stay inside the profile's range.
    pub fn apply(&self, spec: &GraphSpec, profile: &mut Profile) {
        let share = self.patches / self.tokens.max(1) as f64;
        let opening = (IMAGES_OF_A_CALL * share).round().max(1.0);
        let mut set = |axis: &str, size: f64| {
            if let Some(range) = profile.axes.get_mut(axis) {
                range.opt = (size.round().max(0.0) as usize).clamp(range.min, range.max);
            }
        };
        match spec.name.as_str() {
            // Each image closes a patch at `share` of the slots.
            "patch_embed" => {
                set("patches", opening);
                set("patch_length", self.patch_length);
            }
            // The same images open one; guidance runs each twice. Half of an image's patches lie behind it.
            "global_step" => {
                set("batch", 2.0 * opening);
                set("past_patches", self.patches / 2.0);
            }
            // Whole images.
            "score" => {
                set("patches", IMAGES_OF_A_CALL * self.patches);
                set("global_slots", self.patches);
            }
            _ => {}
        }
    }
}

/// The embedded engine, if it computes graphs of a precision.
fn embedded(precision: Precision, options: &EngineOptions<'_>) -> Result<Box<dyn Engine>, TargetError> {
    let engine = engines::create(engines::DEFAULT_ENGINE, options).map_err(RunError::from)?;
    match engine.arithmetic(precision) {
        Ok(_) => Ok(engine),
        // The engine's own hint, to build TensorRT engines, is what led here.
        Err(e) => Err(TargetError {
            hint: Some(
                "give the trace.npz of the fp32 bundle with --calibrate-from, or leave --calibrate out"
                    .to_owned(),
            ),
            ..RunError::from(e).into()
        }),
    }
}

/// Checks whether [`Tuning::of_images`] can generate images with graphs of a precision.
///
/// # Errors
/// When the embedded engine is not there, or does not compute such graphs.
pub fn check_images(precision: Precision) -> Result<(), TargetError> {
    embedded(precision, &EngineOptions::default()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_measured() {
        // Two images of 8 tokens: 3 and 5 patches.
        let lengths = [vec![1, 4, 3], vec![1, 2, 1, 2, 2]];
        let t = Tuning::measured(TuningSource::Trace, &lengths, 8).unwrap();
        assert_eq!((t.patches, t.images), (4.0, Some(2)));
        // 8 images close 4 patches a call. F(0..4) = 0, 3/8, 6/8, 7/8, 1.
        let expected = 1.0 + (1.0 - 0.375_f64.powi(4)) + (1.0 - 0.75_f64.powi(4)) + (1.0 - 0.875_f64.powi(4));
        assert!((t.patch_length - expected).abs() < 1e-12, "{t:?}");
        assert!(Tuning::measured(TuningSource::Trace, &[], 8).is_err());
        // One length only: that one.
        let t = Tuning::measured(TuningSource::Trace, &[vec![2, 2, 2, 2]], 8).unwrap();
        assert_eq!(t.patch_length, 2.0);
    }
}
