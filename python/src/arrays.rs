//! Vectors of Rust as arrays of numpy: numpy takes the vector over, nothing is copied.

use numpy::{Element, PyArray, PyArray1, PyArrayMethods};
use pyo3::prelude::*;

/// An array of that shape in row-major order.
pub(crate) fn array<T: Element>(py: Python<'_>, values: Vec<T>, shape: &[usize]) -> PyResult<Py<PyAny>> {
    let flat: Bound<'_, PyArray1<T>> = PyArray::from_vec(py, values);
    Ok(flat.reshape(shape.to_vec())?.into_any().unbind())
}
