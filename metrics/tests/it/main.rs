//! Tests of the metrics crate.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; failing golden cases print their distances"
)]

mod golden;
mod hostile;
mod properties;
mod resize;
mod statistics;
mod synthetic;

/// Logits [N, C] in f64 of activations [N, D] and weights [D, C].
pub(crate) fn logits(data: &[f32], w: &[f32], d: usize, c: usize) -> Vec<f64> {
    // Exact: both factors are dyadic rationals of at most 14 + 11 bits, sums stay below 2^53 units.
    let wide: Vec<f64> = w.iter().map(|&v| f64::from(v)).collect();
    let mut out = vec![0.0; data.len() / d * c];
    let half = (data.len() / d).div_ceil(2) * c;
    std::thread::scope(|scope| {
        for (part, out) in out.chunks_mut(half).enumerate() {
            let wide = &wide;
            scope.spawn(move || {
                let data = &data[part * half / c * d..];
                for (rows, out) in data.chunks(8 * d).zip(out.chunks_mut(8 * c)) {
                    for (j, line) in wide.chunks_exact(c).enumerate() {
                        for (row, out) in rows.chunks_exact(d).zip(out.chunks_exact_mut(c)) {
                            let x = f64::from(row[j]);
                            out.iter_mut().zip(line).for_each(|(o, w)| *o += x * w);
                        }
                    }
                }
            });
        }
    });
    out
}
