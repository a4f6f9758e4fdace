//! TLS, with a client that knows whom to believe.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use super::{Answer, Server, bundle, eventually};
use crate::common::Temp;

/// A certificate of its own authority, and its files.
struct Pair {
    certificate: CertificateDer<'static>,
    pem: String,
    secret: String,
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), certificate: certificate.der().clone(), secret: key.serialize_pem() }
    }

    fn write(&self, certificate: &Utf8Path, key: &Utf8Path) {
        fs_err::write(certificate, &self.pem).unwrap();
        fs_err::write(key, &self.secret).unwrap();
    }

    /// A connection of a client that believes this certificate and no other.
    fn connect(&self, server: &Server) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(client, server.connect());
        stream.flush()?;
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    fn ask(&self, server: &Server, first: &str, body: &str) -> io::Result<Answer> {
        let mut stream = self.connect(server)?;
        write!(
            stream,
            "{first} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        Ok(Answer::read(stream))
    }
}

fn files(temp: &Temp) -> (Utf8PathBuf, Utf8PathBuf) {
    (temp.path("chain.pem"), temp.path("key.pem"))
}

fn serve(bundle: &Utf8Path, (certificate, key): &(Utf8PathBuf, Utf8PathBuf), more: &[&str]) -> Server {
    let tls = ["--tls-cert", certificate.as_str(), "--tls-key", key.as_str()];
    Server::start(bundle, &[&tls, more].concat())
}

/// Sends a request on a connection that stays open, and reads the head of its answer.
fn head(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(b"}") {
        stream.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

#[test]
#[cfg(unix)]
fn requests_go_through_tls_and_the_certificate_is_read_again() {
    use nix::sys::signal::Signal::SIGHUP;
    let temp = Temp::new();
    let (pair, files) = (Pair::new(), files(&temp));
    pair.write(&files.0, &files.1);
    let server = serve(&bundle(&temp), &files, &[]);
    let drawn = pair.ask(&server, "POST /v1/images", &json!({"class": 3, "n": 2}).to_string()).unwrap();
    assert_eq!(drawn.good()["images"].as_array().unwrap().len(), 2);
    // Who does not believe it says nothing more; who speaks in the clear is not answered so.
    assert!(Pair::new().connect(&server).is_err());
    let mut clear = server.connect();
    clear.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = clear.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"), "{said:?}");

    let changes = |pair: &Pair| {
        let text = pair.ask(&server, "GET /metrics", "").unwrap().text();
        text.lines().find(|l| l.starts_with("dpar_model_changes_total")).unwrap().ends_with(" 1")
    };
    let mut open = pair.connect(&server).unwrap();
    assert!(head(&mut open).starts_with("HTTP/1.1 200"));
    // A bad pair changes nothing: the bundle is opened after it was looked at.
    let next = Pair::new();
    fs_err::write(&files.0, &next.pem).unwrap();
    server.signal(SIGHUP);
    eventually("the bundle", || changes(&pair));
    // A good one is for connections from now on.
    next.write(&files.0, &files.1);
    server.signal(SIGHUP);
    eventually("the certificate", || next.connect(&server).is_ok());
    assert!(pair.connect(&server).is_err());
    assert!(head(&mut open).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_handshake_that_does_not_come_counts_as_a_connection_and_ends() {
    let temp = Temp::new();
    let (pair, files) = (Pair::new(), files(&temp));
    pair.write(&files.0, &files.1);
    let server = serve(&bundle(&temp), &files, &["--max-connections", "2", "--idle-time", "3"]);
    let mut silent = [0; 2].map(|_| server.connect());
    // One of them has begun.
    silent[1].write_all(&[0x16, 3, 1]).unwrap();
    let over = pair.ask(&server, "GET /v2/health/live", "").unwrap();
    assert!(over.refused(503).contains("connections") && over.header("retry-after").is_some());
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(said.is_empty(), "{said:?}");
    }
    eventually("room", || pair.ask(&server, "GET /v2/health/live", "").is_ok_and(|a| a.status == 200));
}

#[test]
fn a_certificate_that_cannot_be_served_is_said_before_anything_else() {
    let temp = Temp::new();
    let (pair, (certificate, key)) = (Pair::new(), files(&temp));
    let old = Pair::with(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let early = Pair::with(|params| params.not_before = date_time_ymd(3000, 1, 1));
    let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cases = [
        (&pair.pem, &Pair::new().secret, "is not that of the certificate"),
        (&old.pem, &old.secret, "expired"),
        (&early.pem, &early.secret, "is not valid for another"),
        // Of the others clients may need none: it is said, and what is refused is the bundle.
        (&format!("{}{}", pair.pem, old.pem), &pair.secret, "certificate 2 of the chain"),
        // No client reads on behind what is none.
        (&format!("{}{none}", pair.pem), &pair.secret, "error: the certificate in"),
        (&pair.secret, &pair.secret, "holds no certificate"),
        (&pair.pem, &pair.pem, "holds no private key"),
        (&pair.pem, &pair.secret[..60].to_owned(), "holds no private key"),
    ];
    for (chain, secret, reason) in cases {
        fs_err::write(&certificate, chain).unwrap();
        fs_err::write(&key, secret).unwrap();
        // There is no such bundle.
        let refused = crate::cli::run(&[
            "serve",
            "none",
            "--tls-cert",
            certificate.as_str(),
            "--tls-key",
            key.as_str(),
        ]);
        assert!(refused.code == 2 && refused.stderr.contains(reason), "{reason}: {}", refused.stderr);
    }
    let alone = crate::cli::run(&["serve", "none", "--tls-cert", certificate.as_str()]);
    assert!(alone.code == 2 && alone.stderr.contains("--tls-key"), "{}", alone.stderr);
    let gone = crate::cli::run(&["serve", "none", "--tls-cert", "nowhere.pem", "--tls-key", key.as_str()]);
    assert!(gone.code == 2 && gone.stderr.contains("nowhere.pem"), "{}", gone.stderr);
}
