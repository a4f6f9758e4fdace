//! candle under the suite, on the graphs of the suite, and what it must refuse.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dpar_engine_api::{Engine, EngineErrorKind, GraphFile};
use dpar_engine_candle::CandleEngine;
use dpar_engine_conformance::{
    ConformanceCheck, ConformanceVerdict, FIXTURES, GraphCase, agree, assert_passed, fixture, run,
};
use dpar_engine_tract::TractEngine;

fn cases() -> Vec<GraphCase> {
    FIXTURES.map(|name| fixture(name).unwrap()).into()
}

#[test]
fn candle_conforms_without_an_exception() {
    let outcomes = run(&CandleEngine::new(None), &cases());
    assert_passed(&outcomes);
    for graph in FIXTURES {
        for check in [
            ConformanceCheck::Shapes,
            ConformanceCheck::Repeat,
            ConformanceCheck::IdenticalRows,
            ConformanceCheck::BatchOne,
            ConformanceCheck::Reference,
        ] {
            let ran = |o: &&dpar_engine_conformance::ConformanceOutcome| o.graph == graph && o.check == check;
            let outcome = outcomes.iter().find(ran).unwrap();
            assert_eq!(outcome.verdict, ConformanceVerdict::Pass, "{outcome}");
        }
    }
}

#[test]
fn candle_and_tract_agree() {
    assert_passed(&agree(&CandleEngine::new(None), &TractEngine::new(Some(2)), &cases()));
}

/// An operator's name changed to one of the same length that candle has not: the refusal names graph, node and
/// operator, before anything runs.
#[test]
fn an_operator_that_candle_has_not_is_refused_at_prepare() {
    let dir = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(dir.path()).unwrap();
    let case = fixture("conv_decode").unwrap();
    let mut bytes = fs_err::read(&case.path).unwrap();
    // In the node's name as well as in its operator.
    while let Some(at) = bytes.windows(7).position(|w| w == b"Sigmoid") {
        bytes[at..at + 7].copy_from_slice(b"Sigmoyd");
    }
    let path = folder.join("conv_decode.onnx");
    fs_err::write(&path, bytes).unwrap();
    fs_err::copy(case.path.with_file_name("conv.onnx_data"), folder.join("conv.onnx_data")).unwrap();
    let refused = CandleEngine::new(None).prepare(GraphFile::new(&case.spec, &path));
    let e = refused.err().unwrap();
    assert_eq!((e.kind, e.graph.as_deref()), (EngineErrorKind::Graph, Some("conv_decode")));
    assert!(e.message.contains("(Sigmoyd): candle 0.11.1 does not have this operator"), "{e}");
    assert_eq!(e.hint, None, "the weights are there");
    // The same on tract: nothing is said of the data file where it is not why.
    let refused = TractEngine::new(Some(1)).prepare(GraphFile::new(&case.spec, &path));
    let e = refused.err().unwrap();
    assert!(e.message.contains("Sigmoyd") && e.hint.is_none(), "{e} {:?}", e.hint);
}
