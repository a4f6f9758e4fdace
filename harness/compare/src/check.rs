//! One comparison: a check with its result, and what several come to.

use dpar_export_decode::loaded::RunError;
use dpar_export_metrics::fraction_interval;
use serde::Serialize;

use crate::CompareError;
use crate::decision::{Decision, Ties};
use crate::tolerance::{Limit, Rounding};

pub use crate::status::{SCHEMA_VERSION, Status};

macro_rules! ids {
    ($($id:ident $name:literal)*) => {
        /// What is compared.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum CheckId {
            $(#[doc = $name] $id,)*
        }

        impl CheckId {
            /// Its name for people.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$id => $name,)*
                }
            }
        }
    };
}

ids! {
    TeacherForced "teacher-forced outputs"
    PatchRule "patch rule"
    Entropy "entropy"
    PatchLengths "patch lengths"
    Logits "logits"
    MeanSteps "mean steps"
    DrawnTokens "drawn tokens"
    ArgMax "arg-max tokens"
    GreedyTokens "greedy tokens"
    GreedyMeanSteps "greedy mean steps"
    Images "images"
    Codes "codes"
    OwnReference "reference"
    OtherArrays "other arrays"
    StreamLabels "stream labels"
    StreamMeanSteps "stream mean steps"
    StreamPatchLengths "stream patch lengths"
    StreamTokens "stream tokens"
    StreamEntropy "stream entropy"
    Caches "probe: caches in place"
    Shapes "probe: shapes"
    RepeatedRuns "probe: repeated runs"
    IdenticalRows "probe: identical rows"
    EqualRows "probe: equal rows"
    BatchOne "probe: batch 1 = batch N"
    MaskedPast "probe: masked past"
    Steps "probe: steps = whole sequence"
    Padding "probe: padding"
    Attestation "attestation"
    SampleImages "sample images"
    RunsToTheEnd "runs to the end"
    Comparison "comparison"
    GivenDecisions "decisions on given tokens"
    OwnDecisions "decisions on its own tokens"
    GraphOutputs "graph outputs"
    Notes "notes"
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was compared.
    pub id: CheckId,
    /// The same for people, with what it was compared with where there are several.
    pub name: String,
    /// Result.
    pub status: Status,
    /// Largest absolute difference, for tensors.
    pub max_abs: Option<f64>,
    /// Tolerance it was held against.
    pub limit: Option<f64>,
    /// How many of how many are equal, for decisions.
    pub equal: Option<[usize; 2]>,
    /// How many boundaries rounding is expected to move, where that was measured.
    pub expected: Option<f64>,
    /// The reference's mean and the found one, for steps.
    pub means: Option<[f64; 2]>,
    /// Shapes, counts, or the place of the worst difference.
    pub detail: String,
    /// Decisions that differ.
    pub flips: Vec<Decision>,
}

impl Check {
    /// A check with its result and no figures.
    pub fn new(id: CheckId, status: Status, detail: impl Into<String>) -> Self {
        let (max_abs, limit, equal, expected, means) = (None, None, None, None, None);
        let (name, detail, flips) = (id.name().to_owned(), detail.into(), Vec::new());
        Self { id, name, status, max_abs, limit, equal, expected, means, detail, flips }
    }

    /// The same with a longer name.
    #[must_use]
    pub(crate) fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    pub(crate) fn not_run(id: CheckId, why: impl Into<String>) -> Self {
        Self::new(id, Status::NotRun, why)
    }

    /// A check that did not come to an end, and why; or the reference holds what this bundle cannot compute: no pass.
    pub fn failed(id: CheckId, why: impl Into<String>) -> Self {
        Self::new(id, Status::Fail, why)
    }

    /// A check that holds or not.
    pub(crate) fn holds(id: CheckId, detail: impl Into<String>, holds: bool) -> Self {
        Self::new(id, Status::of(holds), detail)
    }

    /// Compares floats of shape `shape` element by element.
    #[cfg(test)]
    fn tensor(id: CheckId, shape: &[usize], reference: &[f32], found: &[f32], limit: Limit) -> Self {
        let mut all = Differences::default();
        all.add(reference, found);
        all.check(id, shape, limit, Limit::NONE)
    }

    /// A check of mean steps over all images. They must be equal, unless an image parts from the reference at a
    /// near-tie: then only the images that do not part can be compared, and were.
    pub(crate) fn mean_steps(id: CheckId, means: [f64; 2], flips: &[Decision]) -> Self {
        let [reference, found] = means;
        let parted = flips.len();
        let mut detail = format!("reference {reference:.4}, found {found:.4}");
        if parted > 0 {
            detail += &format!(" ({parted} images part at a flip)");
        }
        let tied = parted > 0 && flips.iter().all(|f| f.near_tie);
        // Both are sums of integers over the same count: equal numbers are equal to the last bit.
        Self { means: Some(means), ..Self::holds(id, detail, reference == found || tied) }
    }

    /// A check of the decisions of `images` streams of `slots` slots, each compared up to its first flip: every flip is a
    /// near-tie, there are no more of them than the precision allows, and one image is compared to its end. Not run without
    /// an image.
    pub(crate) fn streams(
        id: CheckId,
        mut detail: String,
        flips: Vec<Decision>,
        (images, slots): (usize, usize),
        rounding: Rounding,
    ) -> Self {
        if images == 0 {
            return Self::not_run(id, "no images to compare");
        }
        let ties = Ties::of_streams(rounding, &flips, (images, slots));
        let boundaries = id == CheckId::PatchLengths;
        let expected = rounding.boundaries_moved(ties.compared).filter(|_| boundaries);
        if let Some(allowed) = ties.allowed.filter(|_| !flips.is_empty() || expected.is_some()) {
            let usual = expected.map(|n| format!("{n:.1} expected by rounding, ")).unwrap_or_default();
            let (count, compared) = (flips.len(), ties.compared);
            detail +=
                &format!(", {count} flips in {compared} decisions ({usual}{allowed} near-ties allowed)");
        }
        // That there are too many is said by the numbers.
        if let Some(why) = ties.why.filter(|_| ties.allowed.is_none() || ties.status == Status::Inconclusive)
        {
            detail += &format!("; {why}");
        }
        let explained = flips.iter().all(|f| f.near_tie);
        Self {
            equal: Some([images.saturating_sub(flips.len()), images]),
            expected,
            flips,
            ..Self::new(id, if explained { ties.status } else { Status::Fail }, detail)
        }
    }

    /// A check of how many of many decisions differ: no larger share than `limit`, which as many as these can show or not, and
    /// of those that are listed every one a near-tie.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn share(
        id: CheckId,
        what: &str,
        (differing, compared): (usize, usize),
        limit: Limit,
        flips: Vec<Decision>,
    ) -> Result<Self, CompareError> {
        let (low, high) = fraction_interval(differing, compared).map_err(RunError::from)?;
        let status = match (limit.holds(high), limit.holds(low)) {
            _ if flips.iter().any(|f| !f.near_tie) => Status::Fail,
            (true, _) => Status::Pass,
            (false, true) => Status::Inconclusive,
            (false, false) => Status::Fail,
        };
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let detail = format!(
            "{differing} of {compared} {what} differ: {} to {} (90 %), {} allowed",
            percent(low),
            percent(high),
            limit.finite().map_or("any share is".to_owned(), |most| format!("{} are", percent(most)))
        );
        Ok(Self { equal: Some([compared - differing, compared]), flips, ..Self::new(id, status, detail) })
    }

    /// A check of codes, whose margins no graph gives: in a half type a named share of them may differ.
    pub(crate) fn codes(
        mut detail: String,
        mut flips: Vec<Decision>,
        (count, same): (usize, bool),
        rounding: Rounding,
    ) -> Self {
        let allowed = rounding.codes(count);
        if !flips.is_empty() && allowed > 0 {
            detail += &format!(", {allowed} may differ by rounding");
        }
        let few = flips.len() <= allowed;
        flips.iter_mut().for_each(|flip| flip.near_tie = few);
        let equal = Some([count - flips.len(), count]);
        Self { equal, flips, ..Self::holds(CheckId::Codes, detail, same && few) }
    }
}

/// Differences of two tensors that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// Elements of the reference and of what was found.
    counts: [usize; 2],
    worst: f64,
    /// Of all distances.
    sum: f64,
    /// Place and values of the worst, the first of all where none differs.
    at: Option<(usize, f32, f32)>,
    /// The first difference that is no number.
    bad: Option<(usize, f32, f32)>,
}

impl Differences {
    /// Adds the next elements of both.
    pub(crate) fn add(&mut self, reference: &[f32], found: &[f32]) {
        for (i, (r, f)) in reference.iter().zip(found).enumerate() {
            let place = (self.counts[0] + i, *r, *f);
            let d = f64::from((r - f).abs());
            self.sum += d;
            if !d.is_finite() && self.bad.is_none() && !(r.is_nan() && f.is_nan()) {
                self.bad = Some(place);
            }
            if d > self.worst || self.at.is_none() {
                self.at = Some(place);
                self.worst = self.worst.max(d);
            }
        }
        self.counts[0] += reference.len();
        self.counts[1] += found.len();
    }

    /// The check of tensors of shape `shape`: no element further away than `limit`, and on average no further than `mean`. Not
    /// run without an element.
    pub(crate) fn check(&self, id: CheckId, shape: &[usize], limit: Limit, mean: Limit) -> Check {
        let [reference, found] = self.counts;
        if self.counts == [0; 2] {
            return Check::not_run(id, "no values to compare");
        }
        let mut detail = if reference == found {
            let (at, values) = match self.bad.or(self.at) {
                Some((at, r, f)) => (at, format!(": reference {r}, found {f}")),
                None => (0, String::new()),
            };
            format!("{found} values; largest difference at {:?}{values}", unravel(at, shape))
        } else {
            format!("{found} values, the reference has {reference}")
        };
        let mut pass = reference == found && self.bad.is_none() && limit.holds(self.worst);
        if let Some(allowed) = mean.finite() {
            let found = self.sum / found.max(1) as f64;
            detail += &format!("; mean difference {found:.2e}, allowed {allowed:.2e}");
            pass &= mean.holds(found);
        }
        let (max_abs, limit) = (self.largest(), Some(limit.value()));
        Check { max_abs, limit, ..Check::holds(id, detail, pass) }
    }

    /// The largest difference; `None` before anything was compared.
    pub(crate) fn largest(&self) -> Option<f64> {
        (self.counts[0] > 0).then_some(if self.bad.is_some() { f64::INFINITY } else { self.worst })
    }
}

/// The checks of one job; a graph that fails, or whose outputs cannot be (NaN), is what it found and no reason to stop: a
/// failed check with the engine's words, so that every report is written.
pub(crate) fn or_failed(
    id: CheckId,
    result: Result<Vec<Check>, CompareError>,
) -> Result<Vec<Check>, CompareError> {
    match result {
        Err(e) if e.went_wrong() => Ok(vec![Check::failed(id, e.to_string())]),
        result => result,
    }
}

/// Index of element `at` along each axis of a row-major shape.
fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, size) in shape.iter().enumerate().rev() {
        index[i] = at % size.max(&1);
        at /= size.max(&1);
    }
    index
}

/// Mean of whole numbers; 0 for none.
pub(crate) fn mean(values: impl ExactSizeIterator<Item = usize>) -> f64 {
    let n = values.len().max(1);
    values.sum::<usize>() as f64 / n as f64
}

#[cfg(test)]
mod tests;
