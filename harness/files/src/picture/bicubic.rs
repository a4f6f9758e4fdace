//! Images of another size before they are quantised, as the published protocol has it for 384 px.

use std::borrow::Cow;

/// The cubic kernel's a of `torch.nn.functional.interpolate`.
const A: f32 = -0.75;

/// Images f32 `[n, 3, side, side]` as `[n, 3, to, to]`: bicubic with a = −0.75, half-pixel centres, borders replicated, no
/// antialias; `F.interpolate(images, (to, to), mode="bicubic")` (the sampler section of the decoding spec). First along a row,
/// then down, in f32.
///
/// # Panics
/// When `images` are not whole images of that size, or a size is 0: a bug in the caller.
pub fn resize_nchw(images: &[f32], side: usize, to: usize) -> Cow<'_, [f32]> {
    assert!(side > 0 && to > 0, "images of {side} to {to} px");
    assert!(images.len().is_multiple_of(3 * side * side), "values of images of 3 × {side} × {side}");
    if side == to {
        return Cow::Borrowed(images);
    }
    let neighbours: Vec<Neighbours> = (0..to).map(|place| Neighbours::new(place, side, to)).collect();
    let mut out = Vec::with_capacity(images.len() / (side * side) * to * to);
    let mut rows = vec![0.0; side * to];
    for plane in images.chunks_exact(side * side) {
        for (row, narrow) in plane.chunks_exact(side).zip(rows.chunks_exact_mut(to)) {
            for (value, neighbours) in narrow.iter_mut().zip(&neighbours) {
                *value = neighbours.sum(|at| row[at]);
            }
        }
        for neighbours in &neighbours {
            out.extend((0..to).map(|x| neighbours.sum(|at| rows[at * to + x])));
        }
    }
    Cow::Owned(out)
}

/// Four neighbours of a place, and what each counts.
struct Neighbours {
    at: [usize; 4],
    weights: [f32; 4],
}

impl Neighbours {
    fn new(place: usize, side: usize, to: usize) -> Self {
        let centre = side as f32 / to as f32 * (place as f32 + 0.5) - 0.5;
        let first = centre.floor();
        let t = centre - first;
        let clamp = |offset: f32| (first + offset).clamp(0.0, (side - 1) as f32) as usize;
        Self {
            at: [-1.0, 0.0, 1.0, 2.0].map(clamp),
            weights: [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)],
        }
    }

    fn sum(&self, value: impl Fn(usize) -> f32) -> f32 {
        self.at.iter().zip(self.weights).map(|(at, weight)| value(*at) * weight).sum()
    }
}

/// The kernel at a distance of at most 1.
fn near(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The kernel at a distance from 1 to 2.
fn far(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::{from_u8_nhwc, to_u8_nhwc};
    use dpar_export_metrics::random::nth;

    /// The image of the seed that the recorded values belong to: its recipe is in `fixtures/metrics/synthetic_activations.py`.
    fn noise(seed: u64, side: usize) -> Vec<u8> {
        (0..side * side * 3)
            .map(|i| {
                let (y, x, c) = (i / 3 / side, i / 3 % side, i % 3);
                let word = nth(nth(seed, 10), i as u64);
                ((8 * x + 5 * y + 40 * c) as u8) ^ (word & 63) as u8
            })
            .collect()
    }

    /// What PyTorch made of it: single values, all of them quantised within one level, and their mean.
    #[test]
    fn images_are_resized_as_pytorch_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/metrics/expected.json");
        let expected: serde_json::Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
        let case = &expected["resize_float"]["384x384->256 float bicubic seed41"];
        let images = from_u8_nhwc(&noise(41, 384), 1, 384, 384);
        let resized = resize_nchw(&images, 384, 256);
        let bytes = to_u8_nhwc(&resized, 1, 256, 256);
        let number = |v: &serde_json::Value| v.as_f64().unwrap();
        let points = case["points_yxc"].as_array().unwrap();
        assert_eq!(points.len(), 7);
        for (i, point) in points.iter().enumerate() {
            let [y, x, c] = [0, 1, 2].map(|axis| point[axis].as_u64().unwrap() as usize);
            let found = f64::from(resized[(c * 256 + y) * 256 + x]);
            assert!((found - number(&case["float"][i])).abs() < 1e-5, "{point}: {found}");
            let byte = f64::from(bytes[(y * 256 + x) * 3 + c]);
            assert!((byte - number(&case["u8"][i])).abs() <= 1.0, "{point}: {byte}");
        }
        let mean = bytes.iter().map(|b| f64::from(*b)).sum::<f64>() / bytes.len() as f64;
        assert!((mean - number(&case["u8_mean"])).abs() < 1e-3, "{mean}");
    }

    #[test]
    fn a_flat_image_stays_flat_and_the_same_size_is_the_same_image() {
        let flat = vec![0.25; 3 * 6 * 6];
        for to in [1, 4, 9] {
            let resized = resize_nchw(&flat, 6, to);
            assert_eq!(resized.len(), 3 * to * to);
            assert!(resized.iter().all(|v| (v - 0.25).abs() < 1e-6), "{resized:?}");
        }
        let image: Vec<f32> = (0..3 * 4 * 4).map(|v| v as f32).collect();
        assert_eq!(*resize_nchw(&image, 4, 4), image);
    }
}
