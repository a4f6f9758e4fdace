//! Images drawn for a report, with the decisions that made them.

use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_decode::generate::{DecodeOptions, Request, Stream};
use dpar_export_decode::loaded::{LoadedBundle, Progress};
use dpar_export_files::picture::to_u8_nhwc;
use dpar_export_spec::GraphName;

use crate::CompareError;
use crate::parity::report::ImageTrace;

/// Most images of a report: more make a page that nobody looks through.
pub const MOST_IMAGES: u16 = 64;

/// How images are drawn for a report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawOptions {
    /// Images, at most [`MOST_IMAGES`].
    pub num: u16,
    /// Seed of classes and tokens.
    pub seed: u64,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Images in one call of a graph.
    pub batch: usize,
}

/// One image.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Class label.
    pub class: i64,
    /// u8 `[size, size, 3]`; `None` without a tokenizer.
    pub pixels: Option<Vec<u8>>,
    /// Patch lengths in tokens.
    pub patch_lengths: Vec<usize>,
    /// e_t at index t in nats; NaN where none is known.
    pub entropy: Vec<f32>,
}

/// Images with their patches and entropies.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// The engine that drew them.
    pub engine: String,
    /// How they were drawn.
    pub draw: DrawOptions,
    /// Tokens per row.
    pub grid: usize,
    /// Tokens per image.
    pub tokens: usize,
    /// Pixels per side.
    pub size: usize,
    /// Entropy threshold, where the patch rule has one.
    pub threshold: Option<f32>,
    /// The images.
    pub items: Vec<Sample>,
}

impl Samples {
    /// Draws images with classes from the seed.
    ///
    /// # Errors
    /// When the engine fails or the caller stops.
    pub fn draw(
        runtime: &LoadedBundle<'_>,
        draw: DrawOptions,
        progress: Progress<'_>,
    ) -> Result<Self, CompareError> {
        let system = runtime.bundle().system();
        let num = u64::from(draw.num.min(MOST_IMAGES));
        let requests = Request::all_seeded(draw.seed, num, system.num_classes);
        let options = DecodeOptions {
            cfg_scale: draw.cfg_scale,
            cfg_interval: None,
            sampler: SamplerOptions::default(),
            seed: draw.seed,
        };
        let streams = runtime.decode(&requests, &options, draw.batch, progress)?;
        let tokens: Vec<&[u32]> = streams.iter().map(|s| s.tokens.as_slice()).collect();
        let sample = |s: &Stream| Sample {
            class: s.request.class,
            pixels: None,
            patch_lengths: s.patch_lengths.clone(),
            entropy: s.entropy.clone(),
        };
        Self::of(runtime, draw, &tokens, streams.iter().map(sample).collect(), progress)
    }

    /// The first images that a parity run's engine drew.
    ///
    /// # Errors
    /// When the engine cannot decode them or the caller stops.
    pub fn of_traces(
        runtime: &LoadedBundle<'_>,
        draw: DrawOptions,
        traces: &[ImageTrace],
        progress: Progress<'_>,
    ) -> Result<Self, CompareError> {
        let shown = &traces[..traces.len().min(usize::from(draw.num.min(MOST_IMAGES)))];
        let tokens: Vec<&[u32]> = shown.iter().map(|t| t.tokens.as_slice()).collect();
        let sample = |t: &ImageTrace| Sample {
            class: t.class,
            pixels: None,
            patch_lengths: t.patch_lengths.clone(),
            entropy: t.entropy.iter().map(|e| e.unwrap_or(f32::NAN)).collect(),
        };
        Self::of(runtime, draw, &tokens, shown.iter().map(sample).collect(), progress)
    }

    /// Decodes the tokens to the samples' pixels, where the bundle has a tokenizer.
    fn of(
        runtime: &LoadedBundle<'_>,
        draw: DrawOptions,
        tokens: &[&[u32]],
        mut items: Vec<Sample>,
        progress: Progress<'_>,
    ) -> Result<Self, CompareError> {
        let system = runtime.bundle().system();
        let size = system.image_size;
        if runtime.bundle().has_graph(GraphName::VqDecode) && !items.is_empty() {
            let ids: Vec<i64> = tokens.iter().flat_map(|t| t.iter().map(|t| i64::from(*t))).collect();
            let images = runtime.images(&ids, draw.batch, progress)?;
            let pixels = to_u8_nhwc(&images, items.len(), size, size);
            for (item, pixels) in items.iter_mut().zip(pixels.chunks(size * size * 3)) {
                item.pixels = Some(pixels.to_vec());
            }
        }
        Ok(Self {
            engine: runtime.info().engine.clone(),
            draw,
            grid: system.grid(),
            tokens: system.tokens(),
            size,
            threshold: system.patch_rule.threshold.filter(|_| system.patch_rule.mode.uses_entropy()),
            items,
        })
    }

    /// Steps of the large transformer of each image.
    pub fn steps(&self) -> Vec<usize> {
        self.items.iter().map(|s| s.patch_lengths.len()).collect()
    }

    /// Mean steps; 0 without images.
    pub fn mean_steps(&self) -> f64 {
        self.steps().iter().sum::<usize>() as f64 / self.items.len().max(1) as f64
    }

    /// Smallest and largest known entropy.
    pub(super) fn entropy_range(&self) -> Option<(f32, f32)> {
        let known = || self.items.iter().flat_map(|s| &s.entropy).copied().filter(|e| e.is_finite());
        Some((known().reduce(f32::min)?, known().reduce(f32::max)?))
    }
}
