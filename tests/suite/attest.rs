//! Signed attestations: made, accepted, and refused when anything differs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_checkpoint::LoadOptions;
use serde_json::{Value, json};

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture};

/// A key of the fixtures: for tests only.
pub(crate) fn key(name: &str) -> Utf8PathBuf {
    fixture("attest-keys").join(name)
}

/// A copy of the private test key that only its owner can read, as the tool demands.
pub(crate) fn private_key(temp: &Temp) -> Utf8PathBuf {
    let path = temp.path("key.pem");
    fs_err::copy(key("test-only-private.pem"), &path).unwrap();
    mode(&path, 0o600);
    path
}

fn mode(path: &Utf8Path, mode: u32) {
    #[cfg(unix)]
    fs_err::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

fn verify(path: &Utf8Path, attestation: &Utf8Path, public: &str) -> crate::cli::Run {
    let public = key(public);
    run(&["verify", path.as_str(), "--key", public.as_str(), "--attestation", attestation.as_str()])
}

const PUBLIC: &str = "test-only-public.pem";

/// Changes the manifest, as somebody does who wants changed files to be accepted.
fn forge(bundle: &Utf8Path, change: impl FnOnce(&mut Value)) {
    let path = bundle.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs_err::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

fn entry(path: &str, bytes: &[u8]) -> Value {
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(bytes));
    json!({ "path": path, "size": bytes.len(), "sha256": sha256 })
}

#[test]
fn a_bundle_is_attested_and_every_difference_is_exit_5() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    fs_err::write(bundle.join("notes.txt"), "n").unwrap();
    forge(&bundle, |m| m["files"].as_array_mut().unwrap().push(entry("notes.txt", b"n")));
    let key = private_key(&temp);
    let attest =
        |more: &[&str]| run(&[&["attest", bundle.as_str(), "--key", key.as_str(), "--json"], more].concat());
    let out = attest(&[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let attestation = temp.path("b.intoto.jsonl");
    assert_eq!(json(&out)["output"], attestation.as_str());
    let good = fs_err::read_to_string(&attestation).unwrap();
    assert_eq!(attest(&[]).code, 2, "an attestation is kept");
    assert_eq!(attest(&["--force"]).code, 0);
    assert_eq!(fs_err::read_to_string(&attestation).unwrap(), good, "the same bytes again");
    let inside = attest(&["-o", bundle.join("a.jsonl").as_str()]);
    assert!(inside.code == 2 && inside.stderr.contains("lies in what is attested"), "{}", inside.stderr);
    // The key cannot be made again: no --force writes over it.
    let secret = fs_err::read(&key).unwrap();
    let mut names = vec![key.clone(), temp.path(".").join("key.pem")];
    #[cfg(unix)]
    {
        let [soft, hard] = ["soft.jsonl", "hard.jsonl"].map(|n| temp.path(n));
        std::os::unix::fs::symlink(&key, &soft).unwrap();
        fs_err::hard_link(&key, &hard).unwrap();
        names.extend([soft, hard]);
    }
    for name in names {
        for more in [&["-o", name.as_str(), "--force"][..], &["-o", name.as_str()]] {
            let out = attest(more);
            assert!(out.code == 2 && out.stderr.contains("is the key"), "{more:?}: {}", out.stderr);
        }
        assert!(fs_err::read(&key).unwrap() == secret && fs_err::read(&name).unwrap() == secret, "{name}");
    }

    // What a reader of the format finds.
    let envelope: Value = serde_json::from_str(&good).unwrap();
    assert_eq!(envelope["payloadType"], "application/vnd.in-toto+json");
    let payload = STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap();
    let statement: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    let subjects = statement["subject"].as_array().unwrap();
    let inspected = json(&run(&["inspect", bundle.as_str(), "--json"]));
    assert_eq!(subjects.len(), inspected["manifest"]["files"].as_array().unwrap().len() + 1);
    let manifest = subjects.iter().find(|s| s["name"] == "manifest.json").unwrap();
    assert_eq!(manifest["digest"]["sha256"], inspected["manifest_sha256"]);
    assert_eq!(statement["predicate"], inspected["provenance"]);

    let out = verify(&bundle, &attestation, PUBLIC);
    assert!(out.code == 0 && out.stdout.starts_with("pass"), "{}{}", out.stdout, out.stderr);
    let public = crate::attest::key(PUBLIC);
    let args = ["verify", bundle.as_str(), "--key", public.as_str(), "--attestation", attestation.as_str()];
    assert_eq!(json(&run(&[&args[..], &["--json"]].concat()))["schema_version"], 2);
    let refused = |attestation: &Utf8Path, public: &str, message: &str| {
        let out = verify(&bundle, attestation, public);
        assert_eq!(out.code, 5, "{message}: {}{}", out.stdout, out.stderr);
        assert!(out.stderr.contains(message) && out.stdout.is_empty(), "{message}: {}", out.stderr);
    };
    refused(&attestation, "test-only-other-public.pem", "no signature is by this key");
    let changed = temp.path("changed.jsonl");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut envelope = envelope.clone();
        change(&mut envelope);
        fs_err::write(&changed, envelope.to_string()).unwrap();
    };
    let other = String::from_utf8(payload).unwrap().replacen("notes.txt", "notez.txt", 1);
    with(&|e| e["payload"] = STANDARD.encode(&other).into());
    refused(&changed, PUBLIC, "payload or signature were changed");
    with(&|e| e["signatures"][0]["sig"] = STANDARD.encode([7; 64]).into());
    refused(&changed, PUBLIC, "payload or signature were changed");
    with(&|e| e["payloadType"] = "text/plain".into());
    refused(&changed, PUBLIC, "text/plain");

    // Files that the manifest was corrected for: only the signature knows.
    let manifest = fs_err::read(bundle.join("manifest.json")).unwrap();
    fs_err::write(bundle.join("notes.txt"), "m").unwrap();
    refused(&attestation, PUBLIC, "notes.txt");
    forge(&bundle, |m| *m["files"].as_array_mut().unwrap().last_mut().unwrap() = entry("notes.txt", b"m"));
    refused(&attestation, PUBLIC, "signed is");
    fs_err::remove_file(bundle.join("notes.txt")).unwrap();
    forge(&bundle, |m| drop(m["files"].as_array_mut().unwrap().pop()));
    refused(&attestation, PUBLIC, "`notes.txt` is signed and is not here");
    fs_err::write(bundle.join("notes.txt"), "n").unwrap();
    fs_err::write(bundle.join("more.txt"), "n").unwrap();
    fs_err::write(bundle.join("manifest.json"), &manifest).unwrap();
    refused(&attestation, PUBLIC, "more.txt");
    forge(&bundle, |m| m["files"].as_array_mut().unwrap().push(entry("more.txt", b"n")));
    refused(&attestation, PUBLIC, "`more.txt` is here and is not signed");
    fs_err::remove_file(bundle.join("more.txt")).unwrap();
    fs_err::write(bundle.join("manifest.json"), &manifest).unwrap();
    forge(&bundle, |m| m["name"] = "another".into());
    refused(&attestation, PUBLIC, "`manifest.json` has SHA-256");
    fs_err::write(bundle.join("manifest.json"), &manifest).unwrap();
    // A comparison says that the attestation was checked.
    let (public, golden) = (crate::attest::key(PUBLIC), fixture("variants/combined"));
    let args = ["verify", bundle.as_str(), "--key", public.as_str(), "--attestation", attestation.as_str()];
    let out = run(&[&args[..], &["--reference", golden.as_str(), "--json"]].concat());
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(json(&out)["checks"][0]["name"], "attestation");
}

#[test]
fn a_report_is_attested_and_bound_to_its_bundle() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let golden = fixture("variants/combined");
    let out = run(&["verify", bundle.as_str(), "--reference", golden.as_str(), "--json"]);
    let report = temp.path("report.json");
    let report_text = out.stdout;
    fs_err::write(&report, &report_text).unwrap();
    let key = private_key(&temp);
    let made = run(&["attest", report.as_str(), "--key", key.as_str()]);
    assert!(made.code == 0 && made.stdout.contains("1 file attested"), "{}{}", made.stdout, made.stderr);
    let attestation = temp.path("report.json.intoto.jsonl");
    let envelope: Value = serde_json::from_str(&fs_err::read_to_string(&attestation).unwrap()).unwrap();
    let payload = STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap();
    let statement: Value = serde_json::from_slice(&payload).unwrap();
    let inspected = json(&run(&["inspect", bundle.as_str(), "--json"]));
    assert_eq!(statement["predicate"]["bundle"], inspected["manifest_sha256"]);
    assert_eq!(statement["predicate"]["verdict"], "pass");
    assert_eq!(verify(&report, &attestation, PUBLIC).code, 0);
    let over = run(&["attest", report.as_str(), "--key", key.as_str(), "-o", report.as_str(), "--force"]);
    assert!(over.code == 2 && over.stderr.contains("is what is attested"), "{}", over.stderr);
    assert_eq!(fs_err::read_to_string(&report).unwrap(), report_text);
    // The attestation of one thing does not vouch for another.
    let out = verify(&bundle, &attestation, PUBLIC);
    assert!(out.code == 5 && out.stderr.contains("its predicate is"), "{}", out.stderr);
    fs_err::write(&report, out.stdout.replacen("pass", "fail", 1) + "{}").unwrap();
    assert_eq!(verify(&report, &attestation, PUBLIC).code, 5);
}

#[test]
fn unusable_keys_are_bad_input_and_what_is_no_attestation_vouches_for_nothing() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let path = temp.path("k.pem");
    for (name, bits, message) in [
        ("test-only-encrypted.pem", 0o600, "encrypted"),
        ("test-only-private.pem", 0o644, "chmod 600"),
        ("test-only-rsa.pem", 0o600, "Ed25519"),
        ("test-only-public.pem", 0o600, "public key"),
        ("README.md", 0o600, "genpkey"),
    ] {
        fs_err::copy(key(name), &path).unwrap();
        mode(&path, bits);
        let out = run(&["attest", bundle.as_str(), "--key", path.as_str()]);
        assert!(out.code == 2 && out.stderr.contains(message), "{name}: {} {}", out.code, out.stderr);
        assert!(out.stderr.contains("hint:") && !temp.path("b.intoto.jsonl").exists(), "{}", out.stderr);
    }
    let attestation = temp.path("b.intoto.jsonl");
    for text in ["", "{}", "not json", "[1,2]", "{\"payloadType\":1}"] {
        fs_err::write(&attestation, text).unwrap();
        let out = verify(&bundle, &attestation, PUBLIC);
        assert!(
            out.code == 5 && out.stderr.contains("b.intoto.jsonl does not vouch for"),
            "{text}: {} {}",
            out.code,
            out.stderr
        );
    }
    fs_err::write(&attestation, [0xff, 0xfe]).unwrap();
    assert_eq!(verify(&bundle, &attestation, PUBLIC).code, 5);
    let public = key(PUBLIC);
    let alone = run(&["verify", bundle.as_str(), "--key", public.as_str()]);
    assert!(alone.code == 2 && alone.stderr.contains("--attestation"), "{}", alone.stderr);
    let out = verify(&bundle, &temp.path("absent.jsonl"), PUBLIC);
    assert!(out.code == 2 && out.stderr.contains("absent.jsonl"), "{}", out.stderr);
}

#[test]
fn a_model_signature_is_made_and_read() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let private = temp.path("p256.pem");
    fs_err::copy(key("test-only-p256-private.pem"), &private).unwrap();
    mode(&private, 0o600);
    let oms = |path: &Utf8Path, key: &Utf8Path| {
        run(&["attest", path.as_str(), "--format", "oms", "--key", key.as_str(), "--json"])
    };
    let ed25519 = private_key(&temp);
    let out = oms(&bundle, &ed25519);
    assert!(out.code == 2 && out.stderr.contains("no P-256 private key"), "{}", out.stderr);
    let out = oms(&bundle, &private);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(json(&out)["predicate_type"], "https://model_signing/signature/v1.0");
    let signature = temp.path("b.model.sig");
    let out = verify(&bundle, &signature, "test-only-p256-public.pem");
    assert!(out.code == 0 && out.stdout.starts_with("pass"), "{}{}", out.stdout, out.stderr);

    let out = verify(&bundle, &signature, "test-only-p256-other-public.pem");
    assert!(out.code == 5 && out.stderr.contains("another key"), "{}", out.stderr);
    let out = verify(&bundle, &signature, PUBLIC);
    assert!(out.code == 2 && out.stderr.contains("no P-256 or P-384 public key"), "{}", out.stderr);
    fs_err::write(bundle.join("notes.txt"), "n").unwrap();
    forge(&bundle, |m| m["files"].as_array_mut().unwrap().push(entry("notes.txt", b"n")));
    let out = verify(&bundle, &signature, "test-only-p256-public.pem");
    assert!(out.code == 5 && out.stderr.contains("notes.txt"), "{}", out.stderr);

    let out = oms(&signature, &private);
    assert!(out.code == 2 && out.stderr.contains("of a bundle"), "{}", out.stderr);
}
