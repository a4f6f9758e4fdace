//! Ctrl-C: Python's signal handlers run when the interpreter is asked, so long work asks between its steps.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dpar_export::commands::Host;
use pyo3::prelude::*;

/// How long Ctrl-C is not noticed, beside the step at hand. Asking needs the interpreter, which others may hold.
pub(crate) const EVERY: Duration = Duration::from_millis(50);

/// Whether work shall go on, and what a command had to say.
pub(crate) struct SignalWatch(Mutex<WatchState>);

struct WatchState {
    last: Instant,
    raised: Option<PyErr>,
    said: Option<String>,
}

impl Default for SignalWatch {
    fn default() -> Self {
        Self(Mutex::new(WatchState { last: Instant::now(), raised: None, said: None }))
    }
}

impl SignalWatch {
    /// False when a signal's handler raised an exception, `KeyboardInterrupt` for Ctrl-C.
    pub(crate) fn go_on(&self) -> bool {
        let mut state = self.state();
        if state.raised.is_none() && state.last.elapsed() >= EVERY {
            state.raised = Python::attach(|py| py.check_signals()).err();
            state.last = Instant::now();
        }
        state.raised.is_none()
    }

    /// What a signal's handler raised.
    pub(crate) fn raised(&self) -> Option<PyErr> {
        self.state().raised.take()
    }

    /// The document of the command that was called.
    pub(crate) fn said(&self) -> Option<String> {
        self.state().said.take()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, WatchState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for SignalWatch {
    fn result(&self, document: String) {
        self.state().said = Some(document);
    }

    fn stopped(&self) -> bool {
        !self.go_on()
    }
}
