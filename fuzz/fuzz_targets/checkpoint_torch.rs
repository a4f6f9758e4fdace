//! A whole weight file, PyTorch's zip container: opening it and reading every tensor ends well or in a typed error.
#![no_main]

use camino::Utf8Path;
use dpar_export_checkpoint::{TensorFile, WeightFormat};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match TensorFile::from_bytes(Utf8Path::new("fuzz"), data.to_vec(), WeightFormat::Torch) {
        Ok(file) => {
            for name in file.names() {
                let tensor = file.get(name).expect("a listed tensor is there");
                let _ = (tensor.to_f32(), tensor.first_non_finite());
            }
        }
        Err(e) => {
            let _ = e.to_string();
        }
    }
});
