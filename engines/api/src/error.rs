//! Engine errors: what kind, in which graph, and the next step.

use crate::GraphFile;

/// What kind of failure it was; the command line maps it to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineErrorKind {
    /// A library, driver or device is missing or does not fit.
    Unavailable,
    /// The graph could not be read or is refused.
    Graph,
    /// An input does not fit the graph's ports.
    Input,
    /// The engine failed while running.
    Run,
    /// An output is not what the ports promise.
    Output,
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
    /// An error without a graph or hint.
    pub fn new(kind: EngineErrorKind, engine: &str, message: impl Into<String>) -> Self {
        Self { kind, engine: engine.to_owned(), graph: None, message: message.into(), hint: None }
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

/// What a panic of an engine's library said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
