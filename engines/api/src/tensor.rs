//! Host tensors, row-major and contiguous.

use dpar_export_spec::DType;
use half::{bf16, f16};

/// Owned elements.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit IEEE floats.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl TensorData {
    /// `len` zeros of that type.
    pub fn zeros(dtype: DType, len: usize) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32(vec![0.0; len])),
            DType::F16 => Some(Self::F16(vec![f16::ZERO; len])),
            DType::BF16 => Some(Self::BF16(vec![bf16::ZERO; len])),
            DType::I64 => Some(Self::I64(vec![0; len])),
        }
    }

    /// The elements, borrowed.
    pub fn as_slice(&self) -> TensorSlice<'_> {
        match self {
            Self::F32(v) => TensorSlice::F32(v),
            Self::F16(v) => TensorSlice::F16(v),
            Self::BF16(v) => TensorSlice::BF16(v),
            Self::I64(v) => TensorSlice::I64(v),
        }
    }
}

/// An owned tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

impl Tensor {
    /// A tensor of any type.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn new(shape: impl Into<Vec<usize>>, data: TensorData) -> Self {
        let shape = shape.into();
        assert_eq!(
            shape.iter().product::<usize>(),
            data.as_slice().len(),
            "element count of shape {shape:?}"
        );
        Self { shape, data }
    }

    /// A tensor of 32-bit floats.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Self::new(shape, TensorData::F32(data))
    }

    /// A tensor of 16-bit floats.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn f16(shape: impl Into<Vec<usize>>, data: Vec<f16>) -> Self {
        Self::new(shape, TensorData::F16(data))
    }

    /// A tensor of bfloat16.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn bf16(shape: impl Into<Vec<usize>>, data: Vec<bf16>) -> Self {
        Self::new(shape, TensorData::BF16(data))
    }

    /// An integer tensor.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Self {
        Self::new(shape, TensorData::I64(data))
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.as_slice().dtype()
    }

    /// The floats, if this is a tensor of 32-bit floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The integers, if this is an integer tensor.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.data {
            TensorData::I64(v) => Some(v),
            _ => None,
        }
    }

    /// The elements of a float tensor of any width as 32-bit floats, which is exact; `None` for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match &self.data {
            TensorData::F32(v) => Some(v.clone()),
            TensorData::F16(v) => Some(v.iter().map(|v| v.to_f32()).collect()),
            TensorData::BF16(v) => Some(v.iter().map(|v| v.to_f32()).collect()),
            TensorData::I64(_) => None,
        }
    }

    /// Takes the elements.
    pub fn into_data(self) -> TensorData {
        self.data
    }

    /// A view of the whole tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { shape: self.shape.clone(), data: self.data.as_slice() }
    }
}

/// Borrowed elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TensorSlice<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit IEEE floats.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
    /// 64-bit integers.
    I64(&'a [i64]),
}

impl TensorSlice<'_> {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
            Self::I64(_) => DType::I64,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A borrowed tensor: a contiguous slice with a shape. A prefix of a time-major cache is such a view, so past
/// keys and values are passed without a copy.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorView<'a> {
    shape: Vec<usize>,
    data: TensorSlice<'a>,
}

impl<'a> TensorView<'a> {
    /// A view of elements of any type.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn new(shape: impl Into<Vec<usize>>, data: TensorSlice<'a>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "element count of shape {shape:?}");
        Self { shape, data }
    }

    /// A view of 32-bit floats.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn f32(shape: impl Into<Vec<usize>>, data: &'a [f32]) -> Self {
        Self::new(shape, TensorSlice::F32(data))
    }

    /// A view of integers.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn i64(shape: impl Into<Vec<usize>>, data: &'a [i64]) -> Self {
        Self::new(shape, TensorSlice::I64(data))
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> TensorSlice<'a> {
        self.data
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_zeros_and_widens_exactly() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I64] {
            let tensor = Tensor::new([2, 1], TensorData::zeros(dtype, 2).unwrap());
            assert_eq!(
                (tensor.dtype(), tensor.view().dtype(), tensor.view().data().len()),
                (dtype, dtype, 2)
            );
            assert_eq!(tensor.to_f32(), dtype.is_float().then(|| vec![0.0; 2]));
            assert_eq!(tensor.as_f32().is_some(), dtype == DType::F32);
        }
        let half = Tensor::f16([1], vec![f16::from_f32(0.1)]);
        assert_eq!(half.to_f32(), Some(vec![0.099_975_586]));
        assert_eq!(Tensor::bf16([1], vec![bf16::from_f32(0.1)]).to_f32(), Some(vec![0.100_097_656]));
    }
}
