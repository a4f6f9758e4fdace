//! What `evaluate --emit` prints, before those who are to take it: a real Slurm, and Kubernetes' schemas.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use crate::{command, onnx, setup};

/// Images of the evaluation on Slurm: a few seconds for each of three parts.
const IMAGES: &str = "240";
/// Versions of Kubernetes whose schemas the emitted jobs must have: the first where failures are counted by index without a gate, and the newest that is pinned.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// The trained system as a bundle, and the network of three features.
fn inputs(root: &Utf8Path, program: &Utf8Path, folder: &Utf8Path) -> Result<[Utf8PathBuf; 2]> {
    let bundle = folder.join("bundle");
    let checkpoint = root.join("fixtures/emoji32/dpar");
    command(root, program.as_str(), &[checkpoint.as_str(), "-o", bundle.as_str(), "--quiet"])?;
    Ok([bundle, root.join("fixtures/features/tiny.onnx")])
}

/// Submits what `--emit slurm` prints to a Slurm on loopback, requeues a task, and compares with one process. `built` as in
/// [`onnx::program`].
pub(crate) fn slurm(root: &Utf8Path, built: bool) -> Result<()> {
    let program = onnx::program(root, built)?;
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    // munge does not trust a folder that others may write to.
    fs_err::set_permissions(scratch, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let [bundle, extractor] = inputs(root, &program, scratch)?;
    let (script, folder) = (root.join("xtask/slurm/check.sh"), scratch.join("slurm"));
    let given = [&script, &program, &bundle, &extractor].map(|p| p.as_str());
    command(root, "bash", &[&given[..], &[IMAGES, folder.as_str()]].concat())
}

/// Holds what `--emit k8s` prints against the schemas of Kubernetes.
pub(crate) fn k8s(root: &Utf8Path, built: bool) -> Result<()> {
    let python = setup::ray(root);
    if !python.is_file() {
        bail!("{python} is missing: run `cargo xtask setup --ray`");
    }
    let program = onnx::program(root, built)?;
    let line =
        "evaluate --bundle b --num 50000 --reference r.npz --extractor e -o out --emit k8s --shards 16";
    let printed = Command::new(&program).args(line.split(' ')).stderr(Stdio::null()).output()?;
    if !printed.status.success() {
        bail!("`{program} {line}` failed: {}", printed.status);
    }
    let scratch = tempfile::NamedTempFile::new()?;
    fs_err::write(scratch.path(), &printed.stdout)?;
    let file = scratch.path().to_str().context("the temporary folder is not UTF-8")?;
    let check = root.join("xtask/k8s/check.py");
    command(root, python.as_str(), &[&[check.as_str(), file][..], &VERSIONS].concat())
}
