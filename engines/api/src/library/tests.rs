use std::fs;

use super::*;

const FILE: SharedLibrary = SharedLibrary {
    engine: "some",
    product: "Some",
    variable: "SOME_LIB",
    setup_folder: "third_party/some",
    files: &["libdpar-some.so.1", "libdpar-some.so"],
    by_folder: false,
    hint: "install it",
};
const FOLDER: SharedLibrary = SharedLibrary { by_folder: true, ..FILE };

fn refused(library: &SharedLibrary, path: &Utf8Path, text: &str) {
    let choice = Choice { origin: library.variable, path: path.to_owned() };
    let e = library.open(&choice).unwrap_err();
    assert_eq!((e.kind, e.hint.as_deref()), (EngineErrorKind::Unavailable, Some("install it")));
    assert!(e.message.contains(text) && e.message.contains("SOME_LIB"), "{text} is not in: {e}");
}

#[test]
fn a_folder_offers_the_file_or_itself_and_the_option_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(dir.path()).unwrap();
    let places = Places { executable: Some(root.join("tool")), ..Places::default() };
    let chosen = |library: &SharedLibrary, explicit: Option<&str>| {
        library.choose_of(places::search(library, explicit.map(Into::into), &places)).path
    };
    for library in [FILE, FOLDER] {
        assert_eq!(chosen(&library, None), "libdpar-some.so.1");
        assert_eq!(chosen(&library, Some("asked")), "asked");
    }
    fs::write(root.join("libdpar-some.so"), b"").unwrap();
    assert_eq!(chosen(&FILE, None), root.join("libdpar-some.so"));
    assert_eq!(chosen(&FOLDER, None), root);
}

#[test]
fn what_is_no_library_is_refused_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(dir.path()).unwrap();
    for library in [FILE, FOLDER] {
        refused(&library, &root.join("absent"), "does not exist");
    }
    refused(&FILE, root, "cannot be loaded: it is no regular file");
    refused(&FOLDER, root, "has no `libdpar-some.so.1`");
    let text = root.join(FILE.files[0]);
    fs::write(&text, b"not a library").unwrap();
    refused(&FILE, &text, "cannot be loaded");
    refused(&FOLDER, root, "cannot be loaded");
    refused(&FOLDER, &text, "is not a folder");
    let e = FILE.open(&Choice { origin: SYSTEM_LOADER, path: text }).unwrap_err();
    assert!(e.message.contains("third_party/some") && e.message.contains("system loader"), "{e}");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = Utf8Path::from_path(dir.path()).unwrap().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refused(&FILE, &pipe, "cannot be loaded: it is no regular file");
}

/// The C library's mathematics: small, and on every system of this kind.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod real {
    use super::*;

    const MATHS: SharedLibrary = SharedLibrary { files: &["libm.so.6"], ..FILE };

    fn at(path: &Utf8Path) -> Choice {
        Choice { origin: "SOME_LIB", path: path.to_owned() }
    }

    /// Where the system has it.
    fn system() -> Utf8PathBuf {
        let choice = Choice { origin: SYSTEM_LOADER, path: "libm.so.6".into() };
        let _loaded = MATHS.open(&choice).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.split_whitespace().find(|w| w.contains("/libm.so")).unwrap().into()
    }

    #[test]
    fn a_library_that_is_cut_or_hollow_is_never_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let whole = fs::read(system()).unwrap();
        let part = root.join("part.so");
        for len in [64, 4096, whole.len() / 2, whole.len() - 1] {
            fs::write(&part, &whole[..len]).unwrap();
            refused(&MATHS, &part, "the file is cut short: it has ");
        }
        // All of its length, as a download that takes its room first leaves it.
        let mut hollow = whole.clone();
        hollow[whole.len() / 2..].fill(0);
        fs::write(&part, &hollow).unwrap();
        refused(&MATHS, &part, "the file is not whole");
        fs::write(&part, &whole).unwrap();
        MATHS.open(&at(&part)).unwrap();
    }

    #[test]
    fn a_library_that_it_needs_and_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let mut bytes = fs::read(system()).unwrap();
        let mut found = 0;
        for at in 0..bytes.len() - 9 {
            if bytes[at..].starts_with(b"libc.so.6") {
                bytes[at..at + 9].copy_from_slice(b"libc.so.X");
                found += 1;
            }
        }
        assert!(found > 0);
        let path = root.join("needs.so");
        fs::write(&path, bytes).unwrap();
        refused(&MATHS, &path, "cannot be loaded: libc.so.X: cannot open shared object file");
    }

    #[test]
    fn a_process_has_one() {
        static ONE: OneInProcess<u8> = OneInProcess::new();
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let (first, second) = (at(&system()), at(&root.join("second.so")));
        fs::copy(system(), &second.path).unwrap();
        let start = |choice: &Choice, number| ONE.start(&MATHS, choice, || Ok((MATHS.open(choice)?, number)));
        assert!(ONE.start(&MATHS, &first, || Err(MATHS.unavailable("no"))).is_err());
        assert_eq!(start(&first, 1), Ok(1));
        assert_eq!(start(&first, 2), Ok(1), "the one that runs");
        let e = start(&second, 3).unwrap_err();
        assert!(e.message.contains("already has Some") && e.message.contains("second.so"), "{e}");
    }
}
