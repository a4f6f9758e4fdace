//! The thread that decodes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dpar_export_decode::generate::{Batching, Decoder, Event, Images, Schedule, StepModel, Ticket};
use dpar_export_decode::loaded::{LoadedBundle, RunError};
use dpar_export_decode::tokenizer::VqDecoder;
use dpar_export_files::picture::to_u8_nhwc;

use crate::job::{DrawnImage, JobError, JobEvent};
use crate::limits::SchedulerLimits;
use crate::queue::{AskedJob, JobQueue, Next, WaitingImage};
use crate::stats::{self, Stats};

/// An image in a row, and what was told of it.
struct Lane {
    asked: Arc<AskedJob>,
    image: usize,
    begun: Instant,
    /// Tokens and their entropies. An image that is drawn again after another's failure tells nothing twice.
    tokens: Vec<u32>,
    entropy: Vec<f32>,
    /// Patches, and the tokens that are in them.
    patches: usize,
    patched: usize,
}

/// What is said when a step is over and its files were still those of the bundle.
type Tellings = Vec<(Arc<AskedJob>, Result<JobEvent, JobError>)>;

/// Takes images from the queue and decodes them.
pub(crate) struct DecodingThread {
    runtime: Arc<LoadedBundle<'static>>,
    decoder: Option<Decoder<'static>>,
    images: Images,
    vq: Option<VqDecoder>,
    queue: Arc<JobQueue>,
    limits: SchedulerLimits,
    lanes: BTreeMap<Ticket, Lane>,
    /// Images of a step that failed: each is drawn alone, so that the one that is the reason fails and the others do not.
    suspects: VecDeque<Lane>,
}

/// Whoever waits is told, however the thread ends.
struct Ending(Arc<JobQueue>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.close();
        self.0.break_off(&JobError::Ended);
    }
}

impl DecodingThread {
    pub(crate) fn new(
        runtime: Arc<LoadedBundle<'static>>,
        model: Box<dyn StepModel>,
        images: Images,
        vq: Option<VqDecoder>,
        queue: Arc<JobQueue>,
        limits: SchedulerLimits,
    ) -> Self {
        let decoder = Some(Self::decoder(model, &images, limits));
        let (lanes, suspects) = (BTreeMap::new(), VecDeque::new());
        Self { runtime, decoder, images, vq, queue, limits, lanes, suspects }
    }

    fn decoder(model: Box<dyn StepModel>, images: &Images, limits: SchedulerLimits) -> Decoder<'static> {
        // A job waits for no other job's end.
        let schedule = if limits.schedule.refills() { limits.schedule } else { Schedule::Rolling };
        Decoder::new(model, images.clone(), Batching { rows: limits.rows, schedule })
    }

    fn stats(&self) -> &Stats {
        &self.queue.stats
    }

    fn note_busy(&self) {
        stats::set(&self.stats().busy, self.lanes.len() + self.suspects.len());
    }

    /// Until nobody can ask any more and all is done, or the bundle was changed.
    pub(crate) fn run(mut self) {
        let _ending = Ending(self.queue.clone());
        loop {
            let free = match self.suspects.is_empty() {
                true => self.limits.rows.saturating_sub(self.lanes.len()),
                false => 0,
            };
            let busy = !(self.lanes.is_empty() && self.suspects.is_empty());
            match self.queue.next(free, busy, self.limits.queue_time) {
                Next::End => {
                    stats::set(&self.stats().busy, 0);
                    return;
                }
                Next::Begin(images) => images.into_iter().for_each(|image| self.begin(image)),
            }
            if self.lanes.is_empty()
                && let Some(suspect) = self.suspects.pop_front()
            {
                self.enter(suspect);
            }
            self.drop_what_nobody_wants();
            self.note_busy();
            if let Err(e) = self.step() {
                let why = JobError::Changed(Arc::new(e));
                let lanes = std::mem::take(&mut self.lanes).into_values();
                for lane in lanes.chain(std::mem::take(&mut self.suspects)) {
                    stats::count(&self.stats().failed);
                    lane.asked.tell(Err(why.clone()));
                }
                stats::set(&self.stats().busy, 0);
                self.queue.break_off(&why);
                return;
            }
        }
    }

    fn begin(&mut self, WaitingImage { asked, image }: WaitingImage) {
        self.stats().queue_time.add(asked.since.elapsed());
        let begun = Instant::now();
        let (tokens, entropy) = (Vec::new(), Vec::new());
        self.enter(Lane { asked, image, begun, tokens, entropy, patches: 0, patched: 0 });
    }

    fn enter(&mut self, lane: Lane) {
        let Some(decoder) = &mut self.decoder else { return };
        let job = &lane.asked.job;
        match decoder.submit_with_rule(job.images[lane.image], &job.options, lane.asked.rule.clone()) {
            Ok(ticket) => drop(self.lanes.insert(ticket, lane)),
            Err(e) => lane.asked.tell(Err(JobError::Refused(Arc::new(e.into())))),
        }
    }

    /// Frees the rows of images whose requester went away, or that took too long.
    fn drop_what_nobody_wants(&mut self) {
        let limit = self.limits.decode_time;
        let stats = &self.queue.stats;
        let mut wanted = |lane: &Lane| {
            if lane.asked.is_over() {
                stats::count(&stats.dropped);
                return false;
            }
            let late = lane.begun.elapsed() > limit;
            if late {
                stats::count(&stats.late);
                lane.asked.tell(Err(JobError::DecodeTime(limit)));
            }
            !late
        };
        self.suspects.retain(&mut wanted);
        let decoder = &mut self.decoder;
        self.lanes.retain(|ticket, lane| {
            let keep = wanted(lane);
            if let (false, Some(decoder)) = (keep, decoder.as_mut()) {
                decoder.cancel(*ticket);
            }
            keep
        });
    }

    /// One step of all rows.
    ///
    /// # Errors
    /// When the bundle's files are others now. Other errors are those of images.
    fn step(&mut self) -> Result<(), RunError> {
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        if self.lanes.is_empty() {
            return Ok(());
        }
        let stepped = decoder.step();
        self.queue.stats.set_graphs(decoder.calls());
        let told = match stepped {
            Ok(events) => self.told(events),
            Err(e) => self.failed(e.into()),
        };
        self.runtime.bundle().unchanged()?;
        self.note_busy();
        for (asked, event) in told {
            match &event {
                Ok(JobEvent::Done { .. }) => self.stats().failures_in_a_row.store(0, Ordering::Relaxed),
                Ok(_) => {}
                Err(_) => {
                    stats::count(&self.stats().failed);
                    stats::count(&self.stats().failures_in_a_row);
                }
            }
            asked.tell(event);
        }
        Ok(())
    }

    /// What events of the loop mean for those who asked.
    fn told(&mut self, events: Vec<Event>) -> Tellings {
        let mut told = Tellings::new();
        let mut diverged = Vec::new();
        for event in events {
            match event {
                Event::Token { ticket, slot, token, entropy } => {
                    let Some(lane) = self.lanes.get_mut(&ticket) else { continue };
                    match lane.tokens.get(slot) {
                        Some(before) if *before == token => {}
                        Some(_) => diverged.push(ticket),
                        None => {
                            lane.tokens.push(token);
                            lane.entropy.push(entropy);
                            stats::count(&self.queue.stats.tokens);
                            if lane.asked.job.tokens {
                                let event = JobEvent::Token { image: lane.image, slot, token, entropy };
                                told.push((lane.asked.clone(), Ok(event)));
                            }
                        }
                    }
                }
                Event::PatchClosed { ticket, first, last } => self.patch(ticket, first, last, &mut told),
                Event::Failed { ticket, error } => {
                    let Some(lane) = self.lanes.remove(&ticket) else { continue };
                    told.push((lane.asked, Err(JobError::Run(Arc::new(error.into())))));
                }
                Event::Done { ticket, stream } => {
                    let Some(lane) = self.lanes.remove(&ticket) else { continue };
                    let pixels = match lane.asked.job.pixels {
                        true => self.picture(&stream.tokens),
                        false => Ok(None),
                    };
                    let event = pixels.map(|pixels| {
                        let stats = self.stats();
                        stats::count(&stats.done);
                        stats.latency.add(lane.asked.since.elapsed());
                        stats.decode_time.add(lane.begun.elapsed());
                        JobEvent::Done { image: lane.image, drawn: DrawnImage { stream, pixels } }
                    });
                    told.push((lane.asked, event.map_err(|e| JobError::Run(Arc::new(e)))));
                }
            }
        }
        for ticket in diverged {
            if let (Some(lane), Some(decoder)) = (self.lanes.remove(&ticket), &mut self.decoder) {
                decoder.cancel(ticket);
                told.push((lane.asked, Err(JobError::Diverged)));
            }
        }
        told
    }

    fn patch(&mut self, ticket: Ticket, first: usize, last: usize, told: &mut Tellings) {
        let all = self.images.tokens;
        let Some(lane) = self.lanes.get_mut(&ticket) else { return };
        if first < lane.patched {
            return;
        }
        lane.patched = last + 1;
        lane.patches += 1;
        let stats = &self.queue.stats;
        stats::count(&stats.patches);
        if lane.patches == 1 {
            stats.first_patch.add(lane.asked.since.elapsed());
        }
        let entropy = lane.entropy.get(first).copied().unwrap_or(f32::NAN);
        let (image, asked) = (lane.image, lane.asked.clone());
        told.push((asked.clone(), Ok(JobEvent::Patch { image, first, last, entropy })));
        let shown = asked.job.preview.is_some_and(|every| lane.patches.is_multiple_of(every.get()));
        if shown && lane.patched < all && asked.takes_preview(image) {
            let mut tokens = lane.tokens.clone();
            tokens.truncate(last + 1);
            tokens.resize(all, 0);
            let preview = self.picture(&tokens).map(|pixels| {
                let pixels = pixels.unwrap_or_default();
                JobEvent::Preview { image, tokens: last + 1, pixels }
            });
            told.push((asked, preview.map_err(|e| JobError::Run(Arc::new(e)))));
        }
    }

    /// Pixels of one image's tokens.
    fn picture(&mut self, tokens: &[u32]) -> Result<Option<Vec<u8>>, RunError> {
        let Some(vq) = &mut self.vq else { return Ok(None) };
        let size = self.runtime.bundle().system().image_size;
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        Ok(Some(to_u8_nhwc(&vq.decode(&ids)?, 1, size, size)))
    }

    /// After a step that failed, all rows are undefined: they are drawn again, one by one. One that fails alone is the reason.
    fn failed(&mut self, error: RunError) -> Tellings {
        let mut lanes: Vec<Lane> = std::mem::take(&mut self.lanes).into_values().collect();
        if let Some(decoder) = self.decoder.take() {
            self.decoder = Some(Self::decoder(decoder.into_model(), &self.images, self.limits));
        }
        if lanes.len() > 1 {
            tracing::warn!(images = lanes.len(), %error, "a step failed; its images are drawn again, one by one");
            self.suspects.extend(lanes);
            return Tellings::new();
        }
        let why = JobError::Run(Arc::new(error));
        lanes.drain(..).map(|lane| (lane.asked, Err(why.clone()))).collect()
    }
}
