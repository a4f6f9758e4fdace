//! Pictures that a bundle makes: drawn from classes and seeds, or decoded from given tokens.

use dpar_export_decode::generate::{Batching, DecodeOptions, Request, Stream};
use dpar_export_decode::loaded::{LoadedBundle, RunError};
use dpar_export_files::picture::to_u8_resized;
use dpar_export_spec::GraphName;
use serde_json::{Value, json};

use super::EvaluateError;
use super::look::{Pictures, Sink};
use crate::features::device;

/// Pictures that a bundle draws.
pub struct Drawn<'a> {
    runtime: &'a LoadedBundle<'a>,
    requests: Vec<Request>,
    options: DecodeOptions,
    batching: Batching,
    side: usize,
}

impl<'a> Drawn<'a> {
    /// `n` pictures whose classes follow from the seed of `options`, decoded so many at a time.
    ///
    /// # Errors
    /// When the bundle has no tokenizer.
    pub fn new(
        runtime: &'a LoadedBundle<'a>,
        n: u64,
        options: DecodeOptions,
        batching: impl Into<Batching>,
    ) -> Result<Self, EvaluateError> {
        // Asked first: decoding thousands of pictures to find no tokenizer would waste hours.
        runtime.bundle().with_graph(GraphName::VqDecode.as_str(), &[], |_| Ok::<_, RunError>(()))?;
        let system = runtime.bundle().system();
        let requests = Request::all_seeded(options.seed, n, system.num_classes);
        Ok(Self { runtime, requests, options, batching: batching.into(), side: system.image_size })
    }

    /// Resized to `side` × `side` pixels before they become bytes; `None`: as the tokenizer makes them.
    #[must_use]
    pub fn resized(self, side: Option<usize>) -> Self {
        Self { side: side.unwrap_or(self.side), ..self }
    }

    /// Class of every picture.
    pub(crate) fn classes(&self) -> impl Iterator<Item = i64> {
        self.requests.iter().map(|r| r.class)
    }

    /// The seed.
    pub(crate) fn seed(&self) -> u64 {
        self.options.seed
    }

    /// Images in one call of a graph.
    pub(crate) fn batch(&self) -> usize {
        self.batching.rows
    }

    /// How the calls are made that pixels come from: rounding may depend on it.
    pub(crate) fn calls(&self) -> Value {
        let Batching { rows, schedule } = self.batching;
        json!({ "batch": rows, "schedule": schedule, "caches": self.runtime.info().caches })
    }

    /// What pixels depend on: neither threads nor paths, so that machines share the work.
    pub(crate) fn identity(&self) -> Value {
        let (options, sampler, info) = (&self.options, &self.options.sampler, self.runtime.info());
        let engine = json!({ "engine": info.engine, "version": info.version, "device": device(info) });
        let mut identity = json!({
            "bundle": self.runtime.bundle().manifest_sha256(), "engine": engine,
            "cfg_scale": options.cfg_scale, "cfg_interval": options.cfg_interval, "seed": options.seed,
            "sampler": sampler.method, "greedy": sampler.greedy, "temperature": sampler.temperature,
            "top_k": sampler.top_k, "top_p": sampler.top_p, "patch_rule": self.runtime.bundle().patch_rule(),
        });
        if self.side != self.runtime.bundle().system().image_size {
            identity["resize"] = self.side.into();
        }
        identity
    }
}

impl Pictures for Drawn<'_> {
    fn count(&self) -> usize {
        self.requests.len()
    }

    fn size(&self) -> (usize, usize) {
        (self.side, self.side)
    }

    fn chunks(&self, range: (usize, usize), chunk: usize, sink: &mut dyn Sink) -> Result<(), EvaluateError> {
        for requests in self.requests[range.0..range.1].chunks(chunk.max(1)) {
            let n = requests.len();
            let streams =
                self.runtime.decode(requests, &self.options, self.batching, &mut |done, total| {
                    sink.drawing(done * n / total.max(1))
                })?;
            let ids = Stream::ids(&streams);
            let steps: Vec<u32> = streams.iter().map(|s| s.steps() as u32).collect();
            let pixels = pixels(self.runtime, &ids, self.side, self.batch(), &mut || sink.drawing(n))?;
            sink.take(&pixels, Some(&steps))?;
        }
        Ok(())
    }
}

/// Pictures of given tokens.
pub(crate) struct Codes<'a> {
    pub(crate) runtime: &'a LoadedBundle<'a>,
    /// `[N, T]`.
    pub(crate) ids: &'a [i64],
    /// Images in one call of a graph.
    pub(crate) batch: usize,
}

impl Pictures for Codes<'_> {
    fn count(&self) -> usize {
        self.ids.len() / self.runtime.bundle().system().tokens()
    }

    fn size(&self) -> (usize, usize) {
        let side = self.runtime.bundle().system().image_size;
        (side, side)
    }

    fn chunks(&self, range: (usize, usize), chunk: usize, sink: &mut dyn Sink) -> Result<(), EvaluateError> {
        let t = self.runtime.bundle().system().tokens();
        for ids in self.ids[range.0 * t..range.1 * t].chunks(t * chunk.max(1)) {
            let pixels = pixels(self.runtime, ids, self.size().0, self.batch, &mut || sink.drawing(0))?;
            sink.take(&pixels, None)?;
        }
        Ok(())
    }
}

/// u8 `[N, side, side, 3]` of tokens `[N, T]`.
fn pixels(
    runtime: &LoadedBundle<'_>,
    ids: &[i64],
    side: usize,
    batch: usize,
    ask: &mut dyn FnMut() -> bool,
) -> Result<Vec<u8>, EvaluateError> {
    let images = runtime.images(ids, batch, &mut |_, _| ask())?;
    let system = runtime.bundle().system();
    Ok(to_u8_resized(&images, ids.len() / system.tokens(), system.image_size, side))
}
