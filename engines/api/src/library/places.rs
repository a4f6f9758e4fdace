//! Where an engine's shared library is looked for: the same order for every engine.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::SharedLibrary;

/// Origin of a library that the caller named.
const BY_OPTION: &str = "the library option";
/// Origin of a library beside the program.
const BESIDE_EXECUTABLE: &str = "the executable's folder";
/// Origin of a library that the system loader is to find.
pub(super) const SYSTEM_LOADER: &str = "the system loader";

/// Folders that are looked at, upwards: for cargo's build folder from the executable's own, which is the third of a test in
/// `CHECKOUT/target/PROFILE/deps` and the fourth at most; and for [`SharedLibrary::setup_folder`] from
/// `CARGO_MANIFEST_DIR`.
/// What lies further up is somebody else's.
const LEVELS: usize = 4;

/// The file that cargo marks a build folder with.
const BUILD_FOLDER: &str = "CACHEDIR.TAG";

/// What decides where to look; taken from the process by [`Places::here`].
#[derive(Debug, Default, Clone)]
pub(super) struct Places {
    /// Value of the environment variable.
    pub(super) variable: Option<Utf8PathBuf>,
    /// The running program.
    pub(super) executable: Option<Utf8PathBuf>,
    /// Around cargo's build folder, where the program lies in one; nothing for an installed program.
    pub(super) checkout: Option<Utf8PathBuf>,
    /// `CARGO_MANIFEST_DIR`, for a program in a build folder.
    pub(super) manifest: Option<Utf8PathBuf>,
}

impl Places {
    /// Those of this process; `variable` is the name of the environment variable.
    pub(super) fn here(variable: &str) -> Self {
        let value = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty()).map(Utf8PathBuf::from);
        let executable = std::env::current_exe().ok().and_then(|p| Utf8PathBuf::from_path_buf(p).ok());
        Self::of(executable, value(variable), value("CARGO_MANIFEST_DIR"))
    }

    fn of(
        executable: Option<Utf8PathBuf>,
        variable: Option<Utf8PathBuf>,
        manifest: Option<Utf8PathBuf>,
    ) -> Self {
        let above = executable.as_deref().and_then(Utf8Path::parent);
        let mut folders = above.into_iter().flat_map(|p| p.ancestors().take(LEVELS));
        let build = folders.find(|p| p.join(BUILD_FOLDER).is_file());
        let checkout = build.and_then(Utf8Path::parent).map(Utf8Path::to_owned);
        Self { variable, manifest: manifest.filter(|_| checkout.is_some()), checkout, executable }
    }
}

/// A place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SearchedPlace {
    /// Who names it: an option, a variable, a folder, or [`SYSTEM_LOADER`].
    pub origin: &'static str,
    /// The file or folder; for the system loader a bare name.
    pub path: Utf8PathBuf,
    /// Whether the library is taken from here.
    pub taken: bool,
}

/// Every place in order, up to the one that is taken, which is the last. Touches files, loads nothing.
pub(super) fn search(
    library: &SharedLibrary,
    explicit: Option<&Utf8Path>,
    places: &Places,
) -> Vec<SearchedPlace> {
    let holds = |folder: &Utf8Path| {
        library.find(folder).map(|file| if library.by_folder { folder.to_owned() } else { file })
    };
    search_with(library, explicit, places, &holds)
}

/// `holds` gives what a folder offers, if anything: the library's file, or the folder itself.
fn search_with(
    library: &SharedLibrary,
    explicit: Option<&Utf8Path>,
    places: &Places,
    holds: &dyn Fn(&Utf8Path) -> Option<Utf8PathBuf>,
) -> Vec<SearchedPlace> {
    let named = |origin, path: &Utf8Path| vec![SearchedPlace { origin, path: path.to_owned(), taken: true }];
    if let Some(path) = explicit {
        return named(BY_OPTION, path);
    }
    if let Some(path) = &places.variable {
        return named(library.variable, path);
    }
    let beside = places.executable.as_deref().and_then(Utf8Path::parent);
    let manifest = places.manifest.iter().flat_map(|p| p.ancestors().take(LEVELS));
    let set_up = places.checkout.as_deref().into_iter().chain(manifest);
    let set_up = set_up.map(|p| (library.setup_folder, p.join(library.setup_folder)));
    let mut looked = Vec::new();
    for (origin, folder) in beside.map(|p| (BESIDE_EXECUTABLE, p.to_owned())).into_iter().chain(set_up) {
        let found = holds(&folder);
        let taken = found.is_some();
        looked.push(SearchedPlace { origin, path: found.unwrap_or(folder), taken });
        if taken {
            return looked;
        }
    }
    looked.push(SearchedPlace { origin: SYSTEM_LOADER, path: library.files[0].into(), taken: true });
    looked
}

/// The file that the system loader takes for a name, where it comes from the folders that the user named for it. What is
/// in the system's own folders is the package manager's to keep whole.
pub(super) fn on_loader_path(name: &Utf8Path) -> Option<Utf8PathBuf> {
    let folders =
        std::env::var(if cfg!(target_os = "linux") { "LD_LIBRARY_PATH" } else { return None }).ok()?;
    folders
        .split([':', ';'])
        .map(|f| Utf8Path::new(if f.is_empty() { "." } else { f }).join(name))
        .find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: SharedLibrary = SharedLibrary {
        engine: "some",
        product: "Some",
        variable: "SOME_LIB",
        setup_folder: "third_party/some",
        files: &["libsome.so"],
        by_folder: false,
        hint: "",
    };

    #[test]
    fn the_places_are_searched_in_order() {
        let mut there: Vec<Utf8PathBuf> = Vec::new();
        let mut places = Places {
            executable: Some("/built/target/debug/deps/tool".into()),
            checkout: Some("/built".into()),
            manifest: Some("/checkout/engines/some".into()),
            variable: None,
        };
        let last = |there: &[Utf8PathBuf], places: &Places| {
            let holds =
                |folder: &Utf8Path| there.iter().any(|t| t == folder).then(|| folder.join("libsome.so"));
            let looked = search_with(&WANTED, None, places, &holds);
            assert!(looked.iter().rev().skip(1).all(|p| !p.taken), "{looked:?}");
            let last = looked.last().unwrap();
            assert!(last.taken);
            (last.origin, last.path.to_string(), looked.len())
        };
        // The executable's folder, the checkout, the manifest's folder and three above it, the loader.
        let (origin, path, looked) = last(&there, &places);
        assert_eq!((origin, path.as_str(), looked), (SYSTEM_LOADER, "libsome.so", 7));
        for (folder, origin) in [
            ("/checkout/third_party/some", "third_party/some"),
            ("/built/third_party/some", "third_party/some"),
            ("/built/target/debug/deps", BESIDE_EXECUTABLE),
        ] {
            there.push(folder.into());
            let found = last(&there, &places);
            assert_eq!((found.0, found.1), (origin, format!("{folder}/libsome.so")));
        }
        // Of an installed program its own folder is searched, and none above it.
        let installed = Places { executable: Some("/srv/a/b/tool".into()), ..Places::default() };
        for folder in ["/third_party/some", "/srv/third_party/some", "/srv/a/b/third_party/some", "/srv/a"] {
            assert_eq!(last(&[folder.into()], &installed).0, SYSTEM_LOADER, "{folder}");
        }
        assert_eq!(last(&["/srv/a/b".into()], &installed).0, BESIDE_EXECUTABLE);
        places.variable = Some("named".into());
        assert_eq!(last(&there, &places), ("SOME_LIB", "named".into(), 1));
        let asked = search_with(&WANTED, Some("asked".into()), &places, &|_| None);
        assert_eq!(asked, [SearchedPlace { origin: BY_OPTION, path: "asked".into(), taken: true }]);
    }

    #[test]
    fn a_checkout_is_what_lies_around_a_build_folder_of_cargo() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let at = |program: &str| Places::of(Some(root.join(program)), None, Some("/m".into()));
        let programs =
            ["c/target/debug/tool", "c/target/debug/deps/tool", "c/target/triple/release/deps/tool"];
        for program in programs {
            let installed = at(program);
            assert_eq!((installed.checkout, installed.manifest), (None, None), "{program}");
        }
        std::fs::create_dir_all(root.join("c/target")).unwrap();
        std::fs::write(root.join("c/target").join(BUILD_FOLDER), "").unwrap();
        for program in programs {
            let built = at(program);
            assert_eq!(
                (built.checkout, built.manifest),
                (Some(root.join("c")), Some("/m".into())),
                "{program}"
            );
        }
        assert_eq!(at("c/bin/tool").checkout, None);
        assert_eq!(at("c/target/a/b/c/d/tool").checkout, None);
    }
}
