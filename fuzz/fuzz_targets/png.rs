//! A picture of a folder of samples, RGB or converted: one of the size it says, or a typed error.
#![no_main]

use dpar_export::picture::{Picture, PictureError, read_as_rgb, read_png};
use dpar_export_fuzz::file;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = file("fuzz.png", data);
    for read in [read_png(&path), read_as_rgb(&path)] {
        held(read);
    }
});

fn held(read: Result<Picture, PictureError>) {
    match read {
        Ok(picture) => drop(picture.encode_png().expect("a picture that was read can be written")),
        Err(e) => drop(e.to_string()),
    }
}
