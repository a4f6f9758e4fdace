//! An engine's shared library: found, looked at, loaded, and one of its kind in a process.

#![allow(unsafe_code, reason = "loads a library")]

mod elf;
mod places;

use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use libloading::Library;

use crate::{EngineError, EngineErrorKind};
use places::{Places, SYSTEM_LOADER};

pub use elf::check_whole;
pub use places::SearchedPlace;

/// A shared library that an engine needs, and where it is looked for: see [`SharedLibrary::search`].
#[derive(Debug, Clone, Copy)]
pub struct SharedLibrary {
    /// Name of the engine.
    pub engine: &'static str,
    /// Its name in messages, such as `ONNX Runtime`.
    pub product: &'static str,
    /// The environment variable that names it.
    pub variable: &'static str,
    /// The folder that `cargo xtask setup` fills, below a checkout.
    pub setup_folder: &'static str,
    /// Names that its file is shipped under, first the one that the system loader is asked for.
    pub files: &'static [&'static str],
    /// Whether the option and the variable name the folder that it is in, not the file.
    pub by_folder: bool,
    /// The next step where it is not found or does not fit.
    pub hint: &'static str,
}

/// A place and who named it. The library is looked for nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    origin: &'static str,
    /// File or folder; for the system loader a bare name.
    path: Utf8PathBuf,
}

/// A loaded library in which nothing was called yet.
#[derive(Debug)]
pub struct Opened {
    /// Absolute; a bare name where the system loader found it.
    pub path: Utf8PathBuf,
    /// Loaded for as long as this lives.
    pub handle: Library,
    library: SharedLibrary,
    origin: &'static str,
}

impl Choice {
    fn by_loader(&self) -> bool {
        self.origin == SYSTEM_LOADER
    }
}

impl SharedLibrary {
    /// Every place that is looked at, the one that is taken last; touches files, loads nothing. In this order:
    ///
    /// 1. `explicit`, what the caller named;
    /// 2. the environment variable, unless it is empty;
    /// 3. beside the executable;
    /// 4. the folder that `cargo xtask setup` fills, but only for a program that lies in cargo's build folder: in the
    ///    checkout around that folder, then in `CARGO_MANIFEST_DIR`, which cargo sets for what it runs, or one of the three
    ///    above that;
    /// 5. the system loader, by name.
    ///
    /// The first place that names a library is final: one that was asked for and does not fit is an error and never a
    /// silent fallback. The current directory and its parents are not searched: running a program on somebody's files must
    /// not run code that lies beside them. Neither are folders above an installed program, to which others may write.
    pub fn search(&self, explicit: Option<&Utf8Path>) -> Vec<SearchedPlace> {
        places::search(self, explicit, &Places::here(self.variable))
    }

    /// The place that is taken.
    pub fn choose(&self, explicit: Option<&Utf8Path>) -> Choice {
        self.choose_of(self.search(explicit))
    }

    fn choose_of(&self, mut places: Vec<SearchedPlace>) -> Choice {
        match places.pop() {
            Some(SearchedPlace { origin, path, .. }) => Choice { origin, path },
            None => Choice { origin: SYSTEM_LOADER, path: self.files[0].into() },
        }
    }

    /// Its file in a folder, under one of its names.
    fn find(&self, folder: &Utf8Path) -> Option<Utf8PathBuf> {
        self.files.iter().map(|n| folder.join(n)).find(|p| p.is_file())
    }

    /// The absolute path, so that bindings that open the library again open the file that was checked; a bare name for the
    /// system loader.
    fn resolve(&self, choice: &Choice) -> Result<Utf8PathBuf, EngineError> {
        let Choice { origin, path } = choice;
        if choice.by_loader() {
            return Ok(self.files[0].into());
        }
        if !path.exists() {
            return Err(self.unavailable(format!("`{path}` does not exist (from {origin})")));
        }
        let file = if !self.by_folder {
            path.clone()
        } else if path.is_dir() {
            let none = || self.unavailable(format!("`{path}` (from {origin}) has no `{}`", self.files[0]));
            self.find(path).ok_or_else(none)?
        } else {
            return Err(self.unavailable(format!("`{path}` is not a folder (from {origin})")));
        };
        file.canonicalize_utf8().map_err(|e| self.unavailable(format!("`{file}` (from {origin}): {e}")))
    }

    /// Loads it, after its file was seen to be whole; calls nothing in it.
    ///
    /// # Errors
    /// [`EngineErrorKind::Unavailable`] with the loader's own words, which name a library that this one needs and that is
    /// missing.
    pub fn open(&self, choice: &Choice) -> Result<Opened, EngineError> {
        let path = self.resolve(choice)?;
        let origin = choice.origin;
        let refuse =
            |why: String| self.unavailable(format!("`{path}` (from {origin}) cannot be loaded: {why}"));
        let file = if choice.by_loader() { places::on_loader_path(&path) } else { Some(path.clone()) };
        file.map_or(Ok(()), |file| check_whole(&file)).map_err(|e| refuse(e.to_string()))?;
        // SAFETY: loading runs the library's constructors. The user, the setup or the system named this file as the
        // product's, it is whole, and nothing is called before its entry points have been found.
        let handle = unsafe { Library::new(path.as_std_path()) }.map_err(|e| {
            let said = loader_words(&e);
            if !choice.by_loader() {
                return refuse(said);
            }
            self.unavailable(format!(
                "no {} library: not in {}, beside the executable or in {}, and the system loader does not load \
                 `{path}`: {said}",
                self.product, self.variable, self.setup_folder
            ))
        })?;
        Ok(Opened { path, handle, library: *self, origin })
    }

    /// That it cannot be used, with the next step.
    pub fn unavailable(&self, message: impl Into<String>) -> EngineError {
        EngineError::new(EngineErrorKind::Unavailable, self.engine, message).hint(self.hint)
    }
}

impl Opened {
    /// That this library is not the one that is needed: `reason` goes on where its path and who named it end.
    pub fn refuse(&self, reason: impl std::fmt::Display) -> EngineError {
        self.library.unavailable(format!("`{}` (from {}) {reason}", self.path, self.origin))
    }
}

/// The loader's own words, which `libloading` keeps in the source of its error.
pub fn loader_words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The one library of its kind in a process: bindings keep the first that they are given. It stays loaded, and what was
/// started with it stays.
#[derive(Debug)]
pub struct OneInProcess<T>(Mutex<Option<StartedLibrary<T>>>);

#[derive(Debug)]
struct StartedLibrary<T> {
    path: Utf8PathBuf,
    started: T,
    _handle: Library,
}

impl<T: Clone> OneInProcess<T> {
    /// None yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// What runs, if it is the library that is asked for; else `start` opens it and makes of it what is kept.
    ///
    /// # Errors
    /// Those of `start`; [`EngineErrorKind::Unavailable`] where another library runs.
    pub fn start(
        &self,
        library: &SharedLibrary,
        choice: &Choice,
        start: impl FnOnce() -> Result<(Opened, T), EngineError>,
    ) -> Result<T, EngineError> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(StartedLibrary { path, started, .. }) = running.as_ref() {
            let asked = library.resolve(choice)?;
            if asked == *path {
                return Ok(started.clone());
            }
            let message = format!(
                "this process already has {} from `{path}`; `{asked}` (from {}) cannot be loaded beside it",
                library.product, choice.origin
            );
            return Err(library.unavailable(message).hint("use one library in a process"));
        }
        let (Opened { path, handle, .. }, started) = start()?;
        Ok(running.insert(StartedLibrary { path, started, _handle: handle }).started.clone())
    }
}

impl<T: Clone> Default for OneInProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
