//! Tensor-level comparison: one accumulator for each output, over any number of calls.

use serde::Serialize;

use crate::status::Status;
use crate::tolerance::Limit;

/// Upper edges of the histogram of absolute differences; the last bin has none.
const EDGES: [f64; 10] = [0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// How two versions of one output differ, over all calls that were compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorStats {
    /// `graph/output`, or `logits` and `entropy` of the whole loop.
    pub name: String,
    /// The graph, of an output of a single one.
    pub graph: Option<String>,
    /// Calls compared.
    pub calls: usize,
    /// Elements compared.
    pub elements: u64,
    /// Elements that are NaN or infinite in one or both.
    pub non_finite: u64,
    /// Largest |a − b|.
    pub max_abs: f64,
    /// Mean |a − b|.
    pub mean_abs: f64,
    /// Largest |a − b| / max(|a|, |b|), at most 2.
    pub max_rel: f64,
    /// Largest distance in units in the last place (float32 values between the two).
    pub max_ulp: u64,
    /// Largest |a|.
    pub largest: f64,
    /// Cosine of the two as vectors; 1 where both are zero.
    pub cosine: f64,
    /// Counts of |a − b|, in decades.
    pub histogram: Vec<Bin>,
    /// The smallest t for which |a − b| ≤ t + t·|a| holds everywhere (a is the baseline's).
    pub smallest_tolerance: f64,
    /// What was held against the limit.
    pub measure: Measure,
    /// Its value; infinite (null in JSON) where an element is no number or the sizes differ.
    pub measured: f64,
    /// Largest value that passes.
    pub limit: f64,
    /// Verdict.
    pub status: Status,
    /// Where the tolerance is needed most.
    pub worst: Option<Worst>,
}

impl TensorStats {
    /// How much of the limit is used: above 1 fails.
    pub fn used(&self) -> f64 {
        match self.limit > 0.0 {
            true => self.measured / self.limit,
            false if self.measured > 0.0 => f64::INFINITY,
            false => 0.0,
        }
    }
}

/// What a limit applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// `max_abs`: |a − b|.
    Absolute,
    /// `smallest_tolerance`: |a − b| / (1 + |a|).
    Mixed,
    /// `max_abs / max(1, largest)`: for outputs of single graphs, which hold sums of large terms.
    OfLargest,
    /// The share of elements that differ: for codes, which are equal or not.
    Share,
}

impl Measure {
    /// In words, for reports.
    pub fn text(self) -> &'static str {
        match self {
            Self::Absolute => "|a − b|",
            Self::Mixed => "|a − b| / (1 + |a|)",
            Self::OfLargest => "|a − b| of the largest value",
            Self::Share => "share that differs",
        }
    }
}

/// One bin of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Upper edge, included; null = no edge.
    pub up_to: Option<f64>,
    /// Elements above the edge before and up to this one.
    pub count: u64,
}

/// One element.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// Call, counted from 0.
    pub call: usize,
    /// Flat index in that call's tensor.
    pub index: usize,
    /// The baseline's value.
    pub baseline: f32,
    /// The engine's value.
    pub engine: f32,
}

/// Sums up differences.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accumulator {
    calls: usize,
    elements: u64,
    non_finite: u64,
    max_abs: f64,
    sum_abs: f64,
    max_rel: f64,
    max_ulp: u64,
    largest: f64,
    dot: f64,
    squares: [f64; 2],
    counts: [u64; EDGES.len() + 1],
    needed: f64,
    worst: Option<Worst>,
    /// A call had another number of elements.
    unlike: bool,
}

impl Accumulator {
    /// Compares one call; returns the largest |a − b| of it alone (infinite for NaN and other sizes).
    pub(crate) fn add(&mut self, baseline: &[f32], engine: &[f32]) -> f64 {
        let call = self.calls;
        self.calls += 1;
        if baseline.len() != engine.len() {
            self.unlike = true;
            return f64::INFINITY;
        }
        self.elements += baseline.len() as u64;
        let mut here = 0.0_f64;
        for (index, (&a, &b)) in baseline.iter().zip(engine).enumerate() {
            let (x, y) = (f64::from(a), f64::from(b));
            if !x.is_finite() || !y.is_finite() {
                self.non_finite += 1;
                here = f64::INFINITY;
                self.worst = Some(Worst { call, index, baseline: a, engine: b });
                continue;
            }
            let d = (x - y).abs();
            self.sum_abs += d;
            self.largest = self.largest.max(x.abs());
            self.dot += x * y;
            self.squares[0] += x * x;
            self.squares[1] += y * y;
            let bin = EDGES.iter().position(|e| d <= *e).unwrap_or(EDGES.len());
            self.counts[bin] += 1;
            if d == 0.0 {
                continue;
            }
            self.max_abs = self.max_abs.max(d);
            self.max_rel = self.max_rel.max(d / x.abs().max(y.abs()));
            self.max_ulp = self.max_ulp.max(ulps(a, b));
            here = here.max(d);
            let needed = d / (1.0 + x.abs());
            if needed > self.needed {
                self.needed = needed;
                if self.non_finite == 0 {
                    self.worst = Some(Worst { call, index, baseline: a, engine: b });
                }
            }
        }
        here
    }

    /// The result; |a − b| ≤ limit must hold for every element.
    pub(crate) fn absolute(&self, name: &str, limit: Limit) -> TensorStats {
        self.result(name, limit, Measure::Absolute, self.max_abs)
    }

    /// The result; |a − b| ≤ limit + limit·|a| must hold for every element.
    pub(crate) fn mixed(&self, name: &str, limit: Limit) -> TensorStats {
        self.result(name, limit, Measure::Mixed, self.needed)
    }

    /// The result; |a − b| ≤ limit · max(1, largest |a|) must hold for every element.
    pub(crate) fn scaled(&self, name: &str, limit: Limit) -> TensorStats {
        self.result(name, limit, Measure::OfLargest, self.max_abs / self.largest.max(1.0))
    }

    /// The result for codes; a share of at most `limit` may differ.
    pub(crate) fn share(&self, name: &str, limit: Limit) -> TensorStats {
        let unequal = self.elements - self.non_finite - self.counts[0];
        self.result(name, limit, Measure::Share, unequal as f64 / self.elements.max(1) as f64)
    }

    fn result(&self, name: &str, limit: Limit, measure: Measure, value: f64) -> TensorStats {
        let length = (self.squares[0] * self.squares[1]).sqrt();
        let cosine = if length > 0.0 { (self.dot / length).clamp(-1.0, 1.0) } else { 1.0 };
        let edges = EDGES.iter().map(|e| Some(*e)).chain([None]);
        let measured = if self.unlike || self.non_finite > 0 { f64::INFINITY } else { value };
        TensorStats {
            name: name.to_owned(),
            graph: None,
            calls: self.calls,
            elements: self.elements,
            non_finite: self.non_finite,
            max_abs: self.max_abs,
            mean_abs: self.sum_abs / (self.elements - self.non_finite).max(1) as f64,
            max_rel: self.max_rel,
            max_ulp: self.max_ulp,
            largest: self.largest,
            cosine,
            histogram: edges.zip(self.counts).map(|(up_to, count)| Bin { up_to, count }).collect(),
            smallest_tolerance: self.needed,
            measure,
            measured,
            limit: limit.value(),
            status: if limit.holds(measured) { Status::Pass } else { Status::Fail },
            worst: self.worst.clone(),
        }
    }

    /// Largest absolute difference; `None` before anything was compared.
    pub(crate) fn largest(&self) -> Option<f64> {
        let bad = self.non_finite > 0 || self.unlike;
        (self.elements > 0).then_some(if bad { f64::INFINITY } else { self.max_abs })
    }
}

/// Float32 values between two, counted through zero.
fn ulps(a: f32, b: f32) -> u64 {
    let ordered = |v: f32| {
        let bits = i64::from(v.to_bits() as i32);
        if bits < 0 { i64::from(i32::MIN) - bits } else { bits }
    };
    ordered(a).abs_diff(ordered(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance::{Quantity, Rounding};

    /// A limit of that number.
    fn at(limit: f64) -> Limit {
        let unit = Rounding::FP32.limit(Quantity::Pixels);
        assert_eq!(unit.value(), 1.0);
        unit.scaled(limit)
    }

    #[test]
    fn every_measure_of_a_small_example() {
        let mut sums = Accumulator::default();
        sums.add(&[1.0, 0.0, -2.0], &[1.0, 0.0, -2.0]);
        let largest = sums.add(&[3.0], &[3.5]);
        assert_eq!(largest, 0.5);
        let s = sums.mixed("x", at(0.1));
        assert_eq!((s.calls, s.elements, s.non_finite, s.status), (2, 4, 0, Status::Fail));
        assert_eq!((s.max_abs, s.mean_abs, s.smallest_tolerance), (0.5, 0.125, 0.125));
        assert_eq!(s.max_rel, 0.5 / 3.5);
        assert_eq!(s.max_ulp, u64::from(3.5_f32.to_bits() - 3.0_f32.to_bits()));
        assert!((s.cosine - (1.0 + 4.0 + 10.5) / (14.0_f64 * 17.25).sqrt()).abs() < 1e-12);
        let counts: Vec<u64> = s.histogram.iter().map(|b| b.count).collect();
        assert_eq!(counts, [3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(s.worst, Some(Worst { call: 1, index: 0, baseline: 3.0, engine: 3.5 }));
        assert_eq!(sums.mixed("x", at(0.125)).status, Status::Pass);
        assert_eq!([0.499, 0.5].map(|t| sums.absolute("x", at(t)).status), [Status::Fail, Status::Pass]);
        // 0.5 of a largest value of 3.
        assert_eq!(sums.scaled("x", at(0.17)).status, Status::Pass);
        assert_eq!(sums.scaled("x", at(0.16)).status, Status::Fail);
        let (mixed, scaled, share) =
            (sums.mixed("x", at(0.1)), sums.scaled("x", at(0.1)), sums.share("x", at(0.1)));
        let absolute = sums.absolute("x", at(0.1));
        assert_eq!((absolute.measure, absolute.measured), (Measure::Absolute, 0.5));
        assert_eq!((mixed.measure, mixed.measured), (Measure::Mixed, 0.125));
        assert_eq!((scaled.measure, scaled.measured), (Measure::OfLargest, 0.5 / 3.0));
        assert_eq!((share.measure, share.measured, share.status), (Measure::Share, 0.25, Status::Fail));
        assert_eq!(sums.share("x", at(0.25)).status, Status::Pass);
    }

    #[test]
    fn nan_and_other_sizes_never_pass() {
        let mut sums = Accumulator::default();
        assert_eq!(sums.add(&[f32::NAN, 1.0], &[f32::NAN, 1.0]), f64::INFINITY);
        let s = sums.absolute("x", at(1.0));
        assert_eq!((s.status, s.non_finite, s.measured), (Status::Fail, 1, f64::INFINITY));
        assert_eq!(sums.share("x", at(1.0)).status, Status::Fail);
        assert_eq!(sums.largest(), Some(f64::INFINITY));
        let mut sums = Accumulator::default();
        assert_eq!(sums.add(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(sums.absolute("x", at(1.0)).status, Status::Fail);
        assert_eq!(Accumulator::default().largest(), None);
    }

    #[test]
    fn ulps_count_through_zero() {
        assert_eq!(ulps(1.0, f32::from_bits(1.0_f32.to_bits() + 3)), 3);
        assert_eq!(ulps(f32::from_bits(1), -f32::from_bits(1)), 2);
        assert_eq!(ulps(0.0, -0.0), 0);
    }
}
