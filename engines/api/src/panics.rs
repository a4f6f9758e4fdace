//! Panics of an engine's library, caught at the engine's boundary: they become errors, and print nothing of their own.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

use dpar_export_spec::text::{LONGEST_TEXT, cut};

/// How the names of threads that engines start begin.
const WORKER: &str = "engine-";

/// Name of a thread that an engine starts. What panics there comes back to the caller, in [`guard`].
pub fn worker(engine: &str, index: usize) -> String {
    format!("{WORKER}{engine}-{index}")
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What a panic said, cut at [`LONGEST_TEXT`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Panicked(String);

/// Runs `body`; a panic in it is an error with the panic's message.
///
/// # Errors
/// [`Panicked`].
pub fn guard<T>(body: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(outer);
    done.map_err(|panic| Panicked(cut(message(&*panic), LONGEST_TEXT).into_owned()))
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Makes panics that [`guard`] catches silent in this process; every other one is told as before. For programs: a library
/// leaves the hook to its caller.
pub fn silence_guarded() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !is_guarded() {
                usual(info);
            }
        }));
    });
}

/// Whether a panic of this thread is caught and told as an error.
fn is_guarded() -> bool {
    let thread = std::thread::current();
    let worker = || thread.name().is_some_and(|name| name.starts_with(WORKER));
    GUARDED.try_with(Cell::get).unwrap_or(false) || worker()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors_with_their_message() {
        assert_eq!(guard(|| 7), Ok(7));
        let said = |text: &str| Err::<(), _>(Panicked(text.to_owned()));
        assert_eq!(guard(|| panic!("plain")), said("plain"));
        assert_eq!(guard(|| panic!("{}", 3)), said("3"));
        assert_eq!(guard(|| std::panic::panic_any(3)), said("no message"));
        let long = guard(|| panic!("{}", "x".repeat(1 << 20))).unwrap_err().to_string();
        assert!(long.len() < 2 * LONGEST_TEXT && long.ends_with("more bytes)"));
    }

    #[test]
    fn only_what_is_caught_is_silent() {
        assert!(!is_guarded());
        guard(|| {
            assert!(is_guarded());
            let _ = guard(|| panic!("inner"));
            assert!(is_guarded(), "the outer guard still holds");
            assert!(!std::thread::spawn(is_guarded).join().unwrap(), "another thread is its own");
        })
        .unwrap();
        assert!(!is_guarded());
        let thread = std::thread::Builder::new().name(worker("some", 0)).spawn(is_guarded).unwrap();
        assert!(thread.join().unwrap());
    }
}
