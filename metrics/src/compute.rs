//! Pinned threads and checked views of rows.

use crate::MetricError;
use rayon::prelude::*;

/// A pool of a fixed number of threads that every parallel function of this crate takes explicitly. Work is
/// cut into pieces of a fixed size and their results are combined in a fixed order, so **no result depends on
/// the number of threads**; neither rayon's global pool nor faer's is used.
#[derive(Debug)]
pub struct Compute {
    pool: rayon::ThreadPool,
}

impl Compute {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// [`MetricError::Parameter`] for 0 threads, [`MetricError::Threads`] where the system refuses them.
    pub fn new(threads: usize) -> Result<Self, MetricError> {
        if threads == 0 {
            return Err(MetricError::Parameter { what: "threads", rule: "at least 1" });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("metrics-{i}"))
            .build()
            .map_err(|e| MetricError::Threads { threads, reason: e.to_string() })?;
        Ok(Self { pool })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `f` for every item, in parallel; results in the order of the items.
    pub(crate) fn map<T: Send, R: Send>(&self, items: Vec<T>, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
        self.pool.install(|| items.into_par_iter().with_max_len(1).map(f).collect())
    }

    /// Runs `f` for every consecutive piece of `size` values of `data` (the last may be shorter).
    pub(crate) fn chunks_mut<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        f: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        self.pool.install(|| {
            data.par_chunks_mut(size.max(1)).with_max_len(1).enumerate().for_each(|(i, c)| f(i, c));
        });
    }

    /// Runs both, in parallel where there are two threads.
    pub(crate) fn join<A: Send, B: Send>(
        &self,
        a: impl FnOnce() -> A + Send,
        b: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        self.pool.install(|| rayon::join(a, b))
    }
}

/// A row-major matrix of `f32` values, [N, width]: one row an image. Checked to be finite.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    /// A view of `data` as rows of `width` values; `what` names it in errors.
    ///
    /// # Errors
    /// [`MetricError::Shape`] unless `data` is a whole number of rows of a width above 0;
    /// [`MetricError::NotFinite`] for NaN or infinity.
    pub fn new(what: &'static str, data: &'a [f32], width: usize) -> Result<Self, MetricError> {
        if width == 0 || !data.len().is_multiple_of(width) {
            return Err(MetricError::Shape { what, len: data.len(), width });
        }
        check_finite(what, data.iter().map(|&v| f64::from(v)))?;
        Ok(Self { data, width })
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.data.len() / self.width
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All values, row-major.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Row `i`; empty past the end.
    pub fn row(&self, i: usize) -> &'a [f32] {
        self.slice(i, i + 1)
    }

    /// Rows `from..to`, row-major.
    pub(crate) fn slice(&self, from: usize, to: usize) -> &'a [f32] {
        self.data.get(from * self.width..to * self.width).unwrap_or(&[])
    }

    /// Rows `from..to` as f64, row-major.
    pub(crate) fn widen(&self, from: usize, to: usize) -> Vec<f64> {
        self.slice(from, to).iter().map(|&v| f64::from(v)).collect()
    }

    /// A view of copies of this one's rows: not checked again.
    pub(crate) fn like<'b>(&self, data: &'b [f32]) -> Rows<'b> {
        Rows { data, width: self.width }
    }

    pub(crate) fn at_least(&self, what: &'static str, needed: usize) -> Result<(), MetricError> {
        if self.count() < needed {
            return Err(MetricError::TooFew { what, found: self.count(), needed });
        }
        Ok(())
    }

    pub(crate) fn same_width(&self, what: &'static str, expected: usize) -> Result<(), MetricError> {
        if self.width != expected {
            return Err(MetricError::Width { what, found: self.width, expected });
        }
        Ok(())
    }
}

pub(crate) fn check_finite(what: &'static str, values: impl Iterator<Item = f64>) -> Result<(), MetricError> {
    for (index, v) in values.enumerate() {
        if !v.is_finite() {
            return Err(MetricError::NotFinite { what, index });
        }
    }
    Ok(())
}

/// Consecutive ranges of `size` covering `0..n`.
pub(crate) fn ranges(n: usize, size: usize) -> Vec<(usize, usize)> {
    (0..n).step_by(size.max(1)).map(|a| (a, (a + size).min(n))).collect()
}
