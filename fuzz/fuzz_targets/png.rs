//! A PNG of a folder of samples: a picture of the size it says, or a typed error.
#![no_main]

use dpar_export::picture::read_png;
use dpar_export_fuzz::file;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match read_png(&file("fuzz.png", data)) {
        Ok(picture) => drop(picture.encode_png().expect("a picture that was read can be written")),
        Err(e) => drop(e.to_string()),
    }
});
