use dpar_export_spec::Precision;

use super::*;
use crate::decision::DecisionKind;
use crate::tolerance::Quantity;

/// A limit of 2e-4.
fn limit() -> Limit {
    Rounding::FP32.limit(Quantity::Logits)
}

#[test]
fn a_difference_is_located_and_nan_never_passes() {
    let tensor = |reference: &[f32], found: &[f32]| {
        let shape = if found.len() == 6 { vec![2, 3] } else { vec![found.len()] };
        Check::tensor(CheckId::Logits, &shape, reference, found, limit())
    };
    let c = tensor(&[0.0; 6], &[0.0, 0.0, 0.0, 0.0, 0.5, 0.0]);
    assert_eq!((c.status, c.max_abs), (Status::Fail, Some(0.5)));
    assert!(c.detail.contains("[1, 1]: reference 0, found 0.5"), "{}", c.detail);
    assert_eq!(tensor(&[0.0], &[f32::NAN]).status, Status::Fail);
    assert_eq!(tensor(&[0.0, 0.0], &[0.0]).status, Status::Fail);
    assert_eq!(tensor(&[1.0], &[1.0001]).status, Status::Pass);
    assert_eq!(tensor(&[], &[]).status, Status::NotRun, "nothing was compared");
}

#[test]
fn pieces_of_a_tensor_are_compared_as_the_whole() {
    let found: Vec<f32> = (0..24).map(|i| (i * 7 % 5) as f32 * 1e-4).collect();
    for nan in [None, Some(3), Some(17)] {
        let mut reference = vec![1e-4; 24];
        if let Some(at) = nan {
            reference[at] = f32::NAN;
        }
        let whole = Check::tensor(CheckId::Logits, &[6, 4], &reference, &found, limit());
        for rows in [1, 2, 4] {
            let mut pieces = Differences::default();
            reference.chunks(rows * 4).zip(found.chunks(rows * 4)).for_each(|(r, f)| pieces.add(r, f));
            let pieces = pieces.check(CheckId::Logits, &[6, 4], limit(), Limit::NONE);
            assert_eq!(pieces, whole, "{rows} rows at a time");
        }
        assert_eq!(whole.status == Status::Fail, nan.is_some() || whole.max_abs > Some(2e-4));
    }
}

#[test]
fn too_many_near_ties_fail_in_a_half_type_and_leave_float32_undecided() {
    let fp16 = Rounding::between(Precision::Fp32, Precision::Fp16, dpar_engine_api::ArithmeticKind::AsGraph);
    let flip = |image| Decision {
        near_tie: true,
        ..Decision::open(DecisionKind::ArgMax, image, 24, [1, 2], Some(1e-3))
    };
    let check = |n: usize, rounding| {
        let flips = (0..n).map(flip).collect();
        Check::streams(CheckId::GreedyTokens, String::new(), flips, (4, 50), rounding)
    };
    // Of four images of 50 slots, those with a flip are compared over 25: 2 % of 150 decisions, then of 125.
    assert_eq!(check(2, fp16).status, Status::Pass);
    assert_eq!((check(3, fp16).status, check(3, fp16).equal), (Status::Pass, Some([1, 4])));
    let four = check(4, fp16);
    assert_eq!(four.status, Status::Fail);
    assert!(four.detail.contains("4 flips in 100 decisions (2 near-ties allowed)"), "{}", four.detail);
    let status = |n| check(n, Rounding::FP32).status;
    assert_eq!([0, 3, 4].map(status), [Status::Pass, Status::Pass, Status::Inconclusive]);
    // Four near-ties of the 196 decisions before them are few, but what comes behind them was never seen.
    let late = |image| Decision { slot: 48, ..flip(image) };
    let late = (0..4).map(late).collect();
    let check =
        |flips, images| Check::streams(CheckId::GreedyTokens, String::new(), flips, (images, 50), fp16);
    let whole = check(late, 4);
    assert_eq!(whole.status, Status::Inconclusive);
    assert!(whole.detail.contains("(4 near-ties allowed)") && whole.detail.contains("take more images"));
    assert_eq!(check(Vec::new(), 0).status, Status::NotRun);
    let codes = |n: usize| Check::codes(String::new(), (0..n).map(flip).collect(), (100, true), fp16);
    assert_eq!((codes(4).status, codes(5).status), (Status::Pass, Status::Fail));
}

#[test]
fn a_defect_fails() {
    let defect = Decision::open(DecisionKind::ArgMax, 0, 3, [1, 2], None);
    let id = CheckId::GreedyTokens;
    let check = Check::streams(id, String::new(), vec![defect], (4, 50), Rounding::FP32);
    assert_eq!(check.status, Status::Fail);
}

#[test]
fn what_goes_wrong_is_a_failed_check_and_other_errors_stop() {
    use dpar_engine_api::{EngineError, EngineErrorKind};
    let after = |kind| {
        let e = EngineError::new(kind, "runtime", "output `image` holds NaN").in_graph("vq_decode");
        or_failed(CheckId::Images, Err(e.into()))
    };
    let checks = after(EngineErrorKind::Output).unwrap();
    assert_eq!((checks.len(), checks[0].status, &*checks[0].name), (1, Status::Fail, "images"));
    assert!(checks[0].detail.contains("holds NaN"), "{}", checks[0].detail);
    assert_eq!(after(EngineErrorKind::Run).unwrap()[0].status, Status::Fail);
    assert!(after(EngineErrorKind::Graph).is_err());
    assert!(
        or_failed(CheckId::Images, Err(dpar_export_decode::loaded::RunError::Interrupted.into())).is_err()
    );
    assert!(or_failed(CheckId::Images, Ok(Vec::new())).unwrap().is_empty());
}
