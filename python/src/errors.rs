//! Failures as Python exceptions. Their classes are Python's, in `dpar_export/_errors.py`.

use dpar_engine_api::panics::guard;
use dpar_export::commands::failure::{Cause, Exit, Failure};
use dpar_export::serve::JobError;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::stop::SignalWatch;

/// A failure and the exit code that the command line would have ended with.
pub(crate) fn raise(py: Python<'_>, failure: &Failure, exit: Exit) -> PyErr {
    let busy = matches!(
        failure.error.downcast_ref(),
        Some(JobError::Full { .. } | JobError::QueueTime(_) | JobError::DecodeTime(_))
    );
    let class = match failure.cause {
        // What was asked for can be: later.
        Cause::Input if busy => "BusyError",
        Cause::Input => "InputError",
        Cause::Run => "RunError",
        Cause::Absent => "UnavailableError",
        Cause::Integrity => "IntegrityError",
        Cause::Stopped => return PyKeyboardInterrupt::new_err(()),
    };
    make(py, class, &failure.text(), failure.hint.as_deref(), &failure.details, exit as u8)
}

/// Bad input that this package found itself.
pub(crate) fn input(message: impl Into<String>, hint: Option<&str>) -> Failure {
    Failure::usage(message, hint)
}

/// A panic: a defect of this package.
fn internal(py: Python<'_>, message: &str) -> PyErr {
    let hint = "this is a defect of dpar-export: please report it";
    // What Rust's programs end with after a panic.
    make(py, "InternalError", message, Some(hint), &[], 101)
}

fn make(
    py: Python<'_>,
    class: &str,
    message: &str,
    hint: Option<&str>,
    details: &[String],
    exit: u8,
) -> PyErr {
    let made = || {
        let class = py.import("dpar_export._errors")?.getattr(class)?;
        class.call1((message, hint, details.to_vec(), exit))
    };
    made().map_or_else(|e| e, PyErr::from_value)
}

/// Does work while other Python threads run. The work asks between its steps whether it shall go on; a panic is an exception.
pub(crate) fn work<T: Send>(
    py: Python<'_>,
    body: impl FnOnce(&SignalWatch) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    crate::log::start();
    let asked = SignalWatch::default();
    let done = py.detach(|| guard(|| body(&asked)));
    if let Some(raised) = asked.raised() {
        return Err(raised);
    }
    match done {
        Ok(done) => done.map_err(|failure| raise(py, &failure, failure.cause.exit(false))),
        Err(panic) => Err(internal(py, &panic.to_string())),
    }
}
