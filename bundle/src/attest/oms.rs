//! OpenSSF model signing, version 1.0: `model.sig`, a Sigstore bundle (v0.3, JSON) around an in-toto statement in a DSSE envelope,
//! signed with ECDSA on P-256; of others, also on P-384. Other tools sign and verify the same; what they sign is the folder's files,
//! and not their provenance.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dsse::{EnvelopeFault, EnvelopeSignature, decode, pae};
use super::key::{ModelKey, hint};
use super::{Envelope, STATEMENT, Subject};
use crate::json::unique_keys;

/// What a Sigstore bundle calls itself.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Predicate of a signed model.
pub const PREDICATE: &str = "https://model_signing/signature/v1.0";
/// The one hash that is read and written.
const SHA256: &str = "sha256";

/// Why a model signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelSignatureFault {
    /// No Sigstore bundle of the known form.
    #[error("it is no Sigstore bundle v0.3 with a DSSE envelope: {0}")]
    NoBundle(String),
    /// Another media type.
    #[error("it is a `{0}`, not a `{MEDIA_TYPE}`")]
    MediaType(String),
    /// Signed with a certificate, or with none of what is known.
    #[error("it was not signed with a key, but with a certificate or another identity")]
    NoKey,
    /// By another key.
    #[error("it was signed by another key than this one ({0})")]
    OtherKey(String),
    /// The envelope is not as it must be.
    #[error(transparent)]
    Envelope(#[from] EnvelopeFault),
    /// Not one signature.
    #[error("it holds {0} signatures, one is expected")]
    Signatures(usize),
    /// No statement.
    #[error("no in-toto statement: {0}")]
    NoStatement(String),
    /// A statement of another kind.
    #[error("its {what} is `{found}`, not `{wanted}`")]
    Kind {
        /// The field.
        what: &'static str,
        /// What it says.
        found: String,
        /// What is known.
        wanted: &'static str,
    },
    /// The digest over all files is not that of the files that it lists.
    #[error("it contradicts itself: the digest of the model is not that of the listed files")]
    Root,
    /// A file is listed twice.
    #[error("`{0}` is signed twice")]
    Twice(String),
}

/// A Sigstore bundle with a key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigstoreBundle {
    media_type: String,
    verification_material: VerificationMaterial,
    dsse_envelope: Envelope,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerificationMaterial {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<KeyHint>,
    /// Entries of a transparency log: what is signed with a key has none.
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeyHint {
    #[serde(default)]
    hint: String,
}

/// The statement about a model. Fields that version 1.0 does not have are ignored, as it says.
#[derive(Debug, Serialize, Deserialize)]
struct ModelStatement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: ModelPredicate,
}

#[derive(Debug, Serialize, Deserialize)]
struct ModelPredicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

/// How files became digests.
#[derive(Debug, Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

/// SHA-256 over the digests of all files, in the order in which they are listed; `None` where one is no digest.
fn root(resources: &[Resource]) -> Option<String> {
    let mut hasher = Sha256::new();
    for resource in resources {
        hasher.update(hex::decode(&resource.digest).ok().filter(|digest| digest.len() == 32)?);
    }
    Some(hex::encode(hasher.finalize()))
}

/// The signature of files, by their path and SHA-256, as a Sigstore bundle in JSON. The same files and key give the same bytes.
pub(super) fn sign(
    name: &str,
    files: &BTreeMap<String, String>,
    key: &SigningKey,
) -> Result<Vec<u8>, serde_json::Error> {
    let resource = |(name, digest): (&String, &String)| Resource {
        name: name.clone(),
        algorithm: SHA256.to_owned(),
        digest: digest.clone(),
    };
    let resources: Vec<Resource> = files.iter().map(resource).collect();
    let statement = ModelStatement {
        kind: STATEMENT.to_owned(),
        subject: vec![Subject::new(name, &root(&resources).unwrap_or_default())],
        predicate_type: PREDICATE.to_owned(),
        predicate: ModelPredicate {
            serialization: Serialization {
                method: "files".to_owned(),
                hash_type: SHA256.to_owned(),
                allow_symlinks: false,
                ignore_paths: Vec::new(),
            },
            resources,
        },
    };
    let payload = serde_json::to_vec(&statement)?;
    let payload_type = super::dsse::PAYLOAD_TYPE;
    let signature: Signature = key.sign(&pae(payload_type, &payload));
    let bundle = SigstoreBundle {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: VerificationMaterial {
            public_key: Some(KeyHint { hint: hint(key.verifying_key()) }),
            tlog_entries: Vec::new(),
        },
        dsse_envelope: Envelope {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(&payload),
            signatures: vec![EnvelopeSignature {
                keyid: String::new(),
                sig: STANDARD.encode(signature.to_der().as_bytes()),
            }],
        },
    };
    serde_json::to_vec(&bundle)
}

/// Whether a file says that it is a Sigstore bundle, of whichever version.
pub(super) fn is_sigstore_bundle(bytes: &[u8]) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    value.is_some_and(|v| v.get("mediaType").is_some())
}

/// The files that a signature vouches for, by their path and SHA-256, if the key made it.
pub(super) fn open(bytes: &[u8], key: &ModelKey) -> Result<BTreeMap<String, String>, ModelSignatureFault> {
    use ModelSignatureFault::{
        Kind, MediaType, NoBundle, NoKey, NoStatement, OtherKey, Root, Signatures, Twice,
    };
    unique_keys(bytes).map_err(|e| NoBundle(e.to_string()))?;
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| NoBundle(e.to_string()))?;
    let media_type = value["mediaType"].as_str().unwrap_or_default();
    if media_type != MEDIA_TYPE {
        return Err(MediaType(media_type.to_owned()));
    }
    let bundle: SigstoreBundle = serde_json::from_value(value).map_err(|e| NoBundle(e.to_string()))?;
    let known = bundle.verification_material.public_key.ok_or(NoKey)?;
    let own = key.hint();
    // A hint decides nothing but which message is the right one.
    let by_other = !known.hint.is_empty() && known.hint != own;
    let envelope = bundle.dsse_envelope;
    if envelope.payload_type != super::dsse::PAYLOAD_TYPE {
        return Err(EnvelopeFault::Type(envelope.payload_type).into());
    }
    let payload = decode(&envelope.payload).ok_or(EnvelopeFault::Encoding)?;
    let [signature] = envelope.signatures.as_slice() else {
        return Err(Signatures(envelope.signatures.len()));
    };
    let message = pae(&envelope.payload_type, &payload);
    if !decode(&signature.sig).is_some_and(|der| key.made(&der, &message)) {
        return Err(if by_other { OtherKey(own) } else { EnvelopeFault::Changed.into() });
    }
    // Signed by the right key: from here on it is the signer's word, if everybody reads the same word.
    unique_keys(&payload).map_err(|e| NoStatement(e.to_string()))?;
    let statement: ModelStatement =
        serde_json::from_slice(&payload).map_err(|e| NoStatement(e.to_string()))?;
    let is = |what, found: &str, wanted| match found == wanted {
        true => Ok(()),
        false => Err(Kind { what, found: found.to_owned(), wanted }),
    };
    is("type", &statement.kind, STATEMENT)?;
    is("predicate", &statement.predicate_type, PREDICATE)?;
    let ModelPredicate { serialization, resources } = statement.predicate;
    is("method", &serialization.method, "files")?;
    is("hash", &serialization.hash_type, SHA256)?;
    resources.iter().try_for_each(|r| is("hash", &r.algorithm, SHA256))?;
    let [subject] = statement.subject.as_slice() else { return Err(Root) };
    if root(&resources).is_none_or(|root| subject.digest.get(SHA256) != Some(&root)) {
        return Err(Root);
    }
    let mut files = BTreeMap::new();
    for Resource { name, digest, .. } in resources {
        if files.insert(name.clone(), digest.to_ascii_lowercase()).is_some() {
            return Err(Twice(name));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
