//! `cargo xtask onnx-check`: the reference checker on exported graphs.

use std::process::Command;

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

use crate::{cargo, command, setup};

/// Checkpoints that are exported when no bundle is given, below `fixtures/`.
const FIXTURES: &[&str] = &[
    "emoji32/dpar",
    "emoji32/llamagen/c2i_emoji32.pt",
    "dpar-small/dpar",
    "llamagen-small/c2i_tiny.pt",
    "variants/block-causal/dpar",
    "variants/combined/dpar",
    "variants/dynamic-3d/dpar",
    "variants/encoder-layers/dpar",
    "variants/entropy-unlimited/dpar",
    "variants/eoi/dpar",
    "variants/full-cross/dpar",
    "variants/index-rope/dpar",
    "variants/monotonicity/dpar",
    "variants/row-length/dpar",
    "variants/static-fractional/dpar",
    "variants/static-fractional-3d/dpar",
    "variants/static-fractional-4d/dpar",
    "variants/token/dpar",
];

/// Of these, the ones that are exported in the half types too: every graph and operator is among them.
const HALVES: &[&str] = &["variants/combined/dpar", "llamagen-small/c2i_tiny.pt"];

/// Checks the given bundles, or exports of the fixtures. `built` = the program was just built, by the tests: with their
/// features another `cargo build` would compile half the dependencies again.
pub(crate) fn run(root: &Utf8Path, bundles: &[Utf8PathBuf], built: bool) -> Result<()> {
    let python = setup::python(root);
    if !python.is_file() {
        bail!("{python} is missing: run `cargo xtask setup`");
    }
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let exported;
    let bundles = if bundles.is_empty() {
        let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
        exported = export(root, scratch, built)?;
        &exported
    } else {
        bundles
    };
    // Given paths are relative to where the user is, which is not where the command runs.
    let here =
        std::env::current_dir().ok().and_then(|p| Utf8PathBuf::from_path_buf(p).ok()).unwrap_or_default();
    let script = root.join("xtask/onnx_check.py");
    let mut args = vec![script.to_string()];
    args.extend(bundles.iter().map(|b| here.join(b).to_string()));
    command(root, python.as_str(), &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Exports the fixtures with the program as it is now.
fn export(root: &Utf8Path, scratch: &Utf8Path, built: bool) -> Result<Vec<Utf8PathBuf>> {
    let program = program(root, built)?;
    let mut bundles = Vec::new();
    let halves =
        HALVES.iter().flat_map(|f| ["fp16", "bf16", "fp16-autocast", "bf16-autocast"].map(|p| (f, p)));
    for (fixture, precision) in FIXTURES.iter().map(|f| (f, "fp32")).chain(halves) {
        let fixture = root.join("fixtures").join(fixture);
        if !fixture.exists() {
            bail!("{fixture} is missing");
        }
        let out = scratch.join(format!("bundle-{}", bundles.len()));
        // The graphs of bf16-autocast that TensorRT takes; those for engines without bfloat16 are no target of its tools.
        let target = match precision {
            "bf16-autocast" => &["--target", "trt", "--emit-trtexec"][..],
            _ => &["--target", "onnx"],
        };
        let mut args = [target, &["--precision", precision, fixture.as_str(), "-o", out.as_str()]].concat();
        // An experiment folder holds its configuration; a weight file lies beside it.
        let config = fixture.with_file_name("config.yaml");
        if fixture.is_file() {
            args.extend(["--config", config.as_str()]);
        }
        command(root, program.as_str(), &args).with_context(|| format!("exporting {fixture}"))?;
        emit_commands(root, &program, &out)?;
        bundles.push(out);
    }
    // The feature network that setup fetched.
    let (weights, out) = (root.join(setup::EXTRACTOR), scratch.join("extractor"));
    let args = ["--component", "efficientnet-lite0", weights.as_str(), "-o", out.as_str()];
    command(root, program.as_str(), &args).with_context(|| format!("exporting {weights}"))?;
    bundles.push(out);
    Ok(bundles)
}

/// The program as it is now, built where it was not `built` just before.
pub(crate) fn program(root: &Utf8Path, built: bool) -> Result<Utf8PathBuf> {
    let program = target(root)?.join("debug").join(format!("dpar-export{}", std::env::consts::EXE_SUFFIX));
    if !(built && program.is_file()) {
        command(root, &cargo(), &["build", "--quiet", "--bin", "dpar-export"])?;
    }
    Ok(program)
}

/// The command lines for NVIDIA's tools, beside the bundle, where the checker looks for them.
fn emit_commands(root: &Utf8Path, program: &Utf8Path, bundle: &Utf8Path) -> Result<()> {
    let profiles = ["--profile", "decode", "--profile", "default", "--compute-capability", "8.9"];
    let output = Command::new(program)
        .args(["--target", "trt", bundle.as_str(), "--emit-trtexec", "--json"])
        .args(profiles)
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        bail!("--emit-trtexec of {bundle}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fs_err::write(format!("{bundle}.commands.json"), output.stdout)?;
    Ok(())
}

/// Cargo's target folder.
pub(crate) fn target(root: &Utf8Path) -> Result<Utf8PathBuf> {
    let metadata = crate::tidy::metadata(root)?;
    metadata["target_directory"]
        .as_str()
        .map(Utf8PathBuf::from)
        .context("cargo metadata names no target folder")
}
