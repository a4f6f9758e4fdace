//! A matrix in whole numbers: every row in blocks of columns, each with a scale.

use dpar_export_spec::WeightBits;
use half::f16;

/// Codes and scales of a matrix.
pub(crate) struct Coded {
    /// A code for each weight, row by row; two in a byte where they have 4 bits, the first in the low half.
    pub(crate) codes: Vec<u8>,
    /// A scale for each block, row by row.
    pub(crate) scales: Vec<f32>,
}

/// Quantizes rows of `columns` weights in blocks of `block` columns: weight = scale · (code − [zero](WeightBits::zero)).
///
/// # Errors
/// The place in its row of a weight that is no finite number, with it.
pub(crate) fn quantize<'a>(
    rows: impl Iterator<Item = &'a [f32]>,
    bits: WeightBits,
    block: usize,
) -> Result<Coded, (usize, f32)> {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    let mut coded = vec![0_u8; block];
    for row in rows {
        if let Some(at) = row.iter().position(|w| !w.is_finite()) {
            return Err((at, row[at]));
        }
        for weights in row.chunks(block) {
            let scale = match bits {
                WeightBits::Int8 => scale(weights, 127.0),
                WeightBits::Int4 => best_scale(weights),
            };
            let coded = &mut coded[..weights.len()];
            for (code, weight) in coded.iter_mut().zip(weights) {
                *code = (i16::from(bits.zero()) + round(*weight, scale, bits)) as u8;
            }
            match bits {
                WeightBits::Int8 => codes.extend_from_slice(coded),
                WeightBits::Int4 => codes.extend(coded.chunks(2).map(|pair| pair[0] | (pair[1] << 4))),
            }
            scales.push(scale);
        }
    }
    Ok(Coded { codes, scales })
}

/// weight ÷ scale as a whole number within the range.
fn round(weight: f32, scale: f32, bits: WeightBits) -> i16 {
    let [least, most] = match bits {
        WeightBits::Int8 => [-127.0, 127.0],
        WeightBits::Int4 => [-8.0, 7.0],
    };
    (weight / scale).round_ties_even().clamp(least, most) as i16
}

/// The scale under which the largest weight is `steps`: a number of float16 where that is a normal one, so that an engine
/// that keeps scales in float16 has the same weights.
fn scale(weights: &[f32], steps: f32) -> f32 {
    let largest = weights.iter().fold(0.0_f32, |top, w| top.max(w.abs()));
    let exact = largest / steps;
    let half = f16::from_f32(exact);
    match (exact > 0.0, half.is_normal()) {
        // Nothing but zeros.
        (false, _) => 1.0,
        (true, true) => half.to_f32(),
        (true, false) => exact,
    }
}

/// Of 4-bit scales the one with the smallest squared error: cutting the largest weight short pays where the others gain.
fn best_scale(weights: &[f32]) -> f32 {
    let error = |scale: f32| -> f64 {
        let of = |w: &f32| f64::from(w - f32::from(round(*w, scale, WeightBits::Int4)) * scale);
        weights.iter().map(of).map(|e| e * e).sum()
    };
    let candidates = (0..7).map(|i| scale(weights, 7.0 + 0.25 * i as f32));
    let scored = candidates.map(|scale| (error(scale), scale));
    // Of equal ones the first.
    scored.reduce(|best, next| if next.0 < best.0 { next } else { best }).map_or(1.0, |(_, scale)| scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights that codes stand for.
    fn weights(coded: &Coded, bits: WeightBits, block: usize) -> Vec<f32> {
        let codes: Vec<u8> = match bits {
            WeightBits::Int8 => coded.codes.clone(),
            WeightBits::Int4 => coded.codes.iter().flat_map(|c| [c & 15, c >> 4]).collect(),
        };
        let of = |(i, code): (usize, &u8)| {
            coded.scales[i / block] * f32::from(i16::from(*code) - i16::from(bits.zero()))
        };
        codes.iter().enumerate().map(of).collect()
    }

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next() * next() * 0.2).collect()
    }

    #[test]
    fn a_weight_is_off_by_half_a_step_at_most_and_the_scales_are_numbers_of_float16() {
        let data = random(6 * 128, 3);
        for (bits, block, steps) in [(WeightBits::Int8, 32, 0.5), (WeightBits::Int4, 32, 1.5)] {
            let coded = quantize(data.chunks(128), bits, block).unwrap();
            assert_eq!(coded.codes.len(), data.len() * bits.bits() / 8);
            assert!(coded.scales.iter().all(|s| f16::from_f32(*s).to_f32() == *s));
            for (i, (w, q)) in data.iter().zip(weights(&coded, bits, block)).enumerate() {
                let step = coded.scales[i / block];
                assert!((w - q).abs() <= steps * step * 1.001, "{bits} {i}: {w} {q} {step}");
            }
        }
    }

    #[test]
    fn a_chosen_scale_is_no_worse_than_the_plain_one() {
        let data = random(64 * 32, 7);
        let error = |scales: &dyn Fn(&[f32]) -> f32| -> f64 {
            let of = |block: &[f32]| {
                let s = scales(block);
                block
                    .iter()
                    .map(|w| f64::from(w - f32::from(round(*w, s, WeightBits::Int4)) * s).powi(2))
                    .sum::<f64>()
            };
            data.chunks(32).map(of).sum()
        };
        let (plain, best) = (error(&|b| scale(b, 7.0)), error(&best_scale));
        assert!(best < 0.95 * plain, "{best} {plain}");
    }

    #[test]
    fn zeros_small_numbers_and_what_is_no_number() {
        let coded = quantize([[0.0; 32].as_slice()].into_iter(), WeightBits::Int4, 32).unwrap();
        assert_eq!((coded.codes, coded.scales), (vec![0x88; 16], vec![1.0]));
        let tiny = [f32::MIN_POSITIVE; 32];
        let coded = quantize([tiny.as_slice()].into_iter(), WeightBits::Int8, 32).unwrap();
        assert!(coded.scales[0] > 0.0);
        let nibbles: Vec<f32> = (0..32).map(|i| (i % 2) as f32 * 7.0).collect();
        let coded = quantize([nibbles.as_slice()].into_iter(), WeightBits::Int4, 32).unwrap();
        assert_eq!((coded.codes[0], coded.scales[0]), (0xf8, 1.0), "the first weight is in the low half");
        for bad in [f32::NAN, f32::INFINITY] {
            let row = [1.0, bad, 0.0, 0.0];
            let e = quantize([row.as_slice()].into_iter(), WeightBits::Int8, 4).err().unwrap();
            assert_eq!((e.0, e.1.to_bits()), (1, bad.to_bits()));
        }
    }
}
