//! Metrics of image sets: what is measured, by whose definition, and how sure it is.
//!
//! [`job`] is a whole evaluation: a [`job::SampleSource`] of samples, a reference, an output folder that is gone on with. Below it,
//! [`images`] reads sets of images, [`look`] takes their features, [`store`] keeps them so that interrupted work goes on,
//! [`activations`] reads features that others computed, [`reference`] is what samples are compared with; [`measure`] turns
//! features into numbers, which [`report`] names, [`protocol`] binds to what they depend on, and [`compare`] judges.

pub mod activations;
pub mod apart;
pub mod compare;
pub(crate) mod drawn;
mod folder;
pub mod images;
pub mod job;
pub(crate) mod look;
pub mod measure;
pub mod protocol;
pub(crate) mod reference;
pub mod report;
pub mod sequential;
pub(crate) mod store;

pub use crate::error::{EvaluateError, InputKind};

#[cfg(test)]
fn test_folder() -> (tempfile::TempDir, camino::Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = camino::Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    (dir, path)
}
