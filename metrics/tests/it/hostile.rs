//! Degenerate and hostile inputs: typed errors.

use crate::golden::compute;
use dpar_export_metrics::*;

fn rows(data: &[f32], d: usize) -> Rows<'_> {
    Rows::new("test", data, d).unwrap()
}

#[test]
fn rows_are_checked() {
    assert!(matches!(Rows::new("x", &[1.0; 5], 2), Err(MetricError::Shape { len: 5, width: 2, .. })));
    assert!(matches!(Rows::new("x", &[1.0; 5], 0), Err(MetricError::Shape { .. })));
    assert!(matches!(Rows::new("x", &[1.0, f32::NAN], 1), Err(MetricError::NotFinite { index: 1, .. })));
    assert!(matches!(Rows::new("x", &[f32::INFINITY], 1), Err(MetricError::NotFinite { index: 0, .. })));
    assert!(matches!(Compute::new(0), Err(MetricError::Parameter { .. })));
}

#[test]
fn too_few_and_mismatched() {
    let mut one = MomentsAccumulator::new(2).unwrap();
    assert!(matches!(one.finish(compute()), Err(MetricError::TooFew { found: 0, needed: 2, .. })));
    one.push(rows(&[1.0, 2.0], 2), compute()).unwrap();
    assert!(matches!(one.finish(compute()), Err(MetricError::TooFew { found: 1, needed: 2, .. })));
    assert!(matches!(one.push(rows(&[1.0], 1), compute()), Err(MetricError::Width { .. })));
    assert!(matches!(
        one.clone().merge(MomentsAccumulator::new(3).unwrap(), compute()),
        Err(MetricError::Width { .. })
    ));
    assert!(MomentsAccumulator::new(0).is_err());
    let (three, four) = ([0.0f32; 3], [0.0f32; 4]);
    assert!(matches!(
        precision_recall(rows(&three, 1), rows(&four, 1), PrMode::F32, compute()),
        Err(MetricError::TooFew { found: 3, needed: 4, .. })
    ));
    assert!(matches!(
        precision_recall(rows(&four, 1), rows(&four, 2), PrMode::Adm, compute()),
        Err(MetricError::Width { .. })
    ));
    assert!(matches!(kid(rows(&four, 4), rows(&four, 1), compute()), Err(MetricError::Width { .. })));
    assert!(matches!(kid(rows(&four, 4), rows(&four, 4), compute()), Err(MetricError::TooFew { .. })));
    let protocol = KidProtocol { subsets: 2, size: 5, seed: 0 };
    assert!(matches!(
        kid_subsets(rows(&four, 1), rows(&four, 1), protocol, compute()),
        Err(MetricError::TooFew { found: 4, needed: 5, .. })
    ));
    let none = InceptionScoreAccumulator::new(3, 10).unwrap();
    assert!(matches!(none.finish(), Err(MetricError::TooFew { .. })));
    assert!(NumpyRandom::new(1 << 32).is_err());
}

#[test]
fn stored_statistics_are_checked() {
    let parts = |mean: &[f64], sigma: &[f64]| Moments::from_parts(mean.to_vec(), sigma.to_vec(), None);
    assert!(matches!(parts(&[0.0; 2], &[1.0; 3]), Err(MetricError::Shape { .. })));
    assert!(matches!(parts(&[], &[]), Err(MetricError::Shape { .. })));
    assert!(matches!(parts(&[f64::NAN], &[1.0]), Err(MetricError::NotFinite { .. })));
    assert!(matches!(
        parts(&[0.0; 2], &[1.0, 0.5, 0.1, 1.0]),
        Err(MetricError::NotSymmetric { row: 1, col: 0, .. })
    ));
    let good = parts(&[0.0; 2], &[1.0, 0.0, 0.0, 1.0]).unwrap();
    let negative = parts(&[0.0; 2], &[1.0, 0.0, 0.0, -0.5]).unwrap();
    assert!(matches!(
        frechet_distance(&good, &negative, compute()),
        Err(MetricError::NotPositive { what: "second covariance", .. })
    ));
    let narrow = parts(&[0.0], &[1.0]).unwrap();
    assert!(matches!(frechet_distance(&good, &narrow, compute()), Err(MetricError::Width { .. })));
    // No variance at all is a distribution too.
    let point = parts(&[3.0, 4.0], &[0.0; 4]).unwrap();
    assert!((frechet_distance(&point, &good, compute()).unwrap().distance - 27.0).abs() < 1e-12);
}

#[test]
fn saved_states_are_checked() {
    let mut m = MomentsAccumulator::new(3).unwrap();
    m.push(rows(&[1.0; 30], 3), compute()).unwrap();
    let bytes = m.to_bytes();
    assert_eq!(MomentsAccumulator::from_bytes(&bytes).unwrap(), m);
    for len in 0..bytes.len() {
        let error = MomentsAccumulator::from_bytes(&bytes[..len]).unwrap_err();
        assert!(matches!(error, MetricError::State { .. }));
    }
    let mut long = bytes.clone();
    long.push(0);
    assert!(MomentsAccumulator::from_bytes(&long).is_err());
    for size in [0u64, 4, 1 << 20, 1 << 40, u64::MAX] {
        let mut wrong = bytes.clone();
        wrong[8..16].copy_from_slice(&size.to_le_bytes());
        assert!(MomentsAccumulator::from_bytes(&wrong).is_err(), "{size}");
    }
    let mut nan = bytes.clone();
    nan[24..32].copy_from_slice(&f64::NAN.to_le_bytes());
    assert!(MomentsAccumulator::from_bytes(&nan).is_err());
}

#[test]
fn a_failed_push_changes_nothing() {
    let mut s = InceptionScoreAccumulator::new(3, 4).unwrap();
    s.push_f64(&[0.0; 6]).unwrap();
    let before = s.clone();
    assert!(matches!(s.push_f64(&[0.0, 1.0]), Err(MetricError::Shape { .. })));
    assert!(matches!(s.push_f64(&[0.0, f64::NAN, 0.0]), Err(MetricError::NotFinite { .. })));
    assert_eq!(s, before);
}
