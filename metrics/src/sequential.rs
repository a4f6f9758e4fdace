//! Looking at a test more than once: critical values that keep its error, by spending it.

use libm::erfc;

use crate::MetricError;

/// Nodes of the grid on which what goes on is integrated; odd, for Simpson's rule.
const NODES: usize = 1001;
/// Standard deviations below which nothing is integrated.
const REACH: f64 = 8.0;
/// Error of one side of a 90 % interval: that of each of the two one-sided tests of [`crate::equivalence`].
const ERROR: f64 = 0.05;
/// A look whose share of the error is below this decides nothing: its critical value is beyond all that doubles tell apart.
const NOTHING: f64 = 1e-15;

/// Upper tail of the standard normal distribution.
fn above(x: f64) -> f64 {
    0.5 * erfc(x / std::f64::consts::SQRT_2)
}

/// Density of the standard normal distribution.
fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The x in `low..high` at which a falling function is `value`.
fn where_it_is(value: f64, falling: impl Fn(f64) -> f64, (mut low, mut high): (f64, f64)) -> f64 {
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if falling(middle) > value { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The error that may be spent until a fraction `t` of all images was seen: 2·(1 − Φ(z_{α/2}/√t)), whose critical values are
/// nearly O'Brien and Fleming's (K. K. G. Lan, D. L. DeMets, "Discrete sequential boundaries for clinical trials", 1983): hardly any at
/// first, nearly all at the end.
fn spent(alpha: f64, t: f64) -> f64 {
    let z = where_it_is(alpha / 2.0, above, (0.0, 40.0));
    2.0 * above(z / t.sqrt())
}

/// One-sided critical values, in standard errors, of looks at the given fractions of all images, so that the chance that any of the looks
/// rejects a true hypothesis is 5 % in all: what [`crate::equivalence_at`] takes in place of 1.645.
///
/// The statistic at fraction t is a Brownian motion at t over √t; what has not crossed a boundary is integrated from look to look
/// (P. Armitage, C. K. McPherson, B. C. Rowe, "Repeated significance tests on accumulating data", 1969). It holds for
/// any true difference at the edge of the margin, where the test's error is largest, and for standard errors that fall as 1/√n; a first
/// look needs enough images for the normal distribution.
///
/// # Errors
/// [`MetricError::Parameter`] unless the fractions rise from above 0 to 1.
pub fn sequential_boundaries(fractions: &[f64]) -> Result<Vec<f64>, MetricError> {
    boundaries(ERROR, fractions)
}

fn boundaries(alpha: f64, fractions: &[f64]) -> Result<Vec<f64>, MetricError> {
    let rising = fractions.is_sorted_by(|a, b| a < b) && fractions.first().is_some_and(|t| *t > 0.0);
    if !rising || fractions.last() != Some(&1.0) {
        return Err(MetricError::Parameter {
            what: "fractions of looks",
            rule: "rising, above 0, the last one 1",
        });
    }
    let mut critical = Vec::with_capacity(fractions.len());
    // Nothing was seen: all of it is at 0.
    let mut going = vec![(0.0, 1.0)];
    let mut before = 0.0;
    for &t in fractions {
        let share = spent(alpha, t) - if before > 0.0 { spent(alpha, before) } else { 0.0 };
        let step = (t - before).sqrt();
        let crossed =
            |c: f64| going.iter().map(|(s, weight)| weight * above((c * t.sqrt() - s) / step)).sum();
        let c = if share < NOTHING { f64::INFINITY } else { where_it_is(share, crossed, (-10.0, 40.0)) };
        critical.push(c);
        going = go_on(&going, (-REACH * t.sqrt(), c.min(REACH) * t.sqrt()), step);
        before = t;
    }
    Ok(critical)
}

/// The distribution after one more step, between the two ends: places and their weights.
fn go_on(going: &[(f64, f64)], (low, high): (f64, f64), step: f64) -> Vec<(f64, f64)> {
    let width = (high - low) / (NODES - 1) as f64;
    let node = |i: usize| {
        let x = low + width * i as f64;
        let simpson = match i {
            0 => 1.0,
            i if i == NODES - 1 => 1.0,
            i if i % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let there: f64 = going.iter().map(|(s, weight)| weight * density((x - s) / step) / step).sum();
        (x, there * simpson * width / 3.0)
    };
    (0..NODES).map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_the_published_ones() {
        // One-sided 2.5 %, equally spaced looks, as tables and programs of group sequential designs print them.
        for (looks, published) in [
            (1, &[1.9600][..]),
            (2, &[2.9626, 1.9686]),
            (3, &[3.7103, 2.5114, 1.9930]),
            (5, &[4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
        ] {
            let fractions: Vec<f64> = (1..=looks).map(|k| f64::from(k) / f64::from(looks)).collect();
            let found = boundaries(0.025, &fractions).unwrap();
            for (found, published) in found.iter().zip(published) {
                assert!((found - published).abs() < 2e-4, "{looks} looks: {found}, published {published}");
            }
        }
    }

    #[test]
    fn one_look_is_the_plain_test_and_odd_plans_are_refused() {
        let [one] = sequential_boundaries(&[1.0]).unwrap()[..] else { panic!("one look") };
        assert!((one - crate::Z90).abs() < 1e-9, "{one}");
        for bad in [&[][..], &[0.5], &[0.0, 1.0], &[0.6, 0.5, 1.0], &[0.5, 1.1], &[f64::NAN, 1.0]] {
            assert!(sequential_boundaries(bad).is_err(), "{bad:?}");
        }
        // A first look at almost nothing decides nothing.
        assert_eq!(sequential_boundaries(&[0.01, 1.0]).unwrap()[0], f64::INFINITY);
    }
}
