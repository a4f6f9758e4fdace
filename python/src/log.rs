//! What the program takes for granted, and warns of, goes to Python's `logging`, under the name `dpar_export`.

use std::fmt::Write;
use std::sync::Once;

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Begins, unless this process has a log: that of the command line.
pub(crate) fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that somebody else has begun.
        let _ = tracing_subscriber::registry().with(ToPython.with_filter(LevelFilter::INFO)).try_init();
    });
}

struct ToPython;

impl<S: Subscriber> Layer<S> for ToPython {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = EventText::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => 40,
            Level::WARN => 30,
            Level::INFO => 20,
            Level::DEBUG | Level::TRACE => 10,
        };
        // A thread that decodes may outlive the interpreter: then nobody listens.
        let _ = Python::try_attach(|py| {
            let said = || {
                let logger = py.import("logging")?.call_method1("getLogger", ("dpar_export",))?;
                // The message is no format: `%` in it is itself.
                logger.call_method1("log", (level, "%s", text.0.trim_start()))
            };
            // A handler of the user's that fails has nobody to tell. Ctrl-C arrives wherever Python runs: it is for the work
            // that is under way, which asks next.
            if said().is_err_and(|e| e.is_instance_of::<PyKeyboardInterrupt>(py)) {
                let again = py.import("_thread").and_then(|thread| thread.call_method0("interrupt_main"));
                drop(again);
            }
        });
    }
}

/// The message, then the fields.
#[derive(Default)]
struct EventText(String);

impl Visit for EventText {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a text does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
