//! Errors as users see them: what failed, the next step, the exit code.

use dpar_export_metrics::Verdict;
use dpar_export_spec::Hinted;
use dpar_export_spec::text::{LONGEST_TEXT, cut};

pub use crate::cause::{Cause, Caused, Exit};

/// An error with its cause, from which the exit code follows, and the next step.
#[derive(Debug)]
pub struct Failure {
    /// What it means.
    pub cause: Cause,
    /// What failed, in one line.
    pub error: anyhow::Error,
    /// Further lines, such as the names that do not match.
    pub details: Vec<String>,
    /// What to do next.
    pub hint: Option<String>,
}

impl Failure {
    /// Bad input with a hint.
    pub fn usage(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            cause: Cause::Input,
            error: anyhow::Error::msg(message.into()),
            details: Vec::new(),
            hint: hint.map(str::to_owned),
        }
    }

    /// With the next step where the user interrupted.
    pub fn when_interrupted(mut self, hint: &str) -> Self {
        if self.cause == Cause::Stopped {
            self.hint = Some(hint.to_owned());
        }
        self
    }

    /// What failed, in words, however long what a file says about itself is.
    pub fn text(&self) -> String {
        cut(&self.error.to_string(), LONGEST_TEXT).into_owned()
    }
}

impl<E: Caused + Hinted + std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(e: E) -> Self {
        Self { cause: Caused::cause(&e), details: e.details(), hint: e.hint(), error: e.into() }
    }
}

impl From<Verdict> for Exit {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Fail => Self::Failed,
            Verdict::Inconclusive => Self::Inconclusive,
            // What was to be compared is not in what was given.
            Verdict::Incomplete => Self::Usage,
        }
    }
}
