//! Keys in PEM files, as OpenSSL writes them: Ed25519, and for model signatures P-256 and P-384.

use camino::Utf8Path;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey};
use ed25519_dalek::{SigningKey, VerifyingKey};
use p256::ecdsa;
use p256::ecdsa::signature::Verifier;
use p256::pkcs8::LineEnding;
use sha2::{Digest, Sha256};

use super::{AttestError, read_bounded};

/// A larger file is no key.
const LARGEST: u64 = 64 << 10;
/// How to make what is needed.
const MAKE: &str = "make one with `openssl genpkey -algorithm ed25519 -out key.pem` (mode 600)";
const MAKE_P256: &str =
    "make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem` (mode 600)";
const CONVERT: &str = "convert it: `(umask 077; openssl pkcs8 -topk8 -nocrypt -in ec.pem -out key.pem)`";
const PUBLIC: &str = "make it with `openssl pkey -in key.pem -pubout -out public.pem`";
const DECRYPT: &str = "decrypt it where it is used: `(umask 077; openssl pkey -in key.pem -out plain.pem)`, and remove it afterwards";

fn refuse(path: &Utf8Path, message: &str, hint: &str) -> AttestError {
    AttestError::Key { path: path.to_owned(), message: message.to_owned(), hint: hint.to_owned() }
}

fn text(path: &Utf8Path, hint: &str) -> Result<String, AttestError> {
    let bytes = read_bounded(path, LARGEST)?;
    String::from_utf8(bytes).map_err(|_| refuse(path, "it is no PEM file", hint))
}

fn holds(text: &str, label: &str) -> bool {
    text.lines().any(|l| l.trim() == format!("-----BEGIN {label}-----"))
}

/// Reads a private key: PKCS#8 PEM, not encrypted, readable by its owner (and group) only.
///
/// # Errors
/// When the file is something else; the error says how to get the right one.
pub fn read_private(path: &Utf8Path) -> Result<SigningKey, AttestError> {
    let text = private(path, MAKE)?;
    SigningKey::from_pkcs8_pem(&text)
        .map_err(|e| refuse(path, &format!("it is no Ed25519 private key in PKCS#8 PEM ({e})"), MAKE))
}

/// Reads the private key of model signatures: as [`read_private`], on the curve P-256.
///
/// # Errors
/// As there.
pub fn read_private_p256(path: &Utf8Path) -> Result<ecdsa::SigningKey, AttestError> {
    let text = private(path, MAKE_P256)?;
    ecdsa::SigningKey::from_pkcs8_pem(&text)
        .map_err(|e| refuse(path, &format!("it is no P-256 private key in PKCS#8 PEM ({e})"), MAKE_P256))
}

/// The text of a private key's file, if it can be one and no other user can read it; `make` says how to get one.
fn private(path: &Utf8Path, make: &str) -> Result<String, AttestError> {
    let text = text(path, make)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let meta = fs_err::metadata(path)
            .map_err(|e| AttestError::Input { path: path.to_owned(), message: e.to_string() })?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            let message = format!("every user of this machine can use this private key (mode {mode:03o})");
            return Err(refuse(path, &message, &format!("`chmod 600 {path}`")));
        }
    }
    if holds(&text, "ENCRYPTED PRIVATE KEY") {
        return Err(refuse(
            path,
            "the private key is encrypted, and there is nobody to ask for its password",
            DECRYPT,
        ));
    }
    if holds(&text, "PUBLIC KEY") {
        return Err(refuse(path, "it is a public key: signing needs the private one", make));
    }
    if holds(&text, "OPENSSH PRIVATE KEY") {
        return Err(refuse(path, "it is an OpenSSH key, not PKCS#8 PEM", make));
    }
    if holds(&text, "EC PRIVATE KEY") {
        return Err(refuse(path, "it is an EC key in SEC1 form, not PKCS#8 PEM", CONVERT));
    }
    Ok(text)
}

/// Reads a public key: SubjectPublicKeyInfo PEM.
///
/// # Errors
/// When the file is something else; the error says how to get the right one.
pub fn read_public(path: &Utf8Path) -> Result<VerifyingKey, AttestError> {
    VerifyingKey::from_public_key_pem(&public(path)?)
        .map_err(|e| refuse(path, &format!("it is no Ed25519 public key in PEM ({e})"), PUBLIC))
}

/// A public key of model signatures.
pub(super) enum ModelKey {
    /// What this tool signs with, too.
    P256(ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl ModelKey {
    fn parse(pem: &str) -> Option<Self> {
        let p256 = ecdsa::VerifyingKey::from_public_key_pem(pem).map(Self::P256);
        p256.or_else(|_| p384::ecdsa::VerifyingKey::from_public_key_pem(pem).map(Self::P384)).ok()
    }

    /// Whether the key made this signature (DER) of the message, whose hash has the size of the curve.
    pub(super) fn made(&self, signature: &[u8], message: &[u8]) -> bool {
        match self {
            Self::P256(key) => {
                ecdsa::Signature::from_der(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
            Self::P384(key) => {
                p384::ecdsa::Signature::from_der(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
        }
    }

    /// As [`key_id`].
    pub(super) fn id(&self) -> String {
        match self {
            Self::P256(key) => key_id(key),
            Self::P384(key) => key_id(key),
        }
    }

    /// As [`hint`].
    pub(super) fn hint(&self) -> String {
        match self {
            Self::P256(key) => hint(key),
            Self::P384(key) => hint(key),
        }
    }
}

/// SHA-256 of a key in PEM, as model signatures hint at it.
pub(super) fn hint(key: &impl EncodePublicKey) -> String {
    // Encoding some bytes cannot fail; if it did, the empty hint would fit every reader.
    let pem = key.to_public_key_pem(LineEnding::LF).unwrap_or_default();
    hex::encode(Sha256::digest(pem.as_bytes()))
}

/// A public key of either kind.
pub(super) enum PublicKey {
    /// Of attestations.
    Ed25519(VerifyingKey),
    Model(ModelKey),
}

/// Reads a public key of either kind: as [`read_public`].
///
/// # Errors
/// As there.
pub(super) fn read_any_public(path: &Utf8Path) -> Result<PublicKey, AttestError> {
    let text = public(path)?;
    VerifyingKey::from_public_key_pem(&text)
        .map(PublicKey::Ed25519)
        .or_else(|e| ModelKey::parse(&text).map(PublicKey::Model).ok_or(e))
        .map_err(|e| {
            refuse(path, &format!("it is no Ed25519, P-256 or P-384 public key in PEM ({e})"), PUBLIC)
        })
}

/// Refuses a key of the other kind.
pub(super) fn of_other_kind(path: &Utf8Path, wanted: &str) -> AttestError {
    refuse(path, &format!("it is no {wanted} public key, which this attestation is signed with"), PUBLIC)
}

/// The text of a public key's file, if it can be one.
fn public(path: &Utf8Path) -> Result<String, AttestError> {
    let text = text(path, PUBLIC)?;
    if text.contains("PRIVATE KEY-----") {
        return Err(refuse(path, "it is a private key: verifying needs the public one only", PUBLIC));
    }
    Ok(text)
}

/// SHA-256 of the key's SubjectPublicKeyInfo, lower-case hex: what `openssl pkey -pubin -outform DER | sha256sum`
/// gives.
pub fn key_id(key: &impl EncodePublicKey) -> String {
    // Encoding some bytes cannot fail; if it did, the empty id would fit no key.
    key.to_public_key_der().map(|der| hex::encode(Sha256::digest(der.as_bytes()))).unwrap_or_default()
}
