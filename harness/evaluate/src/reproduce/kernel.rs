//! Which image moves the kernel distance how much.

use dpar_export_metrics::Rows;

/// Influence of each sample on the unbiased KID against `reference`: 2·(mean_j k(x_i, x_j) − mean_j k(x_i, y_j)), the
/// linear part of its Hoeffding decomposition over the samples; k(x, y) = (xᵀy/d + 1)³. For samples of the same classes
/// and seeds, the spread of the differences of two sets is the standard error of the difference of their KIDs.
pub(super) fn kid_influence(samples: Rows<'_>, reference: Rows<'_>) -> Vec<f64> {
    let scale = 1.0 / samples.width() as f64;
    let kernel = |a: &[f32], b: &[f32]| {
        let base = f64::from(dot(a, b)) * scale + 1.0;
        base * base * base
    };
    let n = samples.count();
    let mean = |i: usize, of: Rows<'_>, skip: Option<usize>| {
        let row = samples.row(i);
        let others = (0..of.count()).filter(|j| Some(*j) != skip);
        let (sum, count) = others.fold((0.0, 0_usize), |(s, c), j| (s + kernel(row, of.row(j)), c + 1));
        sum / count.max(1) as f64
    };
    (0..n).map(|i| 2.0 * (mean(i, samples, Some(i)) - mean(i, reference, None))).collect()
}

/// Dot product in eight partial sums, which is enough for standard errors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (x, y) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in x.0.iter().zip(y.0) {
        for (s, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *s += x * y;
        }
    }
    let rest: f32 = x.1.iter().zip(y.1).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_export_metrics::{Compute, kid};

    #[test]
    fn the_influence_is_what_leaving_one_out_does() {
        let value = |i: usize, seed: usize| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0;
        let data = |n: usize, seed: usize| (0..n * 11).map(|i| value(i, seed)).collect::<Vec<f32>>();
        let (x, y) = (data(40, 1), data(60, 2));
        let rows = |d: &[f32]| -> f64 {
            let compute = Compute::new(1).unwrap();
            kid(Rows::new("x", d, 11).unwrap(), Rows::new("y", &y, 11).unwrap(), &compute).unwrap().value
        };
        let influence = kid_influence(Rows::new("x", &x, 11).unwrap(), Rows::new("y", &y, 11).unwrap());
        let mean = influence.iter().sum::<f64>() / 40.0;
        let whole = rows(&x);
        for i in [0, 13, 39] {
            let mut without = x.clone();
            without.drain(i * 11..(i + 1) * 11);
            // (n − 1)·(KID − KID without i) is the centred influence, to first order in 1/n.
            let effect = 39.0 * (whole - rows(&without));
            let centred = influence[i] - mean;
            assert!((effect - centred).abs() < 0.15 * centred.abs() + 0.02, "{i}: {effect} {centred}");
        }
    }
}
