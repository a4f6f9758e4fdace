//! Finding the two shared libraries and checking them before the bindings use them.

#![allow(unsafe_code, reason = "loads a library and asks it")]

use std::ffi::{CStr, c_int};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineError;
use dpar_engine_api::places::{Place, Places, SYSTEM_LOADER, Wanted};
use libloading::Library;
use trtx::trtx_sys;

use crate::flavour::{CORE, PARSER, PRODUCT, SETUP_FOLDER};
use crate::{elf, loader_error, unavailable};

/// The environment variable that names the folder.
pub(crate) const VARIABLE: &str = "DPAR_TRT_LIB";

/// A checked library. Keeping `handle` keeps it loaded.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) path: Utf8PathBuf,
    pub(crate) version: String,
    pub(crate) handle: Library,
}

/// A folder and who named it; no folder leaves the search to the system loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) folder: Option<Utf8PathBuf>,
    pub(crate) origin: &'static str,
}

/// The file in `folder` under one of its names.
fn find(folder: &Utf8Path, names: &[&str]) -> Option<Utf8PathBuf> {
    names.iter().map(|n| folder.join(n)).find(|p| p.is_file())
}

/// Every place that is looked at, the one that is taken last.
pub(crate) fn search(explicit: Option<&Utf8Path>, places: &Places) -> Vec<Place> {
    let wanted = Wanted { variable: VARIABLE, setup_folder: SETUP_FOLDER, loader_name: CORE[0] };
    wanted.search(explicit, places, &|folder| find(folder, CORE).map(|_| folder.to_owned()))
}

/// Picks the folder by the order in the crate documentation; touches files, loads nothing.
pub(crate) fn choose(explicit: Option<&Utf8Path>, places: &Places) -> Choice {
    match search(explicit, places).pop() {
        Some(Place { origin, path, .. }) if origin != SYSTEM_LOADER => Choice { folder: Some(path), origin },
        _ => Choice { folder: None, origin: SYSTEM_LOADER },
    }
}

impl Choice {
    /// The absolute path of a library, or a bare name for the system loader.
    pub(crate) fn resolve(&self, names: &[&str]) -> Result<Utf8PathBuf, EngineError> {
        let origin = self.origin;
        let Some(folder) = &self.folder else {
            return Ok(names[0].into());
        };
        if !folder.is_dir() {
            let problem = if folder.exists() { "is not a folder" } else { "does not exist" };
            return Err(unavailable(format!("`{folder}` {problem} (from {origin})")));
        }
        let file = find(folder, names)
            .ok_or_else(|| unavailable(format!("`{folder}` (from {origin}) has no `{}`", names[0])))?;
        file.canonicalize_utf8().map_err(|e| unavailable(format!("`{file}` (from {origin}): {e}")))
    }

    /// Opens a library without calling anything in it.
    fn load(&self, names: &[&str]) -> Result<(Utf8PathBuf, Library), EngineError> {
        let (path, origin) = (self.resolve(names)?, self.origin);
        if self.folder.is_some() {
            elf::check_complete(&path).map_err(|reason| {
                unavailable(format!("`{path}` (from {origin}) cannot be loaded: {reason}"))
            })?;
        }
        // SAFETY: loading runs the library's constructors. The user or the setup named this folder as TensorRT's,
        // the file is complete, and nothing is called before its entry points have been found.
        let handle = unsafe { Library::new(path.as_std_path()) }.map_err(|e| {
            if self.folder.is_some() {
                unavailable(format!("`{path}` (from {origin}) cannot be loaded: {}", loader_error(&e)))
            } else {
                unavailable(format!(
                    "no {PRODUCT} library: not in {VARIABLE}, beside the executable or in {SETUP_FOLDER}, and \
                     the system loader has no `{path}`"
                ))
            }
        })?;
        Ok((path, handle))
    }

    /// Opens the library that builds and runs engines, and asks it who it is.
    pub(crate) fn open_core(&self) -> Result<Checked, EngineError> {
        let (path, handle) = self.load(CORE)?;
        let refuse = |reason: String| unavailable(format!("`{path}` (from {}) {reason}", self.origin));
        let version = number(&handle, c"getInferLibVersion")
            .ok_or_else(|| refuse("is not TensorRT: no `getInferLibVersion`".into()))?;
        // SAFETY: a function of the bindings without arguments that returns a constant.
        let built_for = unsafe { trtx_sys::get_tensorrt_version() };
        check_version(version, built_for).map_err(|reason| refuse(format!("cannot be used: {reason}")))?;
        for entry in [c"createInferBuilder_INTERNAL", c"createInferRuntime_INTERNAL"] {
            if !has(&handle, entry) {
                return Err(refuse(format!("cannot be used: no `{}`", entry.to_string_lossy())));
            }
        }
        let build = number(&handle, c"getInferLibBuildVersion");
        let version = match build {
            Some(build) => format!("{}.{build}", dotted(version)),
            None => dotted(version),
        };
        Ok(Checked { path, version, handle })
    }

    /// Opens the library that reads ONNX files, and asks it who it is.
    pub(crate) fn open_parser(&self) -> Result<Checked, EngineError> {
        let (path, handle) = self.load(PARSER)?;
        let refuse = |reason: String| unavailable(format!("`{path}` (from {}) {reason}", self.origin));
        let version = number(&handle, c"getNvOnnxParserVersion")
            .filter(|_| has(&handle, c"createNvOnnxParser_INTERNAL"))
            .ok_or_else(|| {
                refuse(
                    "is not TensorRT's ONNX parser: no `getNvOnnxParserVersion`, \
                     `createNvOnnxParser_INTERNAL`"
                        .into(),
                )
            })?;
        // SAFETY: a function of the bindings without arguments that returns a constant.
        let built_for = unsafe { trtx_sys::get_nvonnxparser_version() };
        if version != built_for {
            let reason = format!("parser version {version}, this build is for {built_for}");
            return Err(refuse(format!("cannot be used: {reason}")));
        }
        Ok(Checked { path, version: version.to_string(), handle })
    }
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

/// The same major and minor version, or why not.
fn check_version(version: u32, built_for: u32) -> Result<(), String> {
    if version / 100 == built_for / 100 {
        return Ok(());
    }
    let other = if version >= 80_000 { "TensorRT" } else { "TensorRT-RTX" };
    Err(format!(
        "it is {other} {}, this build is for {PRODUCT} {}.{}",
        dotted(version),
        built_for / 10_000,
        built_for / 100 % 100
    ))
}

/// Whether an engine built by version `1.7.1.116`, say, is one that the library of this build runs. Engines are not
/// carried over between minor versions.
pub(crate) fn check_plan_version(version: &str) -> Result<(), String> {
    // SAFETY: a function of the bindings without arguments that returns a constant.
    let built_for = unsafe { trtx_sys::get_tensorrt_version() };
    let wanted = format!("{}.{}", built_for / 10_000, built_for / 100 % 100);
    if version.strip_prefix(&wanted).is_some_and(|rest| rest.starts_with('.')) {
        return Ok(());
    }
    Err(format!("the engine was built by {PRODUCT} {version}, this build runs {PRODUCT} {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_engine_api::EngineErrorKind;

    #[test]
    fn only_the_same_major_and_minor_version_is_accepted() {
        check_version(10_701, 10_701).unwrap();
        check_version(10_702, 10_701).unwrap();
        let e = check_version(10_600, 10_701).unwrap_err();
        assert!(e.contains("TensorRT-RTX 1.6.0") && e.contains("for TensorRT-RTX 1.7"), "{e}");
        let e = check_version(101_300, 10_701).unwrap_err();
        assert!(e.contains("it is TensorRT 10.13.0"), "{e}");
    }

    #[test]
    fn engines_of_other_minor_versions_are_refused() {
        check_plan_version("1.7.1.116").unwrap();
        check_plan_version("1.7.9.1").unwrap();
        for other in ["1.6.0.0", "1.70.1.1", "2.7.1.1", "1.7"] {
            let e = check_plan_version(other).unwrap_err();
            assert!(e.contains(other) && e.contains("this build runs"), "{e}");
        }
    }

    #[test]
    fn a_folder_is_taken_for_its_library_and_the_option_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let places = Places { executable: Some(root.join("tool")), ..Places::default() };
        assert_eq!(choose(None, &places).folder, None);
        std::fs::write(root.join(CORE[0]), b"").unwrap();
        assert_eq!(choose(None, &places).folder.as_deref(), Some(root));
        assert_eq!(choose(Some("asked".into()), &places).folder, Some("asked".into()));
    }

    fn refused(folder: &Utf8Path, open: fn(&Choice) -> Result<Checked, EngineError>, text: &str) {
        let e = open(&Choice { folder: Some(folder.to_owned()), origin: VARIABLE }).unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Unavailable);
        assert!(e.message.contains(text) && e.message.contains(VARIABLE), "{text} is not in: {e}");
        assert!(e.hint.unwrap().contains("cargo xtask setup"));
    }

    #[test]
    fn folders_without_a_usable_library_are_refused_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        refused(&root.join("absent"), Choice::open_core, "does not exist");
        refused(root, Choice::open_core, CORE[0]);
        refused(root, Choice::open_parser, PARSER[0]);
        std::fs::write(root.join(CORE[0]), b"not a library").unwrap();
        refused(root, Choice::open_core, "cannot be loaded");
        refused(&root.join(CORE[0]), Choice::open_core, "is not a folder");
    }

    /// The folder that the other tests use; without it they fail, and so does this.
    #[cfg(target_os = "linux")]
    fn real() -> Choice {
        choose(None, &Places::here(VARIABLE))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_real_libraries_say_who_they_are() {
        let core =
            real().open_core().unwrap_or_else(|e| panic!("{e}\n{}", e.hint.clone().unwrap_or_default()));
        assert!(core.version.starts_with("1.7.1."), "{}", core.version);
        assert!(core.path.is_absolute());
        real().open_parser().unwrap();
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn damaged_and_other_libraries_are_refused() {
        use std::io::Read;
        let real = real().resolve(CORE).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        // The first part of the real one; the loader would map it and the process would end.
        let mut part = vec![0; 1 << 20];
        std::fs::File::open(&real).unwrap().read_exact(&mut part).unwrap();
        std::fs::write(root.join(CORE[0]), &part).unwrap();
        refused(root, Choice::open_core, "the file is cut short: it has 1048576 bytes");
        std::fs::remove_file(root.join(CORE[0])).unwrap();
        // Each library in the other's place.
        std::os::unix::fs::symlink(real.with_file_name(PARSER[0]), root.join(CORE[0])).unwrap();
        refused(root, Choice::open_core, "is not TensorRT: no `getInferLibVersion`");
        std::os::unix::fs::symlink(&real, root.join(PARSER[0])).unwrap();
        refused(root, Choice::open_parser, "is not TensorRT's ONNX parser");
    }

    #[test]
    fn the_system_loader_is_asked_by_name() {
        let choice = Choice { folder: None, origin: SYSTEM_LOADER };
        let e = choice.load(&["libdpar-no-such-library.so"]).unwrap_err();
        assert!(e.message.contains(SETUP_FOLDER) && e.message.contains("system loader"), "{e}");
    }
}
