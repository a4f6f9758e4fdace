//! What goes wrong, and what is said of it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dpar_export::serve::http::{HttpServer, Stopped};
use serde_json::json;

use super::{Answer, Server, bundle};
use crate::common::Temp;

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    for (body, reason) in [
        ("", "EOF"),
        ("{\"class\": 1", "EOF"),
        ("[1]", "an object is expected"),
        (" [null, null]", "an object is expected"),
        ("{\"class\": 1, \"steps\": 5}", "unknown field `steps`"),
        ("{\"class\": 1, \"class\": 2}", "duplicate field"),
        ("{\"class\": 1000}", "class 1000"),
        ("{\"class\": -2}", "class -2"),
        ("{\"class\": \"cat\"}", "no names of classes"),
        ("{\"class\": 1, \"threshold\": NaN}", "the body"),
        ("{\"class\": 1, \"threshold\": 1e39}", "out of range"),
        ("{\"class\": 1, \"patch_size\": 2}", "does not read it"),
        ("{\"class\": 1, \"max_patch_length\": 9}", "exported for"),
        ("{\"class\": 1, \"temperature\": -1}", "temperature"),
        ("{\"class\": 1, \"cfg_scale\": -1}", "guidance"),
        ("{\"class\": 1, \"cfg_interval\": 3}", "interval"),
        ("{\"class\": 1, \"cfg_scale\": 3e38}", "at most 10000"),
        ("{\"class\": 1, \"format\": \"png\", \"trace\": true}", "no trace"),
        ("{\"class\": 1, \"greedy\": true, \"top_k\": 3}", "no effect"),
        ("{\"class\": 1, \"classes\": [1]}", "one of them"),
        ("{\"classes\": [1, 2], \"n\": 3}", "there are 2"),
        ("{\"classes\": []}", "no image"),
        ("{\"class\": 1, \"tokens\": true}", "of streams"),
        ("{\"class\": 1, \"format\": \"gif\"}", "unknown variant"),
    ] {
        let message = Answer::read(server.begin_raw("/v1/images", body)).refused(400);
        assert!(message.contains(reason), "{body}: {message}");
    }
    let message = server.post("/v1/images", &json!({"model": "other"})).refused(404);
    assert!(message.contains("no model `other`"));
    let text = Answer::read(server.send("POST /v1/images", &["content-type: text/plain"], b"{}"));
    assert!(text.refused(415).contains("application/json"));
    server.get("/v1/nothing").refused(404);
    server.get("/v1/images").refused(405);
    // And it still draws.
    server.post("/v1/images", &json!({"class": 1})).good();
}

#[test]
fn pages_of_others_are_not_answered() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    let elsewhere = Answer::read(server.send("GET /metrics", &["origin: http://example.org"], b""));
    assert!(elsewhere.refused(403).contains("another origin"));
    let own = format!("origin: http://{}", server.address);
    assert_eq!(Answer::read(server.send("GET /metrics", &[&own], b"")).status, 200);
    let mut rebound = server.connect();
    std::io::Write::write_all(
        &mut rebound,
        b"GET /metrics HTTP/1.1\r\nhost: example.org\r\nconnection: close\r\n\r\n",
    )
    .unwrap();
    assert!(Answer::read(rebound).refused(403).contains("only localhost"));
}

#[test]
fn a_token_is_asked_for() {
    const TOKEN: &str = "0123456789abcdef";
    let temp = Temp::new();
    let (folder, token) = (bundle(&temp), temp.path("token"));
    fs_err::write(&token, format!("{TOKEN}\n")).unwrap();
    let server = Server::start(&folder, &["--token-file", token.as_str()]);
    let ask = |header: &str| Answer::read(server.send("GET /metrics", &[header], b""));
    for header in [
        "x: y",
        "authorization: Bearer 0123456789abcdeF",
        "authorization: Basic 0123456789abcdef",
        "authorization: Bearer",
    ] {
        let answer = ask(header);
        answer.refused(401);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(ask(&format!("authorization: Bearer {TOKEN}")).status, 200);
    assert_eq!(server.get("/v2/health/ready").status, 200);
    assert!(server.post("/v1/images", &json!({"class": 1})).refused(401).contains("token"));

    let listen = |more: &[&str]| {
        crate::cli::run(&[&["serve", folder.as_str(), "--listen", "0.0.0.0:0"], more].concat())
    };
    let open = listen(&[]);
    assert!(open.code == 2 && open.stderr.contains("--allow-no-token"), "{}", open.stderr);
    fs_err::write(&token, "short").unwrap();
    let short = listen(&["--token-file", token.as_str()]);
    assert!(short.code == 2 && short.stderr.contains("no token"), "{}", short.stderr);
}

#[test]
fn a_request_can_be_followed() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &[]);
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = Answer::read(server.send("GET /v2/health/live", &["x-request-id: mine-7", trace], b""));
    assert_eq!(answer.header("x-request-id"), Some("mine-7"));
    let parent = answer.header("traceparent").unwrap();
    assert!(parent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && parent.ends_with("-01"));
    assert!(!parent.contains("00f067aa0ba902b7"));
    let [one, two] = [0; 2].map(|_| server.get("/v2/health/live").header("x-request-id").unwrap().to_owned());
    assert_ne!(one, two);
}

/// What comes of other files than those that were hashed does not count.
#[test]
fn a_bundle_that_changes_on_the_disk_is_not_served_any_more() {
    let temp = Temp::new();
    let folder = bundle(&temp);
    let server = Server::start(&folder, &[]);
    assert_eq!(server.get("/v2/health/ready").status, 200);
    let weights = folder.join("onnx/dpar.onnx_data");
    // The same bytes, but nobody has hashed this file.
    let other = temp.path("other");
    fs_err::copy(&weights, &other).unwrap();
    fs_err::rename(&other, &weights).unwrap();
    let answer = server.post("/v1/images", &json!({"class": 1}));
    assert!(answer.refused(503).contains("dpar.onnx_data"), "{}", answer.text());
    assert!(server.get("/v2/health/ready").refused(503).contains("dpar.onnx_data"));
    assert_eq!(server.get("/v2/health/live").status, 200);
}

#[test]
#[cfg(unix)]
fn a_signal_ends_it_when_all_is_answered_and_a_second_one_at_once() {
    use nix::sys::signal::Signal::SIGTERM;
    let temp = Temp::new();
    let folder = bundle(&temp);
    let server = Server::start(&folder, &["--batch", "2"]);
    let waiting: Vec<_> =
        (0..6).map(|i| server.begin("/v1/images", &json!({"class": i, "seed": i, "n": 2}))).collect();
    // All of them are in; read so that an image on its way counts once at most.
    let counted = ["dpar_images_done_total", "dpar_rows_busy", "dpar_queue_images"];
    super::eventually("all images", || counted.iter().map(|name| server.metric(name)).sum::<f64>() >= 13.0);
    server.signal(SIGTERM);
    super::eventually("a closed port", || std::net::TcpStream::connect(server.address).is_err());
    for stream in waiting {
        assert_eq!(Answer::read(stream).good()["images"].as_array().unwrap().len(), 2);
    }
    assert_eq!(server.wait(), 0);

    let server = Server::start(&folder, &["--batch", "1"]);
    let _long = server.begin("/v1/images", &json!({"class": 1, "n": 64}));
    server.until("dpar_rows_busy", |n| n == 1.0);
    server.signal(SIGTERM);
    super::eventually("a closed port", || std::net::TcpStream::connect(server.address).is_err());
    server.signal(SIGTERM);
    assert_eq!(server.wait(), 130);
}

/// Libraries that are loaded in one thread do not bear that the process ends in another.
#[test]
#[cfg(unix)]
fn a_signal_while_bundles_are_opened_waits_for_the_one_at_hand_and_a_second_one_does_not() {
    use nix::sys::signal::{Signal::SIGTERM, raise};
    let asked_to_end = |asked: &AtomicBool| {
        raise(SIGTERM).unwrap();
        super::eventually("the signal", || asked.load(Ordering::Relaxed));
    };
    let opened = Arc::new(AtomicBool::new(false));
    let done = opened.clone();
    let prepared = HttpServer::new().unwrap().prepare(move |asked| {
        asked_to_end(asked);
        done.store(true, Ordering::Relaxed);
    });
    assert!(matches!(prepared, Ok(Err(Stopped::Finished))) && opened.load(Ordering::Relaxed));
    let prepared = HttpServer::new().unwrap().prepare(move |asked| {
        asked_to_end(asked);
        raise(SIGTERM).unwrap();
        std::thread::park();
    });
    assert!(matches!(prepared, Ok(Err(Stopped::Cancelled))));
}

#[test]
#[cfg(target_os = "linux")]
fn a_log_that_cannot_be_written_does_not_matter() {
    let temp = Temp::new();
    let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let folder = bundle(&temp);
    let server = Server::start_with(&folder, &["-v"], Stdio::from(full.into_parts().0));
    server.post("/v1/images", &json!({"class": 1})).good();
    server.get("/v1/nothing").refused(404);
    // Nobody reads it any more.
    let (reader, writer) = std::io::pipe().unwrap();
    let server = Server::start_with(&folder, &["-v", "--log-format", "json"], Stdio::from(writer));
    drop(reader);
    server.post("/v1/images", &json!({"class": 1})).good();
    server.get("/v1/nothing").refused(404);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let temp = Temp::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let program = assert_cmd::cargo::cargo_bin("dpar-export");
    let output =
        Command::new(program).args(["serve", bundle(&temp).as_str(), "--listen", &address]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains(&address), "{said}");
}

#[test]
fn the_document_says_where() {
    let temp = Temp::new();
    let program = assert_cmd::cargo::cargo_bin("dpar-export");
    let mut command = Command::new(program);
    command.args(["serve", bundle(&temp).as_str(), "--listen", "127.0.0.1:0", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut said, mut lines) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
    while !said.ends_with("\n}\n") {
        assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    crate::documents::hold(&["serve", "--json"], &said);
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["models"], json!(["emoji"]));
    assert!(document["url"].as_str().unwrap().starts_with("http://127.0.0.1:"));
}
