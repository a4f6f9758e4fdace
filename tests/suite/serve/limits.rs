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
fn waiting_has_an_end() {
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--batch", "1", "--queue-time", "1"]);
    let _first = server.begin("/v1/images", &json!({"class": 1, "n": 1}));
    let answer = server.post("/v1/images", &long());
    assert!(answer.refused(503).contains("no row became free within 1 s"));
    assert!(answer.header("retry-after").is_some());
}

/// The process is stopped while an image is in its row: no machine is too fast for that.
#[test]
#[cfg(unix)]
fn decoding_has_an_end() {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--batch", "1", "--decode-time", "1"]);
    let late = server.begin("/v1/images", &long());
    server.until("dpar_rows_busy", |n| n == 1.0);
    let mut times = 0;
    while server.metric("dpar_images_late_total") == 0.0 {
        assert!(times < 10, "never late");
        times += 1;
        server.signal(SIGSTOP);
        std::thread::sleep(Duration::from_millis(1100));
        server.signal(SIGCONT);
        // What the signal met between two images is seen at the next one.
        std::thread::sleep(Duration::from_millis(100));
    }
    let answer = Answer::read(late);
    assert!(
        answer.refused(503).contains("not complete within 1 s") && answer.header("retry-after").is_some()
    );
    assert_eq!(server.metric("dpar_images_late_total"), 1.0);
    server.until("dpar_rows_busy", |n| n == 0.0);
    server.post("/v1/images", &json!({"class": 2})).good();
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

/// Within the limit they cost neither answers nor much memory.
#[test]
#[cfg(target_os = "linux")]
fn a_thousand_idle_connections_do_not_matter() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const IDLE: usize = 1000;
    // The server inherits it.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = 3 * IDLE as u64;
    if soft < wanted {
        assert!(hard >= wanted, "this test opens {IDLE} connections: `ulimit -Hn` is {hard}");
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).unwrap();
    }
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--max-connections", "1010", "--idle-time", "600"]);
    let resident = || {
        let status = format!("/proc/{}/status", server.child.as_ref().unwrap().id());
        let status = fs_err::read_to_string(status).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap()
    };
    let before = resident();
    let mut idle: Vec<TcpStream> = (0..IDLE).map(|_| server.connect()).collect();
    // Half of them have begun to ask.
    idle.iter_mut().step_by(2).for_each(|stream| stream.write_all(b"POST /v1/im").unwrap());
    server.until("dpar_connections", |n| n == 1.0 + IDLE as f64);
    server.post("/v1/images", &json!({"class": 2})).good();
    let grown = resident() - before;
    assert!(grown < 64 << 10, "{grown} KiB for {IDLE} connections");
    drop(idle);
    server.until("dpar_connections", |n| n == 1.0);
}

/// Who reads slowly gets all of it, and nobody waits for them.
#[test]
fn a_reader_that_is_slow_but_reads_is_served() {
    const REQUESTS: usize = 1500;
    let temp = Temp::new();
    let server = Server::start(&bundle(&temp), &["--idle-time", "1"]);
    let one = server.get("/metrics").body.len();
    let mut stream = server.connect();
    let all = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(REQUESTS);
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(all.as_bytes()));
    // The buffers are full long before the end, and the server waits for them to empty.
    let (mut read, mut pieces, mut piece) = (0, 0, vec![0; 1 << 16]);
    let started = Instant::now();
    while read < (REQUESTS - 1) * one {
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "cut off after {read} bytes");
        (read, pieces) = (read + n, pieces + 1);
        if pieces % 50 == 10 {
            server.post("/v1/images", &json!({"class": 2})).good();
        }
        std::thread::sleep(Duration::from_millis(8));
    }
    writing.join().unwrap().unwrap();
    assert!(started.elapsed() > Duration::from_secs(1));
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
