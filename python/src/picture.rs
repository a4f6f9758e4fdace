//! Contact sheets and PNG files.

use dpar_export::picture::{GridOptions, encode_png, grid as sheet};
use numpy::PyReadonlyArray4;
use numpy::{PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arrays::array;
use crate::errors::work;

/// Draws images u8 [N, H, W, 3] as a contact sheet u8 [height, width, 3]. `overlay`: the patch lengths of each image, in rows
/// of `token_columns` tokens.
#[pyfunction]
pub(crate) fn grid(
    py: Python<'_>,
    images: PyReadonlyArray4<'_, u8>,
    columns: usize,
    scale: usize,
    labels: Vec<String>,
    overlay: Option<Vec<Vec<usize>>>,
    token_columns: usize,
) -> PyResult<Py<PyAny>> {
    let (n, height, width) = (images.shape()[0], images.shape()[1], images.shape()[2]);
    let pixels = images.as_array().iter().copied().collect::<Vec<u8>>();
    let options = GridOptions { columns, scale, labels, overlay, grid_width: token_columns };
    let picture = work(py, |_| Ok(sheet(&pixels, n, height, width, &options)?))?;
    array(py, picture.rgb, &[picture.height, picture.width, 3])
}

/// Pixels u8 [H, W, 3] as the bytes of a PNG file.
#[pyfunction]
pub(crate) fn png<'py>(py: Python<'py>, pixels: PyReadonlyArray3<'_, u8>) -> PyResult<Bound<'py, PyBytes>> {
    let (height, width) = (pixels.shape()[0], pixels.shape()[1]);
    let pixels = pixels.as_array().iter().copied().collect::<Vec<u8>>();
    let bytes = work(py, |_| Ok(encode_png(&pixels, height, width)?))?;
    Ok(PyBytes::new(py, &bytes))
}
