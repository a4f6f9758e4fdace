//! That what was hashed is what runs: engines open the files of a bundle again, by path, and map them while they run.
//!
//! Of every file that is hashed, and of the folders that lead to it, the system's record is kept: which file it is, its
//! size, and when contents and record last changed. A write, a replacement or a rename in between changes one of them, also
//! one that was undone.

use std::fs::Metadata;
use std::io;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};

/// Longer than the ticks in which file systems record times: a file that changed within the last one may change again
/// without a trace.
const TICK: Duration = Duration::from_millis(20);

/// Ticks to wait for a file that is being written.
const PATIENCE: usize = 50;

/// What tells one state of a file from every other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    #[cfg(unix)]
    file: (u64, u64),
    size: u64,
    written: Option<SystemTime>,
    /// Of contents or record; no program can set it.
    #[cfg(unix)]
    changed: (i64, i64),
}

impl Record {
    #[cfg(unix)]
    fn of(meta: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.len(),
            written: meta.modified().ok(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    #[cfg(not(unix))]
    fn of(meta: &Metadata) -> Self {
        Self { size: meta.len(), written: meta.modified().ok() }
    }

    /// Whether the last change may lie in the tick that is not over.
    fn is_fresh(&self) -> bool {
        #[cfg(unix)]
        let last = u64::try_from(self.changed.0).ok().map(|seconds| {
            let nanos = u32::try_from(self.changed.1).unwrap_or_default();
            SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
        });
        #[cfg(not(unix))]
        let last = self.written;
        last.is_some_and(|last| SystemTime::now().duration_since(last).is_ok_and(|age| age < TICK))
    }
}

/// The files that were hashed and the folders that lead to them, as they were then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held(Vec<(Utf8PathBuf, Record)>);

/// Something at this path was written, replaced or renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed(pub(crate) Utf8PathBuf);

impl Held {
    /// Notes a file or folder before it is read. Links are not followed.
    ///
    /// # Errors
    /// When it cannot be found; [`io::ErrorKind::ResourceBusy`] where another program keeps writing to it.
    pub(crate) fn note(&mut self, path: &Utf8Path) -> io::Result<Metadata> {
        for _ in 0..PATIENCE {
            let meta = fs_err::symlink_metadata(path)?;
            let record = Record::of(&meta);
            if !record.is_fresh() {
                self.0.push((path.to_owned(), record));
                return Ok(meta);
            }
            std::thread::sleep(TICK);
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "another program keeps writing to it"))
    }

    /// Checks that everything is as it was noted.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn check(&self) -> Result<(), Changed> {
        let same = |(path, record): &&(Utf8PathBuf, Record)| {
            fs_err::symlink_metadata(path).is_ok_and(|meta| Record::of(&meta) == *record)
        };
        match self.0.iter().find(|noted| !same(noted)) {
            None => Ok(()),
            Some((path, _)) => Err(Changed(path.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::tests::test_folder;

    fn held(folder: &Utf8Path) -> Held {
        let mut held = Held::default();
        for path in [folder.to_owned(), folder.join("a"), folder.join("b")] {
            held.note(&path).unwrap();
        }
        held
    }

    #[test]
    #[cfg(unix)]
    fn every_change_is_seen_also_one_that_was_undone() {
        let (_guard, root) = test_folder();
        let folder = root.join("f");
        fs_err::create_dir(&folder).unwrap();
        fs_err::create_dir(root.join("other")).unwrap();
        for name in ["f/a", "f/b", "other/a", "other/b"] {
            fs_err::write(root.join(name), "12345").unwrap();
        }
        let a = folder.join("a");
        let touch = |path: &Utf8Path, time: SystemTime| {
            fs_err::OpenOptions::new().write(true).open(path).unwrap().set_modified(time).unwrap();
        };
        let swap = |x: &Utf8Path, y: &Utf8Path| {
            let aside = root.join("aside");
            fs_err::rename(x, &aside).unwrap();
            fs_err::rename(y, x).unwrap();
            fs_err::rename(&aside, y).unwrap();
        };
        let changes: [(&str, &dyn Fn()); 7] = [
            ("written with the same bytes", &|| fs_err::write(&a, "12345").unwrap()),
            ("written, and the time of writing put back", &|| {
                let time = fs_err::metadata(&a).unwrap().modified().unwrap();
                fs_err::write(&a, "54321").unwrap();
                touch(&a, time);
            }),
            ("replaced", &|| swap(&a, &root.join("other/a"))),
            ("replaced and put back", &|| {
                swap(&a, &folder.join("b"));
                swap(&a, &folder.join("b"));
            }),
            ("the folder replaced and put back", &|| {
                swap(&folder, &root.join("other"));
                swap(&folder, &root.join("other"));
            }),
            ("another file added and removed", &|| {
                fs_err::write(folder.join("c"), "").unwrap();
                fs_err::remove_file(folder.join("c")).unwrap();
            }),
            ("a link in its place", &|| {
                fs_err::rename(&a, root.join("away")).unwrap();
                std::os::unix::fs::symlink("../away", &a).unwrap();
            }),
        ];
        for (what, change) in changes {
            let held = held(&folder);
            held.check().unwrap_or_else(|e| panic!("{what}: nothing has changed yet, and {} did", e.0));
            fs_err::read(&a).unwrap();
            held.check().unwrap_or_else(|e| panic!("reading changes {}", e.0));
            change();
            assert!(held.check().is_err(), "{what}");
        }
    }

    #[test]
    fn what_is_gone_has_changed() {
        let (_guard, root) = test_folder();
        for name in ["a", "b"] {
            fs_err::write(root.join(name), "1").unwrap();
        }
        let held = held(&root);
        fs_err::remove_file(root.join("b")).unwrap();
        assert!(held.check().is_err());
    }
}
