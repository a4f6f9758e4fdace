//! Tokens that differ, judged by a bundle's own logits: streams and recorded ones have the margin of their draws alone.

use dpar_export_decode::generate::sampler::{Method, image_key};
use dpar_export_decode::generate::{DecodeOptions, Stream};
use dpar_export_decode::loaded::{LoadedBundle, Progress};
use dpar_export_decode::replay::{ForcedTokens, ReplayOptions, follow};

use crate::CompareError;
use crate::decision::{Decision, DecisionKind, Widths};

/// Judges tokens again by how far the bundle is from choosing the reference's: a draw's margin is its distance to the next
/// token of its own candidates, and the reference's token need be neither. Where top-k and top-p leave all candidates, that
/// margin is never the larger of the two, so what it rules out stays ruled out; and tokens drawn by the running sum keep it. Each
/// such image is followed alone: few flip, and their logits are large. `stream_of` gives the stream of an image that flips.
///
/// # Errors
/// The engine's; when the caller asked to stop.
pub(super) fn judge_by_logits<'s>(
    runtime: &LoadedBundle<'_>,
    flips: &mut [Decision],
    stream_of: &dyn Fn(usize) -> Option<&'s Stream>,
    (options, widths): (&DecodeOptions, &Widths),
    progress: Progress<'_>,
) -> Result<(), CompareError> {
    let (system, sampler) = (runtime.bundle().system(), &options.sampler);
    let filters = sampler.filters();
    if !filters && !sampler.greedy && sampler.method == Method::Cdf {
        return Ok(());
    }
    let how = ReplayOptions::new(system, options.cfg_scale, 1).until(options.cfg_interval);
    let tokens = flips.iter_mut().filter(|f| f.kind != DecisionKind::Boundary);
    for flip in tokens.filter(|f| f.near_tie || filters) {
        let Some(stream) = stream_of(flip.image) else { continue };
        let forced = ForcedTokens { tokens: stream.tokens.clone(), labels: vec![stream.request.class] };
        let mut model = runtime.model()?;
        let replay = follow(model.as_mut(), &how, &forced, progress)?;
        let row = replay.deciding().chunks(system.vocab).nth(flip.slot).unwrap_or_default();
        let place = (image_key(options.seed, stream.request.index), flip.slot as u64);
        let token = u32::try_from(flip.reference).ok();
        let away = token.and_then(|token| sampler.distance(row, token, place).ok());
        // Alone an image is rounded otherwise than in its batch: the larger of the two.
        let own = if filters { Some(0.0) } else { flip.margin };
        flip.margin = away.filter(|away| away.is_finite()).zip(own).map(|(away, own)| away.max(own));
        *flip = flip.clone().judged(widths);
    }
    Ok(())
}
