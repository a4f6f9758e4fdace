//! `.npz` and `.npy` archives: listing them and reading every array ends well or in a typed error.
#![no_main]

use dpar_export::arrays::ImageNpz;
use dpar_export_fuzz::{file, read_arrays};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let npz = file("fuzz.npz", data);
    read_arrays(&npz);
    if let Err(e) = ImageNpz::open(&npz) {
        let _ = e.to_string();
    }
    read_arrays(&file("fuzz.npy", data));
});
