//! Seeded weights and images from integers: the same bits as `fixtures/inception/generate.py` makes.

use std::collections::BTreeMap;

use camino::Utf8Path;
use dpar_export::arrays::{ArrayRef, write_safetensors};
use sha2::{Digest, Sha256};

use crate::common::fixture;

const G: u64 = 0x9E37_79B9_7F4A_7C15;

fn sm64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Word `i` of a stream for i in 0..n.
fn words(seed: u64, stream: u64, n: usize) -> impl Iterator<Item = u64> {
    let key = sm64(seed.wrapping_add(G.wrapping_mul(stream + 1)));
    (0..n as u64).map(move |i| sm64(key.wrapping_add(G.wrapping_mul(i + 1))))
}

fn tri(w: u64, bits: u32) -> f32 {
    let mask = (1 << bits) - 1;
    ((w & mask) as i64 - ((w >> bits) & mask) as i64) as f32
}

/// Names and shapes of the state dict, without the counts of batches.
pub(super) fn shapes() -> BTreeMap<String, Vec<usize>> {
    let text = fs_err::read_to_string(fixture("metrics/inception_state_dict.json")).unwrap();
    let all: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).unwrap();
    all.into_iter().filter(|(n, _)| !n.ends_with("num_batches_tracked")).collect()
}

fn tensor(seed: u64, name: &str, shape: &[usize], stream: u64) -> Vec<f32> {
    const UNIT: f32 = 1.0 / 1024.0;
    let n: usize = shape.iter().product();
    let w = words(seed, stream, n);
    if name.ends_with("running_var") {
        return w.map(|w| 0.5 + (w & 1023) as f32 * UNIT).collect();
    }
    if name.ends_with("bn.weight") {
        return w.map(|w| 1.0 + tri(w, 8) * UNIT).collect();
    }
    if ["bn.bias", "running_mean", "fc.bias"].iter().any(|e| name.ends_with(e)) {
        return w.map(|w| tri(w, 8) * UNIT).collect();
    }
    let scale = ((12.0 / (n / shape[0]) as f64).sqrt() / 1024.0) as f32;
    w.map(|w| tri(w, 10) * scale).collect()
}

/// Writes the seeded state dict; returns the SHA-256 of its values in the order of the names.
pub(super) fn write_weights(seed: u64, path: &Utf8Path) -> String {
    let shapes = shapes();
    let values: Vec<Vec<f32>> = shapes
        .iter()
        .enumerate()
        .map(|(stream, (name, shape))| tensor(seed, name, shape, stream as u64))
        .collect();
    let mut hash = Sha256::new();
    for v in &values {
        let mut bytes = Vec::with_capacity(v.len() * 4);
        v.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        hash.update(&bytes);
    }
    let arrays: Vec<(&str, ArrayRef<'_>)> = shapes
        .iter()
        .zip(&values)
        .map(|((name, shape), values)| (name.as_str(), ArrayRef::f32(shape, values)))
        .collect();
    write_safetensors(path, &arrays).unwrap();
    hex::encode(hash.finalize())
}

/// Images f32 `[n, 3, side, side]` of squares of `square` pixels: (v − mean) / 128 for v in 0..255.
pub(super) fn images(seed: u64, stream: u64, n: usize, side: usize, square: usize, mean: f32) -> Vec<f32> {
    let cells = side.div_ceil(square);
    let colours: Vec<f32> = words(seed, stream, n * 3 * cells * cells)
        .map(|w| ((w & 255) as f32 - mean) * (1.0 / 128.0))
        .collect();
    let mut out = Vec::with_capacity(n * 3 * side * side);
    for plane in colours.chunks_exact(cells * cells) {
        for y in 0..side {
            out.extend((0..side).map(|x| plane[y / square * cells + x / square]));
        }
    }
    out
}

/// SHA-256 of the bytes of float32 values.
pub(super) fn digest(values: &[f32]) -> String {
    hex::encode(Sha256::digest(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()))
}
