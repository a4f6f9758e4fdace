//! `card`: a model card and a bill of materials, from a bundle and its reports.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use dpar_export_card::{BOM, CARD, Card, CardError, CitedReport};
use dpar_export_inputs::limits;
use serde_json::json;

use super::args::{BundleArgs, OutputArgs};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::attest::{ENDING, verify_bundle, verify_file};
use crate::bundle::Bundle;
use crate::staging::{FolderKind, StagingError};

/// What `card` writes.
const FOLDER: FolderKind = FolderKind { marks: &[BOM], writes: |name| [CARD, BOM].contains(&name) };

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.help("Folder of the card: README.md and bom.cdx.json")))]
pub(crate) struct CardArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Reports to cite: what verify, parity, reproduce, evaluate, bench or generate print with --json; exit 5 unless they are of
    /// this bundle
    #[arg(long, value_name = "FILE.json", num_args = 1..)]
    cite: Vec<Utf8PathBuf>,
    /// Public key of the signer, PEM: bundle and reports must have attestations by it beside them, PATH.intoto.jsonl
    #[arg(long, value_name = "public.pem")]
    key: Option<Utf8PathBuf>,
    /// License of the model, an SPDX identifier
    #[arg(long, value_name = "SPDX")]
    license: Option<String>,
    /// Write nothing: exit 5 unless the card that is there is what bundle and reports say
    #[arg(long, conflicts_with = "force")]
    check: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl CardArgs {
    /// Nothing is to be decided.
    pub(super) fn resolve(self) -> Result<Self, Failure> {
        Ok(self)
    }
}

pub(super) fn run(args: CardArgs, printer: Printer) -> Result<Exit, Failure> {
    let CardArgs { bundle: BundleArgs { bundle: folder }, cite, key, license, check, output } = args;
    let bundle = Bundle::open(&folder)?;
    let beside = |path: &Utf8Path| Utf8PathBuf::from(format!("{path}.{ENDING}"));
    let mut reports: Vec<CitedReport> = Vec::new();
    for path in &cite {
        let mut report = CitedReport::read(path, bundle.manifest_sha256())?;
        if let Some(key) = &key {
            let attested = verify_file(path, &beside(path), key)?;
            // The bytes whose numbers are cited are those that were signed.
            if attested.file_sha256.as_deref() != Some(report.sha256.as_str()) {
                let found = attested.file_sha256.unwrap_or_default();
                return Err(CardError::Changed { name: report.name, found, cited: report.sha256 }.into());
            }
            report.signed = Some(attested.key_id);
        }
        if reports.iter().any(|r| r.name == report.name) {
            return Err(CardError::Twice(report.name).into());
        }
        reports.push(report);
    }
    let mut card = Card { bundle: &bundle, signed: None, license, reports };
    if let Some(key) = &key {
        // The folder may have been given with a slash at its end.
        let folder: Utf8PathBuf = folder.components().collect();
        let attested = verify_bundle(&folder, &beside(&folder), key)?;
        attested.holds(&beside(&folder), &folder, bundle.manifest_sha256())?;
        card.signed = Some(attested.key_id);
    }
    let files = [(CARD, card.markdown()), (BOM, card.bom()?)];
    bundle.unchanged()?;
    match check {
        true => hold(&card, &files, &output.output)?,
        false => write(&files, &output)?,
    }
    let (output, cited) = (&output.output, card.reports.len());
    let numbers: usize = card.reports.iter().map(|r| r.numbers.len()).sum();
    let text = || match check {
        true => format!("{output}: what the bundle and {cited} reports say"),
        false => format!("{output}: {CARD} and {BOM}, {numbers} numbers of {cited} reports"),
    };
    let reports: Vec<_> = card
        .reports
        .iter()
        .map(|r| json!({ "name": r.name, "kind": r.kind, "sha256": r.sha256, "signed": r.signed }))
        .collect();
    let value = json!({
        "output": output, "bundle": bundle.manifest_sha256(), "signed": card.signed, "checked": check,
        "reports": reports, "numbers": numbers,
    });
    printer.document(text, value)?;
    Ok(Exit::Pass)
}

fn write(files: &[(&str, String)], output: &OutputArgs) -> Result<(), Failure> {
    let staged = output.folder(&FOLDER)?;
    for (name, text) in files {
        let path = staged.path().join(name);
        fs_err::write(&path, text).map_err(|source| StagingError::Io { path, source })?;
    }
    Ok(staged.commit()?)
}

/// Holds a card that is there against what it should be: a report that was changed is said first.
fn hold(card: &Card<'_>, files: &[(&str, String)], folder: &Utf8Path) -> Result<(), Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        let bytes = dpar_export_inputs::read(&path, limits::TEXT);
        bytes.map_err(|source| StagingError::Io { path, source })
    };
    card.check_cited(&read(BOM)?)?;
    for (name, text) in files {
        if read(name)? != text.as_bytes() {
            return Err(CardError::Differs(folder.join(name)).into());
        }
    }
    Ok(())
}
