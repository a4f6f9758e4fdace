//! What is asked of a scheduler, and what comes of it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use dpar_export_decode::generate::{DecodeOptions, Request, Stream};
use dpar_export_decode::loaded::RunError;
use dpar_export_spec::{Hinted, RuleChange};
use tokio::sync::mpsc::UnboundedReceiver;

/// Images that are drawn alike.
#[derive(Debug, Clone)]
pub struct ImageJob {
    /// Index in the run and class of each: with the seed of the options, all that its draws depend on.
    pub images: Vec<Request>,
    /// How they are drawn.
    pub options: DecodeOptions,
    /// Numbers of the patch rule that are not the bundle's.
    pub rule: RuleChange,
    /// Whether pixels are wanted, not tokens alone.
    pub pixels: bool,
    /// Whether every token is told as it is drawn.
    pub tokens: bool,
    /// After how many patches a picture of what is drawn so far is told.
    pub preview: Option<NonZeroUsize>,
}

impl ImageJob {
    /// These images with their pixels, and nothing beside patches until they are done.
    pub fn new(images: Vec<Request>, options: DecodeOptions) -> Self {
        Self { images, options, rule: RuleChange::default(), pixels: true, tokens: false, preview: None }
    }
}

/// What a job came to. `image` is the place in [`ImageJob::images`].
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// A token was drawn.
    Token {
        /// Which image.
        image: usize,
        /// Its slot.
        slot: usize,
        /// The token.
        token: u32,
        /// e_t of its slot in nats; NaN at slot 0 and where no entropy model runs.
        entropy: f32,
    },
    /// A patch has ended: its tokens are `first..=last`.
    Patch {
        /// Which image.
        image: usize,
        /// First token.
        first: usize,
        /// Last token.
        last: usize,
        /// e_t of its first token in nats, as of a token.
        entropy: f32,
    },
    /// What is drawn so far. Left out while an earlier one was not taken.
    Preview {
        /// Which image.
        image: usize,
        /// Tokens drawn; what is behind them is made of token 0.
        tokens: usize,
        /// Pixels u8 `[H, W, 3]`.
        pixels: Vec<u8>,
    },
    /// An image is complete.
    Done {
        /// Which image.
        image: usize,
        /// What was drawn.
        drawn: DrawnImage,
    },
}

/// A complete image.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnImage {
    /// Tokens, patches, entropies, margins.
    pub stream: Stream,
    /// Pixels u8 `[H, W, 3]`, where they were asked for. They are decoded image by image: not every engine computes an image
    /// of a batch to the last bit as alone.
    pub pixels: Option<Vec<u8>>,
}

/// Why a job has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JobError {
    /// What was asked for cannot be: a class, a number of the sampler or of the patch rule.
    #[error("{0}")]
    Refused(Arc<RunError>),
    /// It has no images.
    #[error("no image is asked for")]
    Nothing,
    /// It has more images than one job may have.
    #[error("{images} images are asked for, {most} are allowed in one request")]
    TooMany {
        /// Its images.
        images: usize,
        /// The most.
        most: usize,
    },
    /// More guidance than logits bear.
    #[error("the guidance scale is {asked}, at most {most} is allowed")]
    Guidance {
        /// What was asked for.
        asked: f32,
        /// The most.
        most: f32,
    },
    /// Too many images wait already.
    #[error("{waiting} images wait already, {most} may")]
    Full {
        /// Images that wait.
        waiting: usize,
        /// The most.
        most: usize,
        /// When there may be room.
        retry: Duration,
    },
    /// No row became free in time.
    #[error("no row became free within {} s", .0.as_secs_f32())]
    QueueTime(Duration),
    /// Decoding took too long.
    #[error("the image was not complete within {} s", .0.as_secs_f32())]
    DecodeTime(Duration),
    /// The engine failed, or gave what cannot be.
    #[error("{0}")]
    Run(Arc<RunError>),
    /// The bundle's files are not those any more that were opened: nothing that comes of them counts.
    #[error("{0}")]
    Changed(Arc<RunError>),
    /// DrawnImage again after another row's failure, it came out different from what had been told of it.
    #[error("the engine failed in the middle, and drawn again the image came out different")]
    Diverged,
    /// The scheduler does not run any more.
    #[error("the scheduler has ended")]
    Ended,
}

impl Hinted for JobError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(e) | Self::Run(e) | Self::Changed(e) => e.hint(),
            Self::Full { retry, .. } => Some(format!("ask again in {} s", retry.as_secs())),
            Self::Nothing
            | Self::TooMany { .. }
            | Self::Guidance { .. }
            | Self::QueueTime(_)
            | Self::DecodeTime(_)
            | Self::Diverged
            | Self::Ended => None,
        }
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Refused(e) | Self::Run(e) | Self::Changed(e) => e.details(),
            _ => Vec::new(),
        }
    }
}

/// A job under way. Dropped, it gives its rows up.
#[derive(Debug)]
pub struct RunningJob {
    pub(crate) events: UnboundedReceiver<Result<JobEvent, JobError>>,
    /// Images that are not done.
    pub(crate) left: usize,
    /// By image, whether a preview was told and not taken yet.
    pub(crate) preview_waits: Arc<[AtomicBool]>,
}

impl RunningJob {
    /// The next event; `None` behind the last image, and behind an error. Not for use in asynchronous code.
    pub fn next_blocking(&mut self) -> Option<Result<JobEvent, JobError>> {
        let event = if self.left == 0 { None } else { self.events.blocking_recv() };
        self.counted(event)
    }

    /// As [`next_blocking`](Self::next_blocking), in asynchronous code.
    pub async fn next(&mut self) -> Option<Result<JobEvent, JobError>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`next`](Self::next), in a future that is written by hand.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<JobEvent, JobError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.events.poll_recv(context).map(|event| self.counted(event))
    }

    /// As [`next_blocking`](Self::next_blocking), for so long at most; pending when there is no event in that time.
    pub fn next_within(&mut self, most: Duration) -> Poll<Option<Result<JobEvent, JobError>>> {
        let end = Instant::now() + most;
        let waker = Waker::from(Arc::new(UnparkThread(std::thread::current())));
        loop {
            let event = self.poll_next(&mut Context::from_waker(&waker));
            let left = end.saturating_duration_since(Instant::now());
            if event.is_ready() || left.is_zero() {
                return event;
            }
            std::thread::park_timeout(left);
        }
    }

    /// All images, in the order of the job. Not for use in asynchronous code.
    ///
    /// # Errors
    /// What ended the job.
    pub fn all_blocking(mut self) -> Result<Vec<DrawnImage>, JobError> {
        let mut all = Collected::default();
        while let Some(event) = self.next_blocking() {
            all.take(event?);
        }
        Ok(all.images())
    }

    /// As [`all_blocking`](Self::all_blocking), in asynchronous code.
    ///
    /// # Errors
    /// What ended the job.
    pub async fn all(mut self) -> Result<Vec<DrawnImage>, JobError> {
        let mut all = Collected::default();
        while let Some(event) = self.next().await {
            all.take(event?);
        }
        Ok(all.images())
    }

    /// Keeps count of what is still to come: that no event comes any more is an error before the last image.
    fn counted(&mut self, event: Option<Result<JobEvent, JobError>>) -> Option<Result<JobEvent, JobError>> {
        let event = match (event, self.left) {
            (None, 0) => return None,
            (None, _) => Err(JobError::Ended),
            (Some(event), _) => event,
        };
        match event {
            Ok(JobEvent::Done { .. }) => self.left -= 1,
            Ok(JobEvent::Token { .. } | JobEvent::Patch { .. }) => {}
            Ok(JobEvent::Preview { image, .. }) => {
                if let Some(waits) = self.preview_waits.get(image) {
                    waits.store(false, Ordering::Relaxed);
                }
            }
            Err(_) => self.left = 0,
        }
        Some(event)
    }
}

/// Wakes a thread that waits for an event.
struct UnparkThread(Thread);

impl Wake for UnparkThread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Images as they are done.
#[derive(Default)]
struct Collected(Vec<(usize, DrawnImage)>);

impl Collected {
    fn take(&mut self, event: JobEvent) {
        if let JobEvent::Done { image, drawn } = event {
            self.0.push((image, drawn));
        }
    }

    fn images(mut self) -> Vec<DrawnImage> {
        self.0.sort_by_key(|(image, _)| *image);
        self.0.into_iter().map(|(_, drawn)| drawn).collect()
    }
}
