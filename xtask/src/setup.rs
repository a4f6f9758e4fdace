//! `cargo xtask setup`: pinned third-party libraries and tools in the ignored folder `third_party/`.
//!
//! Safe to run again at any time: what is there and verifies is left alone, what does not is fetched again.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use crate::{cargo, command, fetch, step};

/// A wheel of the Python package index with the shared library in it.
struct Wheel {
    /// Rust's name of the processor.
    arch: &'static str,
    /// pip's name of the platform.
    platform: &'static str,
    /// SHA-256 of the wheel.
    wheel: &'static str,
    /// SHA-256 of the library.
    library: &'static str,
}

const ORT_VERSION: &str = "1.31.1";
const ORT_MEMBER: &str = "onnxruntime/capi/libonnxruntime.so.1.31.1";
const ORT_NOTICES: [(&str, &str); 2] =
    [("onnxruntime/LICENSE", "LICENSE"), ("onnxruntime/ThirdPartyNotices.txt", "ThirdPartyNotices.txt")];
const ORT_WHEELS: &[Wheel] = &[
    Wheel {
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        wheel: "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
        library: "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
    },
    Wheel {
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        wheel: "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
        library: "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467",
    },
];

pub(crate) fn run(root: &Utf8Path) -> Result<()> {
    step("onnxruntime", || onnxruntime(root, pip_download))?;
    step("python venv", || venv(root))?;
    step("cargo-nextest", || nextest(root))
}

/// The interpreter of the environment that setup makes.
pub(crate) fn python(root: &Utf8Path) -> Utf8PathBuf {
    root.join("third_party/venv/bin/python")
}

/// Fetches a package's wheel into a folder.
type Download = fn(package: &str, platform: &str, folder: &Utf8Path) -> Result<()>;

fn onnxruntime(root: &Utf8Path, download: Download) -> Result<()> {
    let wheel =
        ORT_WHEELS.iter().find(|w| std::env::consts::OS == "linux" && w.arch == std::env::consts::ARCH);
    let Some(wheel) = wheel else {
        bail!(
            "no pinned onnxruntime for {}-{}: install onnxruntime {ORT_VERSION} yourself and set ORT_DYLIB_PATH",
            std::env::consts::OS,
            std::env::consts::ARCH
        );
    };
    install(&root.join("third_party"), wheel, download)
}

fn install(third_party: &Utf8Path, wheel: &Wheel, download: Download) -> Result<()> {
    let library = third_party.join("onnxruntime/libonnxruntime.so");
    if fetch::verified(&library, wheel.library)? {
        println!("onnxruntime {ORT_VERSION} is there and verified: {library}");
        return Ok(());
    }
    if library.exists() {
        println!("{library} does not have the pinned bytes: fetching it again");
    }
    let kept = third_party.join("downloads").join(format!("onnxruntime-{ORT_VERSION}-{}.whl", wheel.arch));
    if !fetch::verified(&kept, wheel.wheel)? {
        fetch_wheel(third_party, &kept, wheel, download)?;
    }
    for (member, name) in ORT_NOTICES {
        fetch::extract(&kept, member, None, &third_party.join("onnxruntime").join(name))?;
    }
    fetch::extract(&kept, ORT_MEMBER, Some(wheel.library), &library)?;
    fs_err::remove_file(&kept)?;
    println!("onnxruntime {ORT_VERSION} fetched and verified: {library}");
    Ok(())
}

/// Downloads into a folder of its own, verifies, and only then takes the wheel's name.
fn fetch_wheel(third_party: &Utf8Path, kept: &Utf8Path, wheel: &Wheel, download: Download) -> Result<()> {
    let folder = kept.parent().unwrap_or(third_party);
    fs_err::create_dir_all(folder)?;
    let partial = tempfile::tempdir_in(folder)?;
    let partial = Utf8Path::from_path(partial.path()).context("the folder's name is not UTF-8")?;
    download(&format!("onnxruntime=={ORT_VERSION}"), wheel.platform, partial)?;
    let mut files = partial.read_dir_utf8()?.collect::<std::io::Result<Vec<_>>>()?;
    let file = match (files.pop(), files.is_empty()) {
        (Some(file), true) => file,
        (file, _) => {
            bail!("pip left {} files, expected one wheel", files.len() + usize::from(file.is_some()))
        }
    };
    let found = fetch::digest(fs_err::File::open(file.path())?)?;
    if found != wheel.wheel {
        bail!("{} has SHA-256 {found}, expected {}: it was thrown away", file.file_name(), wheel.wheel);
    }
    fs_err::rename(file.path(), kept)?;
    Ok(())
}

fn pip_download(package: &str, platform: &str, folder: &Utf8Path) -> Result<()> {
    let args = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        platform,
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--dest",
        folder.as_str(),
        package,
    ];
    let can = Command::new("python3").args(["-m", "pip", "--version"]).stdout(Stdio::null()).status();
    if !can.is_ok_and(|s| s.success()) {
        bail!("`python3 -m pip` does not run: install Python 3 with pip, then run `cargo xtask setup` again");
    }
    command(folder, "python3", &args)
        .with_context(|| format!("pip could not fetch {package}: is the package index reachable?"))
}

fn venv(root: &Utf8Path) -> Result<()> {
    let folder = root.join("third_party/venv");
    let requirements = root.join("xtask/requirements.txt");
    // The mark is written last: an environment without it, or with another, is made anew.
    let (mark, wanted) =
        (folder.join("requirements.sha256"), fetch::digest(fs_err::File::open(&requirements)?)?);
    if python(root).is_file() && fs_err::read_to_string(&mark).is_ok_and(|m| m.trim() == wanted) {
        println!("the Python environment is there: {folder}");
        return Ok(());
    }
    if folder.exists() {
        fs_err::remove_dir_all(&folder)?;
    }
    fs_err::create_dir_all(root.join("third_party"))?;
    command(root, "python3", &["-m", "venv", folder.as_str()]).context(
        "no Python environment could be made: install Python 3.11 or later with its `venv` module",
    )?;
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        "-r",
        requirements.as_str(),
    ];
    command(root, python(root).as_str(), &pip)
        .context("pip could not install xtask/requirements.txt: CPython 3.11 to 3.13 on Linux is needed")?;
    fs_err::write(&mark, wanted + "\n")?;
    println!("the Python environment is ready: {folder}");
    Ok(())
}

fn nextest(root: &Utf8Path) -> Result<()> {
    let cargo = cargo();
    let version = Command::new(&cargo).args(["nextest", "--version"]).stderr(Stdio::null()).output();
    if let Some(output) = version.ok().filter(|o| o.status.success()) {
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{} is there", text.lines().next().unwrap_or("cargo-nextest"));
        return Ok(());
    }
    command(root, &cargo, &["install", "cargo-nextest", "--locked"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn wheel_bytes(library: &[u8]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (member, bytes) in [
            (ORT_MEMBER, library),
            (ORT_NOTICES[0].0, b"licence".as_slice()),
            (ORT_NOTICES[1].0, b"notices".as_slice()),
        ] {
            writer.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn hash(bytes: &[u8]) -> &'static str {
        fetch::digest(bytes).unwrap().leak()
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
        let wheel = Wheel {
            arch: "x86_64",
            platform: "p",
            wheel: hash(&wheel_bytes(b"library")),
            library: hash(b"library"),
        };
        let library = dir.join("onnxruntime/libonnxruntime.so");
        assert!(install(dir, &wheel, offline).unwrap_err().to_string().contains("no network"));
        let e = install(dir, &wheel, tampered).unwrap_err();
        assert!(e.to_string().contains("thrown away"), "{e:#}");
        assert!(!library.exists() && dir.join("downloads").read_dir_utf8().unwrap().next().is_none());
        install(dir, &wheel, good).unwrap();
        assert_eq!(fs_err::read(&library).unwrap(), b"library");
        assert!(dir.join("onnxruntime/LICENSE").is_file());
        install(dir, &wheel, offline).expect("verified: nothing is fetched");
        fs_err::write(&library, b"libr").unwrap();
        assert!(install(dir, &wheel, offline).is_err(), "corrupted: it must be fetched");
        install(dir, &wheel, good).unwrap();
        assert_eq!(fs_err::read(&library).unwrap(), b"library");
    }

    #[test]
    fn a_wheel_kept_by_a_stopped_run_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let bytes = wheel_bytes(b"library");
        let wheel = Wheel { arch: "x86_64", platform: "p", wheel: hash(&bytes), library: hash(b"library") };
        fs_err::create_dir_all(dir.join("downloads")).unwrap();
        fs_err::write(dir.join("downloads/onnxruntime-1.31.1-x86_64.whl"), bytes).unwrap();
        install(dir, &wheel, offline).unwrap();
    }

    #[test]
    fn every_requirement_is_pinned_with_hashes() {
        let text = include_str!("../requirements.txt");
        let entries: Vec<&str> = text.lines().filter(|l| l.contains("==")).collect();
        assert!(entries.iter().any(|l| l.starts_with("onnx==1.23.2 ")) && entries.len() == 5, "{entries:?}");
        assert_eq!(text.matches("--hash=sha256:").count(), 6 + 6 + 4 + 2 + 1);
    }
}
