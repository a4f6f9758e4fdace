//! What a library offers beyond the CPU: for reports.

#![allow(unsafe_code, reason = "asks a loaded library")]

use std::ffi::{CStr, c_char, c_int};

/// The execution providers that the running library was built with, by ONNX Runtime's names. It says nothing about
/// drivers and devices. `None` where the library does not list them.
pub(crate) fn providers() -> Option<Vec<String>> {
    let api = ort::api();
    let (mut list, mut count): (*mut *mut c_char, c_int) = (std::ptr::null_mut(), 0);
    // SAFETY: writes a list of that many strings, which is released below.
    let status = unsafe { (api.GetAvailableProviders)(&mut list, &mut count) };
    if !status.0.is_null() || list.is_null() {
        return None;
    }
    let names = (0..usize::try_from(count).unwrap_or(0)).map(|i| {
        // SAFETY: the list holds `count` NUL-terminated strings.
        unsafe { CStr::from_ptr(*list.add(i)) }.to_string_lossy().into_owned()
    });
    let names = names.collect();
    // SAFETY: the list that was given, once. Its status is always success.
    let _ = unsafe { (api.ReleaseAvailableProviders)(list, count) };
    Some(names)
}
