//! What a parity run found, as data: the document that `dpar-export parity --json` prints, and what other reports are
//! made from. Nothing here prints.

use std::collections::BTreeMap;

use dpar_engine_api::{Arithmetic, EngineInfo};
use dpar_export_decode::generate::sampler::{Method, SamplerOptions};
use dpar_export_decode::loaded::{Forms, computed};
use dpar_export_metrics::Verdict;
use dpar_export_spec::{ComponentKind, Numbers, PatchRule, Precisions, SystemKind, WeightBits};
use serde::Serialize;

use crate::check::{Check, CheckId, Status};
use crate::decision::{Decision, DecisionKind, Observed, Ties, drawn_so};
use crate::stats::TensorStats;
use crate::tolerance::Rounding;
use crate::verify::Drawing;

/// Name of the reference where a comparison has one: no engine is called so.
pub const REFERENCE: &str = "reference";

/// One parity run over a bundle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParityReport {
    /// [`SCHEMA_VERSION`](crate::check::SCHEMA_VERSION).
    pub schema_version: u32,
    /// Version of this tool.
    pub tool_version: String,
    /// `incomplete` where nothing failed, but an engine that the user named did not run, or there was nothing to compare with.
    pub verdict: Verdict,
    /// What was run.
    pub bundle: BundleId,
    /// How it was run.
    pub settings: ParitySettings,
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
    /// Precision of its graphs, component by component.
    #[serde(flatten)]
    pub precision: Precisions,
    /// The coarsest weights of its components, where some are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightBits>,
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

impl BundleId {
    /// What its graphs compute with, in words.
    pub fn numbers(&self) -> String {
        let weights = self.weights.map(|weights| (ComponentKind::Dpar, weights));
        Numbers::new(self.precision.clone(), weights).to_string()
    }
}

impl EngineResult {
    /// What computed, in words, where that is known.
    pub fn computed(&self) -> Option<String> {
        self.arithmetic.as_ref().map(|a| computed(a, &self.caches))
    }
}

/// The settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParitySettings {
    /// Engine that the others are compared with: the first that ran.
    pub baseline: Option<String>,
    /// Folder name of the reference.
    pub reference: Option<String>,
    /// Where the tokens of the teacher-forced run come from: `reference`, or an engine's free run.
    pub forced_tokens: Option<String>,
    /// Seed of the draws.
    pub seed: u64,
    /// How tokens are drawn.
    pub sampler: Method,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Images in one call.
    pub batch: usize,
    /// How the reference's tokens were drawn, where it says so: its pairs are asked for draws with these settings.
    pub reference_drawing: Option<Drawing>,
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
    /// How the caches of its graphs reached their steps, where it drew and followed tokens.
    pub caches: Forms,
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
    /// How far each draw was from another one, as [`Draw::margin`](dpar_export_decode::generate::sampler::Draw::margin) has it:
    /// with noise the gap to the next token's sum, with `cdf` a probability. Empty where tokens were given.
    pub margin: Vec<f32>,
}

/// Two sources compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// An engine, or `reference`.
    pub baseline: String,
    /// The engine.
    pub engine: String,
    /// `fail` when a tensor is out of tolerance or a decision differs by more than rounding; `inconclusive` when no image is
    /// compared to its end.
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
    /// On given tokens, how many boundaries rounding is expected to move, where that was measured.
    pub expected: Option<f64>,
    /// Every decision that differs.
    pub flips: Vec<Decision>,
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

    /// Adds a check that an engine of this name failed, and judges again.
    pub fn fail(&mut self, engine: &str, id: CheckId, why: impl Into<String>) {
        let check = Check::failed(id, why);
        self.engines.iter_mut().filter(|e| e.engine == engine).for_each(|e| e.checks.push(check.clone()));
        self.judge();
    }

    /// The verdict over what is in the report.
    pub(crate) fn judge(&mut self) {
        let checks = self.engines.iter().flat_map(|e| e.probes.iter().chain(&e.checks));
        let pairs = self.pairs.iter().map(|p| p.status);
        let failed = self.engines.iter().filter(|e| e.status == EngineStatus::Failed).map(|_| Status::Fail);
        let found = Status::verdict(checks.map(|c| c.status).chain(pairs).chain(failed));
        self.verdict = match found {
            Verdict::Fail => Verdict::Fail,
            _ if self.missing_engine() || !self.compared() => Verdict::Incomplete,
            found => found,
        };
    }
}

impl Decisions {
    /// Flips that end the comparison of their image, and are decisions too.
    fn ended(&self) -> usize {
        let ends = |f: &&Decision| self.mode == Mode::FreeRunning || f.kind == DecisionKind::Boundary;
        self.flips.iter().filter(ends).count()
    }

    /// Decisions of a kind that were compared.
    pub(crate) fn compared(&self) -> usize {
        self.slots + self.ended()
    }

    /// Holds the number of near-ties against what the precision allows, with tokens that are drawn so; says what is too much, in
    /// words.
    fn count_ties(&mut self, rounding: Rounding, sampler: &SamplerOptions) -> (Status, Option<String>) {
        let mut near: BTreeMap<DecisionKind, usize> = BTreeMap::new();
        for flip in self.flips.iter().filter(|f| f.near_tie) {
            *near.entry(flip.kind).or_default() += 1;
        }
        let draws = drawn_so(rounding, sampler);
        let count =
            |rounding, ties| Ties::count(rounding, (self.ended(), self.images), (ties, self.compared()));
        // Streams part once, whatever the decision; on given tokens each kind is decided at every slot.
        let ties = match self.mode {
            Mode::FreeRunning => count(draws, near.values().sum()),
            Mode::TeacherForced => {
                let drawn = count(draws, near.remove(&DecisionKind::Draw).unwrap_or(0));
                let others = count(rounding, near.into_values().max().unwrap_or(0));
                if drawn.status == Status::Fail { drawn } else { others }
            }
        };
        self.ties_allowed = ties.allowed;
        let defect = self.flips.iter().any(|f| !f.near_tie);
        (if defect { Status::Fail } else { ties.status }, ties.why)
    }
}

impl Pair {
    /// The result over tensors, flips and the number of near-ties, with tokens that are drawn so.
    pub(crate) fn judge(&mut self, rounding: Rounding, sampler: &SamplerOptions) {
        let mut found: Vec<Status> = self.tensors.iter().map(|t| t.status).collect();
        if self.tensors.iter().all(|t| t.elements == 0) {
            found.push(Status::Fail);
        }
        for decisions in &mut self.decisions {
            let (status, why) = decisions.count_ties(rounding, sampler);
            found.push(status);
            self.notes.extend(why);
        }
        self.status = match Status::verdict(found) {
            Verdict::Pass => Status::Pass,
            Verdict::Inconclusive => Status::Inconclusive,
            Verdict::Fail | Verdict::Incomplete => Status::Fail,
        };
    }
}

#[cfg(test)]
mod tests {
    use dpar_engine_api::ArithmeticKind;

    use dpar_export_spec::Precision;

    use super::*;

    fn decisions(near: usize) -> Decisions {
        let flip = |image| Decision {
            near_tie: true,
            ..Decision::open(DecisionKind::Draw, image, 9, [0, 1], Some(1e-3))
        };
        Decisions {
            mode: Mode::FreeRunning,
            images: 4,
            equal: 4_usize.saturating_sub(near),
            slots: 100 - near,
            mean_steps: [1.0; 2],
            first_off: Vec::new(),
            ties_allowed: None,
            expected: None,
            flips: (0..near).map(flip).collect(),
        }
    }

    fn noise() -> SamplerOptions {
        SamplerOptions::default()
    }

    #[test]
    fn draws_by_the_running_sum_have_a_share_of_their_own() {
        let fp16 = Rounding::between(Precision::Fp32, Precision::Fp16, ArithmeticKind::AsGraph);
        let sums = SamplerOptions { method: Method::Cdf, ..noise() };
        // 5.5 % of 100 decisions, where noise has 2 %.
        let status = |n| decisions(n).count_ties(fp16, &sums).0;
        assert_eq!([3, 4].map(status), [Status::Pass, Status::Inconclusive]);
        let given = |kind, n| {
            let mut given = Decisions { mode: Mode::TeacherForced, ..decisions(n) };
            given.flips.iter_mut().for_each(|flip| flip.kind = kind);
            given.count_ties(fp16, &sums).0
        };
        assert_eq!([6, 7].map(|n| given(DecisionKind::Draw, n)), [Status::Pass, Status::Fail]);
        assert_eq!([2, 3].map(|n| given(DecisionKind::ArgMax, n)), [Status::Pass, Status::Fail]);
    }

    #[test]
    fn near_ties_are_counted_by_mode() {
        let fp16 = Rounding::between(Precision::Fp32, Precision::Fp16, ArithmeticKind::AsGraph);
        // 2 % of 100 decisions.
        let mut two = decisions(2);
        assert_eq!((two.count_ties(fp16, &noise()), two.ties_allowed), ((Status::Pass, None), Some(2)));
        let (status, why) = decisions(3).count_ties(fp16, &noise());
        assert!(
            status == Status::Fail && why.is_some_and(|why| why.contains("3 near-ties in 100 decisions"))
        );
        // fp32: one image is compared to its end.
        let fp32 = |decisions: &Decisions| decisions.clone().count_ties(Rounding::FP32, &noise()).0;
        assert_eq!([3, 4].map(|n| fp32(&decisions(n))), [Status::Pass, Status::Inconclusive]);
        let given = Decisions { mode: Mode::TeacherForced, ..decisions(4) };
        assert_eq!(fp32(&given), Status::Pass, "a draw does not end a comparison");
        assert_eq!(given.clone().count_ties(fp16, &noise()).0, Status::Fail);
        let mut defect = decisions(1);
        defect.flips[0].near_tie = false;
        assert_eq!(fp32(&defect), Status::Fail);
    }
}
