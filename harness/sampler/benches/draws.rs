//! Times a draw of each method from 16,384 logits, as one slot of 64 images makes them: time a row, best of several.
//! `cargo bench -p dpar-export-sampler --bench draws`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

use std::time::Instant;

use dpar_export_sampler::{Method, Sampler, SamplerOptions, image_key, uniform};

const ROWS: u64 = 64;
const CODES: u64 = 16_384;

fn main() {
    // Normal logits, as those of a model about so peaked.
    for deviation in [0.5_f32, 2.0, 4.0] {
        let row = |image: u64| -> Vec<f32> {
            let key = image_key(7, image);
            let twelve = |v: u64| (0..12).map(|i| uniform(key, 12 * v + i)).sum::<f64>() - 6.0;
            (0..CODES).map(|v| twelve(v) as f32 * deviation).collect()
        };
        let rows: Vec<Vec<f32>> = (0..ROWS).map(row).collect();
        for method in [Method::Cdf, Method::Gumbel] {
            let mut sampler = Sampler::new(SamplerOptions { method, ..SamplerOptions::default() }).unwrap();
            let mut best = f64::INFINITY;
            for slot in 0..20 {
                let start = Instant::now();
                for (image, row) in rows.iter().enumerate() {
                    sampler.draw_at(row, image_key(0, image as u64), slot).unwrap();
                }
                best = best.min(start.elapsed().as_secs_f64() * 1e9 / ROWS as f64);
            }
            println!(
                "{method:?}, logits of deviation {deviation}: {best:.0} ns a row, {:.2} ns a code, {:.2} ms a slot of {ROWS}",
                best / CODES as f64,
                best * ROWS as f64 * 1e-6
            );
        }
    }
}
