//! `cargo xtask npz-check`: numpy reads what this tool writes, and this tool what numpy writes from it.

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

use crate::{command, onnx, setup};

/// Samples, their trace, and metrics of activations, there and back. `built` as in [`onnx::run`].
pub(crate) fn run(root: &Utf8Path, built: bool) -> Result<()> {
    let python = setup::python(root);
    if !python.is_file() {
        bail!("{python} is missing: run `cargo xtask setup`");
    }
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    let program = onnx::program(root, built)?;
    let fixture = root.join("fixtures/emoji32/dpar");
    let (bundle, samples, back) = (scratch.join("bundle"), scratch.join("samples"), scratch.join("back.npz"));
    let run = |args: &[&str]| command(root, program.as_str(), args);
    run(&["--target", "onnx", fixture.as_str(), "-o", bundle.as_str()])?;
    run(&["generate", bundle.as_str(), "--num", "3", "-o", samples.as_str()])?;
    let script = root.join("xtask/npz_check.py");
    command(root, python.as_str(), &[script.as_str(), samples.as_str(), back.as_str()])?;
    // numpy's copy of the samples as input.
    let tokens = scratch.join("tokens.npz");
    run(&["encode", bundle.as_str(), "--images", back.as_str(), "-o", tokens.as_str()])
}
