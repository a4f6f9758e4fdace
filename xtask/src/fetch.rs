//! Verified files: what is on disk is compared with a pinned SHA-256 before it is used, and written beside its
//! place and renamed, so that a stopped run leaves nothing that looks complete.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail};
use camino::Utf8Path;
use sha2::{Digest, Sha256};

/// SHA-256 of a reader, in hexadecimal.
pub(crate) fn digest(mut from: impl Read) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// Whether a file is there with these bytes. A file with other bytes is not an error: it is fetched again.
pub(crate) fn verified(path: &Utf8Path, sha256: &str) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    Ok(digest(fs_err::File::open(path)?)? == sha256)
}

/// Copies one member of a zip archive to a file, if its bytes are the pinned ones.
pub(crate) fn extract(archive: &Utf8Path, member: &str, sha256: Option<&str>, to: &Utf8Path) -> Result<()> {
    let mut archive_file = zip::ZipArchive::new(fs_err::File::open(archive)?)
        .with_context(|| format!("{archive} is not a zip archive"))?;
    let mut reader =
        archive_file.by_name(member).with_context(|| format!("{archive} has no member `{member}`"))?;
    let folder = to.parent().unwrap_or(Utf8Path::new("."));
    fs_err::create_dir_all(folder)?;
    let mut part = tempfile::NamedTempFile::with_prefix_in(".part-", folder)?;
    std::io::copy(&mut reader, &mut part).with_context(|| format!("extracting `{member}`"))?;
    part.flush()?;
    if let Some(expected) = sha256 {
        let found = digest(fs_err::File::open(part.path())?)?;
        if found != expected {
            bail!("`{member}` of {archive} has SHA-256 {found}, expected {expected}");
        }
    }
    // A temporary file is private; what is set up may be shared, and what is pinned is loaded or run.
    let mode = if sha256.is_some() { 0o755 } else { 0o644 };
    #[cfg(unix)]
    fs_err::set_permissions(part.path(), std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    part.persist(to).with_context(|| format!("renaming to {to}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn archive(dir: &Utf8Path) -> camino::Utf8PathBuf {
        let path = dir.join("a.whl");
        let mut writer = zip::ZipWriter::new(fs_err::File::create(&path).unwrap());
        writer.start_file("lib/x.so", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"abc").unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn only_pinned_bytes_arrive_and_nothing_partial_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let (wheel, to) = (archive(dir), dir.join("out/x.so"));
        let e = extract(&wheel, "lib/x.so", Some(&ABC.replace('b', "c")), &to).unwrap_err();
        assert!(e.to_string().contains(ABC), "{e:#}");
        assert_eq!(fs_err::read_dir(dir.join("out")).unwrap().count(), 0);
        assert!(!verified(&to, ABC).unwrap());
        extract(&wheel, "lib/x.so", Some(ABC), &to).unwrap();
        assert!(verified(&to, ABC).unwrap());
        fs_err::write(&to, b"abd").unwrap();
        assert!(!verified(&to, ABC).unwrap(), "changed bytes are seen");
        extract(&wheel, "lib/x.so", Some(ABC), &to).unwrap();
        assert_eq!(fs_err::read(&to).unwrap(), b"abc");
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let wheel = archive(dir);
        let e = extract(&wheel, "lib/y.so", None, &dir.join("y")).unwrap_err();
        assert!(e.to_string().contains("no member `lib/y.so`"), "{e:#}");
        fs_err::write(dir.join("b.whl"), b"text").unwrap();
        let e = extract(&dir.join("b.whl"), "x", None, &dir.join("y")).unwrap_err();
        assert!(e.to_string().contains("not a zip archive"), "{e:#}");
    }
}
