//! The log on stderr: lines for people, or with `--log-format json` records, one JSON object a line.

use std::fmt;
use std::io::Write;
use std::sync::LazyLock;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::args::{LogFormat, TalkArgs};
use dpar_export_spec::escape::{visible, visible_json};

/// When this process began to talk.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Starts the log.
pub(super) fn start(talk: &TalkArgs) {
    LazyLock::force(&START);
    let default = match (talk.quiet, talk.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "dpar=info,dpar_export=info,warn",
        (false, 2) => "debug",
        _ => "trace",
    };
    let said = std::env::var("RUST_LOG");
    let (filter, unread) = match &said {
        Err(std::env::VarError::NotPresent) => (default.into(), None),
        Ok(text) if text.is_empty() => (default.into(), None),
        Err(e) => (default.into(), Some(e.to_string())),
        Ok(text) => match EnvFilter::try_new(text) {
            Ok(filter) => (filter, None),
            Err(e) => (default.into(), Some(e.to_string())),
        },
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .with_ansi(false)
        .without_time()
        // A log that cannot be written is lost; the work is not.
        .log_internal_errors(false);
    let started = match talk.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.event_format(Records).try_init(),
    };
    if started.is_err() {
        // Who runs this has a log of its own.
        return;
    }
    if let Some(e) = unread {
        tracing::warn!("RUST_LOG is not read, and `{default}` is taken instead: {e}");
    }
}

/// A record: its kind, seconds since the program began, and what it says.
pub(super) fn record(kind: &str, said: Value) -> String {
    let mut record = json!({ "kind": kind, "seconds": START.elapsed().as_secs_f64() });
    if let (Some(record), Value::Object(said)) = (record.as_object_mut(), said) {
        record.extend(said);
    }
    visible_json(&record.to_string()).into_owned()
}

/// An event comes in one piece, and is one line whatever its values hold.
struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        writeln!(std::io::stderr().lock(), "{}", visible(line))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Events as records of the kind `log`.
struct Records;

impl<S, N> FormatEvent<S, N> for Records
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_default();
        let metadata = event.metadata();
        let said = json!({
            "level": metadata.level().as_str().to_ascii_lowercase(), "target": metadata.target(),
            "message": message, "fields": fields.0,
        });
        writeln!(out, "{}", record("log", said))
    }
}

/// The values of an event.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}
