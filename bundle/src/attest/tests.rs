use super::*;

pub(crate) fn test_folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    (dir, path)
}

fn fixture(name: &str) -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/attest-keys").join(name)
}

/// The test key in a folder of its own, readable by its owner only.
fn private(folder: &Utf8Path) -> Utf8PathBuf {
    let path = folder.join("key.pem");
    fs_err::copy(fixture("test-only-private.pem"), &path).unwrap();
    #[cfg(unix)]
    fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    path
}

#[test]
fn the_signed_bytes_are_those_of_the_specification() {
    // The example of the DSSE protocol document.
    let wanted = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
    assert_eq!(dsse::pae("http://example.com/HelloWorld", b"hello world"), wanted);
}

#[test]
fn a_signature_opens_with_its_key_and_no_other_and_every_change_is_seen() {
    let (_guard, folder) = test_folder();
    let key = read_private(&private(&folder)).unwrap();
    let public = read_public(&fixture("test-only-public.pem")).unwrap();
    assert_eq!(key.verifying_key(), public);
    let envelope = Envelope::sign(b"{\"a\":1}", &key);
    assert_eq!(envelope, Envelope::sign(b"{\"a\":1}", &key), "signing is deterministic");
    assert_eq!(envelope.open(&public).unwrap(), b"{\"a\":1}");

    let other = read_public(&fixture("test-only-other-public.pem")).unwrap();
    assert!(envelope.open(&other).unwrap_err().to_string().contains("no signature is by this key"));
    let change = |f: &dyn Fn(&mut Envelope)| {
        let mut changed = envelope.clone();
        f(&mut changed);
        changed.open(&public).unwrap_err().to_string()
    };
    assert!(change(&|e| e.payload = "eyJhIjoyfQ==".into()).contains("were changed"));
    assert!(change(&|e| e.payload = "%".into()).contains("base64"));
    assert!(change(&|e| e.payload_type = "text/plain".into()).contains("text/plain"));
    assert!(change(&|e| e.signatures[0].sig = "AAAA".into()).contains("were changed"));
    assert!(change(&|e| e.signatures.clear()).contains("no signature"));
    // The key id is a hint: a lying one does not help, a missing one does not hurt.
    let mut nameless = envelope.clone();
    nameless.signatures[0].keyid.clear();
    assert!(nameless.open(&public).is_ok());
    // The URL-safe alphabet is allowed too.
    let mut url = envelope.clone();
    url.signatures[0].sig = url.signatures[0].sig.replace('+', "-").replace('/', "_");
    assert!(url.open(&public).is_ok());
}

#[test]
fn files_that_are_no_key_are_refused_with_the_next_step() {
    let (_guard, folder) = test_folder();
    let write = |name: &str, from: &str| {
        let path = folder.join(name);
        fs_err::copy(fixture(from), &path).unwrap();
        #[cfg(unix)]
        fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let hint = |e: AttestError| match e {
        AttestError::Key { message, hint, .. } => format!("{message}; {hint}"),
        other => other.to_string(),
    };
    for (from, message) in [
        ("test-only-encrypted.pem", "encrypted"),
        ("test-only-rsa.pem", "no Ed25519"),
        ("test-only-public.pem", "a public key"),
        ("README.md", "no Ed25519"),
    ] {
        let e = hint(read_private(&write("k.pem", from)).unwrap_err());
        assert!(e.contains(message) && e.contains("openssl"), "{from}: {e}");
    }
    let e = hint(read_public(&fixture("test-only-private.pem")).unwrap_err());
    assert!(e.contains("is a private key") && e.contains("-pubout"), "{e}");
    for from in ["test-only-rsa.pem", "test-only-encrypted.pem", "README.md"] {
        assert!(read_public(&fixture(from)).is_err(), "{from}");
    }
    let e = read_private(&folder.join("absent.pem")).unwrap_err().to_string();
    assert!(e.contains("absent.pem"), "{e}");
    #[cfg(unix)]
    {
        let path = write("open.pem", "test-only-private.pem");
        for (mode, allowed) in [(0o644, false), (0o601, false), (0o640, true), (0o400, true)] {
            fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            match read_private(&path) {
                Ok(_) => assert!(allowed, "{mode:o}"),
                Err(e) => assert!(!allowed && hint(e).contains("chmod 600"), "{mode:o}"),
            }
        }
    }
}

#[test]
fn a_file_with_no_or_several_envelopes_is_refused() {
    for (text, message) in
        [("", "0 lines"), ("{}\n{}\n", "2 lines"), ("{}", "no DSSE envelope"), ("\u{0}", "no DSSE envelope")]
    {
        let e = Envelope::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(e.contains(message), "{text:?}: {e}");
    }
    assert!(Envelope::parse(&[0xff]).is_err());
}

#[test]
fn statements_differ_by_what_is_named() {
    let base = Statement {
        kind: STATEMENT.into(),
        subject: vec![Subject::new("a", "1"), Subject::new("b", "2")],
        predicate_type: BUNDLE_PREDICATE.into(),
        predicate: serde_json::json!({ "x": 1 }),
    };
    assert_eq!(difference(&base, &base), None);
    let with = |f: &dyn Fn(&mut Statement)| {
        let mut found = base.clone();
        f(&mut found);
        difference(&base, &found).unwrap()
    };
    assert!(with(&|s| s.subject[0] = Subject::new("a", "3")).contains("SHA-256 1, signed is 3"));
    assert!(with(&|s| s.subject[0].digest.clear()).contains("`a` has SHA-256"));
    assert!(with(&|s| s.subject.push(Subject::new("c", "4"))).contains("`c` is signed and is not here"));
    assert!(with(&|s| s.subject.push(Subject::new("a", "1"))).contains("`a` is signed twice"));
    assert!(with(&|s| s.subject.truncate(1)).contains("`b` is here and is not signed"));
    assert!(with(&|s| s.predicate = Value::Null).contains("predicate is not what the files say"));
    assert!(with(&|s| s.predicate_type = FILE_PREDICATE.into()).contains("its predicate is"));
    assert!(with(&|s| s.kind = "other".into()).contains("it is a `other`"));
}

#[test]
fn another_version_of_the_tool_verifies_a_report_but_is_no_exporter_of_a_bundle() {
    let statement = |predicate_type: &str, version: &str, size: u64| Statement {
        kind: STATEMENT.into(),
        subject: vec![Subject::new("a", "1")],
        predicate_type: predicate_type.into(),
        predicate: serde_json::json!({ "tool": { "name": "dpar-export", "version": version }, "size": size }),
    };
    let report = |version: &str, size: u64| statement(FILE_PREDICATE, version, size);
    assert_eq!(difference(&report("2", 1), &report("1", 1)), None);
    assert!(difference(&report("2", 1), &report("1", 2)).is_some());
    let bundle = |version: &str| statement(BUNDLE_PREDICATE, version, 1);
    assert_eq!(difference(&bundle("1"), &bundle("1")), None);
    assert!(difference(&bundle("2"), &bundle("1")).is_some());
}

#[test]
fn a_bundle_that_was_replaced_after_the_check_is_not_vouched_for() {
    let attested = |manifest_sha256: Option<&str>| Attested {
        key_id: String::new(),
        predicate_type: BUNDLE_PREDICATE.into(),
        subjects: 1,
        manifest_sha256: manifest_sha256.map(str::to_owned),
        file_sha256: None,
    };
    let holds = |attested: &Attested| attested.holds("a.jsonl".into(), "b".into(), "1");
    holds(&attested(Some("1"))).unwrap();
    for other in [Some("2"), None] {
        let e = holds(&attested(other)).unwrap_err();
        assert!(matches!(e, AttestError::Rejected { .. }) && e.to_string().contains("replaced"), "{e}");
    }
}

#[test]
fn a_key_twice_is_no_statement_no_envelope_and_no_report() {
    let (_guard, folder) = test_folder();
    let key = read_private(&private(&folder)).unwrap();
    let (report, attestation) = (folder.join("report.json"), folder.join("report.json.intoto.jsonl"));
    let public = fixture("test-only-public.pem");
    fs_err::write(&report, r#"{"verdict":"fail"}"#).unwrap();
    let statement = Statement::of_file(&report).unwrap();
    let verify = |line: &[u8]| {
        fs_err::write(&attestation, line).unwrap();
        verify_file(&report, &attestation, &public)
    };
    verify(&sign(&statement, &key).unwrap()).unwrap();
    // Signed by the right key, and its readers differ in what it says: at the top, and in the predicate.
    let text = serde_json::to_string(&statement).unwrap();
    for (from, to) in [
        ("{\"_type\"", "{\"x\":1,\"x\":2,\"_type\""),
        ("\"verdict\":\"fail\"", "\"verdict\":\"pass\",\"verdict\":\"fail\""),
        ("{\"sha256\"", "{\"sha256\":\"0\",\"sha256\""),
    ] {
        let twice = text.replacen(from, to, 1);
        assert_ne!(twice, text, "{from}");
        let line = serde_json::to_vec(&Envelope::sign(twice.as_bytes(), &key)).unwrap();
        let e = verify(&line).unwrap_err();
        assert!(
            matches!(&e, AttestError::Rejected { message, .. } if message.contains("duplicate field")),
            "{e}"
        );
    }
    let line = String::from_utf8(sign(&statement, &key).unwrap()).unwrap();
    let e = verify(line.replacen('{', "{\"more\":1,\"more\":1,", 1).as_bytes()).unwrap_err();
    assert!(
        matches!(&e, AttestError::Rejected { message, .. } if message.contains("duplicate field")),
        "{e}"
    );

    fs_err::write(&report, r#"{"verdict":"pass","verdict":"fail"}"#).unwrap();
    let e = Statement::of_file(&report).unwrap_err();
    assert!(matches!(e, AttestError::Report { .. }), "{e}");
    let e = verify(line.as_bytes()).unwrap_err();
    assert!(matches!(e, AttestError::Rejected { .. }), "{e}");
}

#[test]
fn an_attestation_that_nobody_could_verify_is_not_written() {
    let (_guard, folder) = test_folder();
    let key = read_private(&private(&folder)).unwrap();
    let statement = |size: u64| Statement {
        kind: STATEMENT.into(),
        subject: Vec::new(),
        predicate_type: FILE_PREDICATE.into(),
        predicate: Value::String("x".repeat(usize::try_from(size).unwrap())),
    };
    // base64 makes four bytes of three.
    let most = LARGEST / 4 * 3;
    assert!(sign(&statement(most - 1024), &key).unwrap().len() as u64 <= LARGEST);
    let e = sign(&statement(most), &key).unwrap_err();
    assert!(matches!(e, AttestError::TooLarge { size } if size > LARGEST), "{e}");
}
