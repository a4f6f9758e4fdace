use camino::{Utf8Path, Utf8PathBuf};

use super::super::key::{PublicKey, read_any_public, read_private_p256};
use super::ModelSignatureFault as Fault;
use super::*;

/// What PyPI's model-signing 1.1.1 made of [`files`] with the test key.
const FOREIGN: &[u8] = include_bytes!("../../../../fixtures/attest-keys/model-signing-1.1.1.sig");

fn folder() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/attest-keys")
}

fn key(name: &str) -> ModelKey {
    match read_any_public(&folder().join(name)).unwrap() {
        PublicKey::Model(key) => key,
        PublicKey::Ed25519(_) => panic!("{name} is of the other kind"),
    }
}

fn private() -> SigningKey {
    let (_guard, folder) = super::super::tests::test_folder();
    let path = folder.join("key.pem");
    fs_err::write(&path, include_str!("../../../../fixtures/attest-keys/test-only-p256-private.pem"))
        .unwrap();
    #[cfg(unix)]
    fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    read_private_p256(&path).unwrap()
}

fn files() -> BTreeMap<String, String> {
    let sha256 = |text: &str| hex::encode(Sha256::digest(text.as_bytes()));
    BTreeMap::from([("a.txt".to_owned(), sha256("a\n")), ("sub/b.bin".to_owned(), sha256("b\n"))])
}

/// A bundle with another statement, signed by the right key.
fn resigned(change: impl FnOnce(&mut ModelStatement)) -> Vec<u8> {
    let mut bundle: SigstoreBundle =
        serde_json::from_slice(&sign("m", &files(), &private()).unwrap()).unwrap();
    let payload = STANDARD.decode(&bundle.dsse_envelope.payload).unwrap();
    let mut statement = serde_json::from_slice(&payload).unwrap();
    change(&mut statement);
    let payload = serde_json::to_vec(&statement).unwrap();
    let signature: Signature = private().sign(&pae(super::super::dsse::PAYLOAD_TYPE, &payload));
    bundle.dsse_envelope.payload = STANDARD.encode(&payload);
    bundle.dsse_envelope.signatures[0].sig = STANDARD.encode(signature.to_der().as_bytes());
    serde_json::to_vec(&bundle).unwrap()
}

#[test]
fn what_another_tool_signed_is_read_and_hinted_alike() {
    let public = key("test-only-p256-public.pem");
    assert_eq!(open(FOREIGN, &public).unwrap(), files());
    let foreign: SigstoreBundle = serde_json::from_slice(FOREIGN).unwrap();
    assert_eq!(foreign.verification_material.public_key.unwrap().hint, public.hint());
    let other = open(FOREIGN, &key("test-only-p256-other-public.pem")).unwrap_err();
    assert!(matches!(other, ModelSignatureFault::OtherKey(_)), "{other}");
}

/// Vectors that the reference implementation keeps for what its versions signed; their files hold these texts.
#[test]
fn vectors_of_the_reference_implementation_pass_and_fail_as_named() {
    let vector = |name: &str| fs_err::read(folder().join("model-transparency").join(name)).unwrap();
    let public = key("model-transparency/public-p384.pem");
    let sha256 = |text: &str| hex::encode(Sha256::digest(text.as_bytes()));
    let (one, two) = (sha256("signme-1\n"), sha256("signme-2"));
    let file = BTreeMap::from([(".".to_owned(), one.clone())]);
    let folder = BTreeMap::from([("signme-1".to_owned(), one), ("signme-2".to_owned(), two)]);
    for (name, signed) in [
        ("v0.3.1-elliptic-key.sig", &file),
        ("v1.0.0-elliptic-key.sig", &file),
        ("v1.0.1-elliptic-key.sig", &folder),
        ("v1.1.0-elliptic-key.sig", &folder),
    ] {
        let bytes = vector(name);
        assert_eq!(open(&bytes, &public).as_ref(), Ok(signed), "{name}");
        let other = open(&bytes, &key("test-only-p256-public.pem"));
        assert!(matches!(other, Err(Fault::OtherKey(_) | Fault::Envelope(_))), "{name}: {other:?}");
        // A blank behind the statement: the same words, other bytes.
        let mut bundle: SigstoreBundle = serde_json::from_slice(&bytes).unwrap();
        let mut payload = decode(&bundle.dsse_envelope.payload).unwrap();
        payload.push(b' ');
        bundle.dsse_envelope.payload = STANDARD.encode(&payload);
        let changed = open(&serde_json::to_vec(&bundle).unwrap(), &public);
        assert!(matches!(changed, Err(Fault::OtherKey(_) | Fault::Envelope(_))), "{name}: {changed:?}");
    }
    // Signed with what is no key.
    for name in ["v0.2.0-certificate.sig", "v1.1.0-certificate.sig", "v1.1.0-sigstore.sig"] {
        assert_eq!(open(&vector(name), &public), Err(Fault::NoKey), "{name}");
    }
}

#[test]
fn a_signature_opens_again_and_is_the_same_twice() {
    let bytes = sign("m", &files(), &private()).unwrap();
    assert_eq!(bytes, sign("m", &files(), &private()).unwrap());
    assert!(is_sigstore_bundle(&bytes));
    assert_eq!(open(&bytes, &key("test-only-p256-public.pem")).unwrap(), files());
}

#[test]
fn every_change_is_seen() {
    let public = key("test-only-p256-public.pem");
    let edited = |from: &str, to: &str| {
        let text = String::from_utf8(FOREIGN.to_vec()).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        open(changed.as_bytes(), &public).unwrap_err().to_string()
    };
    assert!(edited("v0.3", "v0.2").contains("v0.2"));
    assert!(edited("\"publicKey\"", "\"x509CertificateChain\"").contains("certificate"));
    assert!(edited("\"payload\":\"e", "\"payload\":\"f").contains("were changed"));
    assert!(edited("\"sig\":\"M", "\"sig\":\"N").contains("were changed"));
    assert!(edited("\"mediaType\"", "\"mediaType\":\"\",\"mediaType\"").contains("duplicate field"));
    let refused = |change: &dyn Fn(&mut ModelStatement)| {
        open(&resigned(|s| change(s)), &public).unwrap_err().to_string()
    };
    assert!(refused(&|s| s.predicate.resources[0].digest = "00".repeat(32)).contains("contradicts itself"));
    assert!(refused(&|s| s.predicate.resources.swap(0, 1)).contains("contradicts itself"));
    assert!(refused(&|s| s.predicate.serialization.method = "shards".into()).contains("shards"));
    assert!(refused(&|s| s.predicate.resources[1].algorithm = "blake2b".into()).contains("blake2b"));
    assert!(refused(&|s| s.predicate_type = "other".into()).contains("other"));
    assert!(refused(&|s| s.subject.clear()).contains("contradicts itself"));
    assert!(
        refused(&|s| {
            s.predicate.resources.iter_mut().for_each(|r| r.name = "x".into());
            let root = root(&s.predicate.resources).unwrap();
            s.subject[0].digest.insert(SHA256.to_owned(), root);
        })
        .contains("`x` is signed twice")
    );
}
