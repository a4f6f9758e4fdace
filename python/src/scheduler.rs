//! A scheduler that several threads share, and the jobs that they asked it for.

use std::mem;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use dpar_export::commands::failure::Failure;
use dpar_export::loaded::RunError;
use dpar_export::serve::{ImageJob, JobError, JobEvent, RunningJob, Scheduler, SchedulerLimits};
use dpar_export_spec::RuleChange;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::arrays::array;
use crate::decoding::{Asking, OpenBundle, check_rows};
use crate::errors::{input, work};
use crate::stop::{EVERY, SignalWatch};
use crate::stream::{Image, Patch, Token};

/// What is drawn of an image so far.
#[pyclass(frozen, get_all, module = "dpar_export._native")]
pub(crate) struct Preview {
    /// Which image.
    image: usize,
    /// Tokens drawn; what is behind them is made of token 0.
    tokens: usize,
    pixels: Py<PyAny>,
}

#[pymethods]
impl Preview {
    fn __repr__(&self) -> String {
        format!("Preview(image={}, tokens={})", self.image, self.tokens)
    }
}

/// What a scheduler takes, in plain values.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct AskedLimits {
    rows: usize,
    images: usize,
    queue: usize,
    queue_time: f64,
    decode_time: f64,
}

impl AskedLimits {
    fn limits(&self) -> Result<SchedulerLimits, Failure> {
        check_rows("rows", self.rows)?;
        let time = |name: &str, seconds: f64| {
            let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero());
            time.ok_or_else(|| input(format!("{name} is a time in seconds, not {seconds}"), None))
        };
        Ok(SchedulerLimits {
            rows: self.rows,
            images: self.images,
            queue: self.queue,
            queue_time: time("queue_time", self.queue_time)?,
            decode_time: time("decode_time", self.decode_time)?,
            ..SchedulerLimits::default()
        })
    }
}

/// What a job has beside its images.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct JobExtras {
    threshold: Option<f32>,
    max_patch_length: Option<usize>,
    patch_size: Option<f64>,
    tokens: bool,
    preview_every: Option<usize>,
}

/// A bundle on an engine that several threads ask for images.
#[pyclass(frozen, weakref, name = "Scheduler", module = "dpar_export._native")]
pub(crate) struct PyScheduler {
    scheduler: Arc<Scheduler>,
    /// The process that its thread is in; one that is forked from it has no such thread, and whatever that held stays held.
    process: u32,
    num_classes: usize,
    size: usize,
}

impl PyScheduler {
    pub(crate) fn start(open: &OpenBundle, limits: &AskedLimits) -> Result<Self, Failure> {
        let scheduler = Arc::new(Scheduler::start(open.runtime.clone(), limits.limits()?)?);
        let system = open.runtime.bundle().system();
        let (num_classes, size) = (system.num_classes, system.image_size);
        Ok(Self { scheduler, process: process::id(), num_classes, size })
    }

    fn is_forked(&self) -> bool {
        process::id() != self.process
    }

    fn check_process(&self) -> Result<(), Failure> {
        match self.is_forked() {
            true => Err(input(
                "the scheduler is one of the process before the fork",
                Some("open the bundle behind it"),
            )),
            false => Ok(()),
        }
    }
}

impl Drop for PyScheduler {
    fn drop(&mut self) {
        if self.is_forked() {
            // Its own end takes locks.
            mem::forget(self.scheduler.clone());
        }
    }
}

#[pymethods]
impl PyScheduler {
    /// Asks for images.
    fn submit(this: Bound<'_, Self>, asking: Asking, job: JobExtras) -> PyResult<PyJob> {
        let own = this.get();
        let running = work(this.py(), |_| {
            own.check_process()?;
            let mut asked = ImageJob::new(asking.requests(own.num_classes)?, asking.options()?);
            asked.rule = RuleChange {
                threshold: job.threshold,
                max_patch_length: job.max_patch_length,
                patch_size: job.patch_size,
            };
            asked.pixels = asking.images;
            asked.tokens = job.tokens;
            asked.preview = job.preview_every.and_then(std::num::NonZeroUsize::new);
            Ok(own.scheduler.submit(asked)?)
        })?;
        let size = own.size;
        Ok(PyJob::new(running, this.unbind(), size))
    }

    /// What it has counted, as JSON.
    fn stats(&self, py: Python<'_>) -> PyResult<String> {
        work(py, |_| self.check_process())?;
        serde_json::to_string(&self.scheduler.counts()).map_err(|e| PyRuntimeError::new_err(e.to_string()))
    }

    /// Why it should get no more jobs.
    fn unwell(&self, py: Python<'_>) -> PyResult<Option<String>> {
        work(py, |_| {
            self.check_process()?;
            Ok(self.scheduler.unwell())
        })
    }

    /// Takes no more jobs, and returns when those under way are done; `cancel` ends them. Nothing is under way behind a fork.
    fn close(&self, py: Python<'_>, cancel: bool) -> PyResult<()> {
        if self.is_forked() {
            return Ok(());
        }
        work(py, |asked| {
            match cancel {
                true => self.scheduler.abort(),
                false => self.scheduler.close(),
            }
            while !self.scheduler.has_ended() {
                if !asked.go_on() {
                    return Err(RunError::Interrupted.into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            self.scheduler.finish();
            Ok(())
        })
    }
}

/// Events of a job, as they come.
#[pyclass(frozen, name = "Job", module = "dpar_export._native")]
pub(crate) struct PyJob {
    /// No Python runs while it is held, but for handlers of signals.
    state: Mutex<JobState>,
    /// Whoever waits for an event holds the state, and looks at this.
    given_up: AtomicBool,
    /// What ends at the program's exit is found by it.
    scheduler: Py<PyScheduler>,
    size: usize,
}

/// `running` is `None` when no more comes of it; `ahead` was waited for, and not taken.
struct JobState {
    running: Option<RunningJob>,
    ahead: Option<Result<JobEvent, JobError>>,
}

impl PyJob {
    fn new(running: RunningJob, scheduler: Py<PyScheduler>, size: usize) -> Self {
        let state = JobState { running: Some(running), ahead: None };
        Self { state: Mutex::new(state), given_up: AtomicBool::new(false), scheduler, size }
    }

    /// Waits until there is an event, or none comes any more. Whether that is so before `until`.
    fn wait(
        &self,
        state: &mut JobState,
        asked: &SignalWatch,
        until: Option<Instant>,
    ) -> Result<bool, Failure> {
        loop {
            if self.given_up.load(Ordering::SeqCst) {
                *state = JobState { running: None, ahead: None };
            }
            let (None, Some(running)) = (&state.ahead, &mut state.running) else { return Ok(true) };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            match running.next_within(left.map_or(EVERY, |left| left.min(EVERY))) {
                Poll::Ready(Some(event)) => state.ahead = Some(event),
                Poll::Ready(None) => state.running = None,
                Poll::Pending if left.is_some_and(|left| left.is_zero()) => return Ok(false),
                Poll::Pending => {}
            }
            if !asked.go_on() {
                return Err(RunError::Interrupted.into());
            }
        }
    }

    /// Does something with the state, and forgets the job if it was given up meanwhile.
    fn with<T>(&self, body: impl FnOnce(&mut JobState) -> Result<T, Failure>) -> Result<T, Failure> {
        self.scheduler.get().check_process()?;
        let Ok(mut state) = self.state.try_lock() else {
            return Err(input("another thread takes the next event of this job", None));
        };
        let done = body(&mut state);
        drop(state);
        self.settle();
        done
    }

    /// A job that was given up frees its rows. Who has the state settles it afterwards.
    fn settle(&self) {
        if self.given_up.load(Ordering::SeqCst)
            && let Ok(mut state) = self.state.try_lock()
        {
            *state = JobState { running: None, ahead: None };
        }
    }
}

#[pymethods]
impl PyJob {
    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let next = work(py, |asked| {
            self.with(|state| {
                self.wait(state, asked, None)?;
                Ok(state.ahead.take().transpose()?)
            })
        })?;
        let object = match next {
            None => return Ok(None),
            Some(JobEvent::Token { image, slot, token, entropy }) => {
                Py::new(py, Token::new(image, slot, token, entropy))?.into_any()
            }
            Some(JobEvent::Patch { image, first, last, entropy }) => {
                Py::new(py, Patch::new(image, first, last, entropy))?.into_any()
            }
            Some(JobEvent::Preview { image, tokens, pixels }) => {
                let pixels = array(py, pixels, &[self.size, self.size, 3])?;
                Py::new(py, Preview { image, tokens, pixels })?.into_any()
            }
            Some(JobEvent::Done { image, drawn }) => {
                Py::new(py, Image::new(py, image, drawn.stream, drawn.pixels, self.size)?)?.into_any()
            }
        };
        Ok(Some(object))
    }

    /// Waits at most so many seconds until the next event is there, or none comes any more.
    fn poll(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        work(py, |asked| {
            let most = Duration::try_from_secs_f64(timeout);
            let most =
                most.map_err(|_| input(format!("timeout is a time in seconds, not {timeout}"), None))?;
            // What no clock can tell is for ever.
            let until = Instant::now().checked_add(most);
            self.with(|state| self.wait(state, asked, until))
        })
    }

    /// Gives it up: its rows are free before the next step.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| {
            self.given_up.store(true, Ordering::SeqCst);
            self.settle();
        });
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __exit__(&self, py: Python<'_>, _kind: Py<PyAny>, _value: Py<PyAny>, _traceback: Py<PyAny>) {
        self.cancel(py);
    }
}
