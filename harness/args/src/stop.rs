//! Whether the user asked to stop.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the handler of Ctrl-C.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C was pressed.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}
