//! A service of this program on loopback, and a client of a few lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running service. It ends with this value.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Served {
    /// Waits until it serves.
    pub(crate) fn start(program: &Utf8Path, bundle: &Utf8Path, more: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(["serve", bundle.as_str(), "--listen", "127.0.0.1:0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("`{program}` cannot be started"))?;
        let mut line = String::new();
        let out = child.stdout.take().context("it has no output")?;
        BufReader::new(out).read_line(&mut line)?;
        let address = line.trim().strip_prefix("serving at http://").and_then(|a| a.parse().ok());
        let Some(address) = address else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("`serve` did not begin: it said `{}`", line.trim());
        };
        Ok(Self { child, address })
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Seconds that its threads have computed so far.
    pub(crate) fn computed(&self) -> Result<f64> {
        Ok(Computed::of(&self.id().to_string())?.own)
    }

    /// What `GET /metrics` says.
    pub(crate) fn metrics(&self) -> Result<String> {
        let (status, body) = Client::connect(self.address)?.send("GET /metrics", "")?;
        if status != 200 {
            bail!("GET /metrics: {status}");
        }
        Ok(String::from_utf8(body)?)
    }

    /// Bytes that it had in memory at most.
    pub(crate) fn peak(&self) -> Result<u64> {
        let status = fs_err::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
        Ok(kib.context("the system does not say how much memory it takes")? << 10)
    }
}

/// Seconds that processes have computed, in all their threads.
pub(crate) struct Computed {
    pub(crate) own: f64,
    /// Of those that it started and that have ended.
    pub(crate) children: f64,
}

impl Computed {
    /// Of a process by its number, or of this one (`self`).
    pub(crate) fn of(process: &str) -> Result<Self> {
        let stat = fs_err::read_to_string(format!("/proc/{process}/stat"))?;
        Self::read(&stat).context("the system does not say how long it computed")
    }

    /// Linux counts in hundredths of seconds, user and system apart.
    fn read(stat: &str) -> Option<Self> {
        // The name before may hold anything.
        let numbers: Vec<f64> = stat.rsplit_once(')')?.1.split_whitespace().flat_map(str::parse).collect();
        let [user, system, of_children, and_system] = numbers.get(10..14)? else { return None };
        Some(Self { own: (user + system) / 100.0, children: (of_children + and_system) / 100.0 })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that is used again and again.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Client {
    pub(crate) fn connect(host: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), host })
    }

    /// Sends a JSON document; status and body of the answer.
    pub(crate) fn post(&mut self, path: &str, body: &str) -> Result<(u16, Vec<u8>)> {
        self.send(&format!("POST {path}"), body)
    }

    fn send(&mut self, what: &str, body: &str) -> Result<(u16, Vec<u8>)> {
        let length = body.len();
        let request = format!(
            "{what} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}",
            self.host
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("the connection ended");
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            match line.split_once(':') {
                Some(("content-length", n)) => length = n.trim().parse()?,
                _ if status.is_none() => status = line.split(' ').nth(1).and_then(|s| s.parse().ok()),
                _ => {}
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok((status.context("the answer has no status")?, answer))
    }
}

/// Exports the trained system into a folder.
pub(crate) fn emoji32(root: &Utf8Path, program: &Utf8Path, out: &Utf8Path) -> Result<Utf8PathBuf> {
    fs_err::create_dir_all(out)?;
    let (fixture, bundle) = (root.join("fixtures/emoji32/dpar"), out.join("emoji32"));
    run_quietly(program, &[fixture.as_str(), "-o", bundle.as_str(), "--force"])?;
    Ok(bundle)
}

/// Runs the program, and gives what it says on its output.
pub(crate) fn run_quietly(program: &Utf8Path, args: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program).args(args).arg("--quiet").stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("`{program} {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_whatever_the_process_is_called() {
        let stat = "17 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 1000 20 20 0 4 0 99";
        let read = Computed::read(stat).unwrap();
        assert_eq!((read.own, read.children), (3.0, 10.2));
        assert!(Computed::read("17 (a) S 1 2").is_none());
    }
}
