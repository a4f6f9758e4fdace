//! Which rows each call has: the schedules, and the loop that they drive.

use std::collections::{BTreeMap, VecDeque};

use dpar_export_spec::PatchRule;
use serde::{Deserialize, Serialize};

use super::model::{After, GraphCalls, Opening, Pushed, StepModel};
use super::sampler::{Sampler, guide, image_key};
use super::{DecodeError, DecodeOptions, Request, Stream};

/// Which rows advance together. Streams are the same under every schedule: rows do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// All images of a batch are at the same token, and the global transformer runs whenever some open a patch.
    #[default]
    Lockstep,
    /// All images of a batch open a patch together, then those whose patch is still open take their tokens: the global
    /// transformer runs as often as the image with most patches needs, always on all that are not done.
    Patch,
    /// As [`Patch`](Self::Patch), and an image that is done leaves its row to the next one.
    Continuous,
    /// Every row draws a token in every step, whatever its slot, and an image that is done leaves its row to the next one: the fewest
    /// steps, with the global transformer in nearly each. Less than [`Continuous`](Self::Continuous) where the weights that every token
    /// reads (entropy model, encoder, decoder) are many beside those of the global transformer.
    Rolling,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 4] = [Self::Lockstep, Self::Patch, Self::Continuous, Self::Rolling];

    /// Whether the row of an image that is done goes to the next one, with others under way.
    pub fn refills(self) -> bool {
        matches!(self, Self::Continuous | Self::Rolling)
    }

    /// Whether patches are opened together, as soon as none is open.
    fn by_patches(self) -> bool {
        matches!(self, Self::Patch | Self::Continuous)
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Patch => "patch",
            Self::Continuous => "continuous",
            Self::Rolling => "rolling",
        }
    }
}

/// How many images are decoded together, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Images at a time.
    pub rows: usize,
    /// Which advance together.
    pub schedule: Schedule,
}

impl From<usize> for Batching {
    fn from(rows: usize) -> Self {
        Self { rows, schedule: Schedule::default() }
    }
}

/// What images of a system have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// The patch rule of a request that brings none of its own.
    pub rule: PatchRule,
    /// Tokens of an image, T.
    pub tokens: usize,
    /// The null class, if the model has one and some image may be guided.
    pub null_class: Option<i64>,
}

/// A submitted request: the n-th has number n, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub usize);

/// What a step came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token was drawn.
    Token {
        /// Whose.
        ticket: Ticket,
        /// Its slot.
        slot: usize,
        /// The token.
        token: u32,
        /// e_t of its slot in nats; NaN at slot 0 and where no entropy model runs.
        entropy: f32,
    },
    /// A patch has ended: its tokens are `first..=last`.
    PatchClosed {
        /// Whose.
        ticket: Ticket,
        /// First token.
        first: usize,
        /// Last token.
        last: usize,
    },
    /// An image is complete.
    Done {
        /// Whose.
        ticket: Ticket,
        /// What was decoded.
        stream: Stream,
    },
    /// An image cannot go on: its own logits or its own entropy are no numbers. Its row is free, and the others do not notice.
    Failed {
        /// Whose.
        ticket: Ticket,
        /// Why.
        error: DecodeError,
    },
}

/// Where an image stands between two calls.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The next token opens a patch.
    Waiting(After),
    /// The next token can be drawn.
    Open,
    /// A token was drawn and the model has not seen it.
    Drawn,
}

/// An image in a row.
struct Active {
    ticket: Ticket,
    stream: Stream,
    key: u64,
    options: DecodeOptions,
    rule: PatchRule,
    sampler: Sampler,
    guided: bool,
    stage: Stage,
}

impl Active {
    fn new(
        ticket: Ticket,
        request: Request,
        options: DecodeOptions,
        rule: PatchRule,
    ) -> Result<Self, DecodeError> {
        let refused = |source| DecodeError::Sample { image: request.index, slot: 0, source };
        let sampler = options.validate().and_then(|()| Sampler::new(options.sampler)).map_err(refused)?;
        let guided = options.cfg_scale > 1.0;
        Ok(Self {
            ticket,
            stream: Stream {
                request,
                tokens: Vec::new(),
                patch_lengths: vec![1],
                entropy: vec![f32::NAN],
                margin: Vec::new(),
            },
            key: image_key(options.seed, request.index),
            options,
            rule,
            sampler,
            guided,
            stage: Stage::Waiting(After::Class { class: request.class, guided }),
        })
    }

    /// First token of the open patch, of which `held` tokens are drawn.
    fn open_patch(&self) -> (usize, usize) {
        let held = self.stream.patch_lengths.last().copied().unwrap_or(0);
        (self.stream.tokens.len() - held, held)
    }

    /// Takes e_t of the next slot t; whether x_t opens a patch.
    fn decide(&mut self, e: f32) -> Result<Option<(usize, usize)>, DecodeError> {
        let rule = &self.rule;
        let stream = &mut self.stream;
        let t = stream.tokens.len();
        if rule.mode.uses_entropy() && !e.is_finite() {
            return Err(DecodeError::Entropy { image: stream.request.index, slot: t, value: e });
        }
        let previous = stream.entropy.last().copied().unwrap_or(f32::NAN);
        let (first, held) = self.open_patch();
        self.stream.entropy.push(e);
        if rule.opens(t, held, e, previous) {
            self.stage = Stage::Waiting(After::Patch { first, last: t - 1 });
            self.stream.patch_lengths.push(1);
            return Ok(Some((first, t - 1)));
        }
        self.stage = Stage::Open;
        if let Some(length) = self.stream.patch_lengths.last_mut() {
            *length += 1;
        }
        Ok(None)
    }
}

/// Decodes images as they are submitted, some at a time.
pub struct Decoder<'m> {
    model: Box<dyn StepModel + 'm>,
    pub(super) images: Images,
    batching: Batching,
    queue: VecDeque<Active>,
    rows: Vec<Option<Active>>,
    submitted: usize,
    mixed: Vec<f32>,
}

impl<'m> Decoder<'m> {
    /// A decoder without images.
    pub fn new(model: Box<dyn StepModel + 'm>, images: Images, batching: Batching) -> Self {
        let mixed = vec![0.0; model.vocab()];
        let rows = Vec::new();
        Self { model, images, batching, queue: VecDeque::new(), rows, submitted: 0, mixed }
    }

    /// Takes a request; it begins when a row is free for it.
    ///
    /// # Errors
    /// When the options of its sampler cannot be, or it is guided and the model has no null class.
    pub fn submit(&mut self, request: Request, options: &DecodeOptions) -> Result<Ticket, DecodeError> {
        self.submit_with_rule(request, options, self.images.rule.clone())
    }

    /// As [`submit`](Self::submit), with a patch rule of its own, which must be one that the graphs were exported for.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn submit_with_rule(
        &mut self,
        request: Request,
        options: &DecodeOptions,
        rule: PatchRule,
    ) -> Result<Ticket, DecodeError> {
        if options.cfg_scale > 1.0 && self.images.null_class.is_none() {
            return Err(DecodeError::NoNullClass);
        }
        let ticket = Ticket(self.submitted);
        self.queue.push_back(Active::new(ticket, request, options.clone(), rule)?);
        self.submitted += 1;
        Ok(ticket)
    }

    /// Forgets a request, wherever it stands; its row is free. Whether it was there.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let before = self.queue.len();
        self.queue.retain(|waiting| waiting.ticket != ticket);
        let row = self.rows.iter_mut().find(|row| row.as_ref().is_some_and(|a| a.ticket == ticket));
        self.queue.len() < before || row.is_some_and(|row| row.take().is_some())
    }

    /// The model without any image, for another decoder: its caches are empty, and their memory is free.
    pub fn into_model(mut self) -> Box<dyn StepModel + 'm> {
        self.model.reset(0, None);
        self.model
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.rows.iter().all(Option::is_none)
    }

    /// Calls of each graph so far.
    pub fn calls(&self) -> Vec<GraphCalls> {
        self.model.calls()
    }

    /// The next calls: tokens that were drawn go to the model, patches open as the schedule says, and every row whose patch
    /// is open draws a token. Nothing happens when there is nothing to do.
    ///
    /// # Errors
    /// The engine's; what was under way is then undefined. What one image alone fails with is an event.
    pub fn step(&mut self) -> Result<Vec<Event>, DecodeError> {
        let mut events = Vec::new();
        self.push(&mut events)?;
        let open = self.rows.iter().flatten().any(|a| matches!(a.stage, Stage::Open));
        if !self.batching.schedule.by_patches() || !open {
            self.admit();
            self.open()?;
        }
        self.draw(&mut events)?;
        Ok(events)
    }

    /// Gives drawn tokens to the model, and decides which of the next ones open a patch.
    fn push(&mut self, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        let active = self.rows.iter().enumerate().filter_map(|(row, a)| Some((row, a.as_ref()?)));
        let drawn = active.filter(|(_, a)| matches!(a.stage, Stage::Drawn));
        let tokens: Vec<Pushed> = drawn
            .filter_map(|(row, a)| {
                Some(Pushed { row, token: *a.stream.tokens.last()?, patch_start: a.open_patch().0 })
            })
            .collect();
        if tokens.is_empty() {
            return Ok(());
        }
        let entropy = self.model.push(&tokens)?;
        for (i, pushed) in tokens.iter().enumerate() {
            let Some(active) = &mut self.rows[pushed.row] else { continue };
            let e = entropy.as_ref().map_or(f32::NAN, |e| e[i]);
            let ticket = active.ticket;
            match active.decide(e) {
                Ok(Some((first, last))) => events.push(Event::PatchClosed { ticket, first, last }),
                Ok(None) => {}
                Err(error) => {
                    self.rows[pushed.row] = None;
                    events.push(Event::Failed { ticket, error });
                    continue;
                }
            }
            // Decode index i is slot i + 1.
            let slot = active.stream.tokens.len();
            if active.guided && active.options.cfg_interval.is_some_and(|i| slot >= i.saturating_add(2)) {
                active.guided = false;
                self.model.drop_guidance(pushed.row);
            }
        }
        Ok(())
    }

    /// Gives free rows to waiting requests: to a whole batch at a time, or as they come.
    fn admit(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        if self.rows.iter().all(Option::is_none) {
            // No more rows than there are images for them, so that a small batch is a whole one.
            let rows = match self.batching.schedule.refills() {
                false => self.batching.rows.min(self.queue.len()).max(1),
                true => self.batching.rows.max(1),
            };
            if rows != self.rows.len() || !self.batching.schedule.refills() {
                self.rows = (0..rows).map(|_| None).collect();
                self.model.reset(rows, self.images.null_class);
            }
        } else if !self.batching.schedule.refills() {
            return;
        }
        for row in self.rows.iter_mut().filter(|row| row.is_none()) {
            *row = self.queue.pop_front();
        }
    }

    /// Runs the global transformer on every row whose next token opens a patch.
    fn open(&mut self) -> Result<(), DecodeError> {
        let mut openings = Vec::new();
        for (row, active) in self.rows.iter_mut().enumerate() {
            let Some(Active { stage, .. }) = active else { continue };
            if let Stage::Waiting(after) = *stage {
                openings.push(Opening { row, after });
                *stage = Stage::Open;
            }
        }
        Ok(self.model.open(&openings)?)
    }

    /// Draws the next token of every row whose patch is open.
    fn draw(&mut self, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        let open = |a: &Option<Active>| a.as_ref().is_some_and(|a| matches!(a.stage, Stage::Open));
        let rows: Vec<usize> = (0..self.rows.len()).filter(|row| open(&self.rows[*row])).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let logits = self.model.logits(&rows)?;
        for (i, row) in rows.into_iter().enumerate() {
            let Some(active) = &mut self.rows[row] else { continue };
            let conditional = logits.conditional(i);
            let deciding = match logits.unconditional(i) {
                Some(u) => {
                    guide(conditional, u, active.options.cfg_scale, &mut self.mixed);
                    &self.mixed
                }
                None => conditional,
            };
            let (image, slot) = (active.stream.request.index, active.stream.tokens.len());
            let ticket = active.ticket;
            let drawn = match active.sampler.draw_at(deciding, active.key, slot as u64) {
                Ok(drawn) => drawn,
                Err(source) => {
                    self.rows[row] = None;
                    events.push(Event::Failed { ticket, error: DecodeError::Sample { image, slot, source } });
                    continue;
                }
            };
            active.stream.tokens.push(drawn.token);
            active.stream.margin.push(drawn.margin);
            active.stage = Stage::Drawn;
            let entropy = active.stream.entropy.get(slot).copied().unwrap_or(f32::NAN);
            events.push(Event::Token { ticket, slot, token: drawn.token, entropy });
            if active.stream.tokens.len() == self.images.tokens
                && let Some(done) = self.rows[row].take()
            {
                let (first, _) = done.open_patch();
                events.push(Event::PatchClosed { ticket, first, last: slot });
                events.push(Event::Done { ticket, stream: done.stream });
            }
        }
        Ok(())
    }

    /// Decodes all of these images; streams come in the order of the requests. `progress` is called after every step with
    /// the tokens drawn so far, and returns false to stop.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn run(
        &mut self,
        requests: &[Request],
        options: &DecodeOptions,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<Stream>, DecodeError> {
        let mut streams = Vec::with_capacity(requests.len());
        self.run_each(requests, options, progress, &mut |stream| {
            streams.push(stream);
            Ok::<_, DecodeError>(())
        })?;
        Ok(streams)
    }

    /// As [`run`](Self::run), but gives each stream to `done` when it and those before it are complete. Beside the rows it
    /// holds as many requests as there are rows, and the streams that are done before an earlier one: their number does not
    /// grow with that of the requests.
    ///
    /// # Errors
    /// See [`DecodeError`]; what `done` returns.
    pub fn run_each<E: From<DecodeError>>(
        &mut self,
        requests: &[Request],
        options: &DecodeOptions,
        progress: &mut dyn FnMut(usize) -> bool,
        done: &mut dyn FnMut(Stream) -> Result<(), E>,
    ) -> Result<(), E> {
        let first = self.submitted;
        let mut requests = requests.iter();
        let mut early: BTreeMap<usize, Stream> = BTreeMap::new();
        let (mut tokens, mut next) = (0, first);
        loop {
            while self.queue.len() < self.batching.rows.max(1) {
                let Some(request) = requests.next() else { break };
                self.submit(*request, options)?;
            }
            if self.is_idle() {
                return Ok(());
            }
            for event in self.step()? {
                match event {
                    Event::Token { .. } => tokens += 1,
                    Event::Done { ticket, stream } if ticket.0 >= first => {
                        early.insert(ticket.0, stream);
                    }
                    Event::PatchClosed { .. } | Event::Done { .. } => {}
                    Event::Failed { error, .. } => return Err(error.into()),
                }
            }
            while let Some(stream) = early.remove(&next) {
                done(stream)?;
                next += 1;
            }
            if !progress(tokens) {
                return Err(DecodeError::Interrupted.into());
            }
        }
    }
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let busy = self.rows.iter().flatten().count();
        f.debug_struct("Decoder")
            .field("batching", &self.batching)
            .field("busy", &busy)
            .finish_non_exhaustive()
    }
}
