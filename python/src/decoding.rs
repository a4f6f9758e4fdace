//! The decoding loop over an open bundle, whoever drives it.

use std::sync::{Arc, Mutex, PoisonError};

use dpar_export::commands::MAX_IMAGES;
use dpar_export::commands::failure::Failure;
use dpar_export::generate::sampler::{Method, SamplerOptions};
use dpar_export::generate::{
    Batching, DecodeOptions, Decoder, Event, GraphCalls, Images, Request, Schedule, StepModel, Stream,
};
use dpar_export::loaded::{LoadedBundle, RunError};
use dpar_export::picture::to_u8_nhwc;
use dpar_export::tokenizer::VqDecoder;
use pyo3::prelude::*;

use crate::errors::input;

/// Most images in one call of a graph, as on the command line.
const MOST_ROWS: usize = 256;

/// A bundle on an engine, with what was prepared for earlier calls and is not in use.
pub(crate) struct OpenBundle {
    pub(crate) runtime: Arc<LoadedBundle<'static>>,
    model: Mutex<Option<Box<dyn StepModel>>>,
    vq: Mutex<Option<VqDecoder>>,
}

impl OpenBundle {
    pub(crate) fn new(runtime: LoadedBundle<'static>) -> Self {
        Self { runtime: Arc::new(runtime), model: Mutex::new(None), vq: Mutex::new(None) }
    }

    fn model(&self) -> Result<Box<dyn StepModel>, RunError> {
        let kept = self.model.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.map_or_else(|| self.runtime.model(), Ok)
    }

    /// A prepared tokenizer.
    pub(crate) fn take_vq(&self) -> Result<VqDecoder, RunError> {
        let kept = self.vq.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.map_or_else(|| self.runtime.vq_decoder(), Ok)
    }

    /// Keeps a tokenizer for the next call.
    pub(crate) fn keep_vq(&self, vq: VqDecoder) {
        *self.vq.lock().unwrap_or_else(PoisonError::into_inner) = Some(vq);
    }

    /// Pixels u8 `[N, H, W, 3]` of codes `[N, T]`. Image by image: not every engine computes an image of a batch to the last
    /// bit as alone.
    pub(crate) fn pixels(
        &self,
        vq: &mut VqDecoder,
        ids: &[i64],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Failure> {
        let system = self.runtime.bundle().system();
        let (t, size) = (system.tokens(), system.image_size);
        let mut pixels = Vec::with_capacity(ids.len() / t * size * size * 3);
        for image in ids.chunks(t) {
            pixels.extend(to_u8_nhwc(&vq.decode(image)?, 1, size, size));
            if !go_on() {
                return Err(RunError::Interrupted.into());
            }
        }
        Ok(pixels)
    }
}

/// Images, and how they are drawn, in plain values.
#[derive(Debug, Clone, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Asking {
    classes: Option<Vec<i64>>,
    num: Option<u64>,
    first: u64,
    seed: u64,
    cfg_scale: f32,
    cfg_interval: Option<usize>,
    greedy: bool,
    sampler: String,
    temperature: f32,
    top_k: usize,
    top_p: f64,
    pub(crate) images: bool,
}

impl Asking {
    pub(crate) fn options(&self) -> Result<DecodeOptions, Failure> {
        let method = match self.sampler.as_str() {
            "gumbel" => Method::Gumbel,
            "cdf" => Method::Cdf,
            other => return Err(input(format!("sampler is gumbel or cdf, not {other}"), None)),
        };
        let Self { temperature, top_k, top_p, greedy, .. } = *self;
        let drawn = SamplerOptions::default();
        let told = SamplerOptions { method, temperature, top_k, top_p, greedy };
        if greedy && told != (SamplerOptions { greedy, ..drawn }) {
            let message =
                "greedy takes the most likely token: sampler, temperature, top_k and top_p have no effect";
            return Err(input(message, Some("leave them out")));
        }
        let options = DecodeOptions {
            cfg_scale: self.cfg_scale,
            cfg_interval: self.cfg_interval,
            sampler: told,
            seed: self.seed,
        };
        options.validate().map_err(|e| input(e.to_string(), None))?;
        if let Some(note) = options.sampler.note() {
            tracing::warn!("{note}");
        }
        Ok(options)
    }

    pub(crate) fn requests(&self, num_classes: usize) -> Result<Vec<Request>, Failure> {
        let index = |i: u64| self.first.checked_add(i).ok_or_else(|| input("first is too large", None));
        match (&self.classes, self.num) {
            (Some(classes), None) => {
                let all =
                    classes.iter().zip(0..).map(|(class, i)| Ok(Request { index: index(i)?, class: *class }));
                all.collect()
            }
            (None, Some(n)) if n > MAX_IMAGES => {
                Err(input(format!("num is {MAX_IMAGES} at most, not {n}"), None))
            }
            (None, Some(n)) => {
                (0..n).map(|i| Ok(Request::seeded(self.seed, index(i)?, num_classes))).collect()
            }
            _ => Err(input("classes or num says which images, one of the two", None)),
        }
    }
}

/// How many rows there may be, under the name that the user knows.
pub(crate) fn check_rows(name: &str, rows: usize) -> Result<(), Failure> {
    match (1..=MOST_ROWS).contains(&rows) {
        true => Ok(()),
        false => Err(input(format!("{name} is 1 to {MOST_ROWS}, not {rows}"), None)),
    }
}

/// Which images are decoded together.
pub(crate) struct AskedBatch {
    pub(crate) batch: usize,
    pub(crate) schedule: String,
}

impl AskedBatch {
    fn batching(&self, images: usize) -> Result<Batching, Failure> {
        let Some(schedule) = Schedule::ALL.into_iter().find(|s| s.as_str() == self.schedule) else {
            let names = Schedule::ALL.map(Schedule::as_str).join(", ");
            return Err(input(format!("schedule is one of {names}, not {}", self.schedule), None));
        };
        check_rows("batch", self.batch)?;
        Ok(Batching { rows: self.batch.min(images).max(1), schedule })
    }
}

/// A run under way.
pub(crate) struct Decoding {
    decoder: Decoder<'static>,
    pub(crate) requests: Vec<Request>,
    /// Where pixels are asked for.
    pub(crate) vq: Option<VqDecoder>,
}

impl Decoding {
    /// Prepares everything, so that what is missing is said before hours of work.
    pub(crate) fn begin(open: &OpenBundle, asking: &Asking, batch: &AskedBatch) -> Result<Self, Failure> {
        let system = open.runtime.bundle().system();
        let options = asking.options()?;
        let requests = asking.requests(system.num_classes)?;
        let batching = batch.batching(requests.len())?;
        open.runtime.check_requests(&requests).map_err(RunError::from)?;
        let vq = asking.images.then(|| open.take_vq()).transpose()?;
        let null_class = system.null_class().filter(|_| options.cfg_scale > 1.0);
        let images = Images { rule: system.patch_rule.clone(), tokens: system.tokens(), null_class };
        let mut decoder = Decoder::new(open.model()?, images, batching);
        for request in &requests {
            decoder.submit(*request, &options).map_err(RunError::from)?;
        }
        Ok(Self { decoder, requests, vq })
    }

    /// Calls of each graph so far.
    pub(crate) fn calls(&self) -> Vec<GraphCalls> {
        self.decoder.calls()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.decoder.is_idle()
    }

    pub(crate) fn step(&mut self) -> Result<Vec<Event>, Failure> {
        Ok(self.decoder.step().map_err(RunError::from)?)
    }

    /// Forgets an image; its row is free. Whether it was still to be done.
    pub(crate) fn cancel(&mut self, number: usize) -> bool {
        self.decoder.cancel(dpar_export::generate::Ticket(number))
    }

    /// All streams, in the order of the requests.
    pub(crate) fn run(&mut self, go_on: &dyn Fn() -> bool) -> Result<Vec<Stream>, Failure> {
        let mut streams: Vec<Option<Stream>> = vec![None; self.requests.len()];
        while !self.is_idle() {
            for event in self.step()? {
                if let Event::Done { ticket, stream } = event {
                    streams[ticket.0] = Some(stream);
                }
            }
            if !go_on() {
                return Err(RunError::Interrupted.into());
            }
        }
        Ok(streams.into_iter().flatten().collect())
    }

    /// Gives back what was prepared; the caches are freed. Not after an error: then the model is dropped with the run.
    pub(crate) fn end(self, open: &OpenBundle) {
        if let Some(vq) = self.vq {
            open.keep_vq(vq);
        }
        *open.model.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.decoder.into_model());
    }
}
