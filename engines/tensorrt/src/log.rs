//! TensorRT's log. A process has one logger, because TensorRT keeps the first one it is given; what one call says is
//! collected by thread, so that an error can quote it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use dpar_engine_api::EngineError;
use trtx::{LogHandler, Logger, Severity};

use crate::library::CORE;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogRecord {
    pub(crate) severity: Severity,
    pub(crate) text: String,
}

impl LogRecord {
    pub(crate) fn is_error(&self) -> bool {
        self.severity <= Severity::Error
    }
}

/// What a collector gathers into.
#[derive(Debug)]
struct LogSink {
    owner: ThreadId,
    records: Mutex<Vec<LogRecord>>,
}

/// The collectors in use.
static SINKS: Mutex<Vec<Arc<LogSink>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gathers warnings and errors from its creation to [`Collector::finish`] or its end: those of the thread that made
/// it, and those of threads that belong to no collector (TensorRT's own).
#[derive(Debug)]
pub(crate) struct Collector(Arc<LogSink>);

impl Collector {
    pub(crate) fn start() -> Self {
        let sink = Arc::new(LogSink { owner: std::thread::current().id(), records: Mutex::default() });
        lock(&SINKS).push(Arc::clone(&sink));
        Self(sink)
    }

    /// What was said so far, oldest first.
    pub(crate) fn take(&self) -> Vec<LogRecord> {
        std::mem::take(&mut lock(&self.0.records))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        lock(&SINKS).retain(|s| !Arc::ptr_eq(s, &self.0));
    }
}

/// Puts a message into the collectors it belongs to; false if there is none.
fn collect(record: &LogRecord) -> bool {
    let here = std::thread::current().id();
    let sinks: Vec<Arc<LogSink>> = lock(&SINKS).clone();
    let owned = sinks.iter().any(|s| s.owner == here);
    for sink in sinks.iter().filter(|s| s.owner == here || !owned) {
        lock(&sink.records).push(record.clone());
    }
    !sinks.is_empty()
}

/// Advice to programs that bind 32-bit integers, given for every integer port; this one binds 64-bit ones.
fn is_noise(text: &str) -> bool {
    text.ends_with("has Int64 binding.")
}

struct Forward;

impl LogHandler for Forward {
    fn log(&self, severity: Severity, message: &str) {
        let text = message.trim_end();
        match severity {
            Severity::Verbose => tracing::trace!(target: "tensorrt", "{text}"),
            Severity::Info => tracing::debug!(target: "tensorrt", "{text}"),
            _ if is_noise(text) => tracing::debug!(target: "tensorrt", "{text}"),
            Severity::Warning => {
                collect(&LogRecord { severity, text: text.to_owned() });
                tracing::warn!(target: "tensorrt", "{text}");
            }
            // Where somebody collects, the error that is returned carries the text.
            Severity::Error | Severity::InternalError => {
                if collect(&LogRecord { severity, text: text.to_owned() }) {
                    tracing::debug!(target: "tensorrt", "{text}");
                } else {
                    tracing::error!(target: "tensorrt", "{text}");
                }
            }
        }
    }
}

/// The logger of the process; never dropped, because TensorRT's objects point to it.
pub(crate) fn logger() -> Result<&'static Logger, EngineError> {
    static LOGGER: OnceLock<Result<Logger, EngineError>> = OnceLock::new();
    let none = |e| CORE.unavailable(format!("no logger: {e}"));
    LOGGER.get_or_init(|| Logger::new(Forward).map_err(none)).as_ref().map_err(Clone::clone)
}

/// The errors among the records as one text, each named once, without the file positions inside TensorRT.
pub(crate) fn errors(records: &[LogRecord]) -> Option<String> {
    let mut texts: Vec<&str> = Vec::new();
    for text in records.iter().filter(|r| r.is_error()).map(|r| r.text.as_str()) {
        // TensorRT repeats this one after each error on a machine without a driver.
        let echo = text.starts_with("[checkMacros.cpp") && records.len() > 1;
        if !echo && !texts.contains(&text) {
            texts.push(text);
        }
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> LogRecord {
        LogRecord { severity: Severity::Error, text: text.into() }
    }

    #[test]
    fn a_collector_gets_its_own_thread_and_the_threads_of_nobody() {
        let mine = Collector::start();
        let other = std::thread::spawn(|| {
            let theirs = Collector::start();
            Forward.log(Severity::Error, "theirs\n");
            Forward.log(Severity::Warning, "Make sure input tokens has Int64 binding.");
            theirs.take()
        });
        assert_eq!(other.join().unwrap(), [error("theirs")]);
        std::thread::spawn(|| Forward.log(Severity::Error, "a helper's")).join().unwrap();
        Forward.log(Severity::Info, "not kept");
        Forward.log(Severity::Warning, "mine");
        let kept = mine.take();
        let texts: Vec<&str> = kept.iter().map(|r| r.text.as_str()).collect();
        assert!(texts.contains(&"a helper's") && texts.contains(&"mine"), "{texts:?}");
        assert!(!texts.contains(&"theirs") && !texts.contains(&"not kept"), "{texts:?}");
    }

    #[test]
    fn errors_are_named_once() {
        let echo = error("[checkMacros.cpp::catchCudaError::250] Error Code 1");
        assert_eq!(errors(&[error("a"), error("a"), echo.clone(), error("b")]).unwrap(), "a; b");
        assert_eq!(errors(std::slice::from_ref(&echo)).unwrap(), echo.text);
        assert_eq!(errors(&[LogRecord { severity: Severity::Warning, text: "w".into() }]), None);
    }
}
