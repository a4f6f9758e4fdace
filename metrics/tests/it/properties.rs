//! Invariances, on small data.

use crate::golden::compute;
use crate::synthetic::{Spec, word};
use dpar_export_metrics::*;
use proptest::prelude::*;

fn small(n: usize, d: usize, seed: u64) -> Vec<f32> {
    Spec { d, r: 8, ..Spec::new(n, seed) }.activations()
}

fn rows(data: &[f32], d: usize) -> Rows<'_> {
    Rows::new("test", data, d).unwrap()
}

fn moments(data: &[f32], d: usize, compute: &Compute) -> Moments {
    let mut m = MomentsAccumulator::new(d).unwrap();
    m.push(rows(data, d), compute).unwrap();
    m.finish(compute).unwrap()
}

fn shuffled(data: &[f32], d: usize, seed: u64) -> Vec<f32> {
    let mut order: Vec<usize> = (0..data.len() / d).collect();
    order.sort_by_key(|&i| word(seed, 99, i));
    order.into_iter().flat_map(|i| data[i * d..(i + 1) * d].to_vec()).collect()
}

/// A two-pass covariance, written out.
fn covariance(data: &[f32], d: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (data.len() / d) as f64;
    let mut mean = vec![0.0; d];
    data.chunks(d).for_each(|r| mean.iter_mut().zip(r).for_each(|(m, v)| *m += f64::from(*v) / n));
    let mut cov = vec![0.0; d * d];
    for r in data.chunks(d) {
        for i in 0..d {
            for j in 0..d {
                cov[i * d + j] += (f64::from(r[i]) - mean[i]) * (f64::from(r[j]) - mean[j]) / (n - 1.0);
            }
        }
    }
    (mean, cov)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn moments_do_not_depend_on_chunks_threads_or_interruptions(
        n in 2usize..900, d in 1usize..20, seed in 0u64..1000, cuts in prop::collection::vec(0usize..400, 0..6),
    ) {
        let data = small(n, d, seed);
        let one = Compute::new(1).unwrap();
        let whole = moments(&data, d, &one);
        let (mean, cov) = covariance(&data, d);
        for (a, b) in whole.mean().iter().zip(&mean).chain(whole.covariance().iter().zip(&cov)) {
            prop_assert!((a - b).abs() < 1e-12, "{} {}", a, b);
        }
        let mut parts = MomentsAccumulator::new(d).unwrap();
        let mut rest = &data[..];
        for cut in cuts {
            let (head, tail) = rest.split_at((cut * d).min(rest.len()));
            parts.push(rows(head, d), compute()).unwrap();
            rest = tail;
            parts = MomentsAccumulator::from_bytes(&parts.to_bytes()).unwrap();
        }
        parts.push(rows(rest, d), compute()).unwrap();
        prop_assert_eq!(parts.finish(compute()).unwrap(), whole.clone());

        let (head, tail) = data.split_at(n / 3 * d);
        let (mut a, mut b) = (MomentsAccumulator::new(d).unwrap(), MomentsAccumulator::new(d).unwrap());
        a.push(rows(head, d), compute()).unwrap();
        b.push(rows(tail, d), compute()).unwrap();
        a.merge(b, compute()).unwrap();
        let merged = a.finish(compute()).unwrap();
        prop_assert_eq!(merged.count(), Some(n as u64));
        for (a, b) in merged.covariance().iter().zip(whole.covariance()) {
            prop_assert!((a - b).abs() < 1e-12);
        }
    }

    #[test]
    fn frechet_is_a_symmetric_distance_whatever_the_order(
        n in 5usize..300, m in 5usize..300, d in 1usize..40, seed in 0u64..1000,
    ) {
        let (a, b) = (small(n, d, seed), small(m, d, seed + 5000));
        let one = Compute::new(1).unwrap();
        let three = Compute::new(3).unwrap();
        let (ma, mb) = (moments(&a, d, &one), moments(&b, d, &one));
        let scale = ma.trace() + mb.trace();
        let found = frechet_distance(&ma, &mb, &one).unwrap();
        prop_assert_eq!(found, frechet_distance(&ma, &mb, &three).unwrap());
        let turned = frechet_distance(&mb, &ma, &three).unwrap();
        prop_assert!((found.distance - turned.distance).abs() < 1e-9 * scale.max(1.0));
        prop_assert!(found.distance > -1e-9 * scale.max(1.0));
        let zero = frechet_distance(&ma, &ma, &one).unwrap();
        prop_assert!(zero.distance.abs() < 1e-9 * scale.max(1.0), "{:?}", zero);
        let other = moments(&shuffled(&a, d, seed), d, &three);
        let again = frechet_distance(&other, &mb, &three).unwrap();
        prop_assert!((found.distance - again.distance).abs() < 1e-9 * scale.max(1.0));
    }

    #[test]
    fn precision_and_recall_are_those_of_f64(n in 4usize..90, m in 4usize..90, d in 1usize..12, seed in 0u64..1000) {
        let (mut s, r) = (small(n, d, seed), small(m, d, seed + 7000));
        // Some exact duplicates, within and across.
        s.copy_within(0..d, d);
        s[2 * d..3 * d].copy_from_slice(&r[..d]);
        let found = precision_recall(rows(&s, d), rows(&r, d), PrMode::F32, compute()).unwrap();
        let dist = |u: &[f32], v: &[f32]| -> f64 {
            u.iter().zip(v).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
        };
        let radius = |x: &[f32], i: usize| {
            let mut all: Vec<f64> = x.chunks(d).map(|v| dist(&x[i * d..(i + 1) * d], v)).collect();
            all.sort_by(f64::total_cmp);
            all[3]
        };
        let inside = |x: &[f32], y: &[f32]| {
            let radii: Vec<f64> = (0..y.len() / d).map(|i| radius(y, i)).collect();
            x.chunks(d).filter(|u| y.chunks(d).zip(&radii).any(|(v, r)| dist(u, v) <= *r)).count()
        };
        // These values are dyadic with few bits: all of it is exact.
        prop_assert_eq!(found.precision_count, inside(&s, &r));
        prop_assert_eq!(found.recall_count, inside(&r, &s));
        let one = Compute::new(1).unwrap();
        prop_assert_eq!(found, precision_recall(rows(&s, d), rows(&r, d), PrMode::F32, &one).unwrap());
        let same = precision_recall(rows(&s, d), rows(&s, d), PrMode::F32, &one).unwrap();
        prop_assert_eq!((same.precision, same.recall), (1.0, 1.0));
    }

    #[test]
    fn inception_score_does_not_depend_on_chunks(n in 1usize..120, chunk in 1usize..50, cut in 0usize..120) {
        let data = small(n, 7, 3);
        let mut whole = InceptionScoreAccumulator::new(7, chunk).unwrap();
        whole.push(rows(&data, 7)).unwrap();
        let (head, tail) = data.split_at(cut.min(n) * 7);
        let mut parts = InceptionScoreAccumulator::new(7, chunk).unwrap();
        parts.push(rows(head, 7)).unwrap();
        parts.push(rows(tail, 7)).unwrap();
        prop_assert_eq!(parts.count(), n as u64);
        let score = whole.finish().unwrap();
        prop_assert_eq!(score.splits.len(), n.div_ceil(chunk));
        prop_assert!(score.splits.iter().all(|s| *s > 1.0 - 1e-12 && *s <= 7.0));
        prop_assert_eq!(parts.finish().unwrap(), score);
    }
}

#[test]
fn wide_moments_and_distances_do_not_depend_on_threads() {
    let data = small(700, 300, 4);
    let (one, three) = (Compute::new(1).unwrap(), Compute::new(3).unwrap());
    let (a, b) = (moments(&data, 300, &one), moments(&data, 300, &three));
    assert_eq!(a, b);
    let other = moments(&small(200, 300, 5), 300, &one);
    assert_eq!(frechet_distance(&a, &other, &one).unwrap(), frechet_distance(&b, &other, &three).unwrap());
    let f = |c: &Compute| FrechetInfluence::new(&a, &other, c).unwrap().rows(rows(&data, 300), c).unwrap();
    assert_eq!(f(&one), f(&three));
    let (x, y) = (rows(&data, 300), small(600, 300, 6));
    assert_eq!(kid(x, rows(&y, 300), &one).unwrap(), kid(x, rows(&y, 300), &three).unwrap());
    let pr = |mode, c: &Compute| precision_recall(x, rows(&y, 300), mode, c).unwrap();
    assert_eq!(pr(PrMode::F32, &one), pr(PrMode::F32, &three));
    assert_eq!(pr(PrMode::Adm, &one), pr(PrMode::Adm, &three));
}

#[test]
fn distances_by_hand() {
    // Diagonal covariances: the distance is the sum of (σ1 − σ2)² and the squared shift of the means.
    let diagonal = |v: &[f64]| -> Vec<f64> {
        (0..v.len() * v.len()).map(|i| if i % (v.len() + 1) == 0 { v[i / v.len()] } else { 0.0 }).collect()
    };
    let a = Moments::from_parts(vec![1.0, 0.0, 0.0], diagonal(&[4.0, 1e-20, 0.0]), None).unwrap();
    let b = Moments::from_parts(vec![0.0, 0.0, 2.0], diagonal(&[1.0, 9e-20, 2.0]), None).unwrap();
    let found = frechet_distance(&a, &b, compute()).unwrap();
    assert!((found.distance - (5.0 + 1.0 + 2.0)).abs() < 1e-9, "{found:?}");
    // A steeply graded spectrum, where squared singular values alone would lose the small ones.
    let values: Vec<f64> = (0..60).map(|i| 10f64.powf(-0.2 * i as f64)).collect();
    let a = Moments::from_parts(vec![0.0; 60], diagonal(&values), None).unwrap();
    let found = frechet_distance(&a, &a, compute()).unwrap();
    assert!(found.full_rank && found.distance.abs() < 1e-14, "{found:?}");
}

#[test]
fn numpy_random_state() {
    // numpy.random.RandomState(2020).permutation(10) and the start of permutation(1000) (numpy 2).
    let order = |n| NumpyRandom::new(2020).unwrap().permutation(n);
    assert_eq!(order(10), [2, 4, 9, 1, 5, 7, 6, 3, 8, 0]);
    assert_eq!(order(1000)[..6], [725, 986, 815, 656, 469, 76]);
}

/// Every distance of the evaluator's f16 arithmetic, written out.
fn by_hand(x: &[f32], y: &[f32], d: usize) -> (usize, usize) {
    let f16 = |v: f32| half::f16::from_f32(v).to_f32();
    let halves = |x: &[f32]| -> Vec<f32> { x.iter().map(|v| f16(*v)).collect() };
    let (x, y) = (halves(x), halves(y));
    let square = |u: &[f32]| f16(u.iter().map(|v| f64::from(f16(v * v))).sum::<f64>() as f32);
    let distance = |u: &[f32], v: &[f32]| {
        let dot: f64 = u.iter().zip(v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        f16(f16(square(u) - f16(2.0 * f16(dot as f32))) + square(v)).max(0.0)
    };
    let radii = |x: &[f32]| -> Vec<f32> {
        x.chunks(d)
            .map(|u| {
                let mut all: Vec<f32> = x.chunks(d).map(|v| distance(u, v)).collect();
                all.sort_by(f32::total_cmp);
                all[3]
            })
            .collect()
    };
    let (rx, ry) = (radii(&x), radii(&y));
    let inside = x.chunks(d).filter(|u| y.chunks(d).zip(&ry).any(|(v, r)| distance(v, u) <= *r)).count();
    let covered = y.chunks(d).filter(|v| x.chunks(d).zip(&rx).any(|(u, r)| distance(v, u) <= *r)).count();
    (inside, covered)
}

#[test]
fn bounds_decide_nothing_that_all_distances_would_not() {
    // Wide enough for projected bounds; a steep, a flat and an offset spectrum, with duplicates and an outlier.
    let d = 300;
    let flat = |n: usize, seed: u64| -> Vec<f32> {
        (0..n * d).map(|i| (word(seed, 1, i) >> 54) as f32 / 1024.0).collect()
    };
    let far: Vec<f32> = small(70, d, 31).iter().map(|v| v + 64.0).collect();
    let other: Vec<f32> = small(80, d, 32).iter().map(|v| v + 64.0).collect();
    let mut outlier = small(250, d, 33);
    outlier[..d].iter_mut().for_each(|v| *v *= 65536.0 * 65536.0);
    outlier.copy_within(5 * d..6 * d, 9 * d);
    // Products beyond f32.
    let mut overflow = small(80, d, 35);
    overflow[..d].iter_mut().for_each(|v| *v *= 2f32.powi(64));
    overflow[d..2 * d].iter_mut().for_each(|v| *v *= -(2f32.powi(65)));
    for (x, y, name) in [
        (small(560, d, 21), small(200, d, 22), "steep"),
        (flat(150, 1), flat(140, 2), "flat"),
        (far, other, "offset"),
        (outlier, small(90, d, 34), "outlier"),
        (overflow, small(70, d, 36), "overflow"),
    ] {
        agrees_with_all_distances(&x, &y, d, name);
    }
    // Wide enough for the further coordinates.
    let d = 700;
    agrees_with_all_distances(&small(150, d, 41), &small(130, d, 42), d, "wide");
}

fn agrees_with_all_distances(x: &[f32], y: &[f32], d: usize, name: &str) {
    let run = |mode| precision_recall(rows(x, d), rows(y, d), mode, compute()).unwrap();
    let distances = |u: &[f32], v: &[f32]| -> f64 {
        let dot = |u: &[f32], v: &[f32]| -> f64 {
            u.iter().zip(v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        (dot(u, u) + dot(v, v) - 2.0 * dot(u, v)).max(0.0)
    };
    let radii = |x: &[f32]| -> Vec<f64> {
        x.chunks(d)
            .map(|u| {
                let mut all: Vec<f64> = x.chunks(d).map(|v| distances(u, v)).collect();
                all.sort_by(f64::total_cmp);
                all[3]
            })
            .collect()
    };
    let (rx, ry) = (radii(x), radii(y));
    let inside = x.chunks(d).filter(|u| y.chunks(d).zip(&ry).any(|(v, r)| distances(u, v) <= *r)).count();
    let covered = y.chunks(d).filter(|v| x.chunks(d).zip(&rx).any(|(u, r)| distances(u, v) <= *r)).count();
    let exact = run(PrMode::F32);
    assert_eq!((exact.precision_count, exact.recall_count), (inside, covered), "{name}");
    let off = (exact.sample_radii_sum - rx.iter().sum::<f64>()).abs();
    assert!(off <= 1e-12 * rx.iter().sum::<f64>(), "{name}: radii off by {off:e}");
    if !["outlier", "overflow", "offset"].contains(&name) {
        let adm = run(PrMode::Adm);
        assert_eq!((adm.precision_count, adm.recall_count), by_hand(x, y, d), "{name}, f16");
    }
}

#[test]
fn half_precision_mode_falls_back_where_a_block_overflows() {
    // |u|² far above 65504: the f32 fallback must agree with the exact mode.
    let big: Vec<f32> = small(60, 16, 1).iter().map(|v| v * 2048.0).collect();
    let other: Vec<f32> = small(50, 16, 2).iter().map(|v| v * 2048.0).collect();
    let run = |mode| precision_recall(rows(&big, 16), rows(&other, 16), mode, compute()).unwrap();
    let (adm, exact) = (run(PrMode::Adm), run(PrMode::F32));
    assert_eq!((adm.precision_count, adm.recall_count), (exact.precision_count, exact.recall_count));
}
