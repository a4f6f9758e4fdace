//! Renames that take nothing away but what they were told to replace, and what makes them durable.

use std::io;
use std::time::SystemTime;

use camino::{Utf8Path, Utf8PathBuf};
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::lock::is_ours;

/// Longest name that common file systems take, in bytes.
const LONGEST_NAME: usize = 255;

/// One entry of what was in a place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EntryState {
    name: String,
    id: (u64, u64),
    length: u64,
    modified: Option<SystemTime>,
}

impl EntryState {
    fn of(name: &str, meta: &std::fs::Metadata) -> Self {
        #[cfg(unix)]
        let id = {
            use std::os::unix::fs::MetadataExt;
            (meta.dev(), meta.ino())
        };
        #[cfg(not(unix))]
        let id = (0, 0);
        Self { name: name.to_owned(), id, length: meta.len(), modified: meta.modified().ok() }
    }
}

/// What was in a place, to be told from what comes there later: the file or the folder with its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity(Vec<EntryState>);

impl Identity {
    /// Of what is there; without our own working folders.
    pub(super) fn of(path: &Utf8Path) -> io::Result<Option<Self>> {
        let meta = match fs_err::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if !meta.is_dir() {
            return Ok(Some(Self(vec![EntryState::of("", &meta)])));
        }
        // A folder's own size and time change with what is ours in it.
        let mut entries = vec![EntryState { length: 0, modified: None, ..EntryState::of("", &meta) }];
        for entry in path.as_std_path().read_dir()? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !is_ours(&name) {
                entries.push(EntryState::of(&name, &entry.metadata()?));
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(Self(entries)))
    }

    /// Names of a folder's entries.
    pub(super) fn names(&self) -> Vec<&str> {
        self.0.iter().map(|e| e.name.as_str()).filter(|n| !n.is_empty()).collect()
    }
}

/// Whether the file system, or the system, does not know the flags of a rename.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn unknown(e: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP].contains(&e)
}

/// An error of a rename with both names.
fn failed(from: &Utf8Path, to: &Utf8Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("renaming {from} to {to}: {e}"))
}

/// Renames where nothing has the new name yet.
///
/// # Errors
/// `AlreadyExists` where something has; and what the file system says.
pub(super) fn rename_new(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    match renameat_with(CWD, from.as_std_path(), CWD, to.as_std_path(), RenameFlags::NOREPLACE) {
        Err(e) if unknown(e) => {}
        done => return done.map_err(|e| failed(from, to, e.into())),
    }
    rename_new_plainly(from, to)
}

/// The same where a rename cannot be told not to replace.
fn rename_new_plainly(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    let taken = || failed(from, to, io::ErrorKind::AlreadyExists.into());
    if to.symlink_metadata().is_ok() {
        return Err(taken());
    }
    if !from.symlink_metadata()?.is_dir() {
        // A second name is only made where nothing has it.
        match std::fs::hard_link(from, to) {
            Ok(()) => return fs_err::remove_file(from),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(taken()),
            Err(_) => {}
        }
    }
    // A folder takes the place of nothing but an empty folder: more can only be lost where there are no links either.
    std::fs::rename(from, to).map_err(|e| match e.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => taken(),
        _ => failed(from, to, e),
    })
}

/// Swaps two names in one step; false where that cannot be done.
fn exchange(a: &Utf8Path, b: &Utf8Path) -> io::Result<bool> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    match renameat_with(CWD, a.as_std_path(), CWD, b.as_std_path(), RenameFlags::EXCHANGE) {
        Err(e) if unknown(e) => {}
        done => return done.map(|()| true).map_err(|e| failed(a, b, e.into())),
    }
    Ok(false)
}

/// Puts `new` at `to`, where nothing may be but what `was` there; that is then at `new` or at `old`. False where
/// something else is there, and nothing has changed.
pub(super) fn put(new: &Utf8Path, to: &Utf8Path, old: &Utf8Path, was: Option<&Identity>) -> io::Result<bool> {
    let now = Identity::of(to)?;
    let Some(was) = was.filter(|_| now.is_some()) else { return put_new(new, to) };
    if now.as_ref() != Some(was) {
        return Ok(false);
    }
    if !exchange(new, to)? {
        return put_in_two_steps(new, to, old, was);
    }
    // Something may have come between the look and the swap.
    let same = Identity::of(new)?.as_ref() == Some(was);
    if !same {
        exchange(new, to)?;
    }
    Ok(same)
}

fn put_new(new: &Utf8Path, to: &Utf8Path) -> io::Result<bool> {
    match rename_new(new, to) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// Where names cannot be swapped. Killed between the two, [`super::claim`] puts the old one back.
fn put_in_two_steps(new: &Utf8Path, to: &Utf8Path, old: &Utf8Path, was: &Identity) -> io::Result<bool> {
    rename_new(to, old)?;
    let placed = if Identity::of(old)?.as_ref() == Some(was) { put_new(new, to) } else { Ok(false) };
    if !matches!(placed, Ok(true)) && !put_new(old, to)? {
        keep_beside(old, to)?;
    }
    placed
}

/// Gives `from` the first free of the names `OUT.1`, `OUT.2`, … beside `output` (`x.1.npz` for a file `x.npz`), and
/// returns it.
pub(super) fn keep_beside(from: &Utf8Path, output: &Utf8Path) -> io::Result<Utf8PathBuf> {
    let is_dir = from.symlink_metadata()?.is_dir();
    for number in 1..10_000 {
        let to = output.with_file_name(neighbour(output, number, is_dir));
        if put_new(from, &to)? {
            return Ok(to);
        }
    }
    Err(failed(from, output, io::ErrorKind::AlreadyExists.into()))
}

fn neighbour(output: &Utf8Path, number: usize, is_dir: bool) -> String {
    let name = output.file_name().unwrap_or_default();
    let (stem, ending) = match (output.file_stem(), output.extension()) {
        (Some(stem), Some(ending)) if !is_dir => (stem, format!(".{number}.{ending}")),
        _ => (name, format!(".{number}")),
    };
    let mut room = LONGEST_NAME.saturating_sub(ending.len()).min(stem.len());
    while !stem.is_char_boundary(room) {
        room -= 1;
    }
    format!("{}{ending}", &stem[..room])
}

/// Brings a file, or a folder with everything in it, to the disk.
pub(super) fn sync_tree(path: &Utf8Path) -> io::Result<()> {
    let kind = fs_err::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        for entry in path.read_dir_utf8()? {
            sync_tree(entry?.path())?;
        }
        sync_folder(path);
    } else if kind.is_file() {
        fs_err::File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// A rename is durable once its folder is; a file system that cannot sync a folder keeps what it keeps.
pub(crate) fn sync_folder(path: &Utf8Path) {
    #[cfg(unix)]
    if let Ok(folder) = std::fs::File::open(path) {
        let _ = folder.sync_all();
    }
    #[cfg(not(unix))]
    let _ = path;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::tests::{names, temp, text};

    /// Both ways of a rename that does not replace.
    const WAYS: [fn(&Utf8Path, &Utf8Path) -> io::Result<()>; 2] = [rename_new, rename_new_plainly];

    #[test]
    fn nothing_that_is_there_is_replaced() {
        for rename in WAYS {
            let (_guard, root) = temp();
            for name in ["from/x", "full/x", "empty/", "file"] {
                let path = root.join(name);
                fs_err::create_dir_all(path.parent().unwrap()).unwrap();
                match name.ends_with('/') {
                    true => fs_err::create_dir_all(path).unwrap(),
                    false => fs_err::write(path, name).unwrap(),
                }
            }
            for (from, to) in
                [("from", "full"), ("from", "empty"), ("from", "file"), ("file", "full"), ("file", "from/x")]
            {
                let e = rename(&root.join(from), &root.join(to)).unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::AlreadyExists, "{from} {to}: {e}");
            }
            rename(&root.join("from"), &root.join("to")).unwrap();
            rename(&root.join("file"), &root.join("to/y")).unwrap();
            assert_eq!(names(&root.join("to")), ["x", "y"]);
            assert_eq!(
                (text(&root.join("full/x")), text(&root.join("to/y"))),
                ("full/x".into(), "file".into())
            );
        }
    }

    #[test]
    fn only_what_was_there_is_replaced_in_one_step_and_in_two() {
        type Put = fn(&Utf8Path, &Utf8Path, &Utf8Path, Option<&Identity>) -> io::Result<bool>;
        let two_steps: Put = |new, to, old, was| match Identity::of(to)?.as_ref() == was {
            true => put_in_two_steps(new, to, old, was.unwrap()),
            false => Ok(false),
        };
        for put in [put as Put, two_steps] {
            let (_guard, root) = temp();
            let [new, to, old] = ["new", "to", "old"].map(|n| root.join(n));
            for folder in [&new, &to] {
                fs_err::create_dir(folder).unwrap();
                fs_err::write(folder.join("x"), folder.file_name().unwrap()).unwrap();
            }
            let was = Identity::of(&to).unwrap();
            fs_err::write(to.join("late"), "").unwrap();
            assert!(!put(&new, &to, &old, was.as_ref()).unwrap());
            assert_eq!((text(&to.join("x")), names(&root)), ("to".into(), vec!["new".into(), "to".into()]));
            fs_err::remove_file(to.join("late")).unwrap();
            assert!(put(&new, &to, &old, was.as_ref()).unwrap());
            assert_eq!((text(&to.join("x")), names(&to)), ("new".into(), vec!["x".into()]));
            let replaced = [&new, &old].into_iter().find(|p| p.exists()).unwrap();
            assert_eq!(text(&replaced.join("x")), "to");
        }
    }

    #[test]
    fn what_came_between_the_two_steps_stays_and_so_does_the_old_one() {
        let (_guard, root) = temp();
        let [new, to, old] = ["new", "to", "old"].map(|n| root.join(n));
        fs_err::write(&new, "new").unwrap();
        fs_err::write(&to, "late").unwrap();
        let was = Identity::of(&new).unwrap().unwrap();
        assert!(!put_in_two_steps(&new, &to, &old, &was).unwrap());
        assert_eq!((text(&to), text(&new), old.exists()), ("late".into(), "new".into(), false));
    }

    #[test]
    fn neighbours_keep_the_ending_and_fit() {
        let long = "ü".repeat(127);
        for (output, is_dir, want) in [
            ("a/out", true, "out.3".to_owned()),
            ("a/v1.2", true, "v1.2.3".to_owned()),
            ("a/s.npz", false, "s.3.npz".to_owned()),
            (&long, true, format!("{}.3", "ü".repeat(126))),
        ] {
            assert_eq!(neighbour(Utf8Path::new(output), 3, is_dir), want);
            assert!(want.len() <= LONGEST_NAME);
        }
    }
}
