//! The one place that writes to stdout and stderr.
//!
//! stdout is data: text for people, or one JSON document with `--json`. stderr is talk: progress bars (only on a
//! terminal), notes, errors.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::failure::Failure;

/// Set by Ctrl-C; long work asks for it.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop.
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// How a command talks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Printer {
    /// The result of a command: `text` for people, `value` with `--json`.
    pub(crate) fn result(self, text: impl FnOnce() -> String, value: &impl Serialize) -> Result<(), Failure> {
        let mut out = if self.json { serde_json::to_string_pretty(value)? } else { text() };
        if !out.ends_with('\n') {
            out.push('\n');
        }
        self.raw(out.as_bytes())
    }

    /// Bytes for stdout. A closed pipe is not an error: the reader has seen enough.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// The error that ends the command.
    pub(crate) fn failure(self, failure: &Failure) {
        let mut stderr = std::io::stderr().lock();
        let bold = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let (on, off) = if bold { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let _ = writeln!(stderr, "{on}error:{off} {}", failure.text());
        if let Some(hint) = &failure.hint {
            let _ = writeln!(stderr, " hint: {hint}");
        }
    }

    /// A progress bar over `unit`s; invisible where stderr is no terminal.
    pub(crate) fn progress(self, what: &str, unit: &'static str) -> Bar {
        let visible = !self.quiet && std::io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = format!("{{msg:<12}} {{wide_bar}} {{pos}}/{{len}} {unit} {{per_sec}} eta {{eta}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        if visible {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Bar(bar)
    }
}

/// A progress bar that also carries the wish to stop.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Shows progress; false when the user asked to stop.
    pub(crate) fn advance(&self, done: usize, total: usize) -> bool {
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
        !stopped()
    }

    /// Begins behind what an earlier run did: the time that is left is told from what this one does.
    pub(crate) fn start(&self, done: usize) {
        self.0.set_position(done as u64);
        self.0.reset_eta();
    }

    /// Shows the phase of a piece of work; false when the user asked to stop.
    pub(crate) fn phase(&self, what: &str, done: usize, total: usize) -> bool {
        self.0.set_message(what.to_owned());
        self.advance(done, total)
    }

    /// Shows what is being worked on; false when the user asked to stop.
    pub(crate) fn step(&self, what: &str) -> bool {
        self.0.set_message(what.to_owned());
        self.0.inc(1);
        !stopped()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A table with columns aligned on the left, for stdout.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([header[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        // By hand: a format width above 65,535 is a panic.
        let pad = |(c, w): (&str, &usize)| c.to_owned() + &" ".repeat(w.saturating_sub(c.chars().count()));
        let padded: Vec<String> = cells.zip(&widths).map(pad).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut header.iter().copied());
    text += &line(&mut widths.iter().map(|w| "-".repeat(*w)).collect::<Vec<_>>().iter().map(String::as_str));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}
