//! Ed25519 keys in PEM files, as OpenSSL writes them.

use camino::Utf8Path;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey};
use ed25519_dalek::{SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use super::{AttestError, read_bounded};

/// A larger file is no key.
const LARGEST: u64 = 64 << 10;
/// How to make what is needed.
const MAKE: &str = "make one with `openssl genpkey -algorithm ed25519 -out key.pem` (mode 600)";
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
    let text = text(path, MAKE)?;
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
        return Err(refuse(path, "it is a public key: signing needs the private one", MAKE));
    }
    if holds(&text, "OPENSSH PRIVATE KEY") {
        return Err(refuse(path, "it is an OpenSSH key, not PKCS#8 PEM", MAKE));
    }
    SigningKey::from_pkcs8_pem(&text)
        .map_err(|e| refuse(path, &format!("it is no Ed25519 private key in PKCS#8 PEM ({e})"), MAKE))
}

/// Reads a public key: SubjectPublicKeyInfo PEM.
///
/// # Errors
/// When the file is something else; the error says how to get the right one.
pub fn read_public(path: &Utf8Path) -> Result<VerifyingKey, AttestError> {
    let text = text(path, PUBLIC)?;
    if text.contains("PRIVATE KEY-----") {
        return Err(refuse(path, "it is a private key: verifying needs the public one only", PUBLIC));
    }
    VerifyingKey::from_public_key_pem(&text)
        .map_err(|e| refuse(path, &format!("it is no Ed25519 public key in PEM ({e})"), PUBLIC))
}

/// SHA-256 of the key's SubjectPublicKeyInfo, lower-case hex: what `openssl pkey -pubin -outform DER | sha256sum`
/// gives.
pub fn key_id(key: &VerifyingKey) -> String {
    // Encoding 44 bytes cannot fail; if it did, the empty id would fit no key.
    key.to_public_key_der().map(|der| hex::encode(Sha256::digest(der.as_bytes()))).unwrap_or_default()
}
