use Cause::{Absent, Input, Integrity, Run, Stopped};
use dpar_export_spec::{PatchRuleError, Precision};

use crate::ReferenceError;
use crate::evaluate::InputKind;
use crate::loaded::RequestError;

use super::*;

fn all<E: Caused + std::fmt::Debug>(errors: impl IntoIterator<Item = E>, cause: Cause) {
    for e in errors {
        assert_eq!(e.cause(), cause, "{e:?}");
    }
}

fn text() -> String {
    "x".to_owned()
}

fn io() -> std::io::Error {
    std::io::Error::other("x")
}

fn memory() -> dpar_export_inputs::memory::MemoryError {
    dpar_export_inputs::memory::check("x", u64::MAX).unwrap_err()
}

fn engine(kind: EngineErrorKind) -> EngineError {
    EngineError::new(kind, "tract", "x")
}

#[test]
fn exit_codes_follow_from_causes() {
    for (cause, alone, comparing) in [
        (Input, Exit::Usage, Exit::Usage),
        (Run, Exit::Usage, Exit::Failed),
        (Absent, Exit::Unavailable, Exit::Unavailable),
        (Integrity, Exit::Integrity, Exit::Integrity),
        (Stopped, Exit::Interrupted, Exit::Interrupted),
    ] {
        assert_eq!((cause.exit(false), cause.exit(true)), (alone, comparing), "{cause:?}");
    }
}

#[test]
fn engines() {
    use EngineErrorKind as Kind;
    all([engine(Kind::Unavailable)], Absent);
    all([Kind::Setting, Kind::Graph, Kind::Input].map(engine), Input);
    all([engine(Kind::Damaged)], Integrity);
    all([Kind::Run, Kind::Output].map(engine), Run);
    let target = |kind| TargetError { kind, message: text(), hint: None };
    all([target(TargetErrorKind::Unavailable)], Absent);
    all([target(TargetErrorKind::Refused)], Input);
    all([target(TargetErrorKind::Stopped)], Stopped);
    all([DeploymentError::Folder(text()), DeploymentError::Image(text())], Input);
}

#[test]
fn runs() {
    let sample = |source| DecodeError::Sample { image: 0, slot: 0, source };
    let options = || {
        [
            SampleError::Temperature(-1.0),
            SampleError::TopP(-1.0),
            SampleError::Guidance(-1.0),
            SampleError::Interval,
            SampleError::Uniform(1.0),
        ]
    };
    let logits =
        || [SampleError::Empty, SampleError::Nan(0), SampleError::Infinite(0), SampleError::NothingLeft];
    all(options(), Input);
    all(logits(), Run);
    all(options().map(sample), Input);
    all(logits().map(sample), Run);
    all([DecodeError::Entropy { image: 0, slot: 0, value: f32::NAN }], Run);
    all([DecodeError::NoNullClass], Input);
    all([DecodeError::Interrupted], Stopped);
    all([DecodeError::Engine(engine(EngineErrorKind::Run))], Run);

    let integrity = RunError::Integrity { path: "p".into(), record: text(), message: text() };
    all([integrity], Integrity);
    all([RunError::Interrupted, RunError::Decode(DecodeError::Interrupted)], Stopped);
    all(
        [RunError::Engine(engine(EngineErrorKind::Output)), RunError::Decode(sample(SampleError::Nan(0)))],
        Run,
    );
    all([RunError::Engine(engine(EngineErrorKind::Unavailable))], Absent);
    all([RunError::Bundle(BundleError::Integrity { path: "p".into(), message: text() })], Integrity);
    let request = RunError::Request(RequestError::Length { tokens: 2, most: 1 });
    all([request, RunError::Metric(MetricError::NoConvergence("x"))], Input);
    all([RunError::Array(array(ArrayErrorKind::UnknownFormat))], Input);
}

#[test]
fn comparisons() {
    let reference = ReferenceError::NoGuidance;
    let json = serde_json::from_str::<u8>("x").unwrap_err();
    let path = || "p".into();
    all(
        [
            CompareError::Reference(reference),
            CompareError::Io { path: path(), source: io() },
            CompareError::Json { path: path(), source: json },
            CompareError::Systems,
            CompareError::Precisions { a: Precision::Fp32.into(), b: Precision::Fp16.into() },
            CompareError::NoReference(Precision::Fp32.into()),
            CompareError::Draw(SampleError::TopP(2.0)),
        ],
        Input,
    );
    all([CompareError::Draw(SampleError::NothingLeft)], Run);
    all([CompareError::Run(RunError::Interrupted)], Stopped);
    let engine = || RunError::from(engine(EngineErrorKind::Run));
    all([CompareError::Run(engine())], Run);
    all([EvaluateError::Recorded(CompareError::Run(engine()))], Run);
    assert!(CompareError::Run(engine()).went_wrong() && !CompareError::Systems.went_wrong());
}

/// What stops a comparison and what is its finding are one and the same set.
#[test]
fn going_wrong_is_the_same_everywhere() {
    use EngineErrorKind as Kind;
    for kind in [Kind::Unavailable, Kind::Setting, Kind::Graph, Kind::Input, Kind::Run, Kind::Output] {
        let e = RunError::from(engine(kind));
        assert_eq!((kind.went_wrong(), e.went_wrong()), (e.cause() == Run, e.cause() == Run), "{kind:?}");
        let e = RunError::Decode(DecodeError::Engine(engine(kind)));
        assert_eq!(e.went_wrong(), e.cause() == Run, "{kind:?}");
    }
    let decode = [
        DecodeError::Sample { image: 0, slot: 0, source: SampleError::NothingLeft },
        DecodeError::Sample { image: 0, slot: 0, source: SampleError::TopP(-1.0) },
        DecodeError::Entropy { image: 0, slot: 0, value: f32::NAN },
        DecodeError::Interrupted,
    ];
    for e in decode.map(RunError::Decode) {
        assert_eq!(e.went_wrong(), e.cause() == Run, "{e:?}");
    }
}

#[test]
fn bundles() {
    let path = || "p".into();
    all(
        [
            BundleError::Io { path: path(), source: io() },
            BundleError::NotABundle(path()),
            BundleError::Extractor(path()),
            BundleError::NotAnExtractor(path()),
            BundleError::Foreign { path: path(), message: text() },
            BundleError::Config { path: path(), message: text() },
            BundleError::NoGraph { folder: path(), graph: text(), known: text() },
            BundleError::Rule(PatchRuleError::NoThreshold),
            BundleError::OtherGraphs { folder: path(), message: text() },
            BundleError::Staging(StagingError::Exists(path())),
            BundleError::Staging(StagingError::Foreign { output: path(), what: text() }),
            BundleError::Staging(StagingError::NotAFile(path())),
            BundleError::Staging(StagingError::Busy(path())),
            BundleError::Staging(StagingError::Conflict { output: path(), kept: path() }),
            BundleError::Staging(StagingError::Io { path: path(), source: io() }),
            BundleError::Target(TargetError::refused("x", None)),
            BundleError::Checkpoint(ErrorKind::NoSuchTensor.into()),
        ],
        Input,
    );
    all(
        [
            BundleError::Integrity { path: path(), message: text() },
            BundleError::Changed { path: path() },
            BundleError::Linked { path: path() },
            BundleError::Precision { graph: text(), precision: Precision::Fp16, message: text() },
        ],
        Integrity,
    );
    all([BundleError::Export(ExportError::Interrupted)], Stopped);

    let damaged = || [ManifestError::Syntax(text()), ManifestError::SchemaVersion(9)];
    let forged = || {
        let (graph, found, precision) = (text(), Precision::Fp16, Precision::Fp32);
        [
            ManifestError::RepeatedField(text()),
            ManifestError::UnknownField(text()),
            ManifestError::Entry(text()),
            ManifestError::PatchRule(PatchRuleError::BadGrid),
            ManifestError::Path(text()),
            ManifestError::Unlisted { what: text(), path: text() },
            ManifestError::StaleEngine(text()),
            ManifestError::EnginePrecision { graph, found, precision },
            ManifestError::Duplicate(text()),
            ManifestError::PatchRulePresence,
        ]
    };
    let read = |source| BundleError::Manifest { path: "p".into(), source };
    all(damaged(), Input);
    all(forged(), Integrity);
    all(damaged().map(read), Input);
    all(forged().map(read), Integrity);

    all([CardError::Report { path: path(), message: text() }, CardError::Twice(text())], Input);
    let (found, wanted, cited) = (text(), text(), text());
    all([CardError::OtherBundle { path: path(), found, wanted }, CardError::Differs(path())], Integrity);
    all([CardError::Changed { name: text(), found: text(), cited }], Integrity);
    let attested = AttestError::Rejected { path: path(), what: path(), message: text() };
    all([attested, AttestError::Bundle(read(ManifestError::Path(text())))], Integrity);
    let key = AttestError::Key { path: path(), message: text(), hint: text() };
    let unread = [
        AttestError::Input { path: path(), message: text() },
        AttestError::Report { path: path(), message: text() },
        AttestError::TooLarge { size: 1 },
        AttestError::Statement(text()),
    ];
    all([key].into_iter().chain(unread), Input);
}

#[test]
fn checkpoints_and_exports() {
    let (component, tensor) = (text, text);
    all(
        [
            ExportError::Weight { component: component(), tensor: tensor(), source: "x".into() },
            ExportError::Shape { component: component(), tensor: tensor(), expected: vec![], found: vec![] },
            ExportError::Overflow {
                component: component(),
                tensor: tensor(),
                value: 1e9,
                index: 0,
                precision: Precision::Fp16,
                largest: 65504.0,
            },
            ExportError::NotFinite { component: component(), tensor: tensor(), value: f32::NAN, column: 0 },
            ExportError::QuantizedPrecision { component: component(), precision: Precision::Fp16 },
            ExportError::Spec { component: component(), message: text() },
            ExportError::Write { path: "p".into(), source: io() },
        ],
        Input,
    );
    all([ExportError::Interrupted], Stopped);
    let format = dpar_export_checkpoint::WeightFormat::Safetensors;
    let mismatch = dpar_export_checkpoint::NameMismatch {
        component: dpar_export_spec::ComponentKind::Vq,
        missing: vec![],
        unused: vec![],
    };
    let kinds = [
        ErrorKind::Io(io()),
        ErrorKind::NotFound { what: text() },
        ErrorKind::Layout(text()),
        ErrorKind::Synth(text()),
        ErrorKind::Option { option: "--epoch", problem: text() },
        ErrorKind::Truncated { format, problem: text() },
        ErrorKind::Malformed { format, problem: text() },
        ErrorKind::LegacyTorch,
        ErrorKind::UnsupportedFile(text()),
        ErrorKind::OtherFormat { expected: format, found: "a" },
        ErrorKind::NoStateDict { keys: vec![] },
        ErrorKind::UnreadTensor(text()),
        ErrorKind::HostilePickle { global: text() },
        ErrorKind::MalformedTensor(text()),
        ErrorKind::NoSuchTensor,
        ErrorKind::UnknownModel { names: vec![] },
        ErrorKind::WrongComponent { wanted: "a", found: "b" },
        ErrorKind::Names(mismatch),
        ErrorKind::Shape { expected: vec![], found: vec![] },
        ErrorKind::Rank { rank: 2, found: vec![] },
        ErrorKind::NotFloat(dpar_export_checkpoint::WeightDType::I64),
        ErrorKind::NonFinite { index: 0, value: f64::NAN },
        ErrorKind::Sizes(text()),
        ErrorKind::Config { key: None, problem: text() },
        ErrorKind::UnsupportedConfig { key: "a", value: text(), known: &[] },
        ErrorKind::Disagreement { first: text(), second: text() },
        ErrorKind::PatchRule(PatchRuleError::BadGrid),
        ErrorKind::MissingComponent { component: "a", wanted: None },
        ErrorKind::Rule { rule: None, problem: text() },
        ErrorKind::RuleCollision { target: text(), sources: [text(), text()] },
    ];
    all(kinds.map(CheckpointError::from), Input);
}

fn array(kind: ArrayErrorKind) -> ArrayError {
    ArrayError { file: None, array: None, kind }
}

#[test]
fn files_and_numbers() {
    let kinds = [
        ArrayErrorKind::Io(io()),
        ArrayErrorKind::UnknownFormat,
        ArrayErrorKind::Missing { available: vec![] },
        ArrayErrorKind::UnsupportedDtype { found: text(), why: "x" },
        ArrayErrorKind::Dtype { found: text(), wanted: "b", shape: vec![] },
        ArrayErrorKind::Shape { dtype: text(), found: vec![], wanted: vec![] },
        ArrayErrorKind::Truncated { promised: 1, held: 0 },
        ArrayErrorKind::TooLarge(text()),
        ArrayErrorKind::Memory(memory()),
        ArrayErrorKind::Malformed(text()),
        ArrayErrorKind::Content(text()),
        ArrayErrorKind::Write(text()),
    ];
    all(kinds.map(array), Input);
    all(
        [
            PictureError::Size { what: "a", bytes: 0, height: 0, width: 0 },
            PictureError::Grid(text()),
            PictureError::Memory { path: None, source: memory() },
            PictureError::File { path: "p".into(), message: text() },
            PictureError::Pixels { path: "p".into(), color: "grey", bits: 8 },
            PictureError::Encode(text()),
        ],
        Input,
    );
    let metrics = || {
        let what = "a";
        [
            MetricError::Shape { what, len: 1, width: 0 },
            MetricError::Width { what, found: 1, expected: 2 },
            MetricError::UnequalCounts { what, left: 1, right: 2 },
            MetricError::TooFew { what, found: 0, needed: 2 },
            MetricError::NotFinite { what, index: 0 },
            MetricError::NotSymmetric { what, row: 0, col: 1 },
            MetricError::NotPositive { what, smallest: -1.0, largest: 1.0 },
            MetricError::Parameter { what, rule: "b" },
            MetricError::State { what, problem: "b" },
            MetricError::NoConvergence(what),
            MetricError::Threads { threads: 1024, reason: text() },
        ]
    };
    all(metrics(), Input);
    all(metrics().map(|source| EvaluateError::Metric { what: text(), source }), Input);
    all(
        [
            EvaluateError::Array(array(ArrayErrorKind::UnknownFormat)),
            EvaluateError::Io { path: "p".into(), source: io() },
            EvaluateError::Input { kind: InputKind::Images, message: text(), hint: None },
            EvaluateError::Picture(PictureError::Encode(text())),
            EvaluateError::Staging(StagingError::Busy("p".into())),
            EvaluateError::Lost,
            EvaluateError::Extractor(RunError::Engine(engine(EngineErrorKind::Output))),
            EvaluateError::Extractor(RunError::Engine(engine(EngineErrorKind::Run))),
        ],
        Input,
    );
    all([EvaluateError::Extractor(RunError::Engine(engine(EngineErrorKind::Unavailable)))], Absent);
    let changed = BundleError::Changed { path: "p".into() };
    all([EvaluateError::Extractor(RunError::Bundle(changed))], Integrity);
    all([EvaluateError::Interrupted, EvaluateError::Run(RunError::Interrupted)], Stopped);
    all([EvaluateError::Run(RunError::Engine(engine(EngineErrorKind::Run)))], Run);
    all([io()], Input);
}

#[cfg(feature = "serve")]
#[test]
fn services() {
    use crate::serve::JobError;
    use crate::serve::http::ServiceError;

    let second = std::time::Duration::from_secs(1);
    let run = |kind| std::sync::Arc::new(RunError::from(engine(kind)));
    let address = ([127, 0, 0, 1], 0).into();
    let failed = |source| ServiceError::SelfTest { model: text(), source };
    all(
        [
            ServiceError::Twice(text()),
            ServiceError::Name("x".into()),
            ServiceError::ClassNames { model: text(), names: 1, classes: 2 },
            ServiceError::Token { path: "x".into() },
            ServiceError::Open(address),
            ServiceError::Listen { address, source: io() },
            ServiceError::Tls(io().into()),
            ServiceError::Io(io()),
            failed(JobError::Nothing),
            failed(JobError::TooMany { images: 2, most: 1 }),
            failed(JobError::Full { waiting: 1, most: 1, retry: second }),
            failed(JobError::QueueTime(second)),
            failed(JobError::DecodeTime(second)),
            failed(JobError::Refused(run(EngineErrorKind::Input))),
        ],
        Input,
    );
    let absent = || run(EngineErrorKind::Unavailable);
    all([ServiceError::from(RunError::from(engine(EngineErrorKind::Unavailable)))], Absent);
    all([failed(JobError::Run(absent())), failed(JobError::Changed(absent()))], Absent);
    all(
        [
            failed(JobError::Run(run(EngineErrorKind::Run))),
            failed(JobError::Diverged),
            failed(JobError::Ended),
        ],
        Run,
    );
}
