//! The Python package: its checks, over an extension module that is built as the tests are, and its wheel.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use crate::{cargo, command, onnx, release, setup};

/// The package's sources.
const SOURCES: &str = "python/dpar_export";
/// What `cargo build` calls the extension module.
const BUILT: &str = "lib_native.so";
/// What Python calls it.
const MODULE: &str = "_native.abi3.so";

/// The extension module. With `--tests`, although the tests are there already: what they depend on counts for the features of every
/// crate, and without it half of them would be compiled again.
fn build(root: &Utf8Path, scope: &[&str]) -> Result<()> {
    command(root, &cargo(), &[&["build", "--quiet", "--lib", "--tests"], scope].concat())
}

/// Types, tests and example of the package. `scope`: members and features of the build, those of the tests, so that nothing
/// is compiled twice.
pub(crate) fn check(root: &Utf8Path, scope: &[&str]) -> Result<()> {
    let python = setup::python(root);
    if !python.is_file() {
        bail!("{python} is missing: run `cargo xtask setup`");
    }
    let package = package(root, scope)?;
    let run = |args: &[&str]| in_package(root, SETTINGS, &[&package], &python, args);
    // Types are checked on another core than the tests.
    std::thread::scope(|scope| {
        let types = scope.spawn(|| run(&["-m", "mypy", "--no-incremental"]));
        let tests = run(&["-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]);
        match types.join() {
            Ok(types) => types.and(tests),
            Err(_) => bail!("mypy was not awaited"),
        }
    })
}

/// Builds the package, and returns the folder from which it is imported.
pub(crate) fn package(root: &Utf8Path, scope: &[&str]) -> Result<Utf8PathBuf> {
    build(root, scope)?;
    assemble(root, &onnx::target(root)?)
}

/// What pytest is made of: pure Python, so that it runs under another interpreter than the one it was installed for.
const PYTEST: [&str; 7] = ["_pytest", "pytest", "py.py", "pluggy", "iniconfig", "packaging", "pygments"];

/// Records references from a small PyTorch model and verifies bundles against them, with the first Python that has PyTorch.
pub(crate) fn record_check(root: &Utf8Path, scope: &[&str]) -> Result<()> {
    let own = setup::torch(root);
    let has_torch = |python: &&str| {
        let import = Command::new(python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
        import.is_ok_and(|s| s.success())
    };
    let pythons = [own.as_str(), "python3", "/usr/bin/python3"];
    let Some(python) = pythons.into_iter().find(has_torch) else {
        bail!("none of {} has PyTorch: run `cargo xtask setup --torch`", pythons.join(", "));
    };
    let package = package(root, scope)?;
    let tools = package.join("tools");
    fs_err::create_dir_all(&tools)?;
    let lib = root.join("third_party/venv/lib");
    for version in lib.read_dir_utf8()? {
        let packages = version?.path().join("site-packages");
        for name in PYTEST {
            fs_err::os::unix::fs::symlink(packages.join(name), tools.join(name))?;
        }
    }
    let tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_record.py", "-rs"];
    in_package(root, SETTINGS, &[&package, &tools], Utf8Path::new(python), &tests)
}

/// The package's tests on Ray.
pub(crate) fn ray(root: &Utf8Path, scope: &[&str]) -> Result<()> {
    let (python, package) = with_ray(root, scope)?;
    let tests =
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "python/tests/test_ray.py", "-rs", "--durations=20"];
    // Ray's workers import what lies where the driver was started before all else.
    in_package(root, ".", &[&package], &python, &tests)
}

/// The rehearsal, in `out/rehearsal`.
pub(crate) fn rehearse(root: &Utf8Path, scope: &[&str], images: u32, workers: u16, chunk: u16) -> Result<()> {
    let (python, package) = with_ray(root, scope)?;
    let folder = root.join("out/rehearsal");
    if folder.exists() {
        fs_err::remove_dir_all(&folder)?;
    }
    let [images, workers, chunk] = [images, u32::from(workers), u32::from(chunk)].map(|n| n.to_string());
    let given = ["--images", &images, "--workers", &workers, "--chunk", &chunk];
    let script = ["benches/rehearsal/rehearse.py", folder.as_str()];
    in_package(root, ".", &[&package], &python, &[&script[..], &given].concat())
}

/// The interpreter that has Ray, and the package as it would be installed beside it.
fn with_ray(root: &Utf8Path, scope: &[&str]) -> Result<(Utf8PathBuf, Utf8PathBuf)> {
    let python = setup::ray(root);
    if !python.is_file() {
        bail!("{python} is missing: run `cargo xtask setup --ray`");
    }
    let package = package(root, scope)?;
    Ok((python, package))
}

/// Builds the wheel into `dist/`, installs it where there is no Rust and nothing of this checkout, and uses it there.
pub(crate) fn wheel(root: &Utf8Path) -> Result<()> {
    let wheel = release::wheel(root)?;
    println!("{wheel}: {:.1} MB", wheel.metadata()?.len() as f64 / 1e6);
    first_contact(root, &wheel)
}

/// A fresh environment, an empty home, no Rust: install, help, demo; export, generate, verify from Python.
fn first_contact(root: &Utf8Path, wheel: &Utf8Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    let (venv, home) = (scratch.join("venv"), scratch.join("home"));
    fs_err::create_dir_all(&home)?;
    command(root, setup::python(root).as_str(), &["-m", "venv", venv.as_str()])?;
    let python = venv.join("bin/python");
    // numpy as it is pinned; the wheel asks for no more.
    let requirements = fs_err::read_to_string(root.join("xtask/requirements.txt"))?;
    let numpy: Vec<&str> = requirements
        .lines()
        .skip_while(|l| !l.starts_with("numpy=="))
        .enumerate()
        .take_while(|(i, l)| *i == 0 || l.starts_with(' '))
        .map(|(_, l)| l)
        .collect();
    let pinned = scratch.join("numpy.txt");
    fs_err::write(&pinned, numpy.join("\n") + "\n")?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let hashed = ["--require-hashes", "--only-binary=:all:", "-r", pinned.as_str()];
    command(root, python.as_str(), &[&pip[..], &hashed[..]].concat())?;
    command(root, python.as_str(), &[&pip[..], &["--no-index", wheel.as_str()]].concat())?;
    let run = |program: &Utf8Path, args: &[&str]| {
        let status = Command::new(program)
            .args(args)
            .current_dir(&home)
            .env_clear()
            .env("HOME", &home)
            .env("PATH", "/usr/bin:/bin")
            .status()?;
        if !status.success() {
            bail!("`{program} {}` failed: {status}", args.join(" "));
        }
        Ok(())
    };
    let program = venv.join("bin/dpar-export");
    run(&program, &["--version"])?;
    run(&program, &["generate", "--help"])?;
    run(&program, &["demo", "-o", "demo"])?;
    // The example alone is of the checkout: everything else came with the wheel.
    let example = root.join("python/examples/first_images.py");
    run(&python, &[example.as_str(), "demo/checkpoint/dpar", "bundle", "demo/reference"])?;
    run(&program, &["generate", "bundle", "--num", "4", "-o", "samples"])
}

/// The package as it would be installed, below the target folder.
fn assemble(root: &Utf8Path, target: &Utf8Path) -> Result<Utf8PathBuf> {
    let package = target.join("python");
    if package.exists() {
        fs_err::remove_dir_all(&package)?;
    }
    let folder = package.join("dpar_export");
    fs_err::create_dir_all(&folder)?;
    for entry in root.join(SOURCES).read_dir_utf8()? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs_err::copy(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    fs_err::copy(target.join("debug").join(BUILT), folder.join(MODULE))?;
    Ok(package)
}

/// The package's folder of sources, where its tools find their settings.
const SETTINGS: &str = "python";

/// Runs Python in a folder; it imports what was assembled.
fn in_package(
    root: &Utf8Path,
    folder: &str,
    packages: &[&Utf8Path],
    python: &Utf8Path,
    args: &[&str],
) -> Result<()> {
    let path: Vec<&str> = packages.iter().map(|p| p.as_str()).collect();
    let status = Command::new(python)
        .args(args)
        .current_dir(root.join(folder))
        .env("PYTHONPATH", path.join(":"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // `python/` would come before the package, and has no extension module.
        .env("PYTHONSAFEPATH", "1")
        .status()
        .with_context(|| format!("`{python}` cannot be started"))?;
    if !status.success() {
        bail!("`python {}` failed: {status}", args.join(" "));
    }
    Ok(())
}
