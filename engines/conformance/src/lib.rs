//! One conformance suite that every engine runs: what the engine contract promises, checked on real graphs
//! without knowing what they compute.
//!
//! [`run`] checks one engine, [`agree`] compares two, [`assert_passed`] turns outcomes into a test failure.
//! Inputs are made from a graph's interface ([`GraphCase`]); where an engine cannot meet a check, [`EXCEPTIONS`] says
//! so with the reason, and an exception that is no longer needed is itself a failure.

mod cached;
mod checks;
mod close;
#[cfg(feature = "fixtures")]
mod fixtures;
mod hostile;
mod inputs;
pub mod tolerance;

use std::collections::BTreeMap;
use std::fmt;

use camino::Utf8PathBuf;
use dpar_engine_api::{Engine, GraphFile, Session, Tensor};
use dpar_export_spec::{AxisRange, GraphSpec};

pub use close::{Tolerance, Tolerances};
#[cfg(feature = "fixtures")]
pub use fixtures::{FIXTURES, fixture};
pub use inputs::Inputs;

/// Inputs with the outputs they must give, in the order of the spec.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownOutputs {
    /// Named inputs.
    pub inputs: Inputs,
    /// Outputs in the order of the spec.
    pub outputs: Vec<Tensor>,
}

/// One graph with what the suite must know to call it.
#[derive(Debug, Clone)]
pub struct GraphCase {
    /// Interface of the graph.
    pub spec: GraphSpec,
    /// The `.onnx` file.
    pub path: Utf8PathBuf,
    /// For each integer input, the exclusive upper bound of its values.
    pub bounds: BTreeMap<String, usize>,
    /// Largest size that an axis is given, to bound the time; sizes below its minimum are never used.
    pub cap: usize,
    /// Other largest sizes, by axis.
    pub caps: BTreeMap<String, usize>,
    /// Seed of the inputs.
    pub seed: u64,
    /// Allowed distances.
    pub tolerances: Tolerances,
    /// Allow the batch tolerance times the largest element of the expected tensor, if that is above 1: rounding is
    /// relative to the terms of a sum, and a small element of a trained model's logits is a sum of large terms.
    pub scaled: bool,
    /// Known results.
    pub references: Vec<KnownOutputs>,
    /// Inputs that point across rows (flat indices over the whole batch), so that no row can be taken alone.
    pub coupled_rows: bool,
}

impl GraphCase {
    /// A case with the default tolerances, no known results and axes capped at 64.
    pub fn new(spec: GraphSpec, path: impl Into<Utf8PathBuf>) -> Self {
        Self {
            spec,
            path: path.into(),
            bounds: BTreeMap::new(),
            cap: 64,
            caps: BTreeMap::new(),
            seed: 1,
            tolerances: Tolerances::default(),
            scaled: false,
            references: Vec::new(),
            coupled_rows: false,
        }
    }

    /// Sets the exclusive upper bound of an integer input.
    #[must_use]
    pub fn bound(mut self, input: &str, bound: usize) -> Self {
        self.bounds.insert(input.to_owned(), bound);
        self
    }

    fn file(&self) -> GraphFile<'_> {
        GraphFile::new(&self.spec, &self.path)
    }

    /// The batch tolerance for outputs like these.
    fn batch_tolerance(&self, expected: &[Tensor]) -> Tolerance {
        let elements = expected.iter().filter_map(Tensor::to_f32).flatten();
        let largest = elements.filter(|v| v.is_finite()).fold(1.0_f32, |top, v| top.max(v.abs()));
        let Tolerance { absolute, relative } = self.tolerances.batch;
        Tolerance { absolute: absolute * if self.scaled { largest } else { 1.0 }, relative }
    }

    fn cap_of(&self, axis: &AxisRange) -> usize {
        self.caps.get(&axis.name).copied().unwrap_or(self.cap)
    }

    fn sizes(&self, size: impl Fn(&AxisRange) -> usize) -> inputs::AxisSizes {
        let fit = |a: &AxisRange| size(a).min(self.cap_of(a)).clamp(a.min, a.max.max(a.min));
        self.spec.axes.iter().map(|a| (a.name.clone(), fit(a))).collect()
    }

    /// The shapes that are tried: smallest, tuned for, largest, and beside the tuned one.
    fn shapes(&self) -> Vec<(&'static str, inputs::AxisSizes)> {
        let off = |a: &AxisRange| {
            if a.opt < a.max.min(self.cap_of(a)) { a.opt + 1 } else { a.opt.saturating_sub(1) }
        };
        vec![
            ("min", self.sizes(|a| a.min)),
            ("opt", self.sizes(|a| a.opt)),
            ("max", self.sizes(|a| a.max)),
            ("off-opt", self.sizes(off)),
        ]
    }
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConformanceCheck {
    /// The engine says what would run.
    Probe,
    /// The graph loads.
    Prepare,
    /// Every output has its promised dtype and shape and finite values, at four shapes.
    Shapes,
    /// Running twice gives the same bytes, also with other shapes run in between.
    Repeat,
    /// Byte-identical rows of a batch give byte-identical outputs.
    IdenticalRows,
    /// Byte-identical rows of a batch give outputs within the batch tolerance: what is left to rely on where
    /// [`ConformanceCheck::IdenticalRows`] is excepted.
    EquivalentRows,
    /// A row alone gives what it gives in a batch.
    BatchOne,
    /// Masked past entries have no influence, the others have.
    MaskedPast,
    /// The known results come out.
    Reference,
    /// Inputs that are unknown, missing, given twice, of the wrong dtype or shape, or out of range are input
    /// errors, and leave the session usable.
    BadInputs,
    /// A spec that is not the file's is refused.
    OtherSpec,
    /// Half an `.onnx` file is refused.
    TruncatedGraph,
    /// A file that is not ONNX at all, or empty, is refused.
    Garbage,
    /// A missing data file is refused.
    MissingData,
    /// A data file that is too short is refused.
    TruncatedData,
    /// With a cache, one slot a step gives what one run over all slots gives; without, a step gives what a run gives.
    CachedSteps,
    /// Rows of a cache that grow at their own pace give what each gives alone.
    CachedRows,
    /// A row of a cache that begins again is as one that never was, while the others go on.
    CachedRestart,
    /// Nothing of an earlier sequence is left in a cache after a reset.
    CachedReset,
    /// A step that does not fit the cache is an input error, and leaves it as it was.
    CachedRefused,
    /// Two engines give the same outputs.
    Agreement,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConformanceVerdict {
    /// It holds.
    Pass,
    /// It asks nothing of this graph.
    NotApplicable(&'static str),
    /// It does not hold and is listed in [`EXCEPTIONS`], with the reason.
    Excepted(&'static str),
    /// It does not hold.
    Fail(String),
}

/// One check of one engine on one graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConformanceOutcome {
    /// Engine name.
    pub engine: &'static str,
    /// Graph name; empty where no graph is concerned.
    pub graph: String,
    /// What was checked.
    pub check: ConformanceCheck,
    /// How it ended.
    pub verdict: ConformanceVerdict,
}

impl fmt::Display for ConformanceOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, graph, check, verdict } = self;
        write!(f, "{engine} {graph} {check:?}: ")?;
        match verdict {
            ConformanceVerdict::Pass => f.write_str("pass"),
            ConformanceVerdict::NotApplicable(why) => write!(f, "not applicable: {why}"),
            ConformanceVerdict::Excepted(why) => write!(f, "excepted: {why}"),
            ConformanceVerdict::Fail(why) => write!(f, "FAIL: {why}"),
        }
    }
}

/// A check that an engine is known not to meet.
#[derive(Debug, Clone, Copy)]
pub struct Exception {
    /// Engine name.
    pub engine: &'static str,
    /// Graph name; `None` = every graph.
    pub graph: Option<&'static str>,
    /// The check.
    pub check: ConformanceCheck,
    /// Whether it fails wherever the check applies, so that a pass makes this entry stale. `false` where it
    /// depends on shapes or on the processor.
    pub always: bool,
    /// Why, and what follows for users.
    pub reason: &'static str,
}

/// Every known exception.
pub const EXCEPTIONS: &[Exception] = &[Exception {
    engine: "tract",
    graph: None,
    check: ConformanceCheck::IdenticalRows,
    always: false,
    reason: "tract-linalg sums a softmax row in pieces that begin at aligned addresses \
        (`map_reduce_slice_with_alignment`): where the row length is no multiple of the vector width, the last bit \
        depends on where in memory the row lies. Equal rows are equal within 1e-5 (see EquivalentRows), and \
        each run of the same shape repeats exactly",
}];

/// Runs the suite on one engine with the listed exceptions.
pub fn run(engine: &dyn Engine, cases: &[GraphCase]) -> Vec<ConformanceOutcome> {
    run_with(engine, cases, EXCEPTIONS)
}

/// Runs the suite on one engine with other exceptions.
pub fn run_with(
    engine: &dyn Engine,
    cases: &[GraphCase],
    exceptions: &[Exception],
) -> Vec<ConformanceOutcome> {
    let mut outcomes = Vec::new();
    let mut note =
        |graph: &str, check, result| outcomes.push(outcome(engine.name(), graph, check, result, exceptions));
    note("", ConformanceCheck::Probe, checks::probe(engine));
    for case in cases {
        let name = &case.spec.name;
        if let Some(mut session) = checks::all(engine, case, &mut |check, result| note(name, check, result)) {
            note(name, ConformanceCheck::BadInputs, hostile::bad_inputs(session.as_mut(), case));
        }
        cached::all(engine, case, &mut |check, result| note(&case.spec.name, check, result));
        hostile::all(engine, case, &mut |check, result| note(&case.spec.name, check, result));
    }
    outcomes
}

/// Runs the checks that need no reference and no other files on one prepared graph: shapes, repeated runs, identical
/// rows, a row alone, masked past entries. `engine` is the engine's name, for the listed exceptions.
pub fn probes(engine: &'static str, session: &mut dyn Session, case: &GraphCase) -> Vec<ConformanceOutcome> {
    let run = |(check, found)| outcome(engine, &case.spec.name, check, found, EXCEPTIONS);
    checks::without_reference(session, case).into_iter().map(run).collect()
}

/// Compares an engine with another on the same graphs and inputs.
pub fn agree(engine: &dyn Engine, other: &dyn Engine, cases: &[GraphCase]) -> Vec<ConformanceOutcome> {
    let compare = |case: &GraphCase| {
        let result = checks::agreement(engine, other, case);
        outcome(engine.name(), &case.spec.name, ConformanceCheck::Agreement, result, EXCEPTIONS)
    };
    cases.iter().map(compare).collect()
}

/// Panics with every failure, if there is one, or if nothing was checked.
///
/// # Panics
/// That is what it is for.
#[track_caller]
pub fn assert_passed(outcomes: &[ConformanceOutcome]) {
    assert!(!outcomes.is_empty(), "nothing was checked");
    let failed: Vec<String> = outcomes
        .iter()
        .filter(|o| matches!(o.verdict, ConformanceVerdict::Fail(_)))
        .map(ToString::to_string)
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} checks failed:\n{}",
        failed.len(),
        outcomes.len(),
        failed.join("\n")
    );
}

/// Why a check does not hold, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckFailure(String);

impl From<String> for CheckFailure {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for CheckFailure {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

/// What a check found: `Ok(Some(why))` = not applicable.
type CheckResult = Result<Option<&'static str>, CheckFailure>;

fn outcome(
    engine: &'static str,
    graph: &str,
    check: ConformanceCheck,
    found: CheckResult,
    exceptions: &[Exception],
) -> ConformanceOutcome {
    let listed = exceptions
        .iter()
        .find(|e| e.engine == engine && e.check == check && e.graph.is_none_or(|g| g == graph))
        .map(|e| (e.always, e.reason));
    let verdict = match (found, listed) {
        (Ok(None), None | Some((false, _))) => ConformanceVerdict::Pass,
        (Ok(Some(why)), _) => ConformanceVerdict::NotApplicable(why),
        (Ok(None), Some((true, reason))) => {
            ConformanceVerdict::Fail(format!("it holds, but is listed as an exception: {reason}"))
        }
        (Err(_), Some((_, reason))) => ConformanceVerdict::Excepted(reason),
        (Err(why), None) => ConformanceVerdict::Fail(why.to_string()),
    };
    ConformanceOutcome { engine, graph: graph.to_owned(), check, verdict }
}
