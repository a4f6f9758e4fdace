//! Where a path leads, and whether two paths meet.

use std::io;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};

/// Device and number of a file or folder: the same for every name that it has.
type FileId = (u64, u64);

/// Where a path leads through links and `..`, whether something is there yet or not.
#[derive(Debug, Clone)]
pub struct Place {
    path: Utf8PathBuf,
    /// Of what is there.
    own: Option<FileId>,
    /// Of the folders that it lies in.
    above: Vec<FileId>,
}

/// How one place meets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// Both are one file or folder.
    Is,
    /// The first is a folder that the second lies in.
    Holds,
    /// The first lies in the second.
    LiesIn,
}

impl Meeting {
    /// As the verb between the two.
    pub fn word(self) -> &'static str {
        match self {
            Self::Is => "is",
            Self::Holds => "holds",
            Self::LiesIn => "lies in",
        }
    }
}

impl Place {
    /// Follows a path. What does not exist yet is taken as it is written.
    ///
    /// # Errors
    /// When the working folder cannot be found.
    pub fn of(path: &Utf8Path) -> io::Result<Self> {
        let mut found = Utf8PathBuf::new();
        for part in camino::absolute_utf8(path)?.components() {
            match part {
                // `found` holds no links: its parent is the one that the system would go to.
                Utf8Component::ParentDir => drop(found.pop()),
                Utf8Component::CurDir => {}
                part => {
                    found.push(part);
                    if let Ok(real) = found.canonicalize_utf8() {
                        found = real;
                    }
                }
            }
        }
        let above = found.ancestors().skip(1).filter_map(id).collect();
        Ok(Self { own: id(&found), above, path: found })
    }

    /// The path, absolute and without links.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// How this place meets `other`, through any of their names.
    pub fn meets(&self, other: &Self) -> Option<Meeting> {
        let within = |inner: &Self, outer: &Self| {
            inner.path.starts_with(&outer.path) || outer.own.is_some_and(|id| inner.above.contains(&id))
        };
        if self.path == other.path || (self.own.is_some() && self.own == other.own) {
            Some(Meeting::Is)
        } else if within(self, other) {
            Some(Meeting::LiesIn)
        } else {
            within(other, self).then_some(Meeting::Holds)
        }
    }
}

#[cfg(unix)]
fn id(path: &Utf8Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    fs_err::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Names are compared without links instead.
#[cfg(not(unix))]
fn id(_: &Utf8Path) -> Option<FileId> {
    None
}
