//! `cargo xtask triton`, `deploy-check`: others run and read what is written for them.

use std::process::Command;

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

use crate::{graph_engines, onnx, python, setup};

/// A Triton server on a repository of the trained system. `scope`: features of the tests, whose program is taken.
pub(crate) fn run(root: &Utf8Path, scope: &[&str]) -> Result<()> {
    let package = python::package(root, scope)?;
    let engine = graph_engines(true).pop().context("no engine")?;
    script(root, "xtask/triton_check.py", true, &[package.as_str(), &engine])
}

/// What `deploy` writes for every host, against schemas. `built` as in [`onnx::run`].
pub(crate) fn deploy(root: &Utf8Path, built: bool) -> Result<()> {
    script(root, "xtask/deploy_check.py", built, &[])
}

/// A script gets the program, a checkpoint, an empty folder, and what else it needs.
fn script(root: &Utf8Path, script: &str, built: bool, more: &[&str]) -> Result<()> {
    let interpreter = setup::triton(root);
    if !interpreter.is_file() {
        bail!("{interpreter} is missing: run `cargo xtask setup --triton`");
    }
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    let (program, checkpoint) = (onnx::program(root, built)?, root.join("fixtures/emoji32/dpar"));
    let status = Command::new(interpreter)
        .args([&root.join(script), &program, &checkpoint, scratch])
        .args(more)
        .env("ORT_DYLIB_PATH", root.join("third_party/onnxruntime/libonnxruntime.so"))
        .status()?;
    if !status.success() {
        bail!("{script}: {status}");
    }
    Ok(())
}
