//! Output folders that appear complete or not at all: written beside their place, then renamed.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

/// Why an output folder could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// Something else is in the place.
    #[error("{0} already exists")]
    Exists(Utf8PathBuf),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: Utf8PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A kind of output folder.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Files of which an earlier output holds at least one.
    pub marks: &'static [&'static str],
    /// Whether an output of this kind may hold an entry of that name.
    pub writes: fn(&str) -> bool,
}

/// A folder under construction. Dropped before [`commit`](Self::commit), it leaves nothing behind.
#[derive(Debug)]
pub struct StagedFolder {
    output: Utf8PathBuf,
    staging: Utf8PathBuf,
    /// The output was there, empty: it may be a mount point, so the entries are moved into it.
    inside: bool,
    marks: &'static [&'static str],
    /// What to remove when dropped.
    remove: Option<Utf8PathBuf>,
}

impl StagedFolder {
    /// Starts a folder that will become `output`, which may be missing or empty. With `replace`, an earlier
    /// output of this kind is replaced; a folder that holds anything else never is.
    ///
    /// # Errors
    /// When the place is taken, or the folder cannot be made.
    pub fn create(output: &Utf8Path, replace: bool, kind: &Kind) -> Result<Self, StagingError> {
        let io = |path: &Utf8Path| {
            let path = path.to_owned();
            move |source| StagingError::Io { path, source }
        };
        let mut output = camino::absolute_utf8(output).map_err(io(output))?;
        if output.exists() {
            output = output.canonicalize_utf8().map_err(io(&output))?;
        } else if output.is_symlink() {
            return Err(StagingError::Exists(output));
        }
        let mut entries = Vec::new();
        if output.is_dir() {
            for entry in output.read_dir_utf8().map_err(io(&output))? {
                entries.push(entry.map_err(io(&output))?.file_name().to_owned());
            }
        }
        let ours = kind.marks.iter().any(|m| entries.iter().any(|e| e == m))
            && entries.iter().all(|e| (kind.writes)(e));
        let foreign = output.exists() && !output.is_dir();
        let free = entries.is_empty() || (replace && ours);
        if foreign || !free {
            return Err(StagingError::Exists(output));
        }
        let inside = output.is_dir() && entries.is_empty();
        let parent = output.parent().unwrap_or(Utf8Path::new("/")).to_owned();
        let place = if inside { output.clone() } else { parent };
        fs_err::create_dir_all(&place).map_err(io(&place))?;
        let name = output.file_name().unwrap_or("out");
        // A process that was killed may have left its folder, and in a container its number comes again.
        for attempt in 0.. {
            let staging = place.join(format!(".{name}.{}-{attempt}.tmp", std::process::id()));
            match fs_err::create_dir(&staging) {
                Ok(()) => {
                    let remove = Some(staging.clone());
                    return Ok(Self { output, staging, inside, marks: kind.marks, remove });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(e) => return Err(io(&staging)(e)),
            }
        }
        unreachable!("the loop ends with a folder or an error")
    }

    /// Where to write.
    pub fn path(&self) -> &Utf8Path {
        &self.staging
    }

    /// Puts the folder in its place.
    ///
    /// # Errors
    /// When it cannot be renamed; an earlier output is then still there.
    pub fn commit(mut self) -> Result<(), StagingError> {
        let fail = |source| StagingError::Io { path: self.output.clone(), source };
        if self.inside {
            return self.move_entries().map_err(fail);
        }
        if !self.output.exists() {
            fs_err::rename(&self.staging, &self.output).map_err(fail)?;
            self.remove = None;
            return Ok(());
        }
        let old = self.staging.with_extension("old");
        fs_err::rename(&self.output, &old).map_err(fail)?;
        if let Err(e) = fs_err::rename(&self.staging, &self.output) {
            let restored = fs_err::rename(&old, &self.output);
            return Err(fail(restored.err().unwrap_or(e)));
        }
        self.remove = Some(old);
        Ok(())
    }

    /// Moves the entries up into the output; the files that mark it as complete come last.
    fn move_entries(&self) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in self.staging.read_dir_utf8()? {
            names.push(entry?.file_name().to_owned());
        }
        names.sort_by_key(|n| (self.marks.contains(&n.as_str()), n.clone()));
        names.iter().try_for_each(|n| fs_err::rename(self.staging.join(n), self.output.join(n)))
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if let Some(path) = self.remove.take() {
            let _ = fs_err::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { marks: &["mark"], writes: |name| ["mark", "new"].contains(&name) };

    fn temp() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    fn names(folder: &Utf8Path) -> Vec<String> {
        folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect()
    }

    #[test]
    fn an_abandoned_folder_leaves_nothing() {
        let (_guard, root) = temp();
        fs_err::create_dir_all(root.join("a/there")).unwrap();
        for name in ["a/out", "a/there"] {
            let staged = StagedFolder::create(&root.join(name), false, &KIND).unwrap();
            fs_err::write(staged.path().join("new"), "1").unwrap();
            drop(staged);
        }
        assert_eq!(names(&root.join("a")), ["there"]);
        assert!(names(&root.join("a/there")).is_empty());
    }

    #[test]
    fn an_empty_folder_is_filled_and_two_writers_do_not_meet() {
        let (_guard, root) = temp();
        let out = root.join("out");
        fs_err::create_dir(&out).unwrap();
        let staged = StagedFolder::create(&out, false, &KIND).unwrap();
        fs_err::write(staged.path().join("mark"), "1").unwrap();
        staged.commit().unwrap();
        assert_eq!(names(&out), ["mark"]);
        let first = StagedFolder::create(&root.join("x"), false, &KIND).unwrap();
        let second = StagedFolder::create(&root.join("x"), false, &KIND).unwrap();
        assert_ne!(first.path(), second.path());
    }

    #[test]
    fn only_an_earlier_output_is_replaced_and_only_when_asked() {
        let (_guard, root) = temp();
        let out = root.join("out");
        fs_err::create_dir(&out).unwrap();
        fs_err::write(out.join("mark"), "1").unwrap();
        fs_err::write(out.join("precious"), "1").unwrap();
        for replace in [false, true] {
            let e = StagedFolder::create(&out, replace, &KIND).unwrap_err();
            assert!(matches!(e, StagingError::Exists(_)), "{e}");
        }
        fs_err::remove_file(out.join("precious")).unwrap();
        assert!(StagedFolder::create(&out, false, &KIND).is_err());
        let staged = StagedFolder::create(&out, true, &KIND).unwrap();
        fs_err::write(staged.path().join("new"), "1").unwrap();
        staged.commit().unwrap();
        assert_eq!(names(&out), ["new"]);
        assert_eq!(names(&root), ["out"]);
    }
}
