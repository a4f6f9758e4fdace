//! The memory that an input may ask for.
//!
//! One limit holds for the whole process, since its memory is what there is to share out: each array file, picture and
//! set of statistics may take that much. It is compared with what a header promises, before memory is taken.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits;

/// The next step where an input is refused.
pub const HINT: &str = "if the file is what you mean, raise the limit with --max-memory SIZE (such as 16GiB)";

/// More memory than an input may ask for, or than there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Above the limit.
    #[error("{what} would take {} of memory, {} are allowed", size(*.needed), size(*.most))]
    Limit {
        /// What asks.
        what: String,
        /// Bytes that it would take.
        needed: u64,
        /// Bytes allowed.
        most: u64,
    },
    /// The system has no more.
    #[error("{} of memory are not to be had", size(*.0))]
    Exhausted(u64),
}

/// Set by [`set_most`]; 0 = the default.
static MOST: AtomicU64 = AtomicU64::new(0);

/// Sets the limit of this process in bytes.
pub fn set_most(bytes: u64) {
    MOST.store(bytes.max(1), Ordering::Relaxed);
}

/// Bytes that one input may take: what was set, or [`limits::MEMORY`], or half of what the machine, the container and
/// the process have, where that is less.
pub fn most() -> u64 {
    static DEFAULT: OnceLock<u64> = OnceLock::new();
    match MOST.load(Ordering::Relaxed) {
        0 => *DEFAULT.get_or_init(|| available().map_or(limits::MEMORY, |a| limits::MEMORY.min(a / 2))),
        set => set,
    }
}

/// Holds what an input asks for against the limit.
///
/// # Errors
/// [`MemoryError::Limit`].
pub fn check(what: &str, needed: u64) -> Result<(), MemoryError> {
    let most = most();
    if needed > most {
        return Err(MemoryError::Limit { what: what.to_owned(), needed, most });
    }
    Ok(())
}

/// An empty vector with room for `n` elements.
///
/// # Errors
/// [`MemoryError::Exhausted`].
pub fn reserved<T>(n: usize) -> Result<Vec<T>, MemoryError> {
    let mut out = Vec::new();
    let bytes = (n as u64).saturating_mul(size_of::<T>() as u64);
    out.try_reserve_exact(n).map_err(|_| MemoryError::Exhausted(bytes))?;
    Ok(out)
}

/// A number of bytes such as `16GiB`: digits, and `KiB`, `MiB`, `GiB` or `TiB`.
///
/// # Errors
/// In words, when it is none, is 0 or does not fit.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("expected a number of bytes, with KiB, MiB, GiB or TiB behind it".to_owned()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|n| *n > 0);
    bytes.ok_or_else(|| "expected a whole number of bytes, at least 1".to_owned())
}

/// A number of bytes in words.
fn size(bytes: u64) -> String {
    let unit = ["TiB", "GiB", "MiB", "KiB"].iter().zip([40, 30, 20, 10]).find(|(_, s)| bytes >= 1 << s);
    match unit {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Bytes that this process can get at most; `None` where the system does not say.
fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let line = |text: String, name: &str, field: usize| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line[name.len()..].split_ascii_whitespace().nth(field)?.parse::<u64>().ok()
    };
    let machine = read("/proc/meminfo").and_then(|t| line(t, "MemTotal:", 0)).map(|kib| kib << 10);
    // Says `unlimited`, or `max`, where there is none.
    let process = read("/proc/self/limits").and_then(|t| line(t, "Max address space", 0));
    let container = read("/sys/fs/cgroup/memory.max").and_then(|t| t.trim().parse().ok());
    [machine, process, container].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_said() {
        for (text, bytes) in [("1", 1), ("7B", 7), ("2KiB", 2048), ("3MiB", 3 << 20), ("16GiB", 16 << 30)] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "0", "0GiB", "-1", "1.5GiB", "1GB", "1 GiB", "99999999TiB", "1gib"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(3 << 29), "1.5 GiB");
    }

    #[test]
    fn what_is_asked_for_is_held_against_the_limit_and_the_machine() {
        assert!(most() > 0 && most() <= limits::MEMORY);
        check("x", most()).map_err(|e| e.to_string()).unwrap_or_else(|e| panic!("{e}"));
        let e = check("the arrays of `x`", u64::MAX).map_err(|e| e.to_string());
        assert!(e.as_ref().is_err_and(|e| e.contains("the arrays of `x` would take")), "{e:?}");
        assert!(matches!(reserved::<u64>(usize::MAX / 16), Err(MemoryError::Exhausted(_))));
        assert!(reserved::<u8>(10).is_ok_and(|v| v.capacity() >= 10));
    }
}
