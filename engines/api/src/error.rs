//! Engine errors: what kind, in which graph, and the next step.

use dpar_export_spec::Hinted;
use dpar_export_spec::text::{LONGEST_TEXT, cut};

use crate::GraphFile;

/// What kind of failure it was: whose fault it is, and so what can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineErrorKind {
    /// This machine or this build lacks what the engine needs: a library, driver, device, provider, or arithmetic of a
    /// type. The same call can succeed elsewhere. Nothing else is of this kind.
    Unavailable,
    /// The engine does not have, or cannot honour, a setting: an option, a number of threads.
    Setting,
    /// The file is no graph, not the graph of the spec, or one that the engine refuses, before anything ran.
    Graph,
    /// What was built from the graph is damaged: the file is not what it says of itself.
    Damaged,
    /// An input of a call does not fit the graph's ports or axis ranges.
    Input,
    /// A call that fits the ports failed while it ran.
    Run,
    /// A call came to its end, and an output is not what the ports promise, or no finite number where one is due.
    Output,
}

impl EngineErrorKind {
    /// Whether a graph was run and it went wrong, by an error or by what came out.
    pub fn went_wrong(self) -> bool {
        match self {
            Self::Run | Self::Output => true,
            Self::Unavailable | Self::Setting | Self::Graph | Self::Damaged | Self::Input => false,
        }
    }
}

/// An error of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{engine}: {}{message}", graph.as_ref().map(|g| format!("graph `{g}`: ")).unwrap_or_default())]
pub struct EngineError {
    /// What kind.
    pub kind: EngineErrorKind,
    /// Engine name; `engine` where the contract itself refuses.
    pub engine: String,
    /// Graph name, where one is concerned.
    pub graph: Option<String>,
    /// What failed.
    pub message: String,
    /// The next step for the user, if there is one.
    pub hint: Option<String>,
}

impl EngineError {
    /// An error without a graph or hint. A backtrace that a library wrote into its message is left out, and what is longer
    /// than [`LONGEST_TEXT`] is cut.
    pub fn new(kind: EngineErrorKind, engine: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let message = cut(without_backtrace(&message), LONGEST_TEXT).into_owned();
        Self { kind, engine: engine.to_owned(), graph: None, message, hint: None }
    }

    /// A graph that an engine refuses: the message names its file.
    pub fn refused(engine: &str, graph: GraphFile<'_>, message: impl std::fmt::Display) -> Self {
        Self::new(EngineErrorKind::Graph, engine, format!("{}: {message}", graph.path))
            .in_graph(&graph.spec.name)
    }

    /// Names the graph.
    #[must_use]
    pub fn in_graph(mut self, graph: &str) -> Self {
        self.graph = Some(graph.to_owned());
        self
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Hinted for EngineError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// A message up to the first frame of a backtrace: libraries add one where `RUST_BACKTRACE` is set.
fn without_backtrace(message: &str) -> &str {
    let begins = |line: &str| line.starts_with("Stack backtrace:") || line.trim_start().starts_with("0: ");
    let mut end = 0;
    for line in message.split_inclusive('\n') {
        if begins(line) {
            return message[..end].trim_end();
        }
        end += line.len();
    }
    message
}

/// Why a graph, or a node or tensor of it, is none that an engine can take: in words, about what is there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GraphFault(String);

impl From<String> for GraphFault {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for GraphFault {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_before_a_backtrace_and_are_cut() {
        let said = |text: &str| EngineError::new(EngineErrorKind::Run, "x", text).message;
        assert_eq!(
            said("axis 9 is too large\n   0: candle_core::error\n             at src/x.rs:1"),
            "axis 9 is too large"
        );
        assert_eq!(said("rank 3\n\nStack backtrace:\n   0: anyhow"), "rank 3");
        assert_eq!(said("two\nlines, 0: none"), "two\nlines, 0: none");
        assert!(said(&"x".repeat(1 << 20)).len() < 2 * LONGEST_TEXT);
    }
}
