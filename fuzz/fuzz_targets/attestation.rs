//! An attestation as an envelope, and as a statement that the right key has signed: nothing but the true one is accepted.
#![no_main]

use std::sync::OnceLock;

use camino::Utf8PathBuf;
use dpar_export::attest::{Envelope, Statement, read_private, read_public, verify_file};
use dpar_export_fuzz::{file, fixture};
use ed25519_dalek::SigningKey;

struct Signer {
    private: SigningKey,
    public: Utf8PathBuf,
    /// What is attested.
    subject: Utf8PathBuf,
    /// The one true statement about it.
    statement: Statement,
}

fn signer() -> &'static Signer {
    static SIGNER: OnceLock<Signer> = OnceLock::new();
    SIGNER.get_or_init(|| {
        let pem = std::fs::read(fixture("attest-keys/test-only-private.pem")).expect("a fixture");
        let private = file("key.pem", &pem);
        #[cfg(unix)]
        std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
        let subject = file("report.json", b"{\"bundle\":\"b\"}");
        Signer {
            private: read_private(&private).expect("a key"),
            public: fixture("attest-keys/test-only-public.pem"),
            statement: Statement::of_file(&subject).expect("a statement"),
            subject,
        }
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let signer = signer();
    if let Ok(envelope) = Envelope::parse(data) {
        let _ = envelope.open(&read_public(&signer.public).expect("a key"));
    }
    let unsigned = file("unsigned.jsonl", data);
    if let Ok(accepted) = verify_file(&signer.subject, &unsigned, &signer.public) {
        assert_eq!(accepted.subjects, 1);
    }
    let envelope = serde_json::to_vec(&Envelope::sign(data, &signer.private)).expect("JSON");
    match verify_file(&signer.subject, &file("signed.jsonl", &envelope), &signer.public) {
        Ok(_) => {
            let found: Statement = serde_json::from_slice(data).expect("an accepted statement is one");
            assert_eq!(found.subject, signer.statement.subject);
        }
        Err(e) => drop(e.to_string()),
    }
});
