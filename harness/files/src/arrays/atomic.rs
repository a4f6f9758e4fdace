//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use camino::{Utf8Path, Utf8PathBuf};
use tempfile::NamedTempFile;

use crate::staging::{Lock, PART, PREFIX, try_lock};

/// A file written beside its destination and renamed over it when complete. Dropped before
/// [`commit`](Self::commit), it leaves nothing behind and the destination untouched.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    /// Locked, so that others can tell it from what a killed run left.
    temp: NamedTempFile<File>,
    path: Utf8PathBuf,
    failed: bool,
}

impl AtomicFile {
    /// Starts a file that will be `path`; its folder must exist. A symbolic link is followed.
    ///
    /// # Errors
    /// When no file can be made in that folder; when `path` is there and is no regular file (a device, a pipe, a
    /// folder).
    pub(crate) fn create(path: &Utf8Path) -> io::Result<Self> {
        let path = &if path.is_symlink() { path.canonicalize_utf8()? } else { path.to_owned() };
        if path.exists() && !path.is_file() {
            return Err(io::Error::other(format!("`{path}` is not a regular file")));
        }
        let folder = folder_of(path);
        // As any new file: the process's umask decides, not the private mode of temporary files.
        let open = |path: &std::path::Path| {
            let file = File::options().read(true).write(true).create_new(true).open(path)?;
            match try_lock(&file, path) {
                // Somebody who cleans up was faster: another name is tried.
                Lock::Taken | Lock::Gone => Err(io::ErrorKind::AlreadyExists.into()),
                Lock::Held | Lock::Unknown(_) => Ok(file),
            }
        };
        let temp = tempfile::Builder::new()
            .prefix(PREFIX)
            .suffix(PART)
            .make_in(folder, open)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot write in folder `{folder}`: {e}")))?;
        Ok(Self { temp, path: path.to_owned(), failed: false })
    }

    /// Flushes to the disk and renames over the destination.
    ///
    /// # Errors
    /// When either fails, or an earlier write has; the destination is then unchanged.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed"));
        }
        self.temp.flush()?;
        self.temp.as_file().sync_all()?;
        self.temp.persist(&self.path).map_err(|e| e.error)?;
        #[cfg(unix)]
        {
            // The rename is durable once the folder is; a file system that cannot sync a folder keeps the file.
            if let Ok(folder) = fs_err::File::open(folder_of(&self.path)) {
                let _ = folder.sync_all();
            }
        }
        Ok(())
    }
}

impl Write for AtomicFile {
    /// Fails once and then takes everything: a zip archive ends itself when it is dropped, and prints where that fails.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Ok(buf.len());
        }
        let written = self.temp.as_file_mut().write(buf);
        self.failed = written.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temp.as_file_mut().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.temp.as_file_mut().seek(pos)
    }
}

/// Writes `bytes` as `path`, whole or not at all.
///
/// # Errors
/// When the folder or the disk refuses; `path` is then unchanged.
pub fn write_atomic(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

fn folder_of(path: &Utf8Path) -> &Utf8Path {
    path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrays::test_folder;

    #[test]
    fn an_abandoned_file_leaves_nothing_and_a_committed_one_replaces() {
        let (_guard, folder) = test_folder();
        let path = folder.join("x.bin");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs_err::read(&path).unwrap(), b"old");
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"new");
        assert_eq!(fs_err::read_dir(&folder).unwrap().count(), 1, "no temporary files are left");
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_has_the_mode_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let (_guard, folder) = test_folder();
        write_atomic(&folder.join("a"), b"").unwrap();
        fs_err::write(folder.join("b"), b"").unwrap();
        let mode = |name: &str| fs_err::metadata(folder.join(name)).unwrap().permissions().mode();
        assert_eq!(mode("a"), mode("b"));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let (_guard, folder) = test_folder();
        let error = write_atomic(&folder.join("none/x"), b"").unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
