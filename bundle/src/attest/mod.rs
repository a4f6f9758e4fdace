//! Attestations: an in-toto Statement v1 over a bundle's files, or over a report, in a DSSE envelope signed with
//! Ed25519.
//!
//! The statement's subjects are files with their SHA-256; its predicate is the provenance chain of the bundle
//! ([`crate::Provenance`]). Nothing in it depends on time or place: the same bundle and key give the same
//! bytes. For other tools there is a second form, [`sign_model`]: files alone, signed on P-256. What an attestation proves, and what not, is in docs/integrity.md.

mod dsse;
mod key;
mod oms;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::json::unique_keys;
use crate::{Bundle, BundleError, ExtractorBundle, MANIFEST, ToolEntry, digest, is_extractor};
use dpar_export_inputs::without_mark;
use dpar_export_spec::Hinted;

pub use dsse::{Envelope, EnvelopeFault};
use key::PublicKey;
pub use key::{key_id, read_private, read_private_p256, read_public};
pub use oms::{ModelSignatureFault, PREDICATE as MODEL_PREDICATE};

/// `_type` of every statement.
pub(crate) const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// Predicate of a bundle: its provenance chain.
pub(crate) const BUNDLE_PREDICATE: &str = "urn:dpar-export:provenance:v1";
/// Predicate of another file: which bundle it speaks of.
pub(crate) const FILE_PREDICATE: &str = "urn:dpar-export:report:v1";
/// Ending of an attestation's file name.
pub const ENDING: &str = "intoto.jsonl";
/// Ending of a model signature's file name.
pub const MODEL_ENDING: &str = "model.sig";
/// Larger attestations and reports are refused unread.
const LARGEST: u64 = dpar_export_inputs::limits::TEXT;

/// Why an attestation could not be made or was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// A key file cannot be used.
    #[error("{path}: {message}")]
    Key {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        message: String,
        /// The next step.
        hint: String,
    },
    /// A file cannot be read, or is not what it should be.
    #[error("{path}: {message}")]
    Input {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        message: String,
    },
    /// A report that cannot be read: what it says cannot be signed.
    #[error("{path}: not JSON: {message}")]
    Report {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        message: String,
    },
    /// An attestation that `verify` would refuse unread.
    #[error("the attestation would have {size} bytes, and {LARGEST} can be verified")]
    TooLarge {
        /// Bytes of its line.
        size: u64,
    },
    /// A statement that cannot be written.
    #[error("the statement cannot be written: {0}")]
    Statement(String),
    /// A bundle cannot be opened.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The attestation does not vouch for these bytes.
    #[error("{path} does not vouch for {what}: {message}")]
    Rejected {
        /// The attestation.
        path: Utf8PathBuf,
        /// The bundle or file.
        what: Utf8PathBuf,
        /// Why.
        message: String,
    },
}

impl Hinted for AttestError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Rejected { .. } => {
                let hint =
                    "do not use these files: get the bundle and its attestation from their maker again";
                Some(hint.to_owned())
            }
            Self::Key { hint, .. } => Some(hint.clone()),
            Self::Bundle(e) => e.hint(),
            Self::Input { .. } | Self::Report { .. } | Self::TooLarge { .. } | Self::Statement(_) => None,
        }
    }
}

/// A file that a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Path inside the bundle, or file name.
    pub name: String,
    /// Digests by algorithm: `sha256`, lower-case hex.
    pub digest: BTreeMap<String, String>,
}

impl Subject {
    fn new(name: &str, sha256: &str) -> Self {
        let digest = BTreeMap::from([("sha256".to_owned(), sha256.to_owned())]);
        Self { name: name.to_owned(), digest }
    }
}

/// An in-toto Statement v1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// [`STATEMENT`].
    #[serde(rename = "_type")]
    pub kind: String,
    /// What it is about.
    pub subject: Vec<Subject>,
    /// Which kind of predicate.
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What it says.
    pub predicate: Value,
}

impl Statement {
    /// The statement about a bundle, opened and found whole: every file with its digest, the manifest among them,
    /// and the provenance chain.
    ///
    /// # Errors
    /// When the bundle of a system or a feature extractor cannot be opened.
    pub fn of_bundle(folder: &Utf8Path) -> Result<Self, BundleError> {
        let (manifest, sha256) = if is_extractor(folder)? {
            let bundle = ExtractorBundle::open(folder)?;
            (bundle.manifest().clone(), bundle.manifest_sha256().to_owned())
        } else {
            let bundle = Bundle::open(folder)?;
            (bundle.manifest().clone(), bundle.manifest_sha256().to_owned())
        };
        let mut subject: Vec<Subject> =
            manifest.files.iter().map(|f| Subject::new(&f.path, &f.sha256)).collect();
        subject.push(Subject::new(MANIFEST, &sha256));
        subject.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            kind: STATEMENT.to_owned(),
            subject,
            predicate_type: BUNDLE_PREDICATE.to_owned(),
            // Strings and lists: nothing in it can fail to be JSON.
            predicate: serde_json::to_value(manifest.provenance()).unwrap_or_default(),
        })
    }

    /// The statement about another file, such as a report of this tool: its digest, and what a JSON report says of
    /// the bundle, the engine and the verdict.
    ///
    /// # Errors
    /// When the file cannot be read, is a JSON file above 64 MiB, or has a key twice in an object.
    pub fn of_file(path: &Utf8Path) -> Result<Self, AttestError> {
        let input = |message: String| AttestError::Input { path: path.to_owned(), message };
        let mut predicate = serde_json::Map::new();
        predicate.insert("tool".to_owned(), serde_json::to_value(ToolEntry::this()).unwrap_or_default());
        let (size, sha256);
        if path.extension() == Some("json") {
            // Read once: what is said of the report is said of the bytes that are signed.
            let text = read_bounded(path, LARGEST)?;
            (size, sha256) = (text.len() as u64, hex::encode(Sha256::digest(&text)));
            let bad = |message| AttestError::Report { path: path.to_owned(), message };
            unique_keys(&text).map_err(|e| bad(e.to_string()))?;
            let report: Value =
                serde_json::from_slice(without_mark(&text)).map_err(|e| bad(e.to_string()))?;
            for key in ["bundle", "verdict", "engine", "engines"] {
                if let Some(value) = report.get(key) {
                    predicate.insert(key.to_owned(), value.clone());
                }
            }
        } else {
            (size, sha256) = digest(path).map_err(|e| input(e.to_string()))?;
        }
        predicate.insert("size".to_owned(), size.into());
        Ok(Self {
            kind: STATEMENT.to_owned(),
            subject: vec![Subject::new(path.file_name().unwrap_or_default(), &sha256)],
            predicate_type: FILE_PREDICATE.to_owned(),
            predicate: predicate.into(),
        })
    }
}

/// The line of an attestation: the statement in an envelope that `key` signed.
///
/// # Errors
/// [`AttestError::TooLarge`] when nobody could verify it.
pub fn sign(statement: &Statement, key: &SigningKey) -> Result<Vec<u8>, AttestError> {
    let json = |e: serde_json::Error| AttestError::Statement(e.to_string());
    let envelope = Envelope::sign(&serde_json::to_vec(statement).map_err(json)?, key);
    let mut line = serde_json::to_vec(&envelope).map_err(json)?;
    line.push(b'\n');
    match line.len() as u64 {
        ..=LARGEST => Ok(line),
        size => Err(AttestError::TooLarge { size }),
    }
}

/// The OpenSSF model signature of a bundle, opened and found whole, and the number of files it vouches for: all of them, the
/// manifest among them.
///
/// # Errors
/// When the bundle cannot be opened; [`AttestError::TooLarge`] when nobody could verify it.
pub fn sign_model(folder: &Utf8Path, key: &p256::ecdsa::SigningKey) -> Result<(Vec<u8>, usize), AttestError> {
    let files = digests(&Statement::of_bundle(folder)?);
    let name = folder.file_name().unwrap_or("bundle");
    let bytes = oms::sign(name, &files, key).map_err(|e| AttestError::Statement(e.to_string()))?;
    match bytes.len() as u64 {
        ..=LARGEST => Ok((bytes, files.len())),
        size => Err(AttestError::TooLarge { size }),
    }
}

/// The files of a statement with their SHA-256.
fn digests(statement: &Statement) -> BTreeMap<String, String> {
    let sha256 = |s: &Subject| (s.name.clone(), s.digest.get("sha256").cloned().unwrap_or_default());
    statement.subject.iter().map(sha256).collect()
}

/// What an attestation that was accepted says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attested {
    /// SHA-256 of the public key.
    pub key_id: String,
    /// Kind of predicate.
    pub predicate_type: String,
    /// Files it vouches for.
    pub subjects: usize,
    /// Of a bundle, SHA-256 of the manifest that was found.
    #[serde(skip)]
    pub manifest_sha256: Option<String>,
    /// Of a file, SHA-256 of the bytes that were found.
    #[serde(skip)]
    pub file_sha256: Option<String>,
}

impl Attested {
    /// Checks that the bundle in `folder`, opened again and with a manifest of this SHA-256, is still the one that was
    /// vouched for.
    ///
    /// # Errors
    /// [`AttestError::Rejected`] when it was replaced in between.
    pub fn holds(
        &self,
        attestation: &Utf8Path,
        folder: &Utf8Path,
        manifest_sha256: &str,
    ) -> Result<(), AttestError> {
        if self.manifest_sha256.as_deref() == Some(manifest_sha256) {
            return Ok(());
        }
        let checked = self.manifest_sha256.as_deref().unwrap_or("none");
        Err(AttestError::Rejected {
            path: attestation.to_owned(),
            what: folder.to_owned(),
            message: format!(
                "`{MANIFEST}` was replaced while this ran: SHA-256 {manifest_sha256}, checked was {checked}"
            ),
        })
    }
}

/// Checks that `attestation` was signed by the key in `public` and says of the bundle what this program finds: the
/// same files with the same digests, no more and no fewer, and the same provenance chain.
///
/// # Errors
/// [`AttestError::Rejected`] when it does not, or is no attestation; otherwise when a file cannot be read.
pub fn verify_bundle(
    folder: &Utf8Path,
    attestation: &Utf8Path,
    public: &Utf8Path,
) -> Result<Attested, AttestError> {
    verify(&Statement::of_bundle(folder)?, folder, attestation, public)
}

/// As [`verify_bundle`], for another file.
///
/// # Errors
/// As there.
pub fn verify_file(
    path: &Utf8Path,
    attestation: &Utf8Path,
    public: &Utf8Path,
) -> Result<Attested, AttestError> {
    let wanted = Statement::of_file(path).map_err(|e| match e {
        // No report of which that is so was ever attested.
        AttestError::Report { message, .. } => AttestError::Rejected {
            path: attestation.to_owned(),
            what: path.to_owned(),
            message: format!("the report is not JSON: {message}"),
        },
        e => e,
    })?;
    verify(&wanted, path, attestation, public)
}

fn verify(
    wanted: &Statement,
    what: &Utf8Path,
    attestation: &Utf8Path,
    public: &Utf8Path,
) -> Result<Attested, AttestError> {
    let key = key::read_any_public(public)?;
    let bytes = read_bounded(attestation, LARGEST)?;
    let rejected = |message: String| AttestError::Rejected {
        path: attestation.to_owned(),
        what: what.to_owned(),
        message,
    };
    let manifest_sha256 = digests(wanted).remove(MANIFEST);
    let file_sha256 = match wanted.subject.as_slice() {
        [one] => one.digest.get("sha256").cloned(),
        _ => None,
    };
    if oms::is_sigstore_bundle(&bytes) {
        if wanted.predicate_type != BUNDLE_PREDICATE {
            return Err(rejected("it is a model signature, which is of a bundle".to_owned()));
        }
        let PublicKey::Model(key) = key else { return Err(key::of_other_kind(public, "P-256 or P-384")) };
        let signed = oms::open(&bytes, &key).map_err(|e| rejected(e.to_string()))?;
        let signed = Statement {
            subject: signed.iter().map(|(name, sha256)| Subject::new(name, sha256)).collect(),
            ..wanted.clone()
        };
        difference(wanted, &signed).map_or(Ok(()), |message| Err(rejected(message)))?;
        return Ok(Attested {
            key_id: key.id(),
            predicate_type: oms::PREDICATE.to_owned(),
            subjects: signed.subject.len(),
            manifest_sha256,
            file_sha256,
        });
    }
    let PublicKey::Ed25519(key) = key else { return Err(key::of_other_kind(public, "Ed25519")) };
    // What is no attestation vouches for nothing: the same answer as to a wrong one.
    let envelope = Envelope::parse(&bytes).map_err(|e| rejected(e.to_string()))?;
    let payload = envelope.open(&key).map_err(|e| rejected(e.to_string()))?;
    // Signed by the right key: from here on it is the signer's word against the files, if everybody reads the same word.
    unique_keys(&payload).map_err(|e| rejected(format!("no in-toto statement: {e}")))?;
    let found: Statement =
        serde_json::from_slice(&payload).map_err(|e| rejected(format!("no in-toto statement: {e}")))?;
    difference(wanted, &found).map_or(Ok(()), |message| Err(rejected(message)))?;
    Ok(Attested {
        key_id: key_id(&key),
        predicate_type: found.predicate_type,
        subjects: found.subject.len(),
        manifest_sha256,
        file_sha256,
    })
}

/// The first thing in which a signed statement differs from what the files say.
fn difference(wanted: &Statement, found: &Statement) -> Option<String> {
    if found.kind != wanted.kind {
        return Some(format!("it is a `{}`, not a `{}`", found.kind, wanted.kind));
    }
    if found.predicate_type != wanted.predicate_type {
        return Some(format!("its predicate is `{}`, not `{}`", found.predicate_type, wanted.predicate_type));
    }
    let named = |s: &Statement, name: &str| s.subject.iter().find(|f| f.name == name).cloned();
    let mut names: Vec<&str> = found.subject.iter().chain(&wanted.subject).map(|s| s.name.as_str()).collect();
    // The manifest follows from the other files: what differs in it is said last.
    names.sort_by_key(|n| (*n == MANIFEST, *n));
    names.dedup();
    for name in names {
        if found.subject.iter().filter(|s| s.name == name).count() > 1 {
            return Some(format!("`{name}` is signed twice"));
        }
        match (named(wanted, name), named(found, name)) {
            (None, _) => return Some(format!("`{name}` is signed and is not here")),
            (_, None) => return Some(format!("`{name}` is here and is not signed")),
            (Some(here), Some(signed)) if here.digest != signed.digest => {
                let hash = |s: &Subject| s.digest.get("sha256").cloned().unwrap_or_default();
                let (here, signed) = (hash(&here), hash(&signed));
                return Some(format!("`{name}` has SHA-256 {here}, signed is {signed}"));
            }
            _ => {}
        }
    }
    (claims(found) != claims(wanted)).then(|| "its predicate is not what the files say".to_owned())
}

/// What a predicate says of the files. The `tool` of a report's is the version that signed it, and not a claim about the
/// report: another version verifies it as well. The `tool` of a bundle's is the one that exported it, from its manifest.
fn claims(statement: &Statement) -> Value {
    let mut predicate = statement.predicate.clone();
    if statement.predicate_type == FILE_PREDICATE
        && let Some(entries) = predicate.as_object_mut()
    {
        entries.remove("tool");
    }
    predicate
}

/// Reads a file of at most `most` bytes.
fn read_bounded(path: &Utf8Path, most: u64) -> Result<Vec<u8>, AttestError> {
    dpar_export_inputs::read(path, most)
        .map_err(|e| AttestError::Input { path: path.to_owned(), message: e.to_string() })
}

#[cfg(test)]
pub(crate) mod tests;
