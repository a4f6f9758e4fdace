//! Times the heavy functions on the synthetic activations and writes one JSON line for each to standard
//! output, for `compare.py`. Arguments: `--threads N` (2), `--rows N` (10000), `--most-bytes N` (any), which Precision and Recall may hold
//! with their inputs, and names of cases (all).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

#[path = "../tests/it/synthetic.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod synthetic;

use dpar_export_metrics::*;
use std::time::Instant;
use synthetic::Spec;

const D: usize = 2048;

/// Processor time of the process so far in seconds, where the system tells: what other load does not change.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|v| v.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Best of `repeats`, and what it computed.
fn time<T: std::fmt::Display>(case: &str, threads: usize, repeats: usize, mut f: impl FnMut() -> T) {
    let (mut best, mut used) = (f64::INFINITY, f64::INFINITY);
    let mut value = String::new();
    for _ in 0..repeats {
        let (start, before) = (Instant::now(), processor());
        value = f().to_string();
        best = best.min(start.elapsed().as_secs_f64());
        used = used.min(processor() - before);
    }
    println!(
        r#"{{"case": "{case}", "threads": {threads}, "seconds": {best:.4}, "cpu": {used:.2}, "value": {value}}}"#
    );
}

/// Largest resident set so far, bytes; 0 where the system does not tell.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str, default: usize| {
        let at = arguments.iter().position(|a| a == name);
        at.and_then(|i| arguments.get(i + 1)).and_then(|v| v.parse().ok()).unwrap_or(default)
    };
    let (threads, n) = (option("--threads", 2), option("--rows", 10_000));
    let most = option("--most-bytes", usize::MAX);
    let cases = ["frechet", "frechet-singular", "precision-recall", "precision-recall-adm", "kid", "resize"];
    let named: Vec<&str> = cases.into_iter().filter(|c| arguments.iter().any(|a| a == c)).collect();
    let wanted = |case: &str| named.is_empty() || named.contains(&case);
    let (one, many) = (Compute::new(1).unwrap(), Compute::new(threads).unwrap());
    let moments = |spec: Spec| {
        let data = spec.activations();
        let mut m = MomentsAccumulator::new(D).unwrap();
        m.push(Rows::new("bench", &data, D).unwrap(), &many).unwrap();
        m.finish(&many).unwrap()
    };
    if wanted("frechet") {
        let (a, b) =
            (moments(Spec::new(6000, 16)), moments(Spec { far: Some((7, 98)), ..Spec::new(5000, 17) }));
        time("frechet", 1, 2, || frechet_distance(&a, &b, &one).unwrap().distance);
        time("frechet", threads, 2, || frechet_distance(&a, &b, &many).unwrap().distance);
    }
    if wanted("frechet-singular") {
        let a = moments(Spec::new(2000, 11));
        time("frechet-singular", 1, 1, || frechet_distance(&a, &a, &one).unwrap().distance);
        time("frechet-singular", threads, 1, || frechet_distance(&a, &a, &many).unwrap().distance);
    }
    let pair = ["precision-recall", "precision-recall-adm", "kid"].into_iter().any(wanted);
    if pair {
        let (x, y) =
            (Spec { far: Some((8, 96)), ..Spec::new(n, 22) }.activations(), Spec::new(n, 21).activations());
        let (x, y) = (Rows::new("samples", &x, D).unwrap(), Rows::new("reference", &y, D).unwrap());
        let inputs = peak();
        for (case, mode) in [("precision-recall", PrMode::F32), ("precision-recall-adm", PrMode::Adm)] {
            if wanted(case) {
                time(case, threads, 1, || {
                    let found = precision_recall(x, y, mode, &many).unwrap();
                    format!("[{}, {}]", found.precision_count, found.recall_count)
                });
                println!(r#"{{"case": "{case}", "peak_bytes": {}, "inputs_bytes": {inputs}}}"#, peak());
                assert!(peak() <= most as u64, "{case} took {} bytes, {most} are allowed", peak());
            }
        }
        if wanted("kid") {
            time("kid", threads, 1, || kid(x, y, &many).unwrap().value);
        }
    }
    if wanted("resize") {
        let images: Vec<u8> = (0..64 * 256 * 256 * 3).map(|i| synthetic::word(31, 0, i) as u8).collect();
        for kind in [Resize::Tf1Bilinear, Resize::HalfPixelBilinear, Resize::PilBicubic] {
            let resizer = Resizer::inception(kind, (256, 256)).unwrap();
            let mut out = vec![0.0; 64 * resizer.output_len()];
            time(&format!("resize 64 {}", kind.name()), threads, 2, || {
                resizer.run(&images, &mut out, &many).unwrap();
                out[12345]
            });
        }
    }
}
