//! The scheduler, as its users see it.

use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dpar_export_bundle::Bundle;
use dpar_export_decode::generate::{DecodeError, Images, StepModel};
use dpar_export_decode::loaded::{LoadedBundle, RunError};
use dpar_export_decode::tokenizer::VqDecoder;
use dpar_export_spec::GraphName;
use tokio::sync::mpsc::unbounded_channel;

use crate::decoding::DecodingThread;
use crate::job::{ImageJob, JobError, RunningJob};
use crate::limits::SchedulerLimits;
use crate::queue::{AskedJob, JobQueue};
use crate::stats::{self, SchedulerCounts, Stats};

/// A scheduler is not well after so many failures without an image that was complete.
const FAILURES: u64 = 3;
/// Guidance that logits bear without leaving float32, whatever the temperature: a step that fails is everybody's.
const MOST_GUIDANCE: f32 = 1e4;

/// A bundle on an engine that several requesters share.
///
/// One thread decodes, with a schedule that refills rows: an image joins the others at the next step (`rolling`) or when they next
/// open patches (`continuous`), and leaves its row when it is complete. What is drawn depends on (seed, index of the image, class, options) alone, as everywhere in this project.
/// When it is dropped, what was asked for is still done, and then the thread ends.
pub struct Scheduler {
    runtime: Arc<LoadedBundle<'static>>,
    queue: Arc<JobQueue>,
    limits: SchedulerLimits,
    has_pixels: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Scheduler {
    /// Prepares the graphs and starts the thread.
    ///
    /// # Errors
    /// When a graph is missing or refused.
    pub fn start(
        runtime: impl Into<Arc<LoadedBundle<'static>>>,
        limits: SchedulerLimits,
    ) -> Result<Self, RunError> {
        let runtime = runtime.into();
        let vq = match runtime.bundle().has_graph(GraphName::VqDecode) {
            true => Some(runtime.vq_decoder()?),
            false => None,
        };
        let model = runtime.model()?;
        Ok(Self::of(runtime, model, vq, limits))
    }

    pub(crate) fn of(
        runtime: impl Into<Arc<LoadedBundle<'static>>>,
        model: Box<dyn StepModel>,
        vq: Option<VqDecoder>,
        limits: SchedulerLimits,
    ) -> Self {
        let limits = SchedulerLimits { rows: limits.rows.max(1), ..limits };
        let runtime = runtime.into();
        let system = runtime.bundle().system();
        let images = Images {
            rule: system.patch_rule.clone(),
            tokens: system.tokens(),
            null_class: system.null_class(),
        };
        let queue = Arc::new(JobQueue::default());
        let has_pixels = vq.is_some();
        let decoding = DecodingThread::new(runtime.clone(), model, images, vq, queue.clone(), limits);
        let thread = Mutex::new(Some(std::thread::spawn(move || decoding.run())));
        Self { runtime, queue, limits, has_pixels, thread }
    }

    /// Asks for images.
    ///
    /// # Errors
    /// When they cannot be what the job says; when the queue is full, or the scheduler does not run any more.
    pub fn submit(&self, job: ImageJob) -> Result<RunningJob, JobError> {
        let refused = |e: RunError| JobError::Refused(Arc::new(e));
        let most = self.limits.images;
        match job.images.len() {
            0 => return Err(JobError::Nothing),
            images if images > most => return Err(JobError::TooMany { images, most }),
            _ => {}
        }
        self.runtime.check_requests(&job.images).map_err(|e| refused(e.into()))?;
        let of_options = |source| DecodeError::Sample { image: job.images[0].index, slot: 0, source };
        job.options.validate().map_err(|e| refused(of_options(e).into()))?;
        if job.options.cfg_scale > MOST_GUIDANCE {
            return Err(JobError::Guidance { asked: job.options.cfg_scale, most: MOST_GUIDANCE });
        }
        if job.options.cfg_scale > 1.0 && self.bundle().system().null_class().is_none() {
            return Err(refused(DecodeError::NoNullClass.into()));
        }
        if (job.pixels || job.preview.is_some()) && !self.has_pixels {
            // It says which graph is missing.
            let missing = self.runtime.vq_decoder().err();
            return Err(missing.map_or(JobError::Ended, refused));
        }
        let rule = self.bundle().changed_rule(&job.rule).map_err(|e| refused(e.into()))?;
        let (sender, events) = unbounded_channel();
        let waits: Arc<[AtomicBool]> = job.images.iter().map(|_| AtomicBool::new(false)).collect();
        let running = RunningJob { events, left: job.images.len(), preview_waits: waits.clone() };
        self.queue.push(AskedJob::new(job, rule, sender, waits), self.limits.queue, self.retry())?;
        Ok(running)
    }

    /// When there may be room in a full queue: when half of it is done, in whole seconds.
    fn retry(&self) -> Duration {
        let image = self.stats().decode_time.mean().unwrap_or(Duration::from_secs(1));
        let rounds = self.limits.queue as f64 / 2.0 / self.limits.rows as f64;
        Duration::from_secs((image.as_secs_f64() * rounds).ceil().clamp(1.0, 60.0) as u64)
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        self.runtime.bundle()
    }

    /// The bundle on its engine.
    pub fn runtime(&self) -> &LoadedBundle<'static> {
        &self.runtime
    }

    /// What it takes.
    pub fn limits(&self) -> SchedulerLimits {
        self.limits
    }

    /// Why it should get no more jobs: its files were changed, it does not run any more, or everything failed lately.
    pub fn unwell(&self) -> Option<String> {
        if let Some(why) = self.queue.broken() {
            return Some(why.to_string());
        }
        if let Err(e) = self.bundle().unchanged() {
            return Some(e.to_string());
        }
        let failures = stats::read(&self.stats().failures_in_a_row);
        (failures >= FAILURES).then(|| format!("the last {failures} images failed"))
    }

    /// Takes no more jobs; what was asked for is still done.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Takes no more jobs, and ends those that were asked for with [`JobError::Ended`] before the next step.
    pub fn abort(&self) {
        self.queue.close();
        self.queue.break_off(&JobError::Ended);
    }

    /// Whether nothing is under way, and nothing will be.
    pub fn has_ended(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes no more jobs, and returns when what was asked for is done. Not for use in asynchronous code.
    pub fn finish(&self) {
        self.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that decodes ended in a panic");
        }
    }

    /// What it has counted so far.
    pub fn counts(&self) -> SchedulerCounts {
        SchedulerCounts::of(self.stats(), self.limits.rows)
    }

    /// What it counts.
    pub(crate) fn stats(&self) -> &Stats {
        &self.queue.stats
    }
}

impl Debug for Scheduler {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bundle = self.bundle().folder();
        f.debug_struct("Scheduler")
            .field("bundle", &bundle)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close();
    }
}
