//! Where samples come from.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::arrays::ArrayFile;
use crate::commands::failure::Failure;
use crate::commands::pixels::TRACE;
use crate::commands::printer::stopped;
use crate::evaluate::EvaluateError;
use crate::evaluate::images::ImageSet;
use crate::evaluate::protocol::Sampling;
use crate::features::device;
use crate::generate::{DecodeOptions, Request};
use crate::picture::to_u8_nhwc;
use crate::runtime::Runtime;

/// Takes the pixels of a chunk of images, and the steps of each where they are generated.
pub(super) type TakeChunk<'a> = dyn FnMut(&[u8], Option<&[u32]>) -> Result<(), EvaluateError> + 'a;

/// Where samples come from.
pub(super) enum Source<'a> {
    Images(ImageSet),
    Bundle { runtime: &'a Runtime<'a>, requests: Vec<Request>, options: DecodeOptions, batch: usize },
}

impl Source<'_> {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Images(set) => set.count(),
            Self::Bundle { requests, .. } => requests.len(),
        }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Self::Images(set) => set.size(),
            Self::Bundle { runtime, .. } => {
                let side = runtime.bundle().system().image_size;
                (side, side)
            }
        }
    }

    /// Calls `f` with the pixels of consecutive chunks, and the steps where they are generated. `decoding` is told how
    /// many images' worth of a chunk are decoded, and returns false to stop.
    pub(super) fn chunks(
        &self,
        range: (usize, usize),
        chunk: usize,
        decoding: &dyn Fn(usize) -> bool,
        f: &mut TakeChunk<'_>,
    ) -> Result<(), EvaluateError> {
        match self {
            Self::Images(set) => set.chunks(range, chunk, &mut |pixels| f(pixels, None)),
            Self::Bundle { runtime, requests, options, batch } => {
                let side = runtime.bundle().system().image_size;
                for requests in requests[range.0..range.1].chunks(chunk) {
                    let n = requests.len();
                    let streams = runtime.decode(requests, options, *batch, &mut |done, total| {
                        decoding(done * n / total.max(1)) && !stopped()
                    })?;
                    let ids: Vec<i64> =
                        streams.iter().flat_map(|s| s.tokens.iter().map(|t| i64::from(*t))).collect();
                    let images = runtime.images(&ids, *batch, &mut |_, _| !stopped())?;
                    let steps: Vec<u32> = streams.iter().map(|s| s.steps() as u32).collect();
                    f(&to_u8_nhwc(&images, requests.len(), side, side), Some(&steps))?;
                }
                Ok(())
            }
        }
    }

    /// Everything that the pixels depend on.
    pub(super) fn content(&self) -> Value {
        match self {
            Self::Images(set) => json!(set.content()),
            Self::Bundle { batch, .. } => json!({ "generated": self.generated(), "batch": batch }),
        }
    }

    /// Changes when files are written again.
    pub(super) fn stamp(&self) -> &str {
        match self {
            Self::Images(set) => set.stamp(),
            Self::Bundle { .. } => "",
        }
    }

    pub(super) fn generated(&self) -> Option<Value> {
        let Self::Bundle { runtime, options, .. } = self else { return None };
        let (sampler, info) = (&options.sampler, runtime.info());
        // What pixels depend on: neither threads nor paths, so that machines share the work.
        let engine = json!({ "engine": info.engine, "version": info.version, "device": device(info) });
        Some(json!({
            "bundle": runtime.bundle().manifest_sha256(), "engine": engine,
            "cfg_scale": options.cfg_scale, "cfg_interval": options.cfg_interval, "seed": options.seed,
            "sampler": sampler.method, "greedy": sampler.greedy, "temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p,
        }))
    }

    pub(super) fn sampling(&self) -> Result<Sampling, Failure> {
        let digest = |classes: &[i64]| {
            let bytes: Vec<u8> = classes.iter().flat_map(|c| c.to_le_bytes()).collect();
            Some(hex::encode(Sha256::digest(bytes)))
        };
        match self {
            Self::Bundle { requests, options, .. } => {
                let classes: Vec<i64> = requests.iter().map(|r| r.class).collect();
                Ok(Sampling { seed: Some(options.seed), classes_sha256: digest(&classes) })
            }
            Self::Images(set) => {
                // The labels beside the images: `generate`'s trace, or the second array of ADM's samples.
                let (path, name) = match set.path().is_dir() {
                    true => (set.path().join(TRACE), "class_labels"),
                    false => (set.path().to_owned(), "arr_1"),
                };
                if !path.is_file() {
                    return Ok(Sampling::default());
                }
                let file = ArrayFile::open(&path)?;
                if !file.contains(name) {
                    return Ok(Sampling::default());
                }
                let labels: Vec<i64> = file.i64(name, &[None])?.iter().copied().take(set.count()).collect();
                let classes_sha256 = if labels.len() == set.count() { digest(&labels) } else { None };
                Ok(Sampling { seed: None, classes_sha256 })
            }
        }
    }
}
