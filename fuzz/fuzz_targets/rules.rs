//! Rename rules over the names of a real checkpoint; also a target for time: rules are tried on every name.
#![no_main]

use dpar_export_checkpoint::{LoadOptions, load};
use dpar_export_fuzz::{file, fixture};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let config = Some(fixture("llamagen-small/config.yaml"));
    let options = LoadOptions { map: Some(file("rules.yaml", data)), config, ..LoadOptions::default() };
    if let Err(e) = load(&fixture("llamagen-small/c2i_tiny.pt"), &options) {
        let _ = (e.to_string(), e.details(), e.hint());
    }
});
