//! ONNX Runtime's telemetry, switched off before the library is loaded.
//!
//! Official builds since 1.31 make a device id and a database of events below the user's cache folder as soon as an
//! environment is made, and look for their vendor's host a few seconds later; the switch in the C API comes after that.
//! Only an environment variable is early enough.

#![allow(unsafe_code, reason = "sets a variable of the environment")]

use dpar_engine_api::{EngineError, EngineErrorKind};

use crate::NAME;

/// The variable, and the value that switches telemetry off.
const OFF: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// Switches the telemetry of ONNX Runtime off for this process, whatever the environment says. A program calls it before
/// it starts threads; loading the library calls it again.
///
/// # Errors
/// [`EngineErrorKind::Setting`] where the variable has another value and other threads run (or could,
/// for all that the system tells): writing the environment is a data race then. The library is not loaded.
pub fn disable_telemetry() -> Result<(), EngineError> {
    let (name, off) = OFF;
    if std::env::var_os(name).is_some_and(|value| value == off) {
        return Ok(());
    }
    if !alone() {
        let message =
            format!("its telemetry is not switched off, and threads run already: {name} is not {off}");
        let hint = format!(
            "call `disable_telemetry` before threads are started, or set {name}={off} in the environment"
        );
        return Err(EngineError::new(EngineErrorKind::Setting, NAME, message).hint(hint));
    }
    // SAFETY: this is the only thread, so nobody reads the environment, or starts another thread, meanwhile.
    unsafe { std::env::set_var(name, off) };
    Ok(())
}

/// Whether writing the environment is sound: no other thread runs, or the system guards it.
fn alone() -> bool {
    if cfg!(windows) {
        return true;
    }
    // Linux lists the threads of a process here; nowhere else is there a folder of that name.
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}
