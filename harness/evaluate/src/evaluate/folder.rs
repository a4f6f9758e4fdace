//! Which files of a folder are images, and in which order: every image counts, or is a reason to stop; what is left out is
//! told.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_files::samples::{GRID, RUN, TRACE, UNFINISHED};
use walkdir::{DirEntry, WalkDir};

use super::{EvaluateError, InputKind};

/// Endings of pictures that are read as RGB where that is asked for.
const CONVERTED: &[&str] = &["jpg", "jpeg", "jpe", "jfif", "webp"];
/// Endings of pictures that have no reader.
const UNREAD: &[&str] = &[
    "bmp", "gif", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "j2k", "ppm", "pgm", "pnm", "tga",
    "exr", "apng", "svg",
];
/// Sub-folders deeper than this are no classes.
const DEEPEST: usize = 32;

/// What a folder holds.
#[derive(Debug)]
pub(super) struct Listing {
    /// Its images, in their order, from the folder on.
    pub(super) images: Vec<Utf8PathBuf>,
    /// What else there is.
    pub(super) left_out: Vec<String>,
}

/// A folder that is looked through.
struct Search<'a> {
    folder: &'a Utf8Path,
    convert: bool,
    found: Listing,
    /// Pictures that cannot be read: the first, and how many.
    unread: Option<(String, usize)>,
}

/// Lists a folder, with `recursive` its sub-folders too. Numbered files (`000123.png`) come in the order of their numbers,
/// however long, then the others by name; sub-folders likewise. With `convert`, JPEG and WebP files are images.
///
/// # Errors
/// When a picture is of another kind, a name is no UTF-8, or the folder cannot be read or is one that `generate` has not
/// completed.
pub(super) fn list(folder: &Utf8Path, recursive: bool, convert: bool) -> Result<Listing, EvaluateError> {
    if folder.join(RUN).is_file() && folder.join(UNFINISHED).is_dir() {
        let message = format!("{folder} is not complete: `generate --resume` has begun it");
        let hint = "go on with the command line that began it";
        return Err(EvaluateError::input(InputKind::Images, message, Some(hint)));
    }
    let depth = if recursive { DEEPEST + 1 } else { 1 };
    let found = Listing { images: Vec::new(), left_out: Vec::new() };
    let mut search = Search { folder, convert, found, unread: None };
    let mut walk = WalkDir::new(folder).follow_links(true).min_depth(1).max_depth(depth).into_iter();
    while let Some(entry) = walk.next() {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {
                let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                if !recursive || hidden {
                    search.leave(&format!("{}/", search.name(&entry)));
                    if recursive {
                        walk.skip_current_dir();
                    }
                } else if entry.depth() > DEEPEST {
                    let message =
                        format!("{}: sub-folders lie deeper than {DEEPEST}", entry.path().display());
                    return Err(EvaluateError::input(InputKind::Images, message, None));
                }
            }
            Ok(entry) => search.file(&entry)?,
            Err(e) => search.dangling(e)?,
        }
    }
    search.done(recursive)
}

impl Search<'_> {
    fn name(&self, entry: &DirEntry) -> String {
        let path = entry.path().strip_prefix(self.folder).unwrap_or(entry.path());
        path.to_string_lossy().into_owned()
    }

    fn leave(&mut self, name: &str) {
        self.found.left_out.push(name.to_owned());
    }

    fn file(&mut self, entry: &DirEntry) -> Result<(), EvaluateError> {
        let name = self.name(entry);
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let ending = ending(entry.file_name());
        let known = |list: &[&str]| list.contains(&ending.as_str());
        // The contact sheet that `generate` draws of its images.
        let sheet = entry.file_name() == GRID && entry.path().with_file_name(TRACE).is_file();
        if hidden || sheet {
            self.leave(&name);
        } else if ending == "png" || (self.convert && known(CONVERTED)) {
            let path = Utf8Path::from_path(entry.path()).ok_or_else(|| {
                let message = format!("{}: {name} is an image whose name is no UTF-8", self.folder);
                EvaluateError::input(InputKind::Images, message, Some("rename it"))
            })?;
            self.found.images.push(path.strip_prefix(self.folder).unwrap_or(path).to_owned());
        } else if known(CONVERTED) || known(UNREAD) {
            let count = self.unread.take();
            self.unread = Some(count.map_or((name, 1), |(first, n)| (first, n + 1)));
        } else {
            self.leave(&name);
        }
        Ok(())
    }

    /// A link that leads nowhere is left out where it is called like no image; anything else may hide images.
    fn dangling(&mut self, e: walkdir::Error) -> Result<(), EvaluateError> {
        let missing = e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        if let Some(path) = e.path().filter(|p| missing && p.is_symlink()) {
            let ending = path.file_name().map(ending).unwrap_or_default();
            if ending != "png" && ![CONVERTED, UNREAD].concat().contains(&ending.as_str()) {
                let name = path.strip_prefix(self.folder).unwrap_or(path).to_string_lossy().into_owned();
                self.leave(&name);
                return Ok(());
            }
        }
        // Its text has the path.
        Err(EvaluateError::input(InputKind::Images, e.to_string(), None))
    }

    fn done(self, recursive: bool) -> Result<Listing, EvaluateError> {
        let (folder, mut found) = (self.folder, self.found);
        let stop = |message, hint| Err(EvaluateError::input(InputKind::Images, message, Some(hint)));
        if let Some((first, n)) = self.unread {
            let more = if n > 1 { format!(" and {} more pictures", n - 1) } else { String::new() };
            let message = format!("{folder} holds {first}{more}, not read as it is: every image counts");
            return match CONVERTED.contains(&ending(first.as_ref()).as_str()) {
                true => stop(
                    message,
                    "read JPEG and WebP files with --convert rgb, or take them out of the folder",
                ),
                false => stop(message, "make PNG files of them, or take them out of the folder"),
            };
        }
        found.left_out.sort();
        if found.images.is_empty() {
            let hint = match recursive {
                false if found.left_out.iter().any(|n| n.ends_with('/')) => {
                    "--recursive takes the images of its sub-folders"
                }
                _ => "give a folder of images, or an .npz",
            };
            return stop(format!("{folder} holds no .png file"), hint);
        }
        found
            .images
            .sort_by_cached_key(|path| path.components().map(|c| order(c.as_str())).collect::<Vec<_>>());
        Ok(found)
    }
}

/// The ending of a file's name in small letters.
fn ending(name: &std::ffi::OsStr) -> String {
    let ending = std::path::Path::new(name).extension().unwrap_or_default();
    ending.to_string_lossy().to_ascii_lowercase()
}

/// Numbers by their value, before names.
fn order(name: &str) -> (bool, usize, String, String) {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let digits = !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { stem.trim_start_matches('0') } else { "" };
    (!digits, number.len(), number.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::test_folder;

    fn touch(root: &Utf8Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, b"").unwrap();
        }
    }

    #[test]
    fn every_image_counts_numbers_first_and_the_rest_is_told() {
        let (_guard, root) = test_folder();
        touch(&root, &["b.png", "10.png", "9.PNG", "009.png", "99999999999999999999999999.png", "a.png"]);
        touch(&root, &["notes.txt", "._1.png", "LICENSE", "sub/1.png"]);
        let found = list(&root, false, false).unwrap();
        let wanted = ["009.png", "9.PNG", "10.png", "99999999999999999999999999.png", "a.png", "b.png"];
        assert_eq!(found.images, wanted);
        assert_eq!(found.left_out, ["._1.png", "LICENSE", "notes.txt", "sub/"]);
        // The contact sheet of `generate` is no sample of it; anyone else's grid.png is one.
        touch(&root, &["grid.png"]);
        assert_eq!(list(&root, false, false).unwrap().images.len(), 7);
        touch(&root, &["trace.npz"]);
        let found = list(&root, false, false).unwrap();
        assert_eq!((found.images.len(), found.left_out.len()), (6, 6));
    }

    #[test]
    fn pictures_that_are_not_read_stop() {
        let (_guard, root) = test_folder();
        let said = |convert| match list(&root, false, convert) {
            Ok(found) => panic!("{found:?}"),
            Err(EvaluateError::Input { message, hint, .. }) => {
                format!("{message} {}", hint.unwrap_or_default())
            }
            Err(e) => panic!("{e}"),
        };
        touch(&root, &["1.png", "2.jpg", "3.JPEG", "4.webp"]);
        assert!(said(false).contains("and 2 more pictures") && said(false).contains("--convert rgb"));
        assert_eq!(list(&root, false, true).unwrap().images, ["1.png", "2.jpg", "3.JPEG", "4.webp"]);
        touch(&root, &["5.tiff"]);
        assert!(said(true).contains("5.tiff") && said(true).contains("make PNG files"));
    }

    #[test]
    fn sub_folders_are_classes_in_their_order() {
        let (_guard, root) = test_folder();
        touch(
            &root,
            &["n02/7.png", "n02/10.png", "n01/1.png", "10/0.png", "9/0.png", ".git/1.png", "n01/readme"],
        );
        let found = list(&root, true, false).unwrap();
        assert_eq!(found.images, ["9/0.png", "10/0.png", "n01/1.png", "n02/7.png", "n02/10.png"]);
        assert_eq!(found.left_out, [".git/", "n01/readme"]);
        match list(&root, false, false) {
            Err(EvaluateError::Input { hint: Some(hint), .. }) => assert!(hint.contains("--recursive")),
            other => panic!("{other:?}"),
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once_and_names_of_other_files_do_not_matter() {
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::fs::symlink;
        let (_guard, root) = test_folder();
        touch(&root, &["a/1.png", "elsewhere/2.png"]);
        symlink("../elsewhere", root.join("a/linked")).unwrap();
        symlink("nowhere", root.join("a/gone.txt")).unwrap();
        fs_err::write(root.as_std_path().join(std::ffi::OsStr::from_bytes(b"\xff.txt")), b"").unwrap();
        let found = list(&root, true, false).unwrap();
        assert_eq!(found.images, ["a/1.png", "a/linked/2.png", "elsewhere/2.png"]);
        assert_eq!(found.left_out, ["a/gone.txt", "\u{fffd}.txt"]);
        // A circle, an image that is gone, and one that cannot be named.
        symlink("..", root.join("a/circle")).unwrap();
        assert!(list(&root, true, false).is_err());
        fs_err::remove_file(root.join("a/circle")).unwrap();
        symlink("nowhere", root.join("a/gone.png")).unwrap();
        assert!(list(&root, true, false).is_err());
        fs_err::remove_file(root.join("a/gone.png")).unwrap();
        fs_err::write(root.as_std_path().join(std::ffi::OsStr::from_bytes(b"\xff.png")), b"").unwrap();
        assert!(list(&root, true, false).unwrap_err().to_string().contains("no UTF-8"));
    }
}
