//! A golden folder and recorded streams: settings, then a 0, then the arrays.
#![no_main]

use std::sync::OnceLock;

use dpar_export::verify::{ARRAYS, GOLDEN_JSON, ReferenceStreams, guidance_of};
use dpar_export_checkpoint::{LoadOptions, load};
use dpar_export_fuzz::{file, fixture, folder, read_arrays};
use dpar_export_spec::SystemSpec;

static SYSTEM: OnceLock<SystemSpec> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let system = SYSTEM.get_or_init(|| {
        let checkpoint = fixture("variants/combined/dpar");
        load(&checkpoint, &LoadOptions::default()).expect("a fixture").system
    });
    let at = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (settings, arrays) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    file(GOLDEN_JSON, settings);
    file("reference.json", settings);
    if let Err(e) = guidance_of(folder()) {
        let _ = e.to_string();
    }
    let arrays = file(ARRAYS[0], arrays);
    read_arrays(&arrays);
    match ReferenceStreams::open(&arrays, system) {
        Ok(streams) => drop((streams.options(), streams.len())),
        Err(e) => drop(e.to_string()),
    }
});
