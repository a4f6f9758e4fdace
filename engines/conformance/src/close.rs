//! Whether two tensors lie within a tolerance of each other, element by element.

use dpar_engine_api::{Tensor, TensorData};

use crate::CheckFailure;
use crate::tolerance::{Limit, Quantity, Rounding};

/// `|a - b| <= absolute + relative * |b|`, element by element; integers must be equal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub absolute: f32,
    /// Relative to the expected value.
    pub relative: f32,
}

/// The same computation on the same inputs: identical bytes.
pub(crate) const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0 };

impl From<Limit> for Tolerance {
    fn from(limit: Limit) -> Self {
        let value = limit.value() as f32;
        Self { absolute: value, relative: value }
    }
}

/// The tolerances of a case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerances {
    /// A row alone against the same row in a batch.
    pub batch: Tolerance,
    /// Against another engine or a stored reference.
    pub engine: Tolerance,
}

impl From<Rounding> for Tolerances {
    fn from(rounding: Rounding) -> Self {
        let [batch, engine] = [Quantity::Rows, Quantity::Output].map(|q| rounding.limit(q).into());
        Self { batch, engine }
    }
}

impl Default for Tolerances {
    fn default() -> Self {
        Rounding::FP32.into()
    }
}

impl Tolerance {
    /// Compares two tensors. NaN is never close to anything.
    ///
    /// # Errors
    /// Shape or dtype, or the worst element: its index, both values and the distance.
    pub fn check(self, name: &str, actual: &Tensor, expected: &Tensor) -> Result<(), CheckFailure> {
        if actual.shape() != expected.shape() || actual.dtype() != expected.dtype() {
            return Err(format!(
                "`{name}` is {}{:?}, expected {}{:?}",
                actual.dtype(),
                actual.shape(),
                expected.dtype(),
                expected.shape()
            )
            .into());
        }
        if self == EXACT && same_bytes(actual, expected) {
            return Ok(());
        }
        if let (Some(a), Some(b)) = (actual.as_i64(), expected.as_i64()) {
            return match a.iter().zip(b).position(|(a, b)| a != b) {
                Some(i) => {
                    Err(format!("`{name}`{:?} is {}, expected {}", index(actual, i), a[i], b[i]).into())
                }
                None => Ok(()),
            };
        }
        let (Some(a), Some(b)) = (actual.to_f32(), expected.to_f32()) else {
            return Err(format!("`{name}` has a dtype that cannot be compared").into());
        };
        // How many times the allowance an element is off; NaN is worse than everything.
        let excess = |a: f32, b: f32| {
            let distance = (a - b).abs();
            let allowed = self.absolute + self.relative * b.abs();
            if distance <= allowed {
                0.0
            } else if distance.is_nan() {
                f32::INFINITY
            } else {
                distance - allowed
            }
        };
        let off = a.iter().zip(&b).map(|(a, b)| excess(*a, *b));
        let worst = off.enumerate().filter(|(_, e)| *e > 0.0).max_by(|x, y| x.1.total_cmp(&y.1));
        let bits = |i: usize| self == EXACT && a[i].to_bits() != b[i].to_bits();
        match worst.map(|(i, _)| i).or_else(|| (0..a.len()).find(|i| bits(*i))) {
            None => Ok(()),
            Some(i) => Err(format!(
                "`{name}`{:?} is {:?}, expected {:?}: distance {:e}, allowed {:e} + {:e} * |expected|",
                index(actual, i),
                a[i],
                b[i],
                (a[i] - b[i]).abs(),
                self.absolute,
                self.relative
            )
            .into()),
        }
    }
}

/// Whether two tensors have the same shape and bytes.
pub(crate) fn same_bytes(a: &Tensor, b: &Tensor) -> bool {
    a.shape() == b.shape()
        && match (a.clone().into_data(), b.clone().into_data()) {
            (TensorData::F32(a), TensorData::F32(b)) => {
                a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()))
            }
            (TensorData::F16(a), TensorData::F16(b)) => {
                a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()))
            }
            (TensorData::BF16(a), TensorData::BF16(b)) => {
                a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()))
            }
            (TensorData::I64(a), TensorData::I64(b)) => a == b,
            _ => false,
        }
}

/// The index of a flat position.
fn index(tensor: &Tensor, mut flat: usize) -> Vec<usize> {
    let mut at: Vec<usize> = tensor
        .shape()
        .iter()
        .rev()
        .map(|&n| {
            let i = flat % n.max(1);
            flat /= n.max(1);
            i
        })
        .collect();
    at.reverse();
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine() -> Tolerance {
        Tolerances::default().engine
    }

    #[test]
    fn a_failure_names_the_worst_element() {
        let a = Tensor::f32([2, 2], vec![0.0, 1.0, 2.5, 3.1]);
        let b = Tensor::f32([2, 2], vec![0.0, 1.0, 2.0, 3.0]);
        let e = engine().check("y", &a, &b).unwrap_err();
        assert!(e.to_string().starts_with("`y`[1, 0] is 2.5, expected 2.0: distance 5e-1"), "{e}");
        engine().check("y", &b, &b).unwrap();
        assert!(engine().check("y", &Tensor::f32([4], vec![0.0; 4]), &b).is_err());
    }

    #[test]
    fn nan_and_signed_zero_are_seen() {
        let nan = Tensor::f32([1], vec![f32::NAN]);
        assert!(engine().check("y", &nan, &nan).is_err());
        let (plus, minus) = (Tensor::f32([1], vec![0.0]), Tensor::f32([1], vec![-0.0]));
        assert!(
            EXACT.check("y", &plus, &minus).unwrap_err().to_string().contains("[0] is 0.0, expected -0.0")
        );
        engine().check("y", &plus, &minus).unwrap();
    }

    #[test]
    fn integers_must_be_equal() {
        let e =
            engine().check("t", &Tensor::i64([2], vec![1, 2]), &Tensor::i64([2], vec![1, 3])).unwrap_err();
        assert_eq!(e.to_string(), "`t`[1] is 2, expected 3");
    }
}
