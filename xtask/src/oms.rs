//! `cargo xtask oms-check`: PyPI's model-signing verifies what `attest --format oms` signs, and `verify` what it signs.

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

use crate::{command, onnx, setup};

/// The other tool and all that it needs, each file by its hash.
const REQUIREMENTS: &str = "xtask/oms-requirements.txt";

/// Both ways with an untouched bundle; then neither takes another
/// signature, or a bundle in which a byte differs. `built` as in [`onnx::run`].
pub(crate) fn run(root: &Utf8Path, built: bool) -> Result<()> {
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let scratch = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?;
    let venv = scratch.join("venv");
    command(root, setup::python(root).as_str(), &["-m", "venv", venv.as_str()])?;
    let python = venv.join("bin/python");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let hashed = ["--require-hashes", "--only-binary=:all:", "-r", REQUIREMENTS];
    command(root, python.as_str(), &[&pip[..], &hashed[..]].concat())?;

    let program = onnx::program(root, built)?;
    let run = |args: &[&str]| command(root, program.as_str(), args);
    let other = |args: &[&str]| command(root, python.as_str(), &[&["-m", "model_signing"], args].concat());
    let fixture = root.join("fixtures/variants/combined/dpar");
    let (bundle, private) = (scratch.join("bundle"), scratch.join("key.pem"));
    let public = root.join("fixtures/attest-keys/test-only-p256-public.pem");
    fs_err::copy(root.join("fixtures/attest-keys/test-only-p256-private.pem"), &private)?;
    fs_err::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let (ours, theirs) = (scratch.join("ours.sig"), scratch.join("theirs.sig"));
    let (bundle, private, public) = (bundle.as_str(), private.as_str(), public.as_str());
    run(&["--target", "onnx", fixture.as_str(), "-o", bundle])?;
    run(&["attest", bundle, "--format", "oms", "--key", private, "-o", ours.as_str()])?;
    other(&["sign", "key", bundle, "--signature", theirs.as_str(), "--private_key", private])?;
    let they_verify =
        || other(&["verify", "key", bundle, "--signature", ours.as_str(), "--public_key", public]);
    let we_verify = || run(&["verify", bundle, "--key", public, "--attestation", theirs.as_str()]);
    they_verify()?;
    we_verify()?;

    let both_refuse = |what: &str| match (they_verify(), we_verify()) {
        (Err(_), Err(_)) => Ok(()),
        (theirs, ours) => bail!("{what} was accepted: {theirs:?}, {ours:?}"),
    };

    // Signatures of other statements, with the same key over the same files: hashes fit, signatures do not.
    let (of_ours, of_theirs) = (fs_err::read(&ours)?, fs_err::read(&theirs)?);
    fs_err::write(&ours, with_signature(&of_ours, &of_theirs)?)?;
    fs_err::write(&theirs, with_signature(&of_theirs, &of_ours)?)?;
    both_refuse("a signature of another statement")?;
    fs_err::write(&ours, of_ours)?;
    fs_err::write(&theirs, of_theirs)?;
    they_verify()?;
    we_verify()?;

    let path = Utf8Path::new(bundle).join("config.json");
    let mut bytes = fs_err::read(&path)?;
    bytes.push(b'\n');
    fs_err::write(&path, bytes)?;
    both_refuse("a changed file")
}

/// A signed statement with the signature of another.
fn with_signature(statement: &[u8], other: &[u8]) -> Result<Vec<u8>> {
    let place = "/dsseEnvelope/signatures/0/sig";
    let mut changed: serde_json::Value = serde_json::from_slice(statement)?;
    let other: serde_json::Value = serde_json::from_slice(other)?;
    let found = other.pointer(place).with_context(|| format!("no {place}"))?;
    *changed.pointer_mut(place).with_context(|| format!("no {place}"))? = found.clone();
    Ok(serde_json::to_vec(&changed)?)
}
