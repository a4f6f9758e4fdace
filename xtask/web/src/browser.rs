//! A headless Chromium over the DevTools protocol's pipe: messages as JSON, each ended by a zero byte.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::Utf8Path;
use serde_json::{Value, json};

/// Names of the program, in the order of preference.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// A page or an answer that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// The browser that is installed, if any.
pub fn program() -> Option<&'static str> {
    let works = |program: &&str| {
        let run = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|s| s.success())
    };
    PROGRAMS.into_iter().find(works)
}

/// How a page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Pixels; below 600 it is a phone.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// `light` or `dark`.
    pub scheme: &'static str,
}

/// A running browser with a profile of its own. It ends with this value.
pub struct Browser {
    child: Child,
    to: fs_err::File,
    from: Receiver<Value>,
    events: VecDeque<Value>,
    next: u64,
    target: Option<String>,
    /// Holds the profile and the pipes.
    _folder: tempfile::TempDir,
}

impl Browser {
    /// Starts the browser; `log` is the folder for what it says.
    ///
    /// # Errors
    /// When there is none, or it does not start.
    pub fn start(log: &Utf8Path) -> Result<Self> {
        let program = program().context(
            "no chromium, chromium-browser or google-chrome: run `cargo xtask setup`, or install the Debian package chromium",
        )?;
        let folder = tempfile::tempdir()?;
        let path = Utf8Path::from_path(folder.path()).context("the folder's name is not UTF-8")?;
        let (to, from) = (path.join("to"), path.join("from"));
        let made =
            Command::new("mkfifo").args([&to, &from]).status().context("`mkfifo` cannot be started")?;
        if !made.success() {
            bail!("mkfifo failed: {made}");
        }
        // The protocol's pipes are the file descriptors 3 and 4, which the shell opens.
        let script = "to=$1; from=$2; shift 2; exec \"$@\" 3<\"$to\" 4>\"$from\"";
        let talk = fs_err::File::create(log.join("chromium.log"))?;
        let child = Command::new("sh")
            .args(["-c", script, "sh", to.as_str(), from.as_str(), program])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--no-first-run", "--disable-quic", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", path.join("profile")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(talk.into_file())
            .spawn()
            .context("`sh` cannot be started")?;
        let to = fs_err::OpenOptions::new().write(true).open(&to)?;
        let mut reader = BufReader::new(fs_err::File::open(&from)?);
        let (send, receive) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while reader.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                let body = message.strip_suffix(&[0]).unwrap_or(&message);
                if serde_json::from_slice(body).is_ok_and(|value| send.send(value).is_err()) {
                    return;
                }
                message.clear();
            }
        });
        let (events, next, target) = (VecDeque::new(), 0, None);
        Ok(Self { child, to, from: receive, events, next, target, _folder: folder })
    }

    /// Its name and version.
    ///
    /// # Errors
    /// When the browser ended.
    pub fn version(&mut self) -> Result<String> {
        let answer = self.send(None, "Browser.getVersion", json!({}))?;
        Ok(answer["product"].as_str().unwrap_or("a browser").to_owned())
    }

    /// Opens an empty tab, and gives the session that speaks to it.
    pub(crate) fn tab(&mut self) -> Result<String> {
        let target = self.send(None, "Target.createTarget", json!({ "url": "about:blank" }))?;
        let target = target["targetId"].as_str().context("no tab was opened")?.to_owned();
        let attach = json!({ "targetId": target, "flatten": true });
        let session = self.send(None, "Target.attachToTarget", attach)?;
        self.target = Some(target);
        let session = session["sessionId"].as_str().context("the tab does not answer")?.to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&session, &format!("{domain}.enable"), json!({}))?;
        }
        Ok(session)
    }

    /// Closes the tab.
    pub(crate) fn close(&mut self, _session: &str) -> Result<()> {
        if let Some(target) = self.target.take() {
            self.send(None, "Target.closeTarget", json!({ "targetId": target }))?;
        }
        Ok(())
    }

    /// Shows a page, uses it, takes a screenshot of all of it, and says what is wrong with it.
    ///
    /// # Errors
    /// When the browser ended, or does not do what it is told; what `used` returns.
    pub fn visit(
        &mut self,
        url: &str,
        View { width, height, scheme }: View,
        shot: &Utf8Path,
        used: impl FnOnce(&mut Self, &str) -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        let tab = self.tab()?;
        let screen =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call(&tab, "Emulation.setDeviceMetricsOverride", screen)?;
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(&tab, "Emulation.setEmulatedMedia", json!({ "features": features }))?;
        self.forget();
        self.call(&tab, "Page.navigate", json!({ "url": url }))?;
        self.wait_for("Page.loadEventFired")?;
        let wrong = used(self, &tab)?;
        let script = json!({ "expression": include_str!("report.js"), "returnByValue": true });
        let answer = self.call(&tab, "Runtime.evaluate", script)?;
        let list = answer["result"]["value"]
            .as_array()
            .with_context(|| format!("the page check failed: {answer}"))?;
        let mut problems = wrong;
        problems.extend(list.iter().filter_map(|p| p.as_str().map(str::to_owned)));
        let options = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.call(&tab, "Page.captureScreenshot", options)?;
        let bytes = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            picture["data"].as_str().unwrap_or_default(),
        )?;
        fs_err::write(shot, bytes)?;
        for event in self.events() {
            let params = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.consoleAPICalled" => problems.push(format!("console: {}", params["args"])),
                "Runtime.exceptionThrown" => {
                    problems.push(format!("console: {}", params["exceptionDetails"]))
                }
                "Log.entryAdded" => problems.push(format!("console: {}", params["entry"]["text"])),
                "Network.requestWillBeSent" => {
                    let asked = params["request"]["url"].as_str().unwrap_or_default();
                    // A service's page asks the service.
                    let own = asked == url || (url.starts_with("http:") && asked.starts_with(url));
                    if !own && !asked.starts_with("data:") {
                        problems.push(format!("request: {asked}"));
                    }
                }
                _ => {}
            }
        }
        self.close(&tab)?;
        Ok(problems)
    }

    /// Calls a method in a tab.
    pub(crate) fn call(&mut self, session: &str, method: &str, params: Value) -> Result<Value> {
        self.send(Some(session), method, params)
    }

    /// Forgets the events so far.
    pub(crate) fn forget(&mut self) {
        self.events.clear();
    }

    /// The events since then.
    pub(crate) fn events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    /// Waits for an event, and keeps it.
    pub(crate) fn wait_for(&mut self, method: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.events.iter().any(|e| e["method"] == method) {
            let message = self.receive(until, method)?;
            self.events.push_back(message);
        }
        Ok(())
    }

    fn receive(&mut self, until: Instant, what: &str) -> Result<Value> {
        match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) => bail!("{what}: no answer in {} s", PATIENCE.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{what}: the browser ended; see out/report/chromium.log")
            }
        }
    }

    fn send(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes).with_context(|| format!("{method}: the browser ended"))?;
        let until = Instant::now() + PATIENCE;
        loop {
            let mut message = self.receive(until, method)?;
            if message["id"] == id {
                if !message["error"].is_null() {
                    bail!("{method}: {}", message["error"]);
                }
                return Ok(message["result"].take());
            }
            if message["method"].is_string() {
                self.events.push_back(message);
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The shell became the browser, so this is its process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
