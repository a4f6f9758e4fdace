//! Outputs that appear complete or not at all, and take nothing away that they were not told to replace.
//!
//! An output's name is taken before the work: a second run for the same name is refused at once. The output is made beside
//! its place, brought to the disk, and renamed in one step that replaces nothing but what lay there when the name was
//! taken. Something else that lies there by then stays, and the finished output gets a name beside it.

mod claim;
mod lock;
mod place;
mod rename;
#[cfg(test)]
mod tests;

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{Hinted, text};

use claim::Claim;
use lock::is_ours;
pub(crate) use lock::{Lock, PART, PREFIX, try_lock};
pub use place::{Meeting, Place};
pub(crate) use rename::sync_folder;
use rename::{Identity, keep_beside, put, sync_tree};

/// Why an output could not be prepared, or not be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// An earlier output is in the place.
    #[error("{0} already exists")]
    Exists(Utf8PathBuf),
    /// Something is in the place that is no earlier output, and is never replaced.
    #[error("{output} {what}")]
    Foreign {
        /// The place.
        output: Utf8PathBuf,
        /// What it is instead, as the end of a sentence.
        what: String,
    },
    /// A file is to be written where a folder, a device or a pipe is.
    #[error("{0} is not a regular file")]
    NotAFile(Utf8PathBuf),
    /// Another run has taken the name.
    #[error("another run is writing {0}")]
    Busy(Utf8PathBuf),
    /// Something came to the place while the output was made; it stays.
    #[error("{output} was written by something else meanwhile: the finished output is {kept}")]
    Conflict {
        /// The place.
        output: Utf8PathBuf,
        /// The finished output.
        kept: Utf8PathBuf,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: Utf8PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl StagingError {
    fn io(path: &Utf8Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path: path.clone(), source }
    }
}

impl Hinted for StagingError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Exists(_) => {
                "choose another --output, or replace an earlier output of this tool with --force"
            }
            Self::Foreign { .. } => {
                "choose another --output: --force replaces nothing but earlier outputs of this tool"
            }
            Self::Busy(_) => "wait for it to end, or choose another --output",
            Self::Conflict { .. } => "it is whole: keep the one that you need",
            Self::NotAFile(_) | Self::Io { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// A kind of output folder.
#[derive(Debug, Clone, Copy)]
pub struct FolderKind {
    /// Files of which an earlier output holds at least one.
    pub marks: &'static [&'static str],
    /// Whether an output of this kind may hold an entry of that name.
    pub writes: fn(&str) -> bool,
}

/// Removes what killed runs left of unfinished outputs in and beside `output`, and puts back what they were replacing.
/// Taking the name of an output does the same.
pub fn recover(output: &Utf8Path) {
    if let Ok(place) = Place::of(output) {
        recover_at(place.path());
    }
}

/// True where a living run writes into the folder that the output is.
fn recover_at(output: &Utf8Path) -> bool {
    output.parent().map(claim::sweep);
    claim::sweep(output)
}

/// Removes what killed runs left of unfinished files in `folder`; what living ones write stays.
pub fn remove_unfinished(folder: &Utf8Path) {
    claim::sweep(folder);
}

/// What is in the place of an output, and may be replaced.
#[derive(Debug)]
struct Replaced {
    was: Option<Identity>,
    /// Entries are moved into the folder that is there, which stays.
    inside: bool,
}

/// An output whose name is taken, under construction.
#[derive(Debug)]
struct Staged {
    output: Utf8PathBuf,
    new: Utf8PathBuf,
    found: Replaced,
    claim: Claim,
}

impl Staged {
    /// Takes the name, where `look` finds nothing or what may be replaced.
    fn create(
        output: &Utf8Path,
        look: impl Fn(&Utf8Path) -> Result<Replaced, StagingError>,
    ) -> Result<Self, StagingError> {
        let place = Place::of(output).map_err(StagingError::io(output))?;
        let output = place.path().to_owned();
        if output.file_name().is_none() {
            let what = "is the root of the file system".to_owned();
            return Err(StagingError::Foreign { output, what });
        }
        if recover_at(&output) {
            return Err(StagingError::Busy(output));
        }
        let inside = look(&output)?.inside;
        let Some(claim) = Claim::take(&output, inside)? else { return Err(StagingError::Busy(output)) };
        // Again: another run may have ended in between.
        let found = look(&output)?;
        if found.inside != inside {
            return Err(StagingError::Exists(output));
        }
        Ok(Self { new: claim.new_path(&output), output, found, claim })
    }

    fn commit(self, marks: &[&str]) -> Result<(), StagingError> {
        let io = StagingError::io(&self.output);
        sync_tree(&self.new).map_err(&io)?;
        let was = self.found.was.as_ref();
        let placed = if !self.found.inside {
            put(&self.new, &self.output, &self.claim.old_path(&self.output), was)
        } else if Identity::of(&self.output).map_err(&io)?.as_ref() == was {
            self.claim.move_up(&self.output, was.map_or_else(Vec::new, Identity::names), marks)
        } else {
            Ok(false)
        };
        if placed.map_err(&io)? {
            self.output.parent().into_iter().for_each(sync_folder);
            return Ok(());
        }
        let kept = keep_beside(&self.new, &self.output).or_else(|e| match self.found.inside {
            // Beside a mount point is another file system.
            true => keep_beside(&self.new, &self.output.join(self.output.file_name().unwrap_or_default())),
            false => Err(e),
        });
        let kept = kept.map_err(&io)?;
        kept.parent().into_iter().for_each(sync_folder);
        Err(StagingError::Conflict { output: self.output.clone(), kept })
    }
}

/// A folder under construction. Dropped before [`commit`](Self::commit), it leaves nothing behind.
#[derive(Debug)]
pub struct StagedFolder {
    staged: Staged,
    marks: &'static [&'static str],
}

impl StagedFolder {
    /// Takes the name of a folder that will become `output`, which may be missing or empty. With `replace`, an earlier
    /// output of this kind is replaced; a folder that holds anything else never is.
    ///
    /// # Errors
    /// When the place is taken, or the folder cannot be made.
    pub fn create(output: &Utf8Path, replace: bool, kind: &FolderKind) -> Result<Self, StagingError> {
        let staged = Staged::create(output, |output| {
            let found = look_for_folder(output, replace, kind)?;
            let place = if found.inside { Some(output) } else { output.parent() };
            let made = place.map_or(Ok(()), fs_err::create_dir_all);
            made.map_err(StagingError::io(output)).map(|()| found)
        })?;
        fs_err::create_dir(&staged.new).map_err(StagingError::io(&staged.output))?;
        Ok(Self { staged, marks: kind.marks })
    }

    /// Where to write.
    pub fn path(&self) -> &Utf8Path {
        &self.staged.new
    }

    /// Puts the folder in its place.
    ///
    /// # Errors
    /// When it cannot be renamed, an earlier output is then still there; when something else has come to the place, the
    /// error says where the finished folder is.
    pub fn commit(self) -> Result<(), StagingError> {
        self.staged.commit(self.marks)
    }
}

fn look_for_folder(output: &Utf8Path, replace: bool, kind: &FolderKind) -> Result<Replaced, StagingError> {
    let io = StagingError::io(output);
    let foreign = |what: String| StagingError::Foreign { output: output.to_owned(), what };
    match fs_err::symlink_metadata(output) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Replaced { was: None, inside: false }),
        Err(e) => return Err(io(e)),
        Ok(meta) if !meta.is_dir() => return Err(foreign("is no folder".to_owned())),
        Ok(_) => {}
    }
    let mut entries = Vec::new();
    // A name that is not UTF-8 is not ours either way.
    for entry in output.as_std_path().read_dir().map_err(&io)? {
        entries.push(entry.map_err(&io)?.file_name().to_string_lossy().into_owned());
    }
    // A name is also looked at while this run holds it.
    entries.retain(|e| !is_ours(e));
    if let Some(other) = entries.iter().filter(|e| !(kind.writes)(e)).min() {
        return Err(foreign(format!("holds `{other}`, which is of no earlier output")));
    }
    if !(entries.is_empty() || entries.iter().any(|e| kind.marks.contains(&e.as_str()))) {
        return Err(foreign(format!("is no earlier output: it has no {}", text::list(kind.marks))));
    }
    if !(entries.is_empty() || replace) {
        return Err(StagingError::Exists(output.to_owned()));
    }
    let inside = entries.is_empty() || stays(output);
    Ok(Replaced { was: Identity::of(output).map_err(&io)?, inside })
}

/// Whether a folder cannot be renamed: a mount point, or one whose own folder cannot be written to.
#[cfg(unix)]
fn stays(folder: &Utf8Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Some(parent) = folder.parent() else { return true };
    let device = |p: &Utf8Path| fs_err::metadata(p).ok().map(|m| m.dev());
    device(folder) != device(parent)
        || is_mount(folder)
        || rustix::fs::access(parent.as_std_path(), rustix::fs::Access::WRITE_OK).is_err()
}

#[cfg(not(unix))]
fn stays(_: &Utf8Path) -> bool {
    false
}

/// Also where a folder of the same file system is mounted.
#[cfg(target_os = "linux")]
fn is_mount(folder: &Utf8Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    statx(CWD, folder.as_std_path(), AtFlags::empty(), StatxFlags::BASIC_STATS)
        .is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_mount(_: &Utf8Path) -> bool {
    false
}

/// A file under construction. Dropped before [`commit`](Self::commit), it leaves nothing behind.
#[derive(Debug)]
pub struct StagedFile(Staged);

impl StagedFile {
    /// Takes the name of a file that will become `output`, in a folder that is there. With `replace`, a regular file is
    /// replaced. A symbolic link is followed.
    ///
    /// # Errors
    /// When the place is taken, or its folder cannot be written to.
    pub fn create(output: &Utf8Path, replace: bool) -> Result<Self, StagingError> {
        Staged::create(output, |output| {
            let io = StagingError::io(output);
            match fs_err::symlink_metadata(output) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Replaced { was: None, inside: false }),
                Err(e) => Err(io(e)),
                Ok(meta) if replace && meta.is_file() => {
                    Ok(Replaced { was: Identity::of(output).map_err(io)?, inside: false })
                }
                Ok(_) if replace => Err(StagingError::NotAFile(output.to_owned())),
                Ok(_) => Err(StagingError::Exists(output.to_owned())),
            }
        })
        .map(Self)
    }

    /// Where to write: a file of the output's name.
    pub fn path(&self) -> &Utf8Path {
        &self.0.new
    }

    /// Writes all of the file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, bytes: &[u8]) -> Result<(), StagingError> {
        std::fs::write(&self.0.new, bytes).map_err(StagingError::io(&self.0.output))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// As [`StagedFolder::commit`].
    pub fn commit(self) -> Result<(), StagingError> {
        self.0.commit(&[])
    }
}
