//! The result of one check, and what several come to.

use dpar_export_metrics::Verdict;
use serde::Serialize;

/// Version of the documents of `verify`, `parity`, `bisect` and `reproduce`. It changes when a field changes its meaning or goes; new
/// fields do not change it.
pub const SCHEMA_VERSION: u32 = 2;

/// Result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Within the tolerance, or equal.
    Pass,
    /// Out of tolerance, or a decision differs that is no near-tie.
    Fail,
    /// Near-ties leave too little to compare.
    Inconclusive,
    /// The reference or the bundle does not hold what this check compares.
    NotRun,
}

impl From<Verdict> for Status {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Fail => Self::Fail,
            Verdict::Inconclusive => Self::Inconclusive,
            Verdict::Incomplete => Self::NotRun,
        }
    }
}

impl Status {
    /// What checks come to: a failure fails, and where none ran nothing was compared.
    pub fn verdict(results: impl IntoIterator<Item = Self>) -> Verdict {
        let verdicts = results.into_iter().filter_map(|status| match status {
            Self::Pass => Some(Verdict::Pass),
            Self::Fail => Some(Verdict::Fail),
            Self::Inconclusive => Some(Verdict::Inconclusive),
            Self::NotRun => None,
        });
        let mut verdicts = verdicts.peekable();
        match verdicts.peek() {
            Some(_) => Verdict::all(verdicts),
            None => Verdict::Incomplete,
        }
    }

    pub(crate) fn of(pass: bool) -> Self {
        if pass { Self::Pass } else { Self::Fail }
    }

    /// In words, for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Inconclusive => "inconclusive",
            Self::NotRun => "not run",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_outweighs_and_nothing_compared_is_no_pass() {
        let verdict = |of: &[Status]| Status::verdict(of.iter().copied());
        assert_eq!(verdict(&[Status::NotRun]), Verdict::Incomplete);
        assert_eq!(verdict(&[Status::NotRun, Status::Pass]), Verdict::Pass);
        assert_eq!(verdict(&[Status::Inconclusive, Status::Pass]), Verdict::Inconclusive);
        assert_eq!(verdict(&[Status::Inconclusive, Status::Fail]), Verdict::Fail);
    }
}
