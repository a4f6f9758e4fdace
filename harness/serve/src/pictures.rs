//! The thread that makes pixels of tokens, while another decodes the next ones.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dpar_export_decode::generate::Stream;
use dpar_export_decode::loaded::{LoadedBundle, RunError};
use dpar_export_decode::tokenizer::VqDecoder;
use dpar_export_files::picture::to_u8_nhwc;

use crate::job::{DrawnImage, JobError, JobEvent};
use crate::queue::{AskedJob, JobQueue};
use crate::stats;

/// A picture that somebody waits for.
pub(crate) struct AskedPicture {
    pub(crate) asked: Arc<AskedJob>,
    pub(crate) image: usize,
    /// When the image got its row.
    pub(crate) begun: Instant,
    pub(crate) of: Shown,
}

/// What it shows.
pub(crate) enum Shown {
    /// So many tokens of an image, and those that fill it up.
    Part { drawn: usize, tokens: Vec<u32> },
    /// A complete image.
    Whole(Stream),
}

/// The thread, and the line before it.
pub(crate) struct PictureThread {
    line: SyncSender<AskedPicture>,
    thread: JoinHandle<()>,
    queue: Arc<JobQueue>,
}

impl PictureThread {
    /// Starts it. `most` pictures may wait; an image may take `decode_time` before its pixels are begun.
    pub(crate) fn start(
        runtime: Arc<LoadedBundle<'static>>,
        vq: VqDecoder,
        queue: Arc<JobQueue>,
        most: usize,
        decode_time: Duration,
    ) -> Self {
        let (line, pictures) = sync_channel(most);
        let painter = Painter { runtime, vq, queue: queue.clone(), decode_time };
        let thread = std::thread::spawn(move || painter.run(&pictures));
        Self { line, thread, queue }
    }

    /// Lets a picture wait behind the others; waits itself while too many do.
    pub(crate) fn push(&self, picture: AskedPicture) {
        stats::count(&self.queue.stats.pictures);
        if let Err(lost) = self.line.send(picture) {
            self.queue.stats.count_failed();
            lost.0.asked.tell(Err(JobError::Ended));
        }
    }

    /// Returns when all of them are made.
    pub(crate) fn finish(self) {
        drop(self.line);
        if self.thread.join().is_err() {
            tracing::error!("the thread that makes pixels ended in a panic");
        }
    }
}

/// What the thread has.
struct Painter {
    runtime: Arc<LoadedBundle<'static>>,
    vq: VqDecoder,
    queue: Arc<JobQueue>,
    decode_time: Duration,
}

impl Painter {
    fn run(mut self, pictures: &Receiver<AskedPicture>) {
        while let Ok(picture) = pictures.recv() {
            self.make(picture);
            stats::subtract(&self.queue.stats.pictures);
        }
    }

    /// Makes a picture and tells of it, unless nobody waits for it any more.
    fn make(&mut self, picture: AskedPicture) {
        let (asked, begun) = (picture.asked.clone(), picture.begun);
        let (whole, broken) = (matches!(picture.of, Shown::Whole(_)), self.queue.broken_off());
        if !whole && (asked.is_over() || broken.is_some()) {
            // What ends an image that is in a row is told from there.
            return;
        }
        if asked.is_over() {
            return stats::count(&self.queue.stats.dropped);
        }
        if whole && begun.elapsed() > self.decode_time {
            stats::count(&self.queue.stats.late);
            return asked.tell(Err(JobError::DecodeTime(self.decode_time)));
        }
        let event = match broken {
            Some(why) => Err(why),
            None => self.event(picture),
        };
        match &event {
            Ok(JobEvent::Done { .. }) => self.queue.stats.count_done(asked.since, begun),
            Ok(_) => {}
            Err(_) => self.queue.stats.count_failed(),
        }
        asked.tell(event);
    }

    fn event(&mut self, AskedPicture { asked, image, of, .. }: AskedPicture) -> Result<JobEvent, JobError> {
        Ok(match of {
            Shown::Part { drawn, tokens } => {
                JobEvent::Preview { image, tokens: drawn, pixels: self.pixels(&tokens)? }
            }
            Shown::Whole(stream) => {
                let pixels = asked.job.pixels.then(|| self.pixels(&stream.tokens)).transpose()?;
                JobEvent::Done { image, drawn: DrawnImage { stream, pixels } }
            }
        })
    }

    /// Pixels u8 `[H, W, 3]` of one image's tokens, made of the bundle's own files.
    fn pixels(&mut self, tokens: &[u32]) -> Result<Vec<u8>, JobError> {
        let size = self.runtime.bundle().system().image_size;
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        let started = Instant::now();
        let values = self.vq.decode(&ids);
        self.queue.stats.count_picture(started.elapsed());
        // First: files that are others now may be why it failed.
        self.runtime.bundle().unchanged().map_err(|e| JobError::Changed(Arc::new(e.into())))?;
        let values = values.map_err(|e: RunError| JobError::Run(Arc::new(e)))?;
        Ok(to_u8_nhwc(&values, 1, size, size))
    }
}
