//! What an error knows beside what failed.

/// An error that knows what its reader can do next.
pub trait Hinted {
    /// The next step, if there is one.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Further lines, such as the names that do not match.
    fn details(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Hinted for std::io::Error {}
