//! Whether a library's threads would start: some wait forever, or end the process, where the system refuses one.

use std::io;
use std::sync::RwLock;
use std::thread::{Builder, scope};

/// Starts that many threads beside this one, each with `stack` bytes, all at once, and ends them.
///
/// # Errors
/// The system's, when it refuses one.
pub fn try_start(threads: usize, stack: usize) -> io::Result<()> {
    let gate = RwLock::new(());
    scope(|scope| {
        // None ends while this is held.
        let shut = gate.write();
        let start =
            |_| Builder::new().stack_size(stack).spawn_scoped(scope, || drop(gate.read())).map(|_| ());
        let started = (0..threads).try_for_each(start);
        drop(shut);
        started
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_the_system_has_are_started_and_ended() {
        for threads in [0, 1, 40] {
            try_start(threads, 1 << 16).unwrap();
        }
        assert!(try_start(1, usize::MAX / 2).is_err());
    }
}
