//! `attest`: a signed statement over a bundle's files, or over a report.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::paths::apart;
use super::printer::Printer;
use crate::attest::{Attested, ENDING, Statement, key_id, read_private, sign, verify_bundle, verify_file};
use crate::bundle::Bundle;
use crate::staging::StagedFile;

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
    // Also where the output's name follows from PATH; and whatever --force says, neither can be made again.
    apart(&output, &[("the key", args.key.as_path()), ("what is attested", args.path.as_path())])?;
    let file = StagedFile::create(&output, args.force)?;
    let key = read_private(&args.key)?;
    let statement =
        if args.path.is_file() { Statement::of_file(&args.path)? } else { Statement::of_bundle(&args.path)? };
    file.write(&sign(&statement, &key)?)?;
    file.commit()?;
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
