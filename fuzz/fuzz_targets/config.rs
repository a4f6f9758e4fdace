//! `config.yaml` beside real weights: what is read resolves to a system, or to a typed error.
#![no_main]

use dpar_export_checkpoint::{LoadOptions, load};
use dpar_export_fuzz::{file, fixture};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let options = LoadOptions { config: Some(file("config.yaml", data)), ..LoadOptions::default() };
    if let Err(e) = load(&fixture("llamagen-small/c2i_tiny.pt"), &options) {
        let _ = (e.to_string(), e.details(), e.hint());
    }
});
