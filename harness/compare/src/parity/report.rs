//! What a parity run found, as data: the document that `dpar-export parity --json` prints, and what other reports are
//! made from. Nothing here prints.

use std::collections::BTreeMap;

use dpar_engine_api::{Arithmetic, EngineInfo};
use dpar_export_spec::{PatchRule, Precision, SystemKind};
use serde::Serialize;

use crate::check::{Check, Status};
use crate::stats::TensorStats;
use crate::tolerance::Limits;

/// Version of the document. It changes when a field changes its meaning or goes; new fields do not change it.
pub const SCHEMA_VERSION: u32 = 1;

/// Name of the reference where a comparison has one: no engine is called so.
pub const REFERENCE: &str = "reference";

/// The outcome of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that was asked for was compared and passed.
    Pass,
    /// A comparison, a probe or a check failed.
    Fail,
    /// Nothing failed, but an engine that the user named did not run, or there was nothing to compare with.
    Incomplete,
}

/// One parity run over a bundle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParityReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of this tool.
    pub tool_version: String,
    /// The outcome.
    pub verdict: Verdict,
    /// What was run.
    pub bundle: BundleId,
    /// How it was run.
    pub settings: Settings,
    /// Every engine asked for, in that order.
    pub engines: Vec<EngineResult>,
    /// Every comparison: the baseline with each other engine, then the reference with each engine.
    pub pairs: Vec<Pair>,
}

/// The bundle of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BundleId {
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// Name of the system.
    pub name: String,
    /// What kind of system.
    pub system: SystemKind,
    /// Precision of its graphs, as in the manifest.
    pub precision: Precision,
    /// The patch rule.
    pub patch_rule: PatchRule,
    /// Tokens of an image, T.
    pub tokens: usize,
    /// Codebook size, V.
    pub vocab: usize,
    /// Pixels of an image's side.
    pub image_size: usize,
    /// Whether tokens can be decoded to images.
    pub has_tokenizer: bool,
}

/// The settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Engine that the others are compared with: the first that ran.
    pub baseline: Option<String>,
    /// Folder name of the reference.
    pub reference: Option<String>,
    /// Where the tokens of the teacher-forced run come from: `reference`, or an engine's free run.
    pub forced_tokens: Option<String>,
    /// Seed of the draws.
    pub seed: u64,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Images in one call.
    pub batch: usize,
}

/// How an engine of a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineStatus {
    /// It ran everything.
    Ran,
    /// It is not available, or has not a setting of the run; `reason` says why.
    NotRun,
    /// It refused a graph, failed while running, or gave outputs that cannot be: a shape, a dtype or a number that is none.
    Failed,
}

/// What one engine did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineResult {
    /// Name as given to `--engines`.
    pub engine: String,
    /// Whether the user named it.
    pub asked_for: bool,
    /// How it ended.
    pub status: EngineStatus,
    /// Whether it did not run because this machine or this build lacks it.
    pub absent: bool,
    /// What really ran.
    pub info: Option<EngineInfo>,
    /// What it computes graphs of this precision with.
    pub arithmetic: Option<Arithmetic>,
    /// Why it did not run.
    pub reason: Option<String>,
    /// The next step, where there is one.
    pub hint: Option<String>,
    /// Seconds of its free and teacher-forced runs.
    pub seconds: f64,
    /// Reference-free probes.
    pub probes: Vec<Check>,
    /// The checks that `verify --reference` makes.
    pub checks: Vec<Check>,
    /// Streams drawn with the settings' seed.
    pub free_running: Vec<ImageTrace>,
    /// What it decided where the tokens were given.
    pub teacher_forced: Vec<ImageTrace>,
}

/// The decisions for one image. Patch starts are where lengths begin; slot t is token t.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageTrace {
    /// Index of the image in the run: its draws depend on it.
    pub image: u64,
    /// Class label.
    pub class: i64,
    /// T tokens in raster order: drawn, or given.
    pub tokens: Vec<u32>,
    /// Patch lengths; they sum to T.
    pub patch_lengths: Vec<usize>,
    /// e_t in nats; null at 0 and where no entropy model runs.
    pub entropy: Vec<Option<f32>>,
    /// Distance of each draw to the nearest other token (probability). Empty where tokens were given.
    pub margin: Vec<f32>,
}

/// Two sources compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// An engine, or `reference`.
    pub baseline: String,
    /// The engine.
    pub engine: String,
    /// `fail` when a tensor is out of tolerance or a decision differs by more than rounding.
    pub status: Status,
    /// What could not be compared, and why it failed where no tensor or flip says so.
    pub notes: Vec<String>,
    /// Largest errors between the two, from the teacher-forced run up to each image's first boundary flip.
    pub observed: Observed,
    /// Per output: `graph/output` on the same inputs, then `logits` and `entropy` of the whole loop.
    pub tensors: Vec<TensorStats>,
    /// Decisions, teacher-forced and free-running.
    pub decisions: Vec<Decisions>,
}

/// Largest numeric errors of a pair; null where nothing was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Observed {
    /// Of an entropy, nats.
    pub entropy: Option<f64>,
    /// Of a guided logit.
    pub logit: Option<f64>,
    /// Of a cumulative probability.
    pub draw: Option<f64>,
}

/// How the tokens came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Both sources see the same tokens; every slot is compared.
    TeacherForced,
    /// Each source draws its own; an image is compared up to its first divergence.
    FreeRunning,
}

/// Decisions of a pair in one mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decisions {
    /// Which mode.
    pub mode: Mode,
    /// Images compared.
    pub images: usize,
    /// Images without a flip.
    pub equal: usize,
    /// Slots compared: those of the equal images, and those before a first divergence.
    pub slots: usize,
    /// Mean steps of the baseline and of the engine.
    pub mean_steps: [f64; 2],
    /// By image, the first slot whose boundary, entropy or logits differ by more than the tolerance; null where none
    /// does. Free-running: the slot of the divergence.
    pub first_off: Vec<Option<usize>>,
    /// How many near-ties of one kind rounding explains; null = any number, as long as an image is equal to its end.
    pub ties_allowed: Option<usize>,
    /// Every decision that differs.
    pub flips: Vec<JudgedFlip>,
}

/// Which decision differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// Whether a token opens a patch; choices are 1 and 0.
    Boundary,
    /// Which token is drawn.
    Draw,
    /// Which token has the largest guided logit.
    ArgMax,
}

/// Why a decision differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// The margin is within what rounding explains for this pair.
    NearTie,
    /// It is not.
    Defect,
}

/// A decision that differs, with what it hung on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgedFlip {
    /// Which decision.
    pub decision: DecisionKind,
    /// Position of the image in the run.
    pub image: usize,
    /// Slot.
    pub slot: usize,
    /// Choice of the baseline and of the engine.
    pub choices: [i64; 2],
    /// The entropies that decided a boundary.
    pub entropy: Option<[f32; 2]>,
    /// Threshold of a boundary.
    pub threshold: Option<f32>,
    /// Boundaries: smaller distance of the two entropies to the threshold, in nats. Tokens: larger gap of the two sources
    /// between the two choices, in guided logits or probability. Null where no rounding could change the decision.
    pub margin: Option<f64>,
    /// Largest margin that rounding explains for this pair.
    pub limit: f64,
    /// The verdict.
    pub judgement: Judgement,
}

impl ParityReport {
    /// Whether an engine that the user named did not run.
    pub fn missing_engine(&self) -> bool {
        self.engines.iter().any(|e| e.asked_for && e.status == EngineStatus::NotRun)
    }

    /// Whether this machine or this build lacks an engine.
    pub fn lacks_engine(&self) -> bool {
        self.engines.iter().any(|e| e.absent)
    }

    /// Whether there was anything to compare with: two engines that ran, or a reference.
    pub fn compared(&self) -> bool {
        let checks = || self.engines.iter().flat_map(|e| &e.checks);
        !self.pairs.is_empty() || checks().any(|c| c.status != Status::NotRun)
    }

    /// The verdict over what is in the report.
    pub(crate) fn judge(&mut self) {
        let checks = || self.engines.iter().flat_map(|e| e.probes.iter().chain(&e.checks));
        let failed = self.pairs.iter().any(|p| p.status == Status::Fail)
            || self.engines.iter().any(|e| e.status == EngineStatus::Failed)
            || checks().any(|c| c.status == Status::Fail);
        self.verdict = match failed {
            true => Verdict::Fail,
            false if self.missing_engine() || !self.compared() => Verdict::Incomplete,
            false => Verdict::Pass,
        };
    }
}

impl Decisions {
    /// Holds the number of near-ties against what the precision allows; says what is too much, in words.
    pub(crate) fn count_ties(&mut self, limits: &Limits) -> Option<String> {
        let mut near: BTreeMap<DecisionKind, usize> = BTreeMap::new();
        for flip in self.flips.iter().filter(|f| f.judgement == Judgement::NearTie) {
            *near.entry(flip.decision).or_default() += 1;
        }
        // A flip that ends the comparison of its image is a decision too.
        let ends = |f: &&JudgedFlip| self.mode == Mode::FreeRunning || f.decision == DecisionKind::Boundary;
        let ended = self.flips.iter().filter(ends).count();
        if limits.tie_rate.is_none() {
            let none_equal = self.images > 0 && ended >= self.images;
            return none_equal.then(|| {
                "no image is compared to its end: every one parts at a flip; take more images".to_owned()
            });
        }
        let compared = self.slots + ended;
        let allowed = limits.ties(compared);
        self.ties_allowed = Some(allowed);
        // Streams part once, whatever the decision; on given tokens each kind is decided at every slot.
        let most = match self.mode {
            Mode::FreeRunning => near.values().sum::<usize>(),
            Mode::TeacherForced => near.values().copied().max().unwrap_or(0),
        };
        (most > allowed).then(|| {
            format!(
                "{most} near-ties in {compared} decisions are more than the {allowed} that rounding explains"
            )
        })
    }
}

impl Pair {
    /// The verdict over tensors, flips and the number of near-ties.
    pub(crate) fn judge(&mut self, limits: &Limits) {
        let out = self.tensors.iter().any(|t| t.status == Status::Fail);
        let defect = self.decisions.iter().flat_map(|d| &d.flips).any(|f| f.judgement == Judgement::Defect);
        let compared = self.tensors.iter().any(|t| t.elements > 0);
        let many: Vec<String> = self.decisions.iter_mut().filter_map(|d| d.count_ties(limits)).collect();
        self.status =
            if out || defect || !compared || !many.is_empty() { Status::Fail } else { Status::Pass };
        self.notes.extend(many);
    }
}

#[cfg(test)]
mod tests {
    use dpar_engine_api::ArithmeticKind;

    use super::*;

    fn decisions(near: usize) -> Decisions {
        let flip = |image| JudgedFlip {
            decision: DecisionKind::Draw,
            image,
            slot: 9,
            choices: [0, 1],
            entropy: None,
            threshold: None,
            margin: Some(1e-3),
            limit: 1e-2,
            judgement: Judgement::NearTie,
        };
        Decisions {
            mode: Mode::FreeRunning,
            images: 4,
            equal: 4 - near,
            slots: 100 - near,
            mean_steps: [1.0; 2],
            first_off: Vec::new(),
            ties_allowed: None,
            flips: (0..near).map(flip).collect(),
        }
    }

    #[test]
    fn more_near_ties_than_the_precision_allows_fail() {
        let fp16 = Limits::between(Precision::Fp32, Precision::Fp16, ArithmeticKind::AsGraph);
        // 2 % of 100 decisions.
        let mut two = decisions(2);
        assert_eq!((two.count_ties(&fp16), two.ties_allowed), (None, Some(2)));
        let why = decisions(3).count_ties(&fp16).unwrap();
        assert!(why.contains("3 near-ties in 100 decisions") && why.contains("the 2 that"), "{why}");
        // fp32: one image is compared to its end.
        assert_eq!(decisions(3).count_ties(&Limits::FP32), None);
        assert!(decisions(4).count_ties(&Limits::FP32).is_some());
        let given = Decisions { mode: Mode::TeacherForced, ..decisions(4) };
        assert_eq!(given.clone().count_ties(&Limits::FP32), None, "a draw does not end a comparison");
        assert!(given.clone().count_ties(&fp16).is_some());
    }
}
