//! A name that is taken: the hidden folder in which an output is made, and its recovery after a run that was killed.
//!
//! `.dpar-export-KEY` lies beside the output, or in it where the output is a folder that cannot be renamed (a mount point).
//! KEY is a digest of the output's name, so that two runs for one output meet, whatever their process numbers are, and
//! any name fits. It holds
//!
//! - `lock`, locked as long as the run lives,
//! - `new/NAME`, the output under construction,
//! - `old/`, what is being replaced where two names cannot be swapped: NAME, or the entries of NAME,
//! - `moved.json`, while the entries of `new/NAME` move up into an output that cannot be renamed: their names.
//!
//! A run that begins looks through the place where it writes: what has no lock is of a killed run. An output that was whole
//! before that run began is made whole again, and the rest is removed.

use std::fs::File;
use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};

use super::StagingError;
use super::lock::{DIGITS, Lock, PART, PREFIX, is_ours, try_lock};
use super::rename::{keep_beside, rename_new, sync_folder};

const LOCK: &str = "lock";
const NEW: &str = "new";
const OLD: &str = "old";
const MOVED: &str = "moved.json";
const MOVED_PART: &str = "moved.part";
/// The name whose key a claim inside of the output has: no entry can have it.
const INSIDE: &str = ".";

fn is_part(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(PART)
}

fn folder_name(name: &str) -> String {
    let digest = hex::encode(Sha256::digest(name.as_bytes()));
    format!("{PREFIX}{}", &digest[..DIGITS])
}

/// A name that this process has taken.
#[derive(Debug)]
pub(super) struct Claim {
    folder: Utf8PathBuf,
    lock: File,
}

impl Claim {
    /// Takes the name of `output`; `inside` where it is a folder that stays where it is. `None` where another run holds it.
    ///
    /// # Errors
    /// When the place cannot be written to.
    pub(super) fn take(output: &Utf8Path, inside: bool) -> Result<Option<Self>, StagingError> {
        let name = output.file_name().unwrap_or_default();
        let (place, key) = match inside {
            true => (output, INSIDE),
            false => (output.parent().unwrap_or(output), name),
        };
        let folder = place.join(folder_name(key));
        let fail = StagingError::io(&folder);
        loop {
            match fs_err::create_dir(&folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(fail(e)),
                _ => {}
            }
            let path = folder.join(LOCK);
            let lock = match open_lock(&path, true) {
                Ok(lock) => lock,
                // Another run has just removed the folder.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(fail(e)),
            };
            match try_lock(&lock, path.as_std_path()) {
                Lock::Held => {}
                Lock::Gone => continue,
                Lock::Taken => return Ok(None),
                Lock::Unknown(e) if folder.join(NEW).exists() => {
                    let hint = "no run is told from another here; remove it when none is at work";
                    return Err(fail(io::Error::new(e.kind(), format!("{e}: {hint}"))));
                }
                Lock::Unknown(e) => {
                    tracing::warn!("{path}: {e}: runs for one output are not told apart here")
                }
            }
            let claim = Self { folder, lock };
            let fresh = || -> io::Result<()> {
                undo(&claim.folder)?;
                clear(&claim.folder)?;
                [NEW, OLD].iter().try_for_each(|part| fs_err::create_dir(claim.folder.join(part)))
            };
            return match fresh() {
                Ok(()) => Ok(Some(claim)),
                Err(e) => Err(StagingError::io(&claim.folder)(e)),
            };
        }
    }

    /// Where the output is made.
    pub(super) fn new_path(&self, output: &Utf8Path) -> Utf8PathBuf {
        self.folder.join(NEW).join(output.file_name().unwrap_or_default())
    }

    /// Where what is replaced goes when names cannot be swapped.
    pub(super) fn old_path(&self, output: &Utf8Path) -> Utf8PathBuf {
        self.folder.join(OLD).join(output.file_name().unwrap_or_default())
    }

    /// Moves the entries of the new output up into `output`, those that `marks` names last, and the `old` ones out of the way.
    /// False where something else has one of the names; then, and on an error, everything is where it was.
    pub(super) fn move_up(&self, output: &Utf8Path, mut old: Vec<&str>, marks: &[&str]) -> io::Result<bool> {
        let new = self.new_path(output);
        let mut names = entries(&new)?;
        old.sort_by_key(|n| !marks.contains(n));
        names.sort_by_key(|n| marks.contains(&n.as_str()));
        self.record(&names)?;
        let moves = || -> io::Result<()> {
            old.iter().try_for_each(|n| rename_new(&output.join(n), &self.folder.join(OLD).join(n)))?;
            names.iter().try_for_each(|n| rename_new(&new.join(n), &output.join(n)))
        };
        match moves() {
            Ok(()) => {
                sync_folder(output);
                fs_err::remove_file(self.folder.join(MOVED))?;
                Ok(true)
            }
            Err(e) => {
                roll_back(&self.folder)?;
                if e.kind() == io::ErrorKind::AlreadyExists { Ok(false) } else { Err(e) }
            }
        }
    }

    /// As if the process had been killed.
    #[cfg(test)]
    pub(super) fn kill(self) {
        self.lock.unlock().unwrap();
        std::mem::forget(self);
    }

    /// Writes down which names are about to move.
    fn record(&self, names: &[String]) -> io::Result<()> {
        let part = self.folder.join(MOVED_PART);
        let mut file = fs_err::File::create(&part)?;
        file.write_all(&serde_json::to_vec(names)?)?;
        file.sync_all()?;
        fs_err::rename(&part, self.folder.join(MOVED))?;
        sync_folder(&self.folder);
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(e) = undo(&self.folder).and_then(|()| remove_folder(&self.folder)) {
            tracing::warn!("what was left in {} was not removed: {e}", self.folder);
        }
        // A child that is being started holds the file too, for a moment.
        let _ = self.lock.unlock();
        if let Some(place) = self.folder.parent() {
            sync_folder(place);
        }
    }
}

fn open_lock(path: &Utf8Path, create: bool) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(create);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Where others may write, a link must not lead to another file.
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    }
    options.open(path)
}

fn entries(folder: &Utf8Path) -> io::Result<Vec<String>> {
    match folder.read_dir_utf8() {
        Ok(entries) => entries.map(|e| Ok(e?.file_name().to_owned())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Removes what killed runs left in `place`, and puts back what they had moved away; says so, and says what it cannot. True
/// where a living run writes into `place` itself.
pub(super) fn sweep(place: &Utf8Path) -> bool {
    let Ok(found) = place.read_dir() else { return false };
    let mut living = false;
    for entry in found.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = place.join(&name);
        let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        if is_ours(&name) && is_dir {
            match sweep_claim(&path) {
                Ok(held) => living |= held && name == folder_name(INSIDE),
                Err(e) => {
                    tracing::warn!("what a run that was killed has left in {path} was not removed: {e}")
                }
            }
        } else if is_part(&name) && !is_dir {
            sweep_part(&path);
        }
    }
    living
}

/// True where a living run holds it.
fn sweep_claim(folder: &Utf8Path) -> io::Result<bool> {
    let path = folder.join(LOCK);
    let lock = match open_lock(&path, false) {
        Ok(lock) => lock,
        // Left between making the folder and the lock, or the other way round; nothing is removed but an empty folder.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let _ = std::fs::remove_dir(folder);
            return Ok(false);
        }
        // Of another user.
        Err(_) => return Ok(false),
    };
    match try_lock(&lock, path.as_std_path()) {
        Lock::Taken => return Ok(true),
        Lock::Gone | Lock::Unknown(_) => return Ok(false),
        Lock::Held => {}
    }
    undo(folder)?;
    tracing::warn!("removing {folder}, which a run that was killed has left");
    remove_folder(folder)?;
    let _ = lock.unlock();
    Ok(false)
}

fn sweep_part(path: &Utf8Path) {
    let Ok(file) = open_lock(path, false) else { return };
    if matches!(try_lock(&file, path.as_std_path()), Lock::Held) {
        tracing::warn!("removing {path}, which a run that was killed has left");
        let _ = std::fs::remove_file(path);
    }
}

/// Brings an earlier output back that was being replaced, and takes unfinished moves back. What is then left in the folder
/// is not needed.
fn undo(folder: &Utf8Path) -> io::Result<()> {
    let Some(place) = folder.parent() else { return Ok(()) };
    if folder.file_name() == Some(&folder_name(INSIDE)) {
        return roll_back(folder);
    }
    let old = folder.join(OLD);
    for name in entries(&old)?.iter().filter(|n| folder.file_name() == Some(&folder_name(n))) {
        let (from, to) = (old.join(name), place.join(name));
        if to.symlink_metadata().is_err() {
            rename_new(&from, &to)?;
            tracing::warn!("{to} is back as it was before a run that was killed");
        } else if folder.join(NEW).join(name).symlink_metadata().is_ok() {
            // Neither the new nor the old one: both steps of the replacing were not done, and the place is taken.
            let kept = keep_beside(&from, &to)?;
            tracing::warn!("{to} as it was before a run that was killed is kept as {kept}");
        }
    }
    Ok(())
}

/// Takes moves into the output back, unless all were made.
fn roll_back(folder: &Utf8Path) -> io::Result<()> {
    let (Some(output), record) = (folder.parent(), folder.join(MOVED)) else { return Ok(()) };
    let mut names: Vec<String> = match fs_err::read(&record) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // Whatever a file says that others may have written: names of entries, and no paths.
    names.retain(|n| Utf8Path::new(n).file_name() == Some(n));
    let new = folder.join(NEW);
    let Some(name) = entries(&new)?.pop() else { return fs_err::remove_file(record) };
    let new = new.join(name);
    let (waiting, moved): (Vec<_>, Vec<_>) =
        names.iter().partition(|n| new.join(n).symlink_metadata().is_ok());
    if !waiting.is_empty() {
        for name in moved.iter().filter(|n| output.join(n).symlink_metadata().is_ok()) {
            rename_new(&output.join(name), &new.join(name))?;
        }
        let old = folder.join(OLD);
        for name in entries(&old)? {
            let (from, to) = (old.join(&name), output.join(&name));
            match rename_new(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let kept = keep_beside(&from, &to)?;
                    tracing::warn!("{to} as it was before is kept as {kept}");
                }
                done => done?,
            }
        }
    }
    sync_folder(output);
    fs_err::remove_file(record)
}

/// Removes what is in the folder, but for the lock.
fn clear(folder: &Utf8Path) -> io::Result<()> {
    for part in [NEW, OLD, MOVED, MOVED_PART] {
        let path = folder.join(part);
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() { fs_err::remove_dir_all(path)? } else { fs_err::remove_file(path)? }
    }
    Ok(())
}

/// The lock goes last: until then nobody else works in the folder.
fn remove_folder(folder: &Utf8Path) -> io::Result<()> {
    clear(folder)?;
    fs_err::remove_file(folder.join(LOCK))?;
    // Another run may have taken the name since.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::tests::{names, temp, text};

    /// A mount point: entries move one by one.
    fn inside(earlier: &[&str]) -> (tempfile::TempDir, Utf8PathBuf, Claim) {
        let (guard, output) = temp();
        for name in earlier {
            fs_err::write(output.join(name), "earlier").unwrap();
        }
        let claim = Claim::take(&output, true).unwrap().unwrap();
        fs_err::create_dir(claim.new_path(&output)).unwrap();
        for name in ["a", "mark", "b"] {
            fs_err::write(claim.new_path(&output).join(name), "result").unwrap();
        }
        (guard, output, claim)
    }

    #[test]
    fn entries_move_into_a_folder_that_stays() {
        for earlier in [&[][..], &["a", "mark", "c"]] {
            let (_guard, output, claim) = inside(earlier);
            assert!(claim.move_up(&output, earlier.to_vec(), &["mark"]).unwrap());
            drop(claim);
            assert_eq!(
                (names(&output), text(&output.join("a"))),
                (vec!["a".into(), "b".into(), "mark".into()], "result".into())
            );
        }
    }

    #[test]
    fn a_move_that_was_killed_anywhere_is_taken_back_or_whole() {
        for earlier in [&[][..], &["a", "mark", "c"]] {
            for cut in 0..=earlier.len() + 3 {
                let (_guard, output, claim) = inside(earlier);
                let (new, old) = (claim.new_path(&output), claim.folder.join(OLD));
                let order = ["a", "b", "mark"];
                claim.record(&order.map(str::to_owned)).unwrap();
                let moves = earlier.iter().map(|n| (output.join(n), old.join(n)));
                let moves = moves.chain(order.iter().map(|n| (new.join(n), output.join(n))));
                moves.take(cut).for_each(|(from, to)| rename_new(&from, &to).unwrap());
                claim.kill();
                assert!(!sweep(&output));
                let whole = cut == earlier.len() + 3;
                let mut want = if whole { order.to_vec() } else { earlier.to_vec() };
                want.sort_unstable();
                assert_eq!(names(&output), want, "after {cut} moves");
                let word = if whole { "result" } else { "earlier" };
                assert!(want.iter().all(|n| text(&output.join(n)) == word), "after {cut} moves");
            }
        }
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_stops_the_move_and_nothing_is_lost() {
        let (_guard, output, claim) = inside(&[]);
        fs_err::write(output.join("b"), "late").unwrap();
        assert!(!claim.move_up(&output, Vec::new(), &["mark"]).unwrap());
        assert_eq!(text(&output.join("b")), "late");
        assert_eq!(names(&claim.new_path(&output)), ["a", "b", "mark"]);
    }

    #[test]
    fn names_in_a_record_are_no_paths() {
        let (_guard, output, claim) = inside(&[]);
        let outside = output.join("keep");
        fs_err::write(&outside, "1").unwrap();
        claim.record(&[format!("../{}/keep", output.file_name().unwrap()), "mark".to_owned()]).unwrap();
        claim.kill();
        sweep(&output);
        assert_eq!(names(&output), ["keep"]);
    }
}
