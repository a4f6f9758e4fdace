//! Seeded inputs for any graph, made from its interface.

use std::collections::BTreeMap;

use dpar_engine_api::{Tensor, TensorData, TensorSlice, TensorView};
use dpar_export_spec::{DType, Dim, GraphSpec, Port, Role};
use half::{bf16, f16};

use crate::{CheckFailure, GraphCase};

/// The axis of independent rows.
pub(crate) const BATCH: &str = "batch";

/// Sizes of the named axes.
pub(crate) type AxisSizes = BTreeMap<String, usize>;

/// Named, owned inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs(pub Vec<(String, Tensor)>);

impl Inputs {
    /// Views, as a session takes them.
    pub fn views(&self) -> Vec<(&str, TensorView<'_>)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect()
    }
}

/// xorshift64*: small, seeded, the same everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero is the one state it cannot leave.
        Self((seed ^ 0x9E37_79B9_7F4A_7C15).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in [-2, 2), on a grid of 2⁻²².
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u32 << 22) as f32 - 2.0
    }

    fn below(&mut self, bound: usize) -> i64 {
        (self.next() % bound.max(1) as u64) as i64
    }
}

/// Size of one dimension.
pub(crate) fn size(dim: &Dim, sizes: &AxisSizes) -> Result<usize, CheckFailure> {
    match dim {
        Dim::Fixed(n) => Ok(*n),
        Dim::Axis(_) | Dim::Sum(..) => dim
            .axes()
            .iter()
            .map(|a| {
                let size = sizes.get(*a).copied();
                size.ok_or_else(|| CheckFailure::from(format!("axis `{a}` has no range in the spec")))
            })
            .sum(),
    }
}

pub(crate) fn shape(port: &Port, sizes: &AxisSizes) -> Result<Vec<usize>, CheckFailure> {
    port.dims.iter().map(|d| size(d, sizes)).collect()
}

/// Random inputs: floats in [-2, 2), integers below their bound, masks of zeros.
pub(crate) fn generate(case: &GraphCase, sizes: &AxisSizes, salt: u64) -> Result<Inputs, CheckFailure> {
    let mut random = Random::new(case.seed.wrapping_mul(31).wrapping_add(salt));
    let make = |port: &Port| {
        let shape = shape(port, sizes)?;
        let count: usize = shape.iter().product();
        let tensor = match port.dtype {
            DType::F32 if is_mask(port) => Tensor::f32(shape, vec![0.0; count]),
            float if float.is_float() => {
                let values = (0..count).map(|_| random.float()).collect();
                float_tensor(float, shape, values)
                    .ok_or_else(|| format!("no generator for {float} inputs"))?
            }
            DType::I64 => {
                let bound = case.bounds.get(&port.name).copied();
                let bound =
                    bound.ok_or_else(|| format!("the case gives no bound for input `{}`", port.name))?;
                Tensor::i64(shape, (0..count).map(|_| random.below(bound)).collect::<Vec<_>>())
            }
            other => return Err(format!("no generator for {other} inputs").into()),
        };
        Ok((port.name.clone(), tensor))
    };
    case.spec.inputs.iter().map(make).collect::<Result<_, _>>().map(Inputs)
}

/// Whether a port is an additive attention mask.
pub(crate) fn is_mask(port: &Port) -> bool {
    port.role() == Role::Mask
}

/// Where a port has an axis.
pub(crate) fn axis_at(port: &Port, axis: &str) -> Option<usize> {
    port.dims.iter().position(|d| d.axes() == [axis])
}

/// The mask of a graph and its past axis: the one that is half of the mask's key dimension and also an axis of
/// other inputs.
pub(crate) fn past_of(spec: &GraphSpec) -> Option<(&Port, &str)> {
    let mask = spec.inputs.iter().find(|p| is_mask(p))?;
    let Some(Dim::Sum(a, b)) = mask.dims.last() else { return None };
    let held = |axis: &&str| {
        spec.inputs.iter().any(|p| !is_mask(p) && p.dtype.is_float() && axis_at(p, axis).is_some())
    };
    [a.as_str(), b.as_str()].into_iter().find(held).map(|past| (mask, past))
}

/// How many elements lie below one step of an axis.
pub(crate) fn stride(shape: &[usize], axis: usize) -> usize {
    shape[axis + 1..].iter().product()
}

/// A tensor of that float type, each value rounded to the nearest; `None` for integers.
fn float_tensor(dtype: DType, shape: Vec<usize>, values: Vec<f32>) -> Option<Tensor> {
    let data = match dtype {
        DType::F32 => TensorData::F32(values),
        DType::F16 => TensorData::F16(values.into_iter().map(f16::from_f32).collect()),
        DType::BF16 => TensorData::BF16(values.into_iter().map(bf16::from_f32).collect()),
        DType::I64 => return None,
    };
    Some(Tensor::new(shape, data))
}

/// Maps every element of a float tensor, given its flat index; the result has the type of the tensor.
pub(crate) fn map_f32(tensor: &Tensor, mut f: impl FnMut(usize, f32) -> f32) -> Tensor {
    let Some(data) = tensor.to_f32() else { return tensor.clone() };
    let mapped = data.into_iter().enumerate().map(|(i, v)| f(i, v)).collect();
    float_tensor(tensor.dtype(), tensor.shape().to_vec(), mapped).unwrap_or_else(|| tensor.clone())
}

/// Picks rows along an axis.
pub(crate) fn rows(tensor: &Tensor, axis: usize, pick: &[usize]) -> Tensor {
    let (inner, count) = (stride(tensor.shape(), axis), tensor.shape()[axis]);
    let outer: usize = tensor.shape()[..axis].iter().product();
    let mut shape = tensor.shape().to_vec();
    shape[axis] = pick.len();
    let starts: Vec<usize> =
        (0..outer).flat_map(|o| pick.iter().map(move |r| (o * count + r) * inner)).collect();
    fn collect<T: Copy>(data: &[T], starts: &[usize], inner: usize) -> Vec<T> {
        starts.iter().flat_map(|&s| &data[s..s + inner]).copied().collect()
    }
    match tensor.view().data() {
        TensorSlice::I64(data) => Tensor::i64(shape, collect(data, &starts, inner)),
        TensorSlice::F32(data) => Tensor::f32(shape, collect(data, &starts, inner)),
        TensorSlice::F16(data) => Tensor::f16(shape, collect(data, &starts, inner)),
        TensorSlice::BF16(data) => Tensor::bf16(shape, collect(data, &starts, inner)),
    }
}

/// Two tensors of one type side by side along an axis.
pub(crate) fn joined(a: &Tensor, b: &Tensor, axis: usize) -> Result<Tensor, CheckFailure> {
    fn interleave<T: Copy>(a: &[T], b: &[T], pieces: [usize; 2]) -> Vec<T> {
        let pairs = a.chunks_exact(pieces[0]).zip(b.chunks_exact(pieces[1]));
        pairs.flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
    }
    let pieces = [a, b].map(|t| t.shape()[axis] * stride(t.shape(), axis));
    let mut shape = a.shape().to_vec();
    shape[axis] += b.shape()[axis];
    Ok(match (a.view().data(), b.view().data()) {
        (TensorSlice::I64(a), TensorSlice::I64(b)) => Tensor::i64(shape, interleave(a, b, pieces)),
        (TensorSlice::F32(a), TensorSlice::F32(b)) => Tensor::f32(shape, interleave(a, b, pieces)),
        (TensorSlice::F16(a), TensorSlice::F16(b)) => Tensor::f16(shape, interleave(a, b, pieces)),
        (TensorSlice::BF16(a), TensorSlice::BF16(b)) => Tensor::bf16(shape, interleave(a, b, pieces)),
        (a, b) => return Err(format!("{} and {} in one tensor", a.dtype(), b.dtype()).into()),
    })
}

/// Picks rows of the batch axis in every port that has it.
pub(crate) fn batch_rows(ports: &[Port], tensors: &[Tensor], pick: &[usize]) -> Vec<Tensor> {
    ports
        .iter()
        .zip(tensors)
        .map(|(port, tensor)| match axis_at(port, BATCH) {
            Some(axis) => rows(tensor, axis, pick),
            None => tensor.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_picked_along_any_axis() {
        let t = Tensor::i64([2, 3, 2], (0..12).collect::<Vec<_>>());
        assert_eq!(rows(&t, 1, &[2, 0]), Tensor::i64([2, 2, 2], vec![4, 5, 0, 1, 10, 11, 6, 7]));
        let (a, b) = (rows(&t, 1, &[0]), rows(&t, 1, &[1, 2]));
        assert_eq!(joined(&a, &b, 1), Ok(t));
        let empty = Tensor::f32([0, 2], vec![]);
        assert_eq!(rows(&empty, 1, &[1]), Tensor::f32([0, 1], vec![]));
    }

    #[test]
    fn the_generator_is_seeded_and_bounded() {
        let draw = |seed| {
            let mut r = Random::new(seed);
            (0..1000).map(|_| r.float()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(0x9E37_79B9_7F4A_7C15).iter().all(|v| (-2.0..2.0).contains(v)));
        let mut r = Random::new(3);
        let ints: Vec<i64> = (0..1000).map(|_| r.below(7)).collect();
        assert_eq!((ints.iter().min(), ints.iter().max()), (Some(&0), Some(&6)));
    }
}
