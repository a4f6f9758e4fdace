//! `manifest.json` from arbitrary bytes: no panic, and what is accepted is written and read again unchanged.
#![no_main]

use dpar_export::bundle::Manifest;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse(data) {
        let bytes = manifest.to_bytes().expect("an accepted manifest can be written");
        assert_eq!(Manifest::parse(&bytes).expect("and read again"), manifest);
    }
});
