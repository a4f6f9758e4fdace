//! The one error type of the crate.

/// What can be wrong with the input of a metric. Every function checks before it computes: on error nothing
/// has been accumulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// A row width of zero, or data that is not a whole number of rows.
    #[error("{what}: {len} values do not make rows of width {width}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// Number of values given.
        len: usize,
        /// Values per row expected.
        width: usize,
    },
    /// Two inputs that must have the same width do not.
    #[error("{what}: width {found}, expected {expected}")]
    Width {
        /// Which input.
        what: &'static str,
        /// Width found.
        found: usize,
        /// Width expected.
        expected: usize,
    },
    /// Two paired inputs have a different number of rows.
    #[error("{what}: {left} rows against {right}; metrics of different sample sizes are not comparable")]
    UnequalCounts {
        /// Which input.
        what: &'static str,
        /// Rows of the first.
        left: usize,
        /// Rows of the second.
        right: usize,
    },
    /// Too few rows for the metric.
    #[error("{what}: {found} rows, at least {needed} are needed")]
    TooFew {
        /// Which input.
        what: &'static str,
        /// Rows found.
        found: usize,
        /// Rows needed.
        needed: usize,
    },
    /// NaN or infinity in an input.
    #[error("{what}: value {index} is not finite")]
    NotFinite {
        /// Which input.
        what: &'static str,
        /// Flat index of the first such value.
        index: usize,
    },
    /// A covariance given by the caller is not symmetric.
    #[error("{what}: entries ({row}, {col}) and ({col}, {row}) differ by more than rounding")]
    NotSymmetric {
        /// Which matrix.
        what: &'static str,
        /// Row of the first such entry.
        row: usize,
        /// Column of the first such entry.
        col: usize,
    },
    /// A covariance given by the caller has an eigenvalue that is negative beyond rounding.
    #[error("{what}: eigenvalue {smallest:e} against a largest of {largest:e}: not a covariance")]
    NotPositive {
        /// Which matrix.
        what: &'static str,
        /// Smallest eigenvalue.
        smallest: f64,
        /// Largest eigenvalue.
        largest: f64,
    },
    /// A parameter out of its range.
    #[error("{what} must be {rule}")]
    Parameter {
        /// Which parameter.
        what: &'static str,
        /// Its range.
        rule: &'static str,
    },
    /// A saved accumulator that cannot be read back.
    #[error("saved state of the {what}: {problem}")]
    State {
        /// Which accumulator.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An eigenvalue iteration did not converge.
    #[error("{0}: the eigenvalue iteration did not converge")]
    NoConvergence(&'static str),
    /// The thread pool could not be started.
    #[error("could not start {threads} computing threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
}
