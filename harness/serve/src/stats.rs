//! What a scheduler counts.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dpar_export_decode::generate::GraphCalls;
use serde::Serialize;

/// Upper bounds of the intervals of a [`Histogram`] in seconds: a factor of about two and a half each.
const BOUNDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Durations, counted by interval.
#[derive(Debug, Default)]
pub struct Histogram {
    intervals: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.intervals[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// For each bound in seconds, how many were not above it.
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let mut sum = 0;
        let counted = BOUNDS.iter().zip(&self.intervals).map(|(bound, n)| {
            sum += n.load(Ordering::Relaxed);
            (*bound, sum)
        });
        counted.collect()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    /// Their mean, where there are some.
    pub(crate) fn mean(&self) -> Option<Duration> {
        let count = u32::try_from(self.count()).unwrap_or(u32::MAX);
        self.sum().checked_div(count)
    }
}

/// What a scheduler counts. Numbers of a moment are read one by one: they need not fit each other exactly.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Images in rows.
    pub(crate) busy: AtomicU64,
    /// Images that wait.
    pub(crate) waiting: AtomicU64,
    /// Images that are complete.
    pub(crate) done: AtomicU64,
    /// Images that failed.
    pub(crate) failed: AtomicU64,
    /// Images whose requester went away, or whose job had failed.
    pub(crate) dropped: AtomicU64,
    /// Images for which no row became free, or that took too long.
    pub(crate) late: AtomicU64,
    /// Jobs that found the queue full.
    pub(crate) full: AtomicU64,
    /// Failures since the last image that was complete.
    pub(crate) failures_in_a_row: AtomicU64,
    /// Tokens that were drawn.
    pub(crate) tokens: AtomicU64,
    /// Patches that ended.
    pub(crate) patches: AtomicU64,
    /// From the request to its row.
    pub(crate) queue_time: Histogram,
    /// From the request to the end of its first patch.
    pub(crate) first_patch: Histogram,
    /// From the request to the complete image.
    pub(crate) latency: Histogram,
    /// From the row to the complete image.
    pub(crate) decode_time: Histogram,
    graphs: Mutex<Vec<GraphCalls>>,
}

impl Stats {
    /// Takes down the calls of each graph so far.
    pub(crate) fn set_graphs(&self, calls: Vec<GraphCalls>) {
        *self.graphs.lock().unwrap_or_else(PoisonError::into_inner) = calls;
    }

    /// Calls of each graph so far.
    pub(crate) fn graphs(&self) -> Vec<GraphCalls> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a scheduler has counted. Numbers of a moment, read one by one: they need not fit each other exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchedulerCounts {
    /// Images that can be decoded together.
    pub rows: usize,
    /// Images in rows.
    pub busy: u64,
    /// Images that wait.
    pub waiting: u64,
    /// Images that are complete.
    pub done: u64,
    /// Images that failed.
    pub failed: u64,
    /// Images whose requester went away, or whose job had failed.
    pub dropped: u64,
    /// Images for which no row became free, or that took too long.
    pub late: u64,
    /// Jobs that found the queue full.
    pub full: u64,
    /// Tokens that were drawn.
    pub tokens: u64,
    /// Patches that ended.
    pub patches: u64,
    /// Calls of each graph: the rows of all calls beside them say how full they are.
    pub graphs: Vec<GraphCalls>,
}

impl SchedulerCounts {
    pub(crate) fn of(stats: &Stats, rows: usize) -> Self {
        Self {
            rows,
            busy: read(&stats.busy),
            waiting: read(&stats.waiting),
            done: read(&stats.done),
            failed: read(&stats.failed),
            dropped: read(&stats.dropped),
            late: read(&stats.late),
            full: read(&stats.full),
            tokens: read(&stats.tokens),
            patches: read(&stats.patches),
            graphs: stats.graphs(),
        }
    }
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a counter says.
pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Sets what goes up and down.
pub(crate) fn set(gauge: &AtomicU64, value: usize) {
    gauge.store(value as u64, Ordering::Relaxed);
}
