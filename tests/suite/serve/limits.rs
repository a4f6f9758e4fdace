//! More than the server takes is refused at once, and who goes away makes room.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answer, Server, bundle, eventually};
use crate::common::Temp;

/// Images that keep a server of one row busy for as long as a test asks other things.
fn long() -> Value {
    json!({"class": 1, "n": 64})
}

#[test]
fn a_client_that_goes_away_frees_its_row() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--batch", "1"]);
    let client = server.begin("/v1/images", &long());
    server.until("dpar_rows_busy", |n| n == 1.0);
    drop(client);
    server.until("dpar_images_dropped_total", |n| n > 0.0);
    server.until("dpar_rows_busy", |n| n == 0.0);
    assert!(server.metric("dpar_images_done_total") < 64.0);
    assert_eq!(server.metric("dpar_queue_images"), 0.0);
    server.post("/v1/images", &json!({"class": 2})).good();
}

#[test]
fn a_full_queue_is_said_at_once() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--batch", "1", "--max-queue", "8"]);
    let _first = server.begin("/v1/images", &long());
    server.until("dpar_queue_images", |n| n > 8.0);
    let answer = server.post("/v1/images", &json!({"class": 2}));
    assert!(answer.refused(429).contains("wait already, 8 may"));
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(server.metric("dpar_queue_full_total"), 1.0);
    let many = server.post("/v1/images", &json!({"class": 2, "n": 65}));
    assert!(many.refused(400).contains("64 are allowed"));
}

#[test]
fn waiting_and_decoding_have_an_end() {
    let temp = Temp::new();
    let folder = bundle(&temp);
    let server = Server::start(&folder, &["--batch", "1", "--queue-time", "1"]);
    let _first = server.begin("/v1/images", &json!({"class": 1, "n": 1}));
    let answer = server.post("/v1/images", &long());
    assert!(answer.refused(503).contains("no row became free within 1 s"));
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn a_body_has_a_size_and_must_come() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--idle-time", "1"]);
    let large = format!("{{\"model\": \"{}\"}}", "x".repeat(10_000_000));
    let answer = Answer::read(server.begin_raw("/v1/images", &large));
    assert!(answer.refused(413).contains("1048576 bytes"));
    // Half of it, and then nothing.
    let head = "content-type: application/json\r\ncontent-length: 100\r\n";
    let start = format!("POST /v1/images HTTP/1.1\r\nhost: localhost\r\n{head}\r\n{{\"class\"");
    let mut waiting = server.connect();
    waiting.write_all(start.as_bytes()).unwrap();
    let mut said = String::new();
    waiting.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    // Half of it, and then the end.
    let mut gone = server.connect();
    gone.write_all(start.as_bytes()).unwrap();
    drop(gone);
    // Half of the head.
    let mut slow = server.connect();
    slow.write_all(b"POST /v1/images HT").unwrap();
    said.clear();
    let _ = slow.read_to_string(&mut said);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    server.until("dpar_connections", |n| n == 1.0);
}

#[test]
fn idle_connections_do_not_shut_others_out() {
    const IDLE: usize = 300;
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--max-connections", "32", "--idle-time", "2"]);
    let mut idle: Vec<TcpStream> = (0..IDLE).map(|_| server.connect()).collect();
    // Over the limit: said, not kept waiting.
    let mut said = String::new();
    let refused = idle.iter_mut().skip(32).find_map(|stream| {
        said.clear();
        stream.read_to_string(&mut said).ok().filter(|n| *n > 0)
    });
    assert!(refused.is_some() && said.starts_with("HTTP/1.1 503 "), "{said}");
    // Those within the limit end by themselves, and the server is there again.
    eventually("room", || {
        let mut stream = server.connect();
        let asked = stream
            .write_all(b"GET /v2/health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let mut said = String::new();
        asked.is_ok() && stream.read_to_string(&mut said).is_ok() && said.starts_with("HTTP/1.1 200 ")
    });
    drop(idle);
}

#[test]
fn a_reader_that_does_not_read_is_let_go() {
    const REQUESTS: usize = 4000;
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--idle-time", "1"]);
    let mut stream = server.connect();
    let all = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(REQUESTS);
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    // Either all of it goes into buffers, or the server ends the connection meanwhile.
    let _ = stream.write_all(all.as_bytes());
    let started = Instant::now();
    server.until("dpar_connections", |n| n == 1.0);
    assert!(started.elapsed() < Duration::from_secs(60));
    // What was not written is not there.
    let (mut read, mut piece) = (0, vec![0; 1 << 16]);
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        read += n;
    }
    let one = server.get("/metrics").body.len();
    assert!(read < REQUESTS * one, "{read} bytes of {REQUESTS} times {one}");
}
