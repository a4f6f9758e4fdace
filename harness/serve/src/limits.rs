//! What a scheduler takes.

use std::time::Duration;

use dpar_export_decode::generate::Schedule;

/// What a scheduler takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Which rows advance together: one of the schedules that refill rows; another is taken as `rolling`.
    pub schedule: Schedule,
    /// Images that are decoded together. Their caches are the memory that decoding takes.
    pub rows: usize,
    /// Images of one job.
    pub images: usize,
    /// Images that may wait for a row, beside a job that finds nobody waiting.
    pub queue: usize,
    /// How long an image may wait for a row.
    pub queue_time: Duration,
    /// How long an image may take in its row.
    pub decode_time: Duration,
}

impl Default for SchedulerLimits {
    fn default() -> Self {
        Self {
            schedule: Schedule::Rolling,
            rows: 8,
            images: 64,
            queue: 256,
            queue_time: Duration::from_secs(60),
            decode_time: Duration::from_secs(600),
        }
    }
}
