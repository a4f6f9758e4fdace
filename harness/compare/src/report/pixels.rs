//! Pictures as `data:` URIs, within a budget of bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dpar_export_files::picture::encode_png;

use super::Samples;

/// Bytes of all sample images together, in base64. A page of 64 images stays below 3 MB.
const IMAGE_BUDGET: usize = 2_200_000;
/// Smaller images are not made to fit the budget.
const SMALLEST: usize = 48;

/// Stops of the entropy scale, dark to bright: perceptually ordered, and readable with every colour vision.
const SCALE: [[u8; 3]; 6] =
    [[0, 32, 76], [48, 66, 111], [93, 99, 116], [139, 136, 121], [190, 175, 104], [255, 233, 69]];
/// Where no entropy is known.
const UNKNOWN: [u8; 3] = [128, 128, 128];

/// A PNG as a `data:` URI; empty where it cannot be encoded (no pixels).
fn png_uri(rgb: &[u8], height: usize, width: usize) -> String {
    let bytes = encode_png(rgb, height, width).unwrap_or_default();
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

/// Every sample's image, all at the same size: the largest that keeps them within the budget.
pub(super) fn images(samples: &Samples) -> Vec<Option<String>> {
    let mut factor = 1;
    loop {
        let side = samples.size / factor;
        let uris: Vec<Option<String>> = samples
            .items
            .iter()
            .map(|s| s.pixels.as_ref().map(|p| png_uri(&shrink(p, samples.size, factor), side, side)))
            .collect();
        let bytes: usize = uris.iter().flatten().map(String::len).sum();
        if bytes <= IMAGE_BUDGET || samples.size / (factor + 1) < SMALLEST {
            return uris;
        }
        factor += 1;
    }
}

/// The mean of each square of `factor` × `factor` pixels; what does not fill a square at the edge is left out.
fn shrink(rgb: &[u8], size: usize, factor: usize) -> Vec<u8> {
    if factor == 1 {
        return rgb.to_vec();
    }
    let side = size / factor;
    let mut out = Vec::with_capacity(side * side * 3);
    for y in 0..side {
        for x in 0..side {
            for channel in 0..3 {
                let square = (0..factor * factor).map(|i| {
                    let (row, column) = (y * factor + i / factor, x * factor + i % factor);
                    usize::from(rgb[(row * size + column) * 3 + channel])
                });
                out.push((square.sum::<usize>() / (factor * factor)) as u8);
            }
        }
    }
    out
}

/// An entropy's place on the scale from `low` to `high` as a colour.
fn colour(entropy: f32, (low, high): (f32, f32)) -> [u8; 3] {
    if !entropy.is_finite() {
        return UNKNOWN;
    }
    let last = SCALE.len() - 1;
    let at = ((entropy - low) / (high - low).max(f32::EPSILON)).clamp(0.0, 1.0) * last as f32;
    let below = (at as usize).min(last - 1);
    let part = at - below as f32;
    std::array::from_fn(|c| {
        let (a, b) = (f32::from(SCALE[below][c]), f32::from(SCALE[below + 1][c]));
        (a + (b - a) * part).round() as u8
    })
}

/// One pixel per token.
pub(super) fn heat(entropy: &[f32], grid: usize, range: (f32, f32)) -> String {
    let rgb: Vec<u8> = entropy.iter().flat_map(|e| colour(*e, range)).collect();
    png_uri(&rgb, entropy.len() / grid.max(1), grid)
}

/// The scale as a CSS gradient.
pub(super) fn gradient() -> String {
    let stops: Vec<String> = SCALE.iter().map(|[r, g, b]| format!("rgb({r},{g},{b})")).collect();
    format!("linear-gradient(to right,{})", stops.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{DrawOptions, Sample};

    fn noise(size: usize, items: usize) -> Samples {
        // Pixels that no compression makes smaller.
        let mut state = 1_u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let mut item = || Sample {
            class: 0,
            pixels: Some((0..size * size * 3).map(|_| byte()).collect()),
            patch_lengths: vec![1],
            entropy: vec![f32::NAN],
        };
        let draw = DrawOptions { num: 1, seed: 0, cfg_scale: 1.0, batch: 1 };
        let items = (0..items).map(|_| item()).collect();
        Samples { engine: "x".into(), draw, grid: 1, tokens: 1, size, threshold: None, items }
    }

    #[test]
    fn images_shrink_until_they_fit_the_budget() {
        let bytes = |s: &Samples| images(s).iter().flatten().map(String::len).sum::<usize>();
        assert!(bytes(&noise(256, 64)) <= IMAGE_BUDGET);
        // Small ones are left as they are: 2 images of 32 × 32 × 3 bytes.
        assert!(bytes(&noise(32, 2)) > 2 * 3072);
    }

    #[test]
    fn the_scale_runs_from_dark_to_bright_and_unknown_is_grey() {
        assert_eq!(colour(1.0, (1.0, 3.0)), SCALE[0]);
        assert_eq!(colour(3.0, (1.0, 3.0)), SCALE[5]);
        assert_eq!(colour(9.0, (1.0, 3.0)), SCALE[5]);
        assert_eq!(colour(2.0, (2.0, 2.0)), SCALE[0]);
        assert_eq!(colour(f32::NAN, (1.0, 3.0)), UNKNOWN);
        let sum = |e: f32| colour(e, (0.0, 1.0)).iter().map(|c| u32::from(*c)).sum::<u32>();
        assert!((1..=20).all(|i| sum(i as f32 / 20.0) > sum((i - 1) as f32 / 20.0)));
    }

    #[test]
    fn shrinking_takes_the_mean() {
        let rgb: Vec<u8> = (0..4).flat_map(|i| [i * 10, 100, 7]).collect();
        assert_eq!(shrink(&rgb, 2, 2), [15, 100, 7]);
    }
}
