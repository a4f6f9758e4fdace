//! What a library offers beyond the CPU, and where it was looked for: for reports.

#![allow(unsafe_code, reason = "asks a loaded library")]

use std::ffi::{CStr, c_char, c_int};

use camino::Utf8Path;
use dpar_engine_api::EngineError;
use dpar_engine_api::places::{Place, Places};

use crate::{library, runtime, unavailable};

/// Every place where the library is looked for, the one that is taken last.
pub fn searched(explicit: Option<&Utf8Path>) -> Vec<Place> {
    library::search(explicit, &Places::here(library::VARIABLE))
}

/// The execution providers that the library was built with, by ONNX Runtime's names. It says nothing about drivers and
/// devices.
///
/// # Errors
/// [`dpar_engine_api::EngineErrorKind::Unavailable`] when the library cannot be used.
pub fn providers(explicit: Option<&Utf8Path>) -> Result<Vec<String>, EngineError> {
    runtime::start(explicit)?;
    let api = ort::api();
    let (mut list, mut count): (*mut *mut c_char, c_int) = (std::ptr::null_mut(), 0);
    // SAFETY: writes a list of that many strings, which is released below.
    let status = unsafe { (api.GetAvailableProviders)(&mut list, &mut count) };
    if !status.0.is_null() || list.is_null() {
        return Err(unavailable("the library does not list its execution providers"));
    }
    let names = (0..usize::try_from(count).unwrap_or(0)).map(|i| {
        // SAFETY: the list holds `count` NUL-terminated strings.
        unsafe { CStr::from_ptr(*list.add(i)) }.to_string_lossy().into_owned()
    });
    let names = names.collect();
    // SAFETY: the list that was given, once. Its status is always success.
    let _ = unsafe { (api.ReleaseAvailableProviders)(list, count) };
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_that_setup_fetched_offers_the_cpu() {
        let names = providers(None).unwrap_or_else(|e| panic!("{e}"));
        assert!(names.iter().any(|n| n == "CPUExecutionProvider"), "{names:?}");
        let looked = searched(None);
        assert!(looked.last().is_some_and(|p| p.taken), "{looked:?}");
    }
}
