//! What waits for a row.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dpar_export_spec::PatchRule;
use tokio::sync::mpsc::UnboundedSender;

use crate::job::{ImageJob, JobError, JobEvent};
use crate::stats::{self, Stats};

/// A job, and who asked for it.
pub(crate) struct AskedJob {
    pub(crate) job: ImageJob,
    pub(crate) rule: PatchRule,
    pub(crate) since: Instant,
    events: UnboundedSender<Result<JobEvent, JobError>>,
    failed: AtomicBool,
    /// By image, whether a preview was told that nobody has taken: pixels do not pile up for who reads slowly.
    preview_waits: Arc<[AtomicBool]>,
}

impl AskedJob {
    pub(crate) fn new(
        job: ImageJob,
        rule: PatchRule,
        events: UnboundedSender<Result<JobEvent, JobError>>,
        preview_waits: Arc<[AtomicBool]>,
    ) -> Self {
        Self { job, rule, since: Instant::now(), events, failed: AtomicBool::new(false), preview_waits }
    }

    /// Whether a preview of an image may be told: the last one was taken.
    pub(crate) fn takes_preview(&self, image: usize) -> bool {
        self.preview_waits.get(image).is_some_and(|waits| !waits.swap(true, Ordering::Relaxed))
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.events.is_closed()
    }

    /// Tells of it. What is kept for a requester who does not read is bounded by the images of the job. Who went away is
    /// noticed before the next step.
    pub(crate) fn tell(&self, event: Result<JobEvent, JobError>) {
        let error = event.is_err();
        if !self.failed.load(Ordering::Relaxed) {
            let _ = self.events.send(event);
        }
        if error {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// An image that waits for a row.
pub(crate) struct WaitingImage {
    pub(crate) asked: Arc<AskedJob>,
    pub(crate) image: usize,
}

/// What comes out of the queue.
pub(crate) enum Next {
    /// These begin; perhaps none, while others are in rows.
    Begin(Vec<WaitingImage>),
    /// Nothing comes any more.
    End,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<WaitingImage>,
    /// No job is taken any more.
    closed: bool,
    /// Why the scheduler ended before its time.
    broken: Option<JobError>,
}

/// The queue between those who ask and the thread that decodes.
#[derive(Default)]
pub(crate) struct JobQueue {
    line: Mutex<Line>,
    bell: Condvar,
    pub(crate) stats: Stats,
}

impl JobQueue {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a job wait behind the others.
    pub(crate) fn push(&self, asked: AskedJob, most: usize, retry: Duration) -> Result<(), JobError> {
        let mut line = self.lock();
        if let Some(why) = &line.broken {
            return Err(why.clone());
        }
        if line.closed {
            return Err(JobError::Ended);
        }
        line.waiting.retain(|w| !w.asked.is_over());
        let waiting = line.waiting.len();
        if waiting > 0 && waiting + asked.job.images.len() > most {
            stats::count(&self.stats.full);
            return Err(JobError::Full { waiting, most, retry });
        }
        let asked = Arc::new(asked);
        let images = (0..asked.job.images.len()).map(|image| WaitingImage { asked: asked.clone(), image });
        line.waiting.extend(images);
        stats::set(&self.stats.waiting, line.waiting.len());
        self.bell.notify_one();
        Ok(())
    }

    /// Images for `free` rows. Waits for some when nothing is under way (`busy`).
    pub(crate) fn next(&self, free: usize, busy: bool, queue_time: Duration) -> Next {
        let mut line = self.lock();
        loop {
            if line.broken.is_some() {
                return Next::End;
            }
            let before = line.waiting.len();
            line.waiting.retain(|w| !w.asked.is_over());
            let dropped = (before - line.waiting.len()) as u64;
            self.stats.dropped.fetch_add(dropped, Ordering::Relaxed);
            line.waiting.retain(|w| {
                let late = w.asked.since.elapsed() > queue_time;
                if late {
                    stats::count(&self.stats.late);
                    w.asked.tell(Err(JobError::QueueTime(queue_time)));
                }
                !late
            });
            if busy || !line.waiting.is_empty() {
                let begin = free.min(line.waiting.len());
                let begin: Vec<WaitingImage> = line.waiting.drain(..begin).collect();
                stats::set(&self.stats.waiting, line.waiting.len());
                return Next::Begin(begin);
            }
            stats::set(&self.stats.waiting, 0);
            if line.closed {
                return Next::End;
            }
            line = self.bell.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more jobs; those that are in it are still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.bell.notify_one();
    }

    /// Ends it with all that waits.
    pub(crate) fn break_off(&self, why: &JobError) {
        let mut line = self.lock();
        line.broken.get_or_insert_with(|| why.clone());
        for waiting in line.waiting.drain(..) {
            stats::count(&self.stats.failed);
            waiting.asked.tell(Err(why.clone()));
        }
        stats::set(&self.stats.waiting, 0);
        self.bell.notify_one();
    }

    /// Why no job is taken any more.
    pub(crate) fn broken(&self) -> Option<JobError> {
        let line = self.lock();
        line.broken.clone().or_else(|| line.closed.then_some(JobError::Ended))
    }
}
