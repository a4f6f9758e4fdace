//! Finding the shared library and checking it before the bindings use it.

#![allow(unsafe_code, reason = "loads a library and asks it")]

use std::ffi::{CStr, c_char, c_void};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineError;
use dpar_engine_api::places::{Place, Places, SYSTEM_LOADER, Wanted};
use libloading::Library;

use crate::unavailable;

/// The C API version that the bindings are built for (`api-31`); ONNX Runtime 1.N offers versions up to N.
pub(crate) const API_VERSION: u32 = 31;

/// Where `cargo xtask setup` puts the library, below the checkout.
const SETUP_FOLDER: &str = "third_party/onnxruntime";

/// The environment variable that names the library.
pub(crate) const VARIABLE: &str = "ORT_DYLIB_PATH";

/// A checked library. Keeping `handle` keeps it loaded.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) path: Utf8PathBuf,
    pub(crate) version: String,
    pub(crate) handle: Library,
}

/// A library and who named it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) path: Utf8PathBuf,
    pub(crate) origin: &'static str,
}

/// The library's file name on this system.
pub(crate) fn file_name() -> String {
    format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

/// Every place that is looked at, the one that is taken last.
pub(crate) fn search(explicit: Option<&Utf8Path>, places: &Places) -> Vec<Place> {
    let name = file_name();
    let wanted = Wanted { variable: VARIABLE, setup_folder: SETUP_FOLDER, loader_name: &name };
    wanted.search(explicit, places, &|folder| Some(folder.join(&name)).filter(|p| p.is_file()))
}

/// Picks the library by the order in the crate documentation; touches files, loads nothing.
pub(crate) fn choose(explicit: Option<&Utf8Path>, places: &Places) -> Choice {
    match search(explicit, places).pop() {
        Some(Place { origin, path, .. }) => Choice { path, origin },
        None => Choice { path: file_name().into(), origin: SYSTEM_LOADER },
    }
}

impl Choice {
    fn by_loader(&self) -> bool {
        self.origin == SYSTEM_LOADER
    }

    /// The absolute path, so that the bindings, which resolve relative ones against the executable, open the file
    /// that was checked. A name for the system loader is left to it.
    pub(crate) fn resolve(&self) -> Result<Utf8PathBuf, EngineError> {
        let Self { path, origin } = self;
        if self.by_loader() {
            return Ok(path.clone());
        }
        if !path.exists() {
            return Err(unavailable(format!("`{path}` does not exist (from {origin})")));
        }
        path.canonicalize_utf8().map_err(|e| unavailable(format!("`{path}` (from {origin}): {e}")))
    }
}

/// Opens the library and asks it who it is.
pub(crate) fn open(choice: &Choice) -> Result<Checked, EngineError> {
    let path = choice.resolve()?;
    let origin = choice.origin;
    // SAFETY: loading runs the library's constructors. The user or the setup named this file as ONNX Runtime, and
    // nothing is called before its entry point has been found.
    let handle = unsafe { Library::new(path.as_std_path()) }.map_err(|e| {
        if choice.by_loader() {
            unavailable(format!(
                "no ONNX Runtime library: not in ORT_DYLIB_PATH, beside the executable or in {SETUP_FOLDER}, and \
                 the system loader has no `{path}`"
            ))
        } else {
            unavailable(format!("`{path}` (from {origin}) cannot be loaded: {e}"))
        }
    })?;
    type GetBase = unsafe extern "system" fn() -> *const ApiBase;
    // SAFETY: `OrtGetApiBase` has this signature in every ONNX Runtime; it takes nothing and returns a static.
    let base = unsafe { handle.get::<GetBase>(b"OrtGetApiBase\0").map(|get| get()) }.map_err(|_| {
        unavailable(format!("`{path}` (from {origin}) is not ONNX Runtime: no `OrtGetApiBase`"))
    })?;
    // SAFETY: the pointer is null or the static that `OrtGetApiBase` returns, valid while `handle` is.
    let version = unsafe { check_base(base) }
        .map_err(|reason| unavailable(format!("`{path}` (from {origin}) cannot be used: {reason}")))?;
    Ok(Checked { path, version, handle })
}

/// The two functions that every version of ONNX Runtime starts with (`OrtApiBase` in `onnxruntime_c_api.h`).
#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "system" fn(version: u32) -> *const c_void,
    get_version_string: unsafe extern "system" fn() -> *const c_char,
}

/// Returns the version if the library offers the API that the bindings need.
///
/// # Safety
/// `base` is null or points to an `ApiBase` whose functions can be called.
unsafe fn check_base(base: *const ApiBase) -> Result<String, String> {
    // SAFETY: promised by the caller.
    let base = unsafe { base.as_ref() }.ok_or("`OrtGetApiBase` returned nothing")?;
    // SAFETY: promised by the caller; it returns a static string or null.
    let text = unsafe { (base.get_version_string)() };
    if text.is_null() {
        return Err("it does not say its version".to_owned());
    }
    // SAFETY: not null, and a static NUL-terminated string by the C API.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    let minor = match text.split('.').collect::<Vec<_>>().as_slice() {
        ["1", minor, ..] => minor.parse::<u32>().ok(),
        _ => None,
    };
    // Judged by the version first: an older library answers the question below on stderr.
    match minor {
        None => Err(format!("version `{text}` is not a 1.x release")),
        Some(minor) if minor < API_VERSION => {
            Err(format!("version {text} is too old, 1.{API_VERSION} or later is needed"))
        }
        // SAFETY: promised by the caller; unknown versions give null.
        Some(_) if unsafe { (base.get_api)(API_VERSION) }.is_null() => {
            Err(format!("version {text} does not offer C API {API_VERSION}"))
        }
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

    fn judge(base: &ApiBase) -> Result<String, String> {
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
            let e = judge(&ApiBase { get_api, get_version_string }).unwrap_err();
            assert!(e.contains(reason), "{e}");
        }
        // SAFETY: null is allowed.
        assert!(unsafe { check_base(std::ptr::null()) }.unwrap_err().contains("returned nothing"));
    }

    #[test]
    fn a_folder_offers_the_file_and_the_option_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let places = Places { executable: Some(root.join("tool")), ..Places::default() };
        assert_eq!(choose(None, &places), Choice { path: file_name().into(), origin: SYSTEM_LOADER });
        let path = root.join(file_name());
        std::fs::write(&path, b"").unwrap();
        assert_eq!(choose(None, &places).path, path);
        assert_eq!(choose(Some("asked.so".into()), &places).path, "asked.so");
    }

    fn refused(path: &Utf8Path, text: &str) {
        let e = open(&Choice { path: path.to_owned(), origin: "ORT_DYLIB_PATH" }).unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Unavailable);
        assert!(e.message.contains(text) && e.message.contains("ORT_DYLIB_PATH"), "{e}");
        assert!(e.hint.unwrap().contains("cargo xtask setup"));
    }

    #[test]
    fn what_is_not_onnx_runtime_is_refused_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        refused(&root.join("absent.so"), "does not exist");
        let text = root.join("text.so");
        std::fs::write(&text, b"not a library").unwrap();
        refused(&text, "cannot be loaded");
        refused(root, "cannot be loaded");
    }

    #[test]
    fn a_name_that_the_loader_does_not_know_lists_the_places() {
        let choice = Choice { path: "libdpar-no-such-library.so".into(), origin: SYSTEM_LOADER };
        let e = open(&choice).unwrap_err();
        assert!(e.message.contains("third_party/onnxruntime") && e.message.contains("system loader"), "{e}");
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn another_library_is_refused() {
        let choice = Choice { path: "libm.so.6".into(), origin: SYSTEM_LOADER };
        assert!(open(&choice).unwrap_err().message.contains("no `OrtGetApiBase`"));
    }
}
