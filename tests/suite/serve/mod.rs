//! `serve`: a real server on loopback, and clients of a few lines.

mod broken;
mod faults;
mod images;
mod limits;
mod protocols;
mod tls;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use dpar_export_checkpoint::LoadOptions;
use serde_json::Value;

use crate::common::{Temp, export};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server, killed when it is dropped where it is a process of its own.
pub(crate) struct Server {
    child: Option<Child>,
    address: SocketAddr,
}

impl Server {
    /// Waits until it serves.
    pub(crate) fn start(bundle: &Utf8Path, more: &[&str]) -> Self {
        Self::start_with(bundle, more, Stdio::null())
    }

    fn start_with(bundle: &Utf8Path, more: &[&str], stderr: Stdio) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("dpar-export"));
        command.args(["serve", bundle.as_str(), "--listen", "127.0.0.1:0"]).args(more).env_remove("RUST_LOG");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().split_once("://").unwrap_or_else(|| panic!("said `{line}`")).1;
        Self { address: address.parse().unwrap(), child: Some(child) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A request with these lines behind its first and the host's.
    fn send(&self, first: &str, headers: &[&str], body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!("{first} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        headers.iter().for_each(|line| head += &format!("{line}\r\n"));
        head += &format!("content-length: {}\r\n\r\n", body.len());
        // A server that has seen enough may answer and close before the end.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        stream
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        Answer::read(self.send(&format!("GET {path}"), &[], b""))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::read(self.begin(path, body))
    }

    /// A request whose answer is not read yet.
    fn begin(&self, path: &str, body: &Value) -> TcpStream {
        self.begin_raw(path, &body.to_string())
    }

    fn begin_raw(&self, path: &str, body: &str) -> TcpStream {
        self.send(&format!("POST {path}"), &["content-type: application/json"], body.as_bytes())
    }

    /// The value of a metric, all labels together.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let lines = text.lines().filter(|l| l.split(['{', ' ']).next() == Some(name));
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric is as wanted.
    fn until(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        eventually(name, || wanted(self.metric(name)));
    }

    #[cfg(unix)]
    fn signal(&self, signal: nix::sys::signal::Signal) {
        let process = nix::unistd::Pid::from_raw(self.child.as_ref().unwrap().id() as i32);
        nix::sys::signal::kill(process, signal).unwrap();
    }

    /// Its exit code, once it has ended.
    fn wait(mut self) -> i32 {
        let mut code = None;
        eventually("the end of the server", || {
            code = self.child.as_mut().unwrap().try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn read(mut stream: impl Read) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|l| l.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunked(&answer.body);
        }
        answer
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The document of an answer that must be a good one.
    fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The message of an answer that must be an error of this status.
    fn refused(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap().trim(), 16).unwrap();
        let chunk = &body[end + 2..];
        whole.extend_from_slice(&chunk[..size.min(chunk.len())]);
        body = chunk.get(size + 2..).unwrap_or_default();
    }
    whole
}

/// The trained system with its tokenizer.
fn bundle(temp: &Temp) -> camino::Utf8PathBuf {
    let folder = temp.path("emoji");
    export("emoji32/dpar", &LoadOptions::default(), &folder);
    folder
}
