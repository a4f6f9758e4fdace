//! A file that several processes may read and write: it is the old one or the new one, never a part.

use std::io::{self, Write};

use camino::Utf8Path;

/// Writes beside `path` under a name of its own, brings it to the disk and renames it. What fails leaves nothing behind.
pub(crate) fn store(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    fs_err::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".part");
    // As any new file: the user's mask decides who reads it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut part = builder.tempfile_in(folder)?;
    part.write_all(bytes)?;
    part.as_file().sync_all()?;
    part.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap().join("new/cache");
        let path = folder.join("head.cache");
        for bytes in [&b"first"[..], b"second, longer", b""] {
            store(&path, bytes).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        // A folder with something in it is in the way: nothing can be renamed over it.
        let taken = folder.join("taken.cache");
        std::fs::create_dir_all(taken.join("x")).unwrap();
        assert!(store(&taken, b"third").is_err());
        let left: Vec<String> =
            folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
