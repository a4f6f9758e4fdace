//! Resident memory of this process.

use serde::{Deserialize, Serialize};

/// Bytes that are in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Of no file: what the process has allocated and written.
    pub anonymous: u64,
    /// Of files, weights above all: the system can take them back.
    pub mapped: u64,
}

impl Memory {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { anonymous: self.anonymous.max(other.anonymous), mapped: self.mapped.max(other.mapped) }
    }
}

/// What is resident now; `None` on systems that do not say it (it is read from Linux's `/proc/self/status`).
pub fn resident() -> Option<Memory> {
    parse(&fs_err::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<Memory> {
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(Memory { anonymous: kilobytes("RssAnon")? << 10, mapped: kilobytes("RssFile")? << 10 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_understood() {
        let status = "Name:\tx\nVmRSS:\t    2132 kB\nRssAnon:\t     148 kB\nRssFile:\t    1984 kB\n";
        assert_eq!(parse(status), Some(Memory { anonymous: 148 << 10, mapped: 1984 << 10 }));
        assert_eq!(parse("RssAnon:\t148 kB\n"), None);
        assert_eq!(parse("RssAnon:\t148 MB\nRssFile: 1 kB"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_written_is_counted() {
        let before = resident().unwrap();
        let held = vec![1_u8; 64 << 20];
        let after = resident().unwrap();
        assert!(after.anonymous >= before.anonymous + (60 << 20), "{before:?} {after:?}");
        assert_eq!(std::hint::black_box(&held).len(), 64 << 20);
    }
}
