//! The pickle machine alone: any bytes end in names or in a typed error.
#![no_main]

use dpar_export_checkpoint::pickle_tensor_names;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(e) = pickle_tensor_names(data) {
        let _ = e.to_string();
    }
});
