//! The files that a user names: opened in one way, read up to a limit, and the memory that they may ask for.
//!
//! What an input says of its own size is a claim. It is held against a limit before memory is taken for it: the named
//! ones of [`limits`], and [`memory`] for arrays and pictures.

pub mod limits;
pub mod memory;

use std::io::{self, Read};

use camino::Utf8Path;
use fs_err::File;

/// Opens a regular file for reading, and nothing else: a pipe would be waited for, and a device has no end.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidInput`] where it is no regular file.
pub fn open(path: &Utf8Path) -> io::Result<File> {
    let mut options = fs_err::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use fs_err::os::unix::fs::OpenOptionsExt;
        // Of a pipe without a writer, opening does not wait either. Regular files do not know the flag.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path.as_std_path())?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what = if kind.is_dir() { "a folder" } else { "a pipe, a device or a socket" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{path}` is no regular file but {what}")))
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; [`io::ErrorKind::FileTooLarge`] where it is larger, [`io::ErrorKind::OutOfMemory`] where the memory is
/// not there.
pub fn read(path: &Utf8Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    let too_large = |size: u64| {
        let message = format!("`{path}` is too large: {size} bytes, at most {most} are read");
        io::Error::new(io::ErrorKind::FileTooLarge, message)
    };
    if size > most {
        return Err(too_large(size));
    }
    let mut bytes = memory::reserved(usize::try_from(size).map_err(|_| too_large(size))?)
        .map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, format!("`{path}`: {e}")))?;
    // A file that grows meanwhile, or one of those whose size reads as 0, is read no further than that.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// The bytes of a text without the byte order mark that some editors put before it: it is no part of the text.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads a regular file of at most `most` bytes as text, without a byte order mark.
///
/// # Errors
/// As [`read`]; [`io::ErrorKind::InvalidData`] where it is not UTF-8.
pub fn read_to_string(path: &Utf8Path, most: u64) -> io::Result<String> {
    let not_text = || io::Error::new(io::ErrorKind::InvalidData, format!("`{path}` is not UTF-8 text"));
    let bytes = read(path, most)?;
    std::str::from_utf8(without_mark(&bytes)).map(str::to_owned).map_err(|_| not_text())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use camino::Utf8PathBuf;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let (_guard, folder) = folder();
        let path = folder.join("x");
        fs_err::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        assert_eq!(read_to_string(&path, 4).unwrap(), "four");
        let e = read(&path, 3).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::FileTooLarge);
        assert!(e.to_string().contains("4 bytes, at most 3") && e.to_string().contains(path.as_str()), "{e}");
        fs_err::write(&path, "\u{feff}x\u{feff}").unwrap();
        assert_eq!(read_to_string(&path, 9).unwrap(), "x\u{feff}", "the mark before the text is not of it");
        fs_err::write(&path, [0xff]).unwrap();
        assert_eq!(read_to_string(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(open(&folder.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened_and_a_pipe_is_not_waited_for() {
        let (_guard, folder) = folder();
        let pipe = folder.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let link = folder.join("link");
        fs_err::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [pipe.as_path(), &link, &folder, Utf8Path::new("/dev/zero"), Utf8Path::new("/dev/null")] {
            for e in [open(path).unwrap_err(), read(path, 9).unwrap_err()] {
                assert_eq!(e.kind(), io::ErrorKind::InvalidInput, "{path}: {e}");
                assert!(e.to_string().contains("no regular file"), "{e}");
            }
        }
        // A file whose size reads as 0 has an end, and is read up to the limit.
        let status = Utf8Path::new("/proc/self/status");
        if status.exists() {
            assert!(!read(status, 1 << 20).unwrap().is_empty());
            assert_eq!(read(status, 1).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        }
    }
}
