//! `attest`: a signed statement over a bundle's files, or over a report.

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::OptionalOutputArgs;
use super::failure::{Exit, Failure};
use super::paths::apart;
use super::printer::Printer;
use crate::attest::{
    Attested, ENDING, MODEL_ENDING, MODEL_PREDICATE, Statement, key_id, read_private, read_private_p256,
    sign, sign_model, verify_bundle, verify_file,
};
use crate::bundle::Bundle;
use crate::staging::StagedFile;

/// What is signed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AttestFormat {
    /// Files and their provenance: an in-toto statement in a DSSE envelope, Ed25519
    Intoto,
    /// Files, as OpenSSF model signing 1.0 has it, for other tools too: a Sigstore bundle, ECDSA on P-256
    Oms,
}

impl AttestFormat {
    fn ending(self) -> &'static str {
        match self {
            Self::Intoto => ENDING,
            Self::Oms => MODEL_ENDING,
        }
    }
}

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.value_name("FILE").help(
    "Attestation to write [default: beside PATH, PATH.intoto.jsonl or PATH.model.sig]")))]
pub(crate) struct AttestArgs {
    /// Bundle folder, or a file such as a report of `verify --json`
    path: Utf8PathBuf,
    /// Form of the attestation
    #[arg(long, value_enum, value_name = "FORM", default_value = "intoto")]
    format: AttestFormat,
    /// Private key, PKCS#8 PEM, not encrypted: Ed25519 (openssl genpkey -algorithm ed25519), for oms P-256
    #[arg(long, value_name = "key.pem")]
    key: Utf8PathBuf,
    #[command(flatten)]
    output: OptionalOutputArgs,
}

/// What to sign with which key; the attestation's name is taken.
pub(super) struct Plan {
    path: Utf8PathBuf,
    format: AttestFormat,
    key: Utf8PathBuf,
    output: Utf8PathBuf,
    file: StagedFile,
}

impl AttestArgs {
    /// Finds the attestation's place and takes its name.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let Self { path, format, key, output } = self;
        if format == AttestFormat::Oms && path.is_file() {
            let message = format!("{path} is a file: a model signature is of a bundle");
            return Err(Failure::usage(message, Some("leave --format out")));
        }
        let force = output.replace.force;
        let output = match output.output {
            Some(output) => output,
            None => beside(&path, format.ending())?,
        };
        // Also where the output's name follows from PATH; and whatever --force says, neither can be made again.
        apart(&output, &[("the key", key.as_path()), ("what is attested", path.as_path())])?;
        Ok(Plan { file: StagedFile::create(&output, force)?, path, format, key, output })
    }
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

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { path, format, key, output, file } = plan;
    let (bytes, id, predicate_type, files) = match format {
        AttestFormat::Intoto => {
            let key = read_private(&key)?;
            let statement =
                if path.is_file() { Statement::of_file(&path)? } else { Statement::of_bundle(&path)? };
            let files = statement.subject.len();
            (sign(&statement, &key)?, key_id(&key.verifying_key()), statement.predicate_type, files)
        }
        AttestFormat::Oms => {
            let key = read_private_p256(&key)?;
            let (bytes, files) = sign_model(&path, &key)?;
            (bytes, key_id(key.verifying_key()), MODEL_PREDICATE.to_owned(), files)
        }
    };
    file.write(&bytes)?;
    file.commit()?;
    let text = || {
        let noun = if files == 1 { "file" } else { "files" };
        format!("{output}: {files} {noun} attested with the key {id}")
    };
    let value = json!({
        "output": output, "key_id": id, "predicate_type": predicate_type, "subjects": files,
    });
    printer.document(text, value)?;
    Ok(Exit::Pass)
}

/// `PATH.ENDING`.
fn beside(path: &Utf8Path, ending: &str) -> Result<Utf8PathBuf, Failure> {
    match path.file_name() {
        Some(name) => Ok(path.with_file_name(format!("{name}.{ending}"))),
        None => Err(Failure::usage(
            format!("{path} has no name to put the attestation beside"),
            Some("name it with -o"),
        )),
    }
}
