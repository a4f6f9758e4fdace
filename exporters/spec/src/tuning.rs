//! The sizes that engines are tuned for: how many patches an image has and how long they are.
//!
//! A profile's opt point should be what comes most often. Token axes follow from the loop alone (one new slot, half of
//! the sequence behind it on average). Patch axes depend on the images: they follow from the paper's table, from a
//! `generate` run, or from images generated for the purpose.

use serde::{Deserialize, Serialize};

use crate::{GraphName, GraphSpec, PatchMode, Profile, SystemSpec};

/// Systems of the paper's table: tokens a row, threshold, longest patch, mean steps of an image.
const PUBLISHED: [(usize, f32, usize, f64); 2] = [(16, 7.8, 4, 142.0), (24, 7.9, 4, 280.0)];
/// Patches a token of the first of them, taken where nothing else is known.
const USUAL: f64 = 142.0 / 256.0;
/// Images of a call that the graphs are tuned for (their `batch` axis).
const IMAGES_OF_A_CALL: f64 = 8.0;

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

    /// What the patch lengths of some images say; `None` where there is no image.
    pub fn measured(source: TuningSource, lengths: &[Vec<usize>], tokens: usize) -> Option<Self> {
        let count: usize = lengths.iter().map(Vec::len).sum();
        if count == 0 {
            return None;
        }
        let patches = count as f64 / lengths.len() as f64;
        // A call embeds the patches that close at one slot, padded to the longest of them. Of n lengths drawn from the
        // distribution F, the largest is on average the sum over l of P(largest >= l) = 1 - F(l - 1)^n.
        let closing = IMAGES_OF_A_CALL * patches / tokens.max(1) as f64;
        let below = |l: usize| lengths.iter().flatten().filter(|x| **x < l).count() as f64 / count as f64;
        let longest = lengths.iter().flatten().copied().max().unwrap_or(1);
        let patch_length = (1..=longest).map(|l| 1.0 - below(l).powf(closing.max(1.0))).sum();
        Some(Self { source, patches, patch_length, tokens, images: Some(lengths.len()), trace_sha256: None })
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
        match GraphName::of(&spec.name) {
            // Each image closes a patch at `share` of the slots.
            Some(GraphName::PatchEmbed) => {
                set("patches", opening);
                set("patch_length", self.patch_length);
            }
            // The same images open one; guidance runs each twice. Half of an image's patches lie behind it.
            Some(GraphName::GlobalStep) => {
                set("batch", 2.0 * opening);
                set("past_patches", self.patches / 2.0);
            }
            // Whole images.
            Some(GraphName::Score) => {
                set("patches", IMAGES_OF_A_CALL * self.patches);
                set("global_slots", self.patches);
            }
            Some(
                GraphName::EntropyStep
                | GraphName::Start
                | GraphName::EncoderStep
                | GraphName::DecoderStep
                | GraphName::LlamagenStep
                | GraphName::VqDecode
                | GraphName::VqEncode
                | GraphName::Inception
                | GraphName::EfficientnetLite0
                | GraphName::Features,
            )
            | None => {}
        }
    }
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
        assert_eq!(Tuning::measured(TuningSource::Trace, &[], 8), None);
        // One length only: that one.
        let t = Tuning::measured(TuningSource::Trace, &[vec![2, 2, 2, 2]], 8).unwrap();
        assert_eq!(t.patch_length, 2.0);
    }
}
