//! The one place that writes to stdout and stderr.
//!
//! stdout is data: text for people, or one JSON document with `--json`. stderr is talk: progress bars (only on a
//! terminal), notes, errors, the log. Whatever comes from outside passes [`visible`] here, so no command has to think
//! of it: text is made of lines ([`Text`]), and a line stays one line whatever is put into it.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use clap::error::{ContextKind, ContextValue};
use dpar_export_args::stop::stopped;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::LogFormat;
use super::failure::Failure;
use super::log::record;
use crate::WorkPhase;
use crate::check::SCHEMA_VERSION;
use dpar_export_spec::escape::{visible, visible_json};

/// A program that calls commands: it gets what they would print, and is asked whether they shall go on.
pub trait Host {
    /// The JSON document of the command, as `--json` writes its numbers; of the few that have none, what they print, as a JSON
    /// text.
    fn result(&self, document: String);

    /// Whether the work shall end. Asked between its steps, perhaps very often.
    fn stopped(&self) -> bool;
}

/// How a command talks.
#[derive(Clone, Copy)]
pub(crate) struct Printer<'h> {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) log: LogFormat,
    /// Who is told, instead of stdout.
    pub(crate) host: Option<&'h dyn Host>,
}

impl<'h> Printer<'h> {
    /// The result of a command: `text` for people, `value` with `--json`. The values of the document are exact.
    pub(crate) fn result<T: Into<Text>>(
        self,
        text: impl FnOnce() -> T,
        value: &impl Serialize,
    ) -> Result<(), Failure> {
        if let Some(host) = self.host {
            host.result(serde_json::to_string(value).map_err(std::io::Error::from)?);
            return Ok(());
        }
        if !self.json {
            return self.raw(text().into().0.as_bytes());
        }
        let mut document =
            visible_json(&serde_json::to_string_pretty(value).map_err(std::io::Error::from)?).into_owned();
        document.push('\n');
        self.raw(document.as_bytes())
    }

    /// The same for a document that has no type with a version of its own: it gets that of all of them.
    pub(crate) fn document<T: Into<Text>>(
        self,
        text: impl FnOnce() -> T,
        mut value: Value,
    ) -> Result<(), Failure> {
        value["schema_version"] = SCHEMA_VERSION.into();
        self.result(text, &value)
    }

    /// A line that is a command to the CI system whose runner reads this log; records hold none.
    pub(crate) fn order(self, command: &str) {
        if self.log == LogFormat::Text {
            let _ = writeln!(std::io::stderr().lock(), "{command}");
        }
    }

    /// Bytes for stdout. A closed pipe is not an error: the reader has seen enough.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), Failure> {
        if let Some(host) = self.host {
            let text = String::from_utf8_lossy(bytes);
            host.result(serde_json::to_string(&text).map_err(std::io::Error::from)?);
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// The error that ends the command.
    pub(crate) fn failure(self, failure: &Failure) {
        let mut stderr = std::io::stderr().lock();
        if self.log == LogFormat::Json {
            let said = json!({
                "cause": failure.cause.word(), "message": failure.text(), "details": failure.details,
                "hint": failure.hint,
            });
            let _ = writeln!(stderr, "{}", record("error", said));
            return;
        }
        let bold = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let (on, off) = if bold { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let _ = writeln!(stderr, "{on}error:{off} {}", visible(&failure.text()));
        for detail in &failure.details {
            let _ = writeln!(stderr, "  {}", visible(detail));
        }
        if let Some(hint) = &failure.hint {
            let _ = writeln!(stderr, " hint: {}", visible(hint));
        }
    }

    /// A progress bar over `unit`s; invisible where stderr is no terminal.
    pub(crate) fn progress(self, what: &str, unit: &'static str) -> Bar<'h> {
        let text = self.log == LogFormat::Text;
        let shown = text && !self.quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = format!("{{msg:<12}} {{wide_bar}} {{pos}}/{{len}} {unit} {{per_sec}} eta {{eta}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message(visible(what).into_owned());
        if shown {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let records = (!text && !self.quiet).then(|| ProgressRecords::new(unit));
        Bar { bar, records, host: self.host }
    }
}

/// How far a piece of work is, as records: at its start and end, and in between not oftener than once a second.
struct ProgressRecords {
    unit: &'static str,
    last: Cell<Option<(Instant, u64)>>,
}

impl ProgressRecords {
    fn new(unit: &'static str) -> Self {
        Self { unit, last: Cell::new(None) }
    }

    fn tell(&self, bar: &ProgressBar) {
        const APART: Duration = Duration::from_secs(1);
        let (done, total) = (bar.position(), bar.length());
        let due = self
            .last
            .get()
            .is_none_or(|(when, last)| last != done && (Some(done) == total || when.elapsed() >= APART));
        if due {
            self.write(bar);
        }
    }

    /// How far it came, if that was not told: the end of work without a total, or of work that was given up.
    fn end(&self, bar: &ProgressBar) {
        if self.last.get().is_some_and(|(_, last)| last != bar.position()) {
            self.write(bar);
        }
    }

    fn write(&self, bar: &ProgressBar) {
        let (done, total) = (bar.position(), bar.length());
        self.last.set(Some((Instant::now(), done)));
        let said = json!({ "what": bar.message(), "unit": self.unit, "done": done, "total": total });
        let _ = writeln!(std::io::stderr().lock(), "{}", record("progress", said));
    }
}

/// A progress bar that also carries the wish to stop.
pub(crate) struct Bar<'h> {
    bar: ProgressBar,
    records: Option<ProgressRecords>,
    host: Option<&'h dyn Host>,
}

impl Bar<'_> {
    /// Whether the user asked to stop.
    fn stopped(&self) -> bool {
        stopped() || self.host.is_some_and(|host| host.stopped())
    }

    /// What every step ends with; false when the user asked to stop.
    fn shown(&self) -> bool {
        if let Some(records) = &self.records {
            records.tell(&self.bar);
        }
        !self.stopped()
    }

    /// Shows progress; false when the user asked to stop.
    pub(crate) fn advance(&self, done: usize, total: usize) -> bool {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.shown()
    }

    /// Begins behind what an earlier run did: the time that is left is told from what this one does.
    fn start(&self, done: usize) {
        self.bar.set_position(done as u64);
        self.bar.reset_eta();
    }

    /// Shows the phase of a piece of work; false when the user asked to stop.
    #[cfg(feature = "tensorrt")]
    pub(crate) fn phase(&self, what: &str, done: usize, total: usize) -> bool {
        self.bar.set_message(visible(what).into_owned());
        self.advance(done, total)
    }

    /// Shows what is being worked on; false when the user asked to stop.
    pub(crate) fn step(&self, what: &str) -> bool {
        self.bar.set_message(visible(what).into_owned());
        self.bar.inc(1);
        self.shown()
    }
}

/// A bar for each phase of a piece of work.
pub(crate) struct Phases<'h> {
    printer: Printer<'h>,
    shown: Option<(WorkPhase, Bar<'h>)>,
}

impl<'h> Phases<'h> {
    pub(crate) fn new(printer: Printer<'h>) -> Self {
        Self { printer, shown: None }
    }

    /// Shows how far a phase is; false when the user asked to stop.
    pub(crate) fn show(&mut self, phase: WorkPhase, done: usize, total: usize) -> bool {
        if self.shown.as_ref().is_none_or(|(shown, _)| *shown != phase) {
            // The bar before leaves its line first.
            self.shown = None;
            let bar = self.printer.progress(phase.name(), phase.unit());
            bar.start(done);
            self.shown = Some((phase, bar));
        }
        self.shown.as_ref().is_none_or(|(_, bar)| bar.advance(done, total))
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        if let Some(records) = &self.records {
            records.end(&self.bar);
        }
        self.bar.finish_and_clear();
    }
}

/// Text for people, line by line.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

impl Text {
    /// Adds a line. Line breaks in it are shown, not made.
    pub(crate) fn line(&mut self, line: impl Display) {
        self.0 += &visible(&line.to_string());
        self.0.push('\n');
    }

    /// All lines, each with its end.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Adds an empty line.
    pub(crate) fn gap(&mut self) {
        self.0.push('\n');
    }

    /// A text whose line breaks are its own, such as a script.
    pub(crate) fn of_lines(text: &str) -> Self {
        let mut own = Self::default();
        text.lines().for_each(|line| own.line(line));
        own
    }
}

impl AddAssign for Text {
    fn add_assign(&mut self, more: Self) {
        self.0 += &more.0;
    }
}

impl From<String> for Text {
    fn from(line: String) -> Self {
        let mut text = Self::default();
        text.line(line);
        text
    }
}

/// What one does first, for who has typed no more than the program's name.
const FIRST_STEPS: &str = "\
dpar-export turns trained DPAR and LlamaGen checkpoints into ONNX bundles, runs them and verifies them.

To begin with:
  dpar-export demo                        export a small trained system, draw images, verify it: half a minute
  dpar-export doctor                      which engines can run on this machine, and why not
  dpar-export CHECKPOINT -o BUNDLE        export a checkpoint of your own, then inspect, generate, verify BUNDLE

All commands and options: dpar-export --help
";

/// Answers an empty command line.
pub(crate) fn first_steps() -> Result<(), std::io::Error> {
    std::io::stderr().lock().write_all(FIRST_STEPS.as_bytes())
}

/// Says why a command line cannot be taken, or prints the help that was asked for.
pub(crate) fn refused(mut error: clap::Error) -> Result<(), std::io::Error> {
    if !error.use_stderr() {
        return match error.print().and_then(|()| std::io::stdout().flush()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        };
    }
    // Its layout has line breaks, the words in it have none.
    let words: Vec<_> = error.context().filter(|(kind, _)| *kind != ContextKind::Usage).collect();
    let shown: Vec<_> = words.into_iter().map(|(kind, value)| (kind, visible_words(value))).collect();
    for (kind, value) in shown {
        error.insert(kind, value);
    }
    write!(std::io::stderr().lock(), "{}", Text::of_lines(&error.render().to_string()).0)
}

fn visible_words(value: &ContextValue) -> ContextValue {
    let one = |text: &str| visible(text).into_owned();
    match value {
        ContextValue::String(text) => ContextValue::String(one(text)),
        ContextValue::Strings(all) => ContextValue::Strings(all.iter().map(|t| one(t)).collect()),
        ContextValue::StyledStr(text) => ContextValue::StyledStr(one(&text.to_string()).into()),
        ContextValue::StyledStrs(all) => {
            ContextValue::StyledStrs(all.iter().map(|t| one(&t.to_string()).into()).collect())
        }
        other => other.clone(),
    }
}

/// A number with so many digits behind the point; one that they do not show has no sign.
pub(crate) fn fixed(value: f64, digits: usize) -> String {
    without_sign_of_zero(format!("{value:.digits$}"))
}

/// The same of a difference, whose sign is also shown where it is +.
pub(crate) fn signed(value: f64, digits: usize) -> String {
    without_sign_of_zero(format!("{value:+.digits$}"))
}

fn without_sign_of_zero(text: String) -> String {
    match text.strip_prefix(['-', '+']) {
        Some(zero) if zero.bytes().all(|b| b"0.".contains(&b)) => zero.to_owned(),
        _ => text,
    }
}

/// Cells are padded up to this width; a longer one moves its own line only.
const WIDEST: usize = 120;

/// A table with columns aligned on the left, for stdout.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> Text {
    let shown: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let header: Vec<Cow<'_, str>> = header.iter().map(|cell| visible(cell)).collect();
    let length = |cell: &str| cell.chars().count();
    let width = |i: usize| {
        let cells = shown.iter().filter_map(|r| r.get(i)).chain([&header[i]]).map(|c| length(c));
        cells.max().unwrap_or(0).min(WIDEST)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = Text::default();
    let mut line = |cells: &[Cow<'_, str>]| {
        let pad = |(cell, width): (&Cow<'_, str>, &usize)| {
            format!("{cell}{}", " ".repeat(width.saturating_sub(length(cell))))
        };
        let padded: Vec<String> = cells.iter().zip(&widths).map(pad).collect();
        text.line(padded.join("  ").trim_end());
    };
    line(&header);
    line(&widths.iter().map(|w| "-".repeat(*w).into()).collect::<Vec<_>>());
    shown.iter().for_each(|row| line(row));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_the_digits_do_not_show_has_no_sign() {
        for (value, plain, with_sign) in [
            (-4e-7, "0.000000", "0.000000"),
            (-0.0, "0.000000", "0.000000"),
            (4e-7, "0.000000", "0.000000"),
            (-6e-7, "-0.000001", "-0.000001"),
            (1.5, "1.500000", "+1.500000"),
            (f64::NEG_INFINITY, "-inf", "-inf"),
        ] {
            assert_eq!((fixed(value, 6).as_str(), signed(value, 6).as_str()), (plain, with_sign));
        }
    }
}
