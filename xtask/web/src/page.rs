//! `cargo xtask page-check`: the page of `serve` in a real browser: it draws an image, and what it shows of it is looked at by its
//! structure; keys, and the width of a phone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::Utf8Path;
use serde_json::{Value, json};

use crate::browser::{Browser, View};
use crate::served::{Served, run_quietly};

/// Screenshots, ignored by git.
const OUT: &str = "out/report";
/// Longest that an image may take.
const PATIENCE: Duration = Duration::from_secs(60);
const VIEWS: [(&str, View); 2] = [
    ("page", View { width: 1280, height: 900, scheme: "light" }),
    ("page-phone", View { width: 360, height: 780, scheme: "dark" }),
];
/// What the tabulator goes through, from the top.
const ORDER: [&str; 6] = ["class", "seed", "cfg", "threshold", "edges", "draw"];

/// Serves the trained system with this program and draws in its page.
///
/// # Errors
/// What is wrong with the page; when there is no browser, or the program does not serve.
pub fn run(root: &Utf8Path, program: &Utf8Path) -> Result<()> {
    let out = root.join(OUT);
    fs_err::create_dir_all(&out)?;
    let bundle = out.join("page-bundle");
    let fixture = root.join("fixtures/emoji32/dpar");
    run_quietly(program, &[fixture.as_str(), "-o", bundle.as_str(), "--force"])?;
    let server = Served::start(program, &bundle, &[])?;
    let url = format!("http://{}/", server.address);
    let mut browser = Browser::start(&out)?;
    println!("{}", browser.version()?);
    let mut problems = Vec::new();
    for (name, view) in VIEWS {
        let found = browser.visit(&url, view, &out.join(format!("{name}.png")), |browser, tab| {
            PageTab { browser, tab }.used()
        })?;
        problems.extend(found.into_iter().map(|p| format!("{name}: {p}")));
    }
    if !problems.is_empty() {
        bail!("{} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    println!("the page draws, in {} views: screenshots in {OUT}", VIEWS.len());
    Ok(())
}

/// The page in a tab.
struct PageTab<'b> {
    browser: &'b mut Browser,
    tab: &'b str,
}

impl PageTab<'_> {
    fn evaluate(&mut self, script: &str) -> Result<Value> {
        let ask = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.browser.call(self.tab, "Runtime.evaluate", ask)?;
        if !answer["exceptionDetails"].is_null() {
            bail!("{script}: {}", answer["exceptionDetails"]);
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression holds.
    fn until(&mut self, what: &str) -> Result<()> {
        let started = Instant::now();
        while self.evaluate(what)? != true {
            if started.elapsed() > PATIENCE {
                bail!(
                    "waited in vain for {what}: the page says {}",
                    self.evaluate("by('said').textContent")?
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Presses a key as a user does.
    fn press(&mut self, key: &str, code: u32) -> Result<()> {
        let text = match key {
            "Enter" => "\r",
            one if one.chars().count() == 1 => one,
            _ => "",
        };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event =
                json!({ "type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code });
            self.browser.call(self.tab, "Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Draws with the keyboard alone, and says what is wrong.
    fn used(&mut self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        self.until("models.length > 0")?;
        // The tabulator finds everything, in the order in which it stands.
        let mut reached = Vec::new();
        for _ in 0..ORDER.len() {
            self.press("Tab", 9)?;
            reached.push(self.evaluate("document.activeElement.id")?);
        }
        if reached != ORDER {
            problems.push(format!("the tabulator goes through {reached:?}"));
        }
        if self.evaluate("getComputedStyle(by('draw')).outlineStyle")? != "solid" {
            problems.push("what has the focus is not marked".to_owned());
        }
        self.press("Enter", 13)?;
        self.until("by('said').textContent.endsWith('complete.')")?;
        let found = self.evaluate(include_str!("page.js"))?;
        let found = found.as_array().context("page.js gave no list")?;
        problems.extend(found.iter().filter_map(|p| p.as_str().map(str::to_owned)));
        // Another seed is another image, and the strip brings the first one back.
        let picture = "by('image').toDataURL()";
        let first = self.evaluate(picture)?;
        self.evaluate("by('draw').blur()")?;
        self.press("n", 78)?;
        self.until("document.querySelectorAll('#history button').length === 2 && stop === null")?;
        if self.evaluate("by('seed').value")? != "1" || self.evaluate(picture)? == first {
            problems.push("`n` draws no other image".to_owned());
        }
        self.evaluate("document.querySelectorAll('#history button')[1].click()")?;
        if self.evaluate(picture)? != first || self.evaluate("by('seed').value")? != "0" {
            problems.push("the strip does not bring the first image back".to_owned());
        }
        // Another threshold is other steps.
        let steps = self.evaluate("shown.patches.length")?;
        self.evaluate("by('threshold').value = by('threshold').max; nats(); draw()")?;
        if self.evaluate("shown.patches.length")? == steps {
            problems.push("the threshold changes nothing".to_owned());
        }
        // Stopped before the first answer can be there.
        self.evaluate("draw(); document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")?;
        self.until("by('said').textContent === 'Stopped.'")?;
        let outside = "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && !e.closest('#history') && \
             e.getBoundingClientRect().right > innerWidth).map(e => e.id || e.tagName)";
        let outside = self.evaluate(outside)?;
        if outside != json!([]) {
            problems.push(format!("beyond the edge: {outside}"));
        }
        Ok(problems)
    }
}
