//! From pictures to features: the one loop that shows a network what is to be measured.

use std::time::Instant;

use super::EvaluateError;
use crate::features::{Activations, FeatureExtractor};

/// Takes the pictures of a set, chunk by chunk.
pub(crate) trait Sink {
    /// So many images' worth of the chunk in work are decoded; false to stop.
    fn drawing(&mut self, images: usize) -> bool;

    /// The pixels of the next chunk, u8 `[n, H, W, 3]`, and the steps `[n]` of each where they are drawn.
    fn take(&mut self, pixels: &[u8], steps: Option<&[u32]>) -> Result<(), EvaluateError>;
}

/// RGB pictures of one size, in an order.
pub(crate) trait Pictures {
    /// How many.
    fn count(&self) -> usize;

    /// Height and width in pixels.
    fn size(&self) -> (usize, usize);

    /// Gives consecutive chunks of at most `chunk` of the pictures `range` to the sink.
    fn chunks(&self, range: (usize, usize), chunk: usize, sink: &mut dyn Sink) -> Result<(), EvaluateError>;
}

/// What the network saw in a chunk.
pub(crate) struct Looked<'a> {
    /// u8 `[n, H, W, 3]`.
    pub(crate) pixels: &'a [u8],
    /// Its features.
    pub(crate) found: Activations,
    /// Steps of the large transformer of each, where they are drawn.
    pub(crate) steps: Option<&'a [u32]>,
}

/// Shows the pictures `range` to the network, `chunk` at a time. `at` is told how many of them are done, and returns false
/// to stop.
///
/// # Errors
/// When a picture cannot be had, the network fails, `at` says stop, and what `take` returns.
pub(crate) fn look(
    pictures: &dyn Pictures,
    range: (usize, usize),
    chunk: usize,
    extractor: &mut FeatureExtractor,
    at: &mut dyn FnMut(usize) -> bool,
    take: &mut dyn FnMut(Looked<'_>) -> Result<(), EvaluateError>,
) -> Result<(), EvaluateError> {
    let (size, name) = (pictures.size(), extractor.identity().name.clone());
    let mut eye = Eye { extractor, size, at, take, done: 0, shown: 0, seconds: 0.0 };
    pictures.chunks(range, chunk, &mut eye)?;
    tracing::info!(images = eye.done, seconds = eye.seconds, "features of {name} taken");
    Ok(())
}

/// All features of the pictures but the spatial ones, in memory.
///
/// # Errors
/// As [`look`].
pub(crate) fn collect(
    pictures: &dyn Pictures,
    chunk: usize,
    extractor: &mut FeatureExtractor,
    at: &mut dyn FnMut(usize) -> bool,
) -> Result<(Activations, Vec<u32>), EvaluateError> {
    let width = extractor.widths()[0];
    let (mut all, mut steps) = (Activations { width, ..Activations::default() }, Vec::new());
    look(pictures, (0, pictures.count()), chunk, extractor, at, &mut |looked| {
        steps.extend(looked.steps.unwrap_or_default());
        all.append(Activations { spatial: None, ..looked.found })
    })?;
    Ok((all, steps))
}

struct Eye<'a> {
    extractor: &'a mut FeatureExtractor,
    size: (usize, usize),
    at: &'a mut dyn FnMut(usize) -> bool,
    take: &'a mut dyn FnMut(Looked<'_>) -> Result<(), EvaluateError>,
    done: usize,
    /// Progress does not go back from a chunk's decoding to its features.
    shown: usize,
    seconds: f64,
}

impl Sink for Eye<'_> {
    fn drawing(&mut self, images: usize) -> bool {
        self.shown = self.shown.max(self.done + images);
        (self.at)(self.shown)
    }

    fn take(&mut self, pixels: &[u8], steps: Option<&[u32]>) -> Result<(), EvaluateError> {
        let started = Instant::now();
        let Self { extractor, at, done, shown, .. } = self;
        let found = extractor.run(pixels, self.size, &mut |n, _| {
            *shown = (*shown).max(*done + n);
            at(*shown)
        })?;
        self.seconds += started.elapsed().as_secs_f64();
        self.done += found.count;
        (self.take)(Looked { pixels, found, steps })?;
        if self.drawing(0) { Ok(()) } else { Err(EvaluateError::Interrupted) }
    }
}
