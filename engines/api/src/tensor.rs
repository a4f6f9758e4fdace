//! Host tensors, row-major and contiguous.

use dpar_export_spec::DType;

/// Owned elements.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

/// An owned tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

impl Tensor {
    /// A float tensor.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "element count of shape {shape:?}");
        Self { shape, data: TensorData::F32(data) }
    }

    /// An integer tensor.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "element count of shape {shape:?}");
        Self { shape, data: TensorData::I64(data) }
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            TensorData::F32(_) => DType::F32,
            TensorData::I64(_) => DType::I64,
        }
    }

    /// The floats, if this is a float tensor.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::F32(v) => Some(v),
            TensorData::I64(_) => None,
        }
    }

    /// The integers, if this is an integer tensor.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.data {
            TensorData::I64(v) => Some(v),
            TensorData::F32(_) => None,
        }
    }

    /// Takes the elements.
    pub fn into_data(self) -> TensorData {
        self.data
    }

    /// A view of the whole tensor.
    pub fn view(&self) -> TensorView<'_> {
        let data = match &self.data {
            TensorData::F32(v) => TensorSlice::F32(v),
            TensorData::I64(v) => TensorSlice::I64(v),
        };
        TensorView { shape: self.shape.clone(), data }
    }
}

/// Borrowed elements.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum TensorSlice<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit integers.
    I64(&'a [i64]),
}

/// A borrowed tensor: a contiguous slice with a shape. A prefix of a time-major cache is such a view, so past
/// keys and values are passed without a copy.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorView<'a> {
    shape: Vec<usize>,
    data: TensorSlice<'a>,
}

impl<'a> TensorView<'a> {
    /// A view of floats.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn f32(shape: impl Into<Vec<usize>>, data: &'a [f32]) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "element count of shape {shape:?}");
        Self { shape, data: TensorSlice::F32(data) }
    }

    /// A view of integers.
    ///
    /// # Panics
    /// When the element count is not the product of the shape: a bug in the caller.
    pub fn i64(shape: impl Into<Vec<usize>>, data: &'a [i64]) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "element count of shape {shape:?}");
        Self { shape, data: TensorSlice::I64(data) }
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
        match self.data {
            TensorSlice::F32(_) => DType::F32,
            TensorSlice::I64(_) => DType::I64,
        }
    }
}
