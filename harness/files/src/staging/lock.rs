//! Locks that end with the process that holds them: whatever of ours has none was left by a killed run.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Hexadecimal digits of a key.
pub(super) const DIGITS: usize = 16;

/// Whether an entry has the name of a claim.
pub(super) fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|key| key.len() == DIGITS && key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// How the names of everything temporary begin.
pub(crate) const PREFIX: &str = ".dpar-export-";
/// How the names of unfinished files end.
pub(crate) const PART: &str = ".part";

/// What trying to lock a file came to.
#[derive(Debug)]
pub(crate) enum Lock {
    /// It is held by the open file.
    Held,
    /// Another run holds it.
    Taken,
    /// The path leads to another file by now, or to none: another run has cleaned up.
    Gone,
    /// The file system has no locks.
    Unknown(io::Error),
}

/// Tries to lock a file that was opened at `path`, where other runs may remove it until it is locked.
pub(crate) fn try_lock(file: &File, path: &Path) -> Lock {
    match file.try_lock() {
        Ok(()) if is_at(file, path) => Lock::Held,
        Ok(()) => Lock::Gone,
        Err(TryLockError::WouldBlock) => Lock::Taken,
        Err(TryLockError::Error(e)) => Lock::Unknown(e),
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    id(open) == id(there)
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}
