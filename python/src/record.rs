//! Writing a reference that was computed in Python, and the patches that follow from its entropies.

use camino::Utf8PathBuf;
use dpar_export::arrays::{ArrayRef, write_atomic, write_safetensors};
use dpar_export::bundle::digest;
use dpar_export::commands::GOLDEN_FOLDER;
use dpar_export::commands::failure::Failure;
use dpar_export::generate::TeacherForced;
use dpar_export::patches::pad;
use dpar_export::staging::StagedFolder;
use dpar_export::verify::{ARRAYS, GOLDEN_JSON};
use dpar_export_spec::PatchRule;
use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;
use serde_json::json;

use crate::arrays::array;
use crate::errors::{input, work};

/// Patch lengths i64 [N, M] by a rule (JSON), from entropies f32 [N, T] in which column j is that of token j + 1.
#[pyfunction]
pub(crate) fn patch_lengths(
    py: Python<'_>,
    rule: &str,
    entropy: Option<PyReadonlyArray2<'_, f32>>,
    images: usize,
    tokens: usize,
) -> PyResult<Py<PyAny>> {
    let entropy: Option<Vec<f32>> = entropy.map(|e| e.as_array().iter().copied().collect());
    let lengths = work(py, |_| {
        let rule: PatchRule = serde_json::from_str(rule).map_err(std::io::Error::from)?;
        if entropy.as_ref().is_some_and(|e| e.len() != images * tokens) {
            return Err(input(format!("entropies are [{images}, {tokens}]"), None));
        }
        Ok(TeacherForced::patch_lengths(&rule, entropy.as_deref(), images, tokens))
    })?;
    let (flat, columns) = pad(lengths.iter().map(Vec::as_slice));
    array(py, flat, &[images, columns])
}

/// The elements of an array, copied: others may write into it meanwhile.
enum TakenValues {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

/// Writes the arrays and `settings` (JSON) as a folder for `verify --reference`, whole or not at all; returns its
/// golden.json.
#[pyfunction]
pub(crate) fn write_reference(
    py: Python<'_>,
    folder: String,
    force: bool,
    arrays: Vec<(String, Bound<'_, PyAny>)>,
    settings: &str,
) -> PyResult<String> {
    let mut taken = Vec::with_capacity(arrays.len());
    for (name, array) in arrays {
        taken.push(if let Ok(values) = array.cast::<PyArrayDyn<f32>>() {
            let values = values.try_readonly()?;
            let view = values.as_array();
            (name, view.shape().to_vec(), TakenValues::F32(view.iter().copied().collect()))
        } else {
            let values = array.cast::<PyArrayDyn<i64>>()?.try_readonly()?;
            let view = values.as_array();
            (name, view.shape().to_vec(), TakenValues::I64(view.iter().copied().collect()))
        });
    }
    work(py, |_| {
        let json = |e: serde_json::Error| Failure::from(std::io::Error::from(e));
        let staged = StagedFolder::create(&Utf8PathBuf::from(&folder), force, &GOLDEN_FOLDER)?;
        let path = staged.path().join(ARRAYS[0]);
        let named: Vec<(&str, ArrayRef<'_>)> = taken
            .iter()
            .map(|(name, shape, values)| {
                let array = match values {
                    TakenValues::F32(values) => ArrayRef::f32(shape, values),
                    TakenValues::I64(values) => ArrayRef::i64(shape, values),
                };
                (name.as_str(), array)
            })
            .collect();
        write_safetensors(&path, &named)?;
        let (size, sha256) = digest(&path)?;
        let mut settings: serde_json::Value = serde_json::from_str(settings).map_err(json)?;
        settings["files"] = json!([{ "name": ARRAYS[0], "size": size, "sha256": sha256 }]);
        let mut text = serde_json::to_string_pretty(&settings).map_err(json)?;
        text.push('\n');
        write_atomic(&staged.path().join(GOLDEN_JSON), text.as_bytes())?;
        staged.commit()?;
        Ok(text)
    })
}
