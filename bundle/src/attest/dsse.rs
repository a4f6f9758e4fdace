//! Dead Simple Signing Envelope, version 1, as a line of a `.intoto.jsonl` file.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize};

use super::key::key_id;
use crate::json::unique_keys;

/// The payload of an in-toto statement.
pub(crate) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A signed payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`PAYLOAD_TYPE`].
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// The payload in base64.
    pub payload: String,
    /// Signatures over the payload and its type.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeSignature {
    /// SHA-256 of the public key: a hint, never trusted. Others leave it empty, absent or null.
    #[serde(default, deserialize_with = "or_empty")]
    pub keyid: String,
    /// The signature in base64.
    pub sig: String,
}

fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The bytes that are signed: DSSE's pre-authentication encoding.
pub(crate) fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Both alphabets are allowed by the format.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

/// Why an envelope is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeFault {
    /// The file is not UTF-8.
    #[error("it is not text")]
    NotText,
    /// The line is no envelope, and why.
    #[error("it is no DSSE envelope: {0}")]
    NoEnvelope(String),
    /// None, or several.
    #[error("it holds {0} lines, one envelope is expected")]
    Lines(usize),
    /// A payload of this type.
    #[error("its payload is `{0}`, not `{PAYLOAD_TYPE}`")]
    Type(String),
    /// A payload that cannot be decoded.
    #[error("its payload is not base64")]
    Encoding,
    /// By the key, of another payload.
    #[error("the signature does not fit: payload or signature were changed")]
    Changed,
    /// By other keys than this one.
    #[error("no signature is by this key ({0})")]
    OtherKey(String),
}

impl Envelope {
    /// Signs a payload.
    pub fn sign(payload: &[u8], key: &SigningKey) -> Self {
        let signature = key.sign(&pae(PAYLOAD_TYPE, payload));
        Self {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![EnvelopeSignature {
                keyid: key_id(&key.verifying_key()),
                sig: STANDARD.encode(signature.to_bytes()),
            }],
        }
    }

    /// Reads the one line of a file.
    ///
    /// # Errors
    /// When it holds no envelope, or several.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeFault> {
        let text = std::str::from_utf8(dpar_export_inputs::without_mark(bytes))
            .map_err(|_| EnvelopeFault::NotText)?;
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        match lines.as_slice() {
            [line] => {
                unique_keys(line.as_bytes()).map_err(|e| EnvelopeFault::NoEnvelope(e.to_string()))?;
                serde_json::from_str(line).map_err(|e| EnvelopeFault::NoEnvelope(e.to_string()))
            }
            other => Err(EnvelopeFault::Lines(other.len())),
        }
    }

    /// The payload, if the key signed it.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn open(&self, key: &VerifyingKey) -> Result<Vec<u8>, EnvelopeFault> {
        if self.payload_type != PAYLOAD_TYPE {
            return Err(EnvelopeFault::Type(self.payload_type.clone()));
        }
        let payload = decode(&self.payload).ok_or(EnvelopeFault::Encoding)?;
        let message = pae(&self.payload_type, &payload);
        let valid = |s: &EnvelopeSignature| {
            let signature = decode(&s.sig).and_then(|b| Signature::from_slice(&b).ok());
            // Strict: a weak public key, for which one signature fits many messages, is refused.
            signature.is_some_and(|signature| key.verify_strict(&message, &signature).is_ok())
        };
        if self.signatures.iter().any(valid) {
            return Ok(payload);
        }
        let own = key_id(key);
        match self.signatures.iter().any(|s| s.keyid == own) {
            true => Err(EnvelopeFault::Changed),
            false => Err(EnvelopeFault::OtherKey(own)),
        }
    }
}
