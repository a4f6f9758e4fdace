//! `attest`: a signed statement over a bundle's files, or over a report.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::outside;
use super::printer::Printer;
use crate::arrays::write_atomic;
use crate::attest::{Attested, ENDING, Statement, key_id, read_private, sign, verify_bundle, verify_file};
use crate::bundle::Bundle;

#[derive(Debug, Args)]
pub(crate) struct AttestArgs {
    /// Bundle folder, or a file such as a report of `verify --json`
    path: Utf8PathBuf,
    /// Ed25519 private key, PKCS#8 PEM (openssl genpkey -algorithm ed25519), not encrypted
    #[arg(long, value_name = "key.pem")]
    key: Utf8PathBuf,
    /// Attestation to write: an in-toto statement in a DSSE envelope [default: beside PATH, PATH.intoto.jsonl]
    #[arg(short, long, value_name = "FILE")]
    output: Option<Utf8PathBuf>,
    /// Replace an existing attestation
    #[arg(long)]
    force: bool,
}

/// What `verify` checks before anything runs.
#[derive(Debug, Args)]
pub(crate) struct AttestedArgs {
    /// Public key of the signer, PEM: the attestation must be signed by it
    #[arg(long, value_name = "public.pem", requires = "attestation")]
    key: Option<Utf8PathBuf>,
    /// Attestation of the bundle (see `attest`); exit 5 unless it vouches for exactly these files
    #[arg(long, value_name = "FILE", requires = "key")]
    attestation: Option<Utf8PathBuf>,
}

impl AttestedArgs {
    /// Checks the attestation of a bundle or another file, where one was given.
    pub(super) fn check(&self, path: &Utf8Path) -> Result<Option<Attested>, Failure> {
        let (Some(key), Some(attestation)) = (&self.key, &self.attestation) else { return Ok(None) };
        if path.is_file() {
            return Ok(Some(verify_file(path, attestation, key)?));
        }
        Ok(Some(verify_bundle(path, attestation, key)?))
    }

    /// Checks that the bundle that was opened to run is the one whose attestation was checked.
    pub(super) fn check_opened(&self, attested: &Attested, bundle: &Bundle) -> Result<(), Failure> {
        let Some(attestation) = &self.attestation else { return Ok(()) };
        Ok(attested.holds(attestation, bundle.folder(), bundle.manifest_sha256())?)
    }
}

pub(super) fn run(args: &AttestArgs, printer: Printer) -> Result<Exit, Failure> {
    let output = match &args.output {
        Some(output) => output.clone(),
        None => beside(&args.path)?,
    };
    // Before --force counts: neither can be made again.
    for (path, what) in [(&args.key, "the private key"), (&args.path, "what is attested")] {
        if same_file(&output, path) {
            let message = format!("the output {output} is {what}, {path}");
            return Err(Failure::usage(message, Some("name another file with -o")));
        }
    }
    if output.exists() && !(args.force && output.is_file()) {
        return Err(Failure::usage(format!("{output} already exists"), Some("replace it with --force")));
    }
    let key = read_private(&args.key)?;
    let statement = if args.path.is_file() {
        Statement::of_file(&args.path)?
    } else {
        outside(&output, &args.path)?;
        Statement::of_bundle(&args.path)?
    };
    write_atomic(&output, &sign(&statement, &key)?)?;
    let id = key_id(&key.verifying_key());
    let files = statement.subject.len();
    let text = || {
        let noun = if files == 1 { "file" } else { "files" };
        format!("{output}: {files} {noun} attested with the key {id}")
    };
    let value = json!({
        "output": output, "key_id": id, "predicate_type": statement.predicate_type, "subjects": files,
    });
    printer.result(text, &value)?;
    Ok(Exit::Pass)
}

/// Whether two paths lead to one file that exists, also through links.
fn same_file(a: &Utf8Path, b: &Utf8Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (fs_err::metadata(a), fs_err::metadata(b)) {
        use std::os::unix::fs::MetadataExt;
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    a.canonicalize_utf8().is_ok_and(|a| b.canonicalize_utf8().is_ok_and(|b| a == b))
}

/// `PATH.intoto.jsonl`.
fn beside(path: &Utf8Path) -> Result<Utf8PathBuf, Failure> {
    match path.file_name() {
        Some(name) => Ok(path.with_file_name(format!("{name}.{ENDING}"))),
        None => Err(Failure::usage(
            format!("{path} has no name to put the attestation beside"),
            Some("name it with -o"),
        )),
    }
}
