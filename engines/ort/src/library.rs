//! The shared library, checked before the bindings use it.

#![allow(unsafe_code, reason = "asks a loaded library")]

use std::ffi::{CStr, c_char, c_void};

use dpar_engine_api::EngineError;
use dpar_engine_api::library::{Opened, SharedLibrary};

use crate::NAME;

/// The C API version that the bindings are built for (`api-31`); ONNX Runtime 1.N offers versions up to N.
const API_VERSION: u32 = 31;

/// ONNX Runtime.
pub(crate) const LIBRARY: SharedLibrary = SharedLibrary {
    engine: NAME,
    product: "ONNX Runtime",
    variable: "ORT_DYLIB_PATH",
    setup_folder: "third_party/onnxruntime",
    files: if cfg!(windows) {
        &["onnxruntime.dll"]
    } else if cfg!(target_vendor = "apple") {
        &["libonnxruntime.dylib"]
    } else {
        &["libonnxruntime.so"]
    },
    by_folder: false,
    hint: "run `cargo xtask setup` in a checkout, or `pip install onnxruntime==1.31.1` and set ORT_DYLIB_PATH to its \
        onnxruntime/capi/libonnxruntime.so.1.31.1",
};

/// Asks a library who it is: its version, if it is an ONNX Runtime that the bindings can use.
pub(crate) fn version(opened: &Opened) -> Result<String, EngineError> {
    type GetBase = unsafe extern "system" fn() -> *const ApiBase;
    // SAFETY: `OrtGetApiBase` has this signature in every ONNX Runtime; it takes nothing and returns a static.
    let base = unsafe { opened.handle.get::<GetBase>(b"OrtGetApiBase\0").map(|get| get()) }
        .map_err(|_| opened.refuse("is not ONNX Runtime: no `OrtGetApiBase`"))?;
    // SAFETY: the pointer is null or the static that `OrtGetApiBase` returns, valid while the library is loaded.
    unsafe { check_base(base) }.map_err(|reason| opened.refuse(format!("cannot be used: {reason}")))
}

/// The two functions that every version of ONNX Runtime starts with (`OrtApiBase` in `onnxruntime_c_api.h`).
#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "system" fn(version: u32) -> *const c_void,
    get_version_string: unsafe extern "system" fn() -> *const c_char,
}

/// Why a library is none that the bindings can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum ApiFault {
    #[error("`OrtGetApiBase` returned nothing")]
    Nothing,
    #[error("it does not say its version")]
    Nameless,
    #[error("version `{0}` is not a 1.x release")]
    NoRelease(String),
    #[error("version {0} is too old, 1.{API_VERSION} or later is needed")]
    TooOld(String),
    #[error("version {0} does not offer C API {API_VERSION}")]
    NoApi(String),
}

/// Returns the version if the library offers the API that the bindings need.
///
/// # Safety
/// `base` is null or points to an `ApiBase` whose functions can be called.
unsafe fn check_base(base: *const ApiBase) -> Result<String, ApiFault> {
    // SAFETY: promised by the caller.
    let base = unsafe { base.as_ref() }.ok_or(ApiFault::Nothing)?;
    // SAFETY: promised by the caller; it returns a static string or null.
    let text = unsafe { (base.get_version_string)() };
    if text.is_null() {
        return Err(ApiFault::Nameless);
    }
    // SAFETY: not null, and a static NUL-terminated string by the C API.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    let minor = match text.split('.').collect::<Vec<_>>().as_slice() {
        ["1", minor, ..] => minor.parse::<u32>().ok(),
        _ => None,
    };
    // Judged by the version first: an older library answers the question below on stderr.
    match minor {
        None => Err(ApiFault::NoRelease(text)),
        Some(minor) if minor < API_VERSION => Err(ApiFault::TooOld(text)),
        // SAFETY: promised by the caller; unknown versions give null.
        Some(_) if unsafe { (base.get_api)(API_VERSION) }.is_null() => Err(ApiFault::NoApi(text)),
        Some(_) => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_engine_api::EngineErrorKind;

    unsafe extern "system" fn no_api(_: u32) -> *const c_void {
        std::ptr::null()
    }
    unsafe extern "system" fn an_api(version: u32) -> *const c_void {
        assert_eq!(version, API_VERSION);
        std::ptr::dangling()
    }
    unsafe extern "system" fn old() -> *const c_char {
        c"1.17.1".as_ptr()
    }
    unsafe extern "system" fn current() -> *const c_char {
        c"1.31.1".as_ptr()
    }
    unsafe extern "system" fn odd() -> *const c_char {
        c"nightly".as_ptr()
    }
    unsafe extern "system" fn nothing() -> *const c_char {
        std::ptr::null()
    }

    fn judge(base: &ApiBase) -> Result<String, ApiFault> {
        // SAFETY: a valid `ApiBase` of the functions above.
        unsafe { check_base(base) }
    }

    #[test]
    fn only_a_library_with_the_needed_api_is_accepted() {
        assert_eq!(judge(&ApiBase { get_api: an_api, get_version_string: current }), Ok("1.31.1".into()));
        for (get_api, get_version_string, reason) in [
            (
                no_api as unsafe extern "system" fn(u32) -> _,
                old as unsafe extern "system" fn() -> _,
                "1.17.1 is too old, 1.31",
            ),
            (no_api, current, "does not offer C API 31"),
            (an_api, odd, "`nightly` is not a 1.x release"),
            (an_api, nothing, "does not say its version"),
        ] {
            let e = judge(&ApiBase { get_api, get_version_string }).unwrap_err().to_string();
            assert!(e.contains(reason), "{e}");
        }
        // SAFETY: null is allowed.
        assert!(
            unsafe { check_base(std::ptr::null()) }.unwrap_err().to_string().contains("returned nothing")
        );
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn another_library_is_refused() {
        let maths = SharedLibrary { files: &["libm.so.6"], setup_folder: "none", ..LIBRARY };
        let opened = maths.open(&maths.choose(None)).unwrap();
        let e = version(&opened).unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Unavailable);
        assert!(e.message.contains("no `OrtGetApiBase`") && e.hint.unwrap().contains("cargo xtask setup"));
    }
}
