//! Standard errors, bootstrap, equivalence and the gate against a printed number.

use crate::golden::compute;
use crate::synthetic::{Spec, word};
use dpar_export_metrics::*;

const D: usize = 6;

fn small(n: usize, seed: u64) -> Vec<f32> {
    Spec { d: D, r: 4, ..Spec::new(n, seed) }.activations()
}

fn rows(data: &[f32]) -> Rows<'_> {
    Rows::new("test", data, D).unwrap()
}

fn moments(data: &[f32]) -> Moments {
    let mut m = MomentsAccumulator::new(D).unwrap();
    m.push(rows(data), compute()).unwrap();
    m.finish(compute()).unwrap()
}

fn fid(a: &[f32], b: &Moments) -> f64 {
    frechet_distance(&moments(a), b, compute()).unwrap().distance
}

#[test]
fn influence_is_the_effect_of_leaving_one_out() {
    let (n, reference) = (400, moments(&small(900, 2)));
    let data = small(n, 1);
    let influence = FrechetInfluence::new(&moments(&data), &reference, compute()).unwrap();
    let values = influence.rows(rows(&data), compute()).unwrap();
    assert!(values.iter().sum::<f64>().abs() < 0.01 * values.iter().map(|v| v.abs()).sum::<f64>());
    let whole = fid(&data, &reference);
    for i in [0, 17, 203, 399] {
        let mut without = data.clone();
        without.drain(i * D..(i + 1) * D);
        let effect = -(fid(&without, &reference) - whole) * (n - 1) as f64;
        assert!((effect - values[i]).abs() < 0.03 * values[i].abs() + 2e-3, "{i}: {effect} {}", values[i]);
    }
}

#[test]
fn influence_error_is_the_spread_over_samples() {
    let (n, reference) = (500, moments(&small(4000, 1_000_000)));
    let mut distances = Vec::new();
    let mut errors = Vec::new();
    for seed in 0..120 {
        let data = small(n, seed);
        let m = moments(&data);
        distances.push(frechet_distance(&m, &reference, compute()).unwrap().distance);
        let influence = FrechetInfluence::new(&m, &reference, compute()).unwrap();
        let values = influence.rows(rows(&data), compute()).unwrap();
        errors.push(mean_and_standard_error(&values).unwrap().1);
    }
    let spread = mean_and_standard_error(&distances).unwrap().1 * (distances.len() as f64).sqrt();
    let error = errors.iter().sum::<f64>() / errors.len() as f64;
    // At a distance near 0 the linear part is only part of the story: a factor of 1.6 either way.
    assert!(error / spread > 0.6 && error / spread < 1.6, "{error} {spread}");
}

#[test]
fn kid_error_is_the_spread_over_samples() {
    for shift in [None, Some((9, 5))] {
        let mut values = Vec::new();
        let mut errors = Vec::new();
        for seed in 0..150 {
            let x = small(120, seed);
            let y = Spec { d: D, r: 4, far: shift, ..Spec::new(160, 5000 + seed) }.activations();
            let found = kid(rows(&x), rows(&y), compute()).unwrap();
            values.push(found.value);
            errors.push(found.standard_error);
        }
        let spread = mean_and_standard_error(&values).unwrap().1 * (values.len() as f64).sqrt();
        let error = errors.iter().sum::<f64>() / errors.len() as f64;
        assert!(error / spread > 0.75 && error / spread < 1.35, "{shift:?} {error} {spread}");
    }
}

#[test]
fn kid_by_its_definition_and_in_subsets() {
    let (x, y) = (small(30, 1), small(40, 2));
    let k = |a: &[f32], b: &[f32]| {
        let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (dot / D as f64 + 1.0).powi(3)
    };
    let mean = |x: &[f32], y: &[f32], same: bool| {
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (i, a) in x.chunks(D).enumerate() {
            for (j, b) in y.chunks(D).enumerate() {
                if !same || i != j {
                    sum += k(a, b);
                    pairs += 1.0;
                }
            }
        }
        sum / pairs
    };
    let want = mean(&x, &x, true) + mean(&y, &y, true) - 2.0 * mean(&x, &y, false);
    let found = kid(rows(&x), rows(&y), compute()).unwrap();
    assert!((found.value - want).abs() < 1e-13, "{} {want}", found.value);
    // Two subsets are the first rows of four permutations of one generator.
    let protocol = KidProtocol { subsets: 2, size: 10, seed: 2020 };
    let subsets = kid_subsets(rows(&x), rows(&y), protocol, compute()).unwrap();
    let mut random = NumpyRandom::new(2020).unwrap();
    for value in &subsets.values {
        let mut pick = |data: &[f32]| -> Vec<f32> {
            let order = random.permutation(data.len() / D);
            order[..10].iter().flat_map(|&i| data[i * D..(i + 1) * D].to_vec()).collect()
        };
        let (a, b) = (pick(&x), pick(&y));
        let want = mean(&a, &a, true) + mean(&b, &b, true) - 2.0 * mean(&a, &b, false);
        assert!((value - want).abs() < 1e-13);
    }
    assert!((subsets.mean - (subsets.values[0] + subsets.values[1]) / 2.0).abs() < 1e-15);
    let one = Compute::new(1).unwrap();
    assert_eq!(kid_subsets(rows(&x), rows(&y), protocol, &one).unwrap(), subsets);
}

#[test]
fn the_influence_on_kid_is_its_definition_and_what_leaving_one_out_does() {
    let (x, y) = (small(60, 1), small(80, 2));
    let influence = kid_influence(rows(&x), rows(&y), compute()).unwrap();
    let k = |a: &[f32], b: &[f32]| {
        let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (dot / D as f64 + 1.0).powi(3)
    };
    let whole = kid(rows(&x), rows(&y), compute()).unwrap().value;
    let mean = influence.iter().sum::<f64>() / 60.0;
    for i in [0, 13, 59] {
        let row = &x[i * D..(i + 1) * D];
        let others = x.chunks(D).enumerate().filter(|(j, _)| *j != i);
        let own = others.map(|(_, b)| k(row, b)).sum::<f64>() / 59.0;
        let cross = y.chunks(D).map(|b| k(row, b)).sum::<f64>() / 80.0;
        assert!((influence[i] - 2.0 * (own - cross)).abs() < 1e-12, "{i}");
        let mut without = x.clone();
        without.drain(i * D..(i + 1) * D);
        // (n − 1)·(KID − KID without i) is the centred influence, to first order in 1/n.
        let effect = 59.0 * (whole - kid(rows(&without), rows(&y), compute()).unwrap().value);
        let centred = influence[i] - mean;
        assert!((effect - centred).abs() < 0.15 * centred.abs() + 0.02, "{i}: {effect} {centred}");
    }
    assert_eq!(influence, kid_influence(rows(&x), rows(&y), &Compute::new(1).unwrap()).unwrap());
    assert!(kid_influence(rows(&x[..D]), rows(&y), compute()).is_err());
}

fn noise(seed: u64, i: usize) -> f64 {
    (word(seed, 1, i) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
}

#[test]
fn bootstrap_is_seeded_paired_and_agrees_with_the_formula() {
    let a: Vec<f64> = (0..400).map(|i| 5.0 * noise(1, i) + noise(2, i)).collect();
    let b: Vec<f64> = (0..400).map(|i| 5.0 * noise(1, i) + 0.3).collect();
    let settings = Bootstrap { resamples: 3000, seed: 7 };
    let found = settings.paired(&a, &b, compute()).unwrap();
    let formula = paired_standard_error(&a, &b).unwrap();
    assert!((found.standard_error / formula - 1.0).abs() < 0.06, "{found:?} {formula}");
    assert!(found.low < found.mean && found.mean < found.high);
    let half = (found.high - found.low) / 2.0;
    assert!((half / (Z90 * formula) - 1.0).abs() < 0.1);
    assert_eq!(settings.paired(&a, &b, &Compute::new(1).unwrap()).unwrap(), found);
    assert_ne!(Bootstrap { seed: 8, ..settings }.paired(&a, &b, compute()).unwrap(), found);
    assert!(matches!(settings.paired(&a, &b[1..], compute()), Err(MetricError::UnequalCounts { .. })));
    assert!(Bootstrap { resamples: 1, seed: 0 }.paired(&a, &b, compute()).is_err());
    assert!(settings.of(400, |_| Ok(f64::NAN), compute()).is_err());
}

#[test]
fn bootstrap_of_a_difference_of_distances_agrees_with_the_influence_functions() {
    let (n, reference) = (300, moments(&small(2000, 50)));
    let a = Spec { d: D, r: 4, far: Some((9, 3)), ..Spec::new(n, 60) }.activations();
    let b = Spec { d: D, r: 4, far: Some((9, 4)), ..Spec::new(n, 60) }.activations();
    let take = |data: &[f32], chosen: &[usize]| -> Vec<f32> {
        chosen.iter().flat_map(|&i| data[i * D..(i + 1) * D].to_vec()).collect()
    };
    let one = Compute::new(1).unwrap();
    let distance = |data: &[f32]| -> Result<f64, MetricError> {
        let mut m = MomentsAccumulator::new(D)?;
        m.push(Rows::new("resample", data, D)?, &one)?;
        Ok(frechet_distance(&m.finish(&one)?, &reference, &one)?.distance)
    };
    let statistic = |i: &[usize]| Ok(distance(&take(&a, i))? - distance(&take(&b, i))?);
    let found = Bootstrap { resamples: 400, seed: 1 }.of(n, statistic, compute()).unwrap();
    let influence = |data: &[f32]| {
        let f = FrechetInfluence::new(&moments(data), &reference, &one).unwrap();
        f.rows(rows(data), &one).unwrap()
    };
    let formula = paired_standard_error(&influence(&a), &influence(&b)).unwrap();
    assert!((found.standard_error / formula - 1.0).abs() < 0.15, "{found:?} {formula}");
}

#[test]
fn equivalence_has_three_outcomes() {
    let verdict = |d, se| equivalence(d, se, 0.03).unwrap().verdict;
    assert_eq!(verdict(0.0, 0.0), Verdict::Pass);
    assert_eq!(verdict(0.01, 0.01), Verdict::Pass);
    assert_eq!(verdict(0.02, 0.01), Verdict::Inconclusive);
    assert_eq!(verdict(0.0, 0.05), Verdict::Inconclusive);
    assert_eq!(verdict(-0.06, 0.01), Verdict::Fail);
    assert_eq!(verdict(0.05, 0.0), Verdict::Fail);
    assert_eq!((equivalence_margin(2.0), equivalence_margin(5.0)), (0.03, 0.05));
    assert_eq!((relative_margin(-2.0), relative_margin(0.5)), (0.02, 0.005));
    assert_eq!(equivalence(0.0, 0.0, relative_margin(0.0)).unwrap().verdict, Verdict::Pass);
    assert!(equivalence(f64::NAN, 0.0, 1.0).is_err());
    assert!(equivalence(0.0, -1.0, 1.0).is_err());
    assert!(equivalence(0.0, 0.0, 0.0).is_err());
    assert_eq!(Verdict::all([Verdict::Pass, Verdict::Inconclusive]), Verdict::Inconclusive);
    assert_eq!(Verdict::all([Verdict::Fail, Verdict::Inconclusive]), Verdict::Fail);
    assert_eq!(Verdict::all([Verdict::Inconclusive, Verdict::Incomplete]), Verdict::Incomplete);
    assert_eq!(Verdict::all([Verdict::Pass]), Verdict::Pass);
    assert_eq!(Verdict::all([]), Verdict::Inconclusive);
}

#[test]
fn printed_numbers_need_three_seeds() {
    let verdict = |runs: &[f64]| compare_with_printed(runs, 2.0).unwrap().verdict;
    assert_eq!(verdict(&[2.01, 2.03, 2.02]), Verdict::Pass);
    assert_eq!(verdict(&[2.06, 2.06, 2.0601]), Verdict::Fail);
    // Scattered seeds widen the tolerance to three standard errors.
    assert_eq!(verdict(&[1.95, 2.06, 2.17]), Verdict::Pass);
    assert_eq!(verdict(&[2.0]), Verdict::Inconclusive);
    assert_eq!(verdict(&[2.025, 2.02]), Verdict::Inconclusive);
    assert_eq!(verdict(&[2.2]), Verdict::Fail);
    assert!(compare_with_printed(&[], 2.0).is_err());
    assert!(compare_with_printed(&[2.0], 0.0).is_err());
}

#[test]
fn variants_have_names() {
    for variant in Variant::ALL {
        assert_eq!(variant.name().parse::<Variant>().unwrap(), variant);
    }
    assert!("adm".parse::<Variant>().is_err());
    assert_eq!(Variant::default().resize(), Resize::Tf1Bilinear);
}

#[test]
fn intervals_of_fractions() {
    // 8 of 10 at 90 %, computed elsewhere.
    let (low, high) = fraction_interval(8, 10).unwrap();
    assert!((low - 0.540_793).abs() < 1e-6 && (high - 0.931_442).abs() < 1e-6, "{low} {high}");
    assert_eq!(fraction_interval(0, 7).unwrap().0, 0.0);
    assert_eq!(fraction_interval(7, 7).unwrap().1, 1.0);
    assert!(fraction_interval(3, 2).is_err() && fraction_interval(0, 0).is_err());
}
