//! The two shared libraries, checked before the bindings use them.

#![allow(unsafe_code, reason = "asks a loaded library")]

use std::ffi::{CStr, c_int};

use dpar_engine_api::EngineError;
use dpar_engine_api::library::{Opened, SharedLibrary};
use libloading::Library;
use trtx::trtx_sys;

use crate::NAME;
use crate::flavour::{CORE_FILES, INSTALL_HINT, PARSER_FILES, PRODUCT, SETUP_FOLDER};

/// The library that builds and runs engines. Its folder has the other one too.
pub(crate) const CORE: SharedLibrary = SharedLibrary {
    engine: NAME,
    product: PRODUCT,
    variable: "DPAR_TRT_LIB",
    setup_folder: SETUP_FOLDER,
    files: CORE_FILES,
    by_folder: true,
    hint: INSTALL_HINT,
};

/// The library that reads ONNX files.
pub(crate) const PARSER: SharedLibrary = SharedLibrary { files: PARSER_FILES, ..CORE };

/// Asks the library that builds and runs engines who it is.
pub(crate) fn core_version(opened: &Opened) -> Result<String, EngineError> {
    let version = number(&opened.handle, c"getInferLibVersion")
        .ok_or_else(|| opened.refuse("is not TensorRT: no `getInferLibVersion`"))?;
    // SAFETY: a function of the bindings without arguments that returns a constant.
    let built_for = unsafe { trtx_sys::get_tensorrt_version() };
    check_version(version, built_for).map_err(|reason| opened.refuse(format!("cannot be used: {reason}")))?;
    for entry in [c"createInferBuilder_INTERNAL", c"createInferRuntime_INTERNAL"] {
        if !has(&opened.handle, entry) {
            return Err(opened.refuse(format!("cannot be used: no `{}`", entry.to_string_lossy())));
        }
    }
    Ok(match number(&opened.handle, c"getInferLibBuildVersion") {
        Some(build) => format!("{}.{build}", dotted(version)),
        None => dotted(version),
    })
}

/// Asks the library that reads ONNX files who it is.
pub(crate) fn parser_version(opened: &Opened) -> Result<String, EngineError> {
    let entries = "no `getNvOnnxParserVersion`, `createNvOnnxParser_INTERNAL`";
    let version = number(&opened.handle, c"getNvOnnxParserVersion")
        .filter(|_| has(&opened.handle, c"createNvOnnxParser_INTERNAL"))
        .ok_or_else(|| opened.refuse(format!("is not TensorRT's ONNX parser: {entries}")))?;
    // SAFETY: a function of the bindings without arguments that returns a constant.
    let built_for = unsafe { trtx_sys::get_nvonnxparser_version() };
    if version != built_for {
        let reason = format!("parser version {version}, this build is for {built_for}");
        return Err(opened.refuse(format!("cannot be used: {reason}")));
    }
    Ok(version.to_string())
}

/// Calls `int name()`, which is how every one of TensorRT's version functions is declared.
fn number(library: &Library, name: &CStr) -> Option<u32> {
    type Get = unsafe extern "C" fn() -> c_int;
    // SAFETY: the symbols asked for have this signature in every TensorRT; they take nothing and return a constant.
    let value = unsafe { library.get::<Get>(name.to_bytes_with_nul()).map(|get| get()) };
    value.ok().and_then(|v| u32::try_from(v).ok())
}

fn has(library: &Library, name: &CStr) -> bool {
    // SAFETY: the address is only compared with null, never called.
    unsafe { library.get::<unsafe extern "C" fn()>(name.to_bytes_with_nul()).is_ok() }
}

/// The numbers in a version: TensorRT-RTX has two digits per part (`NvInferVersion.h`), TensorRT 10 and later three
/// for the major one.
fn dotted(version: u32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// Major and minor version.
fn minor(version: u32) -> String {
    format!("{}.{}", version / 10_000, version / 100 % 100)
}

/// What is of another version than this build is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OtherVersion {
    #[error("it is {product} {found}, this build is for {PRODUCT} {wanted}")]
    Library { product: &'static str, found: String, wanted: String },
    #[error("the engine was built by {PRODUCT} {found}, this build runs {PRODUCT} {wanted}")]
    Engine { found: String, wanted: String },
}

/// The same major and minor version, or why not.
fn check_version(version: u32, built_for: u32) -> Result<(), OtherVersion> {
    if version / 100 == built_for / 100 {
        return Ok(());
    }
    let other = if version >= 80_000 { "TensorRT" } else { "TensorRT-RTX" };
    Err(OtherVersion::Library { product: other, found: dotted(version), wanted: minor(built_for) })
}

/// Whether an engine built by version `1.7.1.116`, say, is one that the library of this build runs. Engines are not
/// carried over between minor versions.
pub(crate) fn check_plan_version(version: &str) -> Result<(), OtherVersion> {
    // SAFETY: a function of the bindings without arguments that returns a constant.
    let built_for = unsafe { trtx_sys::get_tensorrt_version() };
    let wanted = minor(built_for);
    if version.strip_prefix(&wanted).is_some_and(|rest| rest.starts_with('.')) {
        return Ok(());
    }
    Err(OtherVersion::Engine { found: version.to_owned(), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_engine_api::EngineErrorKind;

    #[test]
    fn only_the_same_major_and_minor_version_is_accepted() {
        check_version(10_701, 10_701).unwrap();
        check_version(10_702, 10_701).unwrap();
        let e = check_version(10_600, 10_701).unwrap_err().to_string();
        assert!(e.contains("TensorRT-RTX 1.6.0") && e.contains("for TensorRT-RTX 1.7"), "{e}");
        let e = check_version(101_300, 10_701).unwrap_err().to_string();
        assert!(e.contains("it is TensorRT 10.13.0"), "{e}");
    }

    #[test]
    fn engines_of_other_minor_versions_are_refused() {
        check_plan_version("1.7.1.116").unwrap();
        check_plan_version("1.7.9.1").unwrap();
        for other in ["1.6.0.0", "1.70.1.1", "2.7.1.1", "1.7"] {
            let e = check_plan_version(other).unwrap_err();
            assert!(e.to_string().contains(other) && e.to_string().contains("this build runs"), "{e}");
        }
    }

    /// What is said of one library in the folder that holds it under the name of `library`.
    #[cfg(target_os = "linux")]
    fn refused(
        folder: &camino::Utf8Path,
        library: &SharedLibrary,
        ask: fn(&Opened) -> Result<String, EngineError>,
        text: &str,
    ) {
        let opened = library.open(&library.choose(Some(folder)));
        let e = opened.and_then(|opened| ask(&opened)).unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Unavailable);
        assert!(e.message.contains(text), "{text} is not in: {e}");
        assert!(e.hint.unwrap().contains("cargo xtask setup"));
    }

    /// The folder that the other tests use; without it they fail, and so does this.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_real_libraries_say_who_they_are() {
        let core = CORE.open(&CORE.choose(None));
        let core = core.unwrap_or_else(|e| panic!("{e}\n{}", e.hint.clone().unwrap_or_default()));
        let version = core_version(&core).unwrap();
        assert!(version.starts_with("1.7.1.") && core.path.is_absolute(), "{version}");
        parser_version(&PARSER.open(&CORE.choose(None)).unwrap()).unwrap();
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn damaged_and_other_libraries_are_refused() {
        use std::io::Read;
        let real = CORE.open(&CORE.choose(None)).unwrap().path;
        let dir = tempfile::tempdir().unwrap();
        let root = camino::Utf8Path::from_path(dir.path()).unwrap();
        let (core, parser) = (root.join(CORE_FILES[0]), root.join(PARSER_FILES[0]));
        // The first part of the real one; the loader would map it and the process would end.
        let mut part = vec![0; 1 << 20];
        std::fs::File::open(&real).unwrap().read_exact(&mut part).unwrap();
        std::fs::write(&core, &part).unwrap();
        refused(root, &CORE, core_version, "the file is cut short: it has 1048576 bytes");
        std::fs::remove_file(&core).unwrap();
        // Each library in the other's place.
        std::os::unix::fs::symlink(real.with_file_name(PARSER_FILES[0]), &core).unwrap();
        refused(root, &CORE, core_version, "is not TensorRT: no `getInferLibVersion`");
        std::os::unix::fs::symlink(&real, parser).unwrap();
        refused(root, &PARSER, parser_version, "is not TensorRT's ONNX parser");
    }
}
