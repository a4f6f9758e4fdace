use super::*;
use std::io::Write;

fn wheel_bytes(library: &[u8]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (member, bytes) in [
        (ORT_MEMBER, library),
        (ORT_NOTICES[0].path, b"licence".as_slice()),
        (ORT_NOTICES[1].path, b"notices".as_slice()),
    ] {
        writer.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn hash(bytes: &[u8]) -> &'static str {
    fetch::digest(bytes).unwrap().leak()
}

/// A wheel of those bytes whose library is `library`.
fn wheel(bytes: &[u8]) -> Wheel {
    let library = Member { path: ORT_MEMBER, name: "libonnxruntime.so", sha256: Some(hash(b"library")) };
    let members = Box::leak(Box::new([library, ORT_NOTICES[0], ORT_NOTICES[1]]));
    Wheel { arch: "x86_64", platform: "p", sha256: hash(bytes), members }
}

fn good(_: &str, _: &str, folder: &Utf8Path) -> Result<()> {
    Ok(fs_err::write(folder.join("w.whl"), wheel_bytes(b"library"))?)
}
fn tampered(_: &str, _: &str, folder: &Utf8Path) -> Result<()> {
    Ok(fs_err::write(folder.join("w.whl"), wheel_bytes(b"tampered"))?)
}
fn offline(_: &str, _: &str, _: &Utf8Path) -> Result<()> {
    bail!("no network")
}

#[test]
fn setup_verifies_refetches_and_is_idempotent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8Path::from_path(dir.path()).unwrap();
    let wheel = wheel(&wheel_bytes(b"library"));
    let library = dir.join("onnxruntime/libonnxruntime.so");
    assert!(install(dir, &ORT, &wheel, offline).unwrap_err().to_string().contains("no network"));
    let e = install(dir, &ORT, &wheel, tampered).unwrap_err();
    assert!(e.to_string().contains("thrown away"), "{e:#}");
    assert!(!library.exists() && dir.join("downloads").read_dir_utf8().unwrap().next().is_none());
    install(dir, &ORT, &wheel, good).unwrap();
    assert_eq!(fs_err::read(&library).unwrap(), b"library");
    assert!(dir.join("onnxruntime/LICENSE").is_file());
    install(dir, &ORT, &wheel, offline).expect("verified: nothing is fetched");
    fs_err::write(&library, b"libr").unwrap();
    assert!(install(dir, &ORT, &wheel, offline).is_err(), "corrupted: it must be fetched");
    install(dir, &ORT, &wheel, good).unwrap();
    assert_eq!(fs_err::read(&library).unwrap(), b"library");
}

#[test]
fn a_wheel_kept_by_a_stopped_run_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8Path::from_path(dir.path()).unwrap();
    let bytes = wheel_bytes(b"library");
    let wheel = wheel(&bytes);
    fs_err::create_dir_all(dir.join("downloads")).unwrap();
    fs_err::write(dir.join("downloads/onnxruntime-1.31.1-x86_64.whl"), bytes).unwrap();
    install(dir, &ORT, &wheel, offline).unwrap();
}

#[test]
fn every_requirement_is_pinned_with_hashes() {
    let text = include_str!("../../requirements.txt");
    let entries: Vec<&str> = text.lines().filter(|l| l.contains("==")).collect();
    assert!(entries.iter().any(|l| l.starts_with("onnx==1.23.2 ")) && entries.len() == 17, "{entries:?}");
    assert_eq!(text.matches("--hash=sha256:").count(), 43);
}
