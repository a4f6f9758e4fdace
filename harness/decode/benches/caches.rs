//! `cargo bench -p dpar-export-decode --bench caches -- [--joined] BUNDLE..`: what a step of a graph with a cache costs, with the cache
//! in place, and what an image costs under each schedule. `--joined` also joins caches in every call, which takes minutes
//! at the paper's size. Without a bundle there is nothing to do.
//! `cargo xtask samplers` leaves one of the paper's size in `out/samplers/bundle`.
//!
//! Both ways and both lengths take turns, so that what else runs on the machine falls on all of them; the median counts.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use camino::Utf8Path;
use dpar_engine_api::{CachedSession, CallRow, HostCache, TensorView};
use dpar_engine_table::EngineOptions;
use dpar_export_bundle::Bundle;
use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_decode::generate::{Batching, DecodeOptions, Request, Schedule};
use dpar_export_decode::loaded::LoadedBundle;
use dpar_export_spec::GraphName;

/// Rows of a step.
const ROWS: usize = 64;
/// Times that each is measured.
const ROUNDS: usize = 7;

fn main() {
    let with_joined = std::env::args().any(|a| a == "--joined");
    for path in std::env::args().skip(1).filter(|a| !a.starts_with('-')) {
        let bundle = Bundle::open(Utf8Path::new(&path)).unwrap();
        for entry in dpar_engine_table::all().iter().filter(|e| e.is_built()) {
            let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
            let engine = dpar_engine_table::create(entry.name, &options).unwrap();
            // candle takes its threads from the environment.
            let runtime = match LoadedBundle::new(&bundle, engine) {
                Ok(runtime) => runtime,
                Err(e) => {
                    println!("{path}, {}: not measured: {e}", entry.name);
                    continue;
                }
            };
            println!("{path}, {}, one thread", entry.name);
            steps(&runtime, with_joined);
            images(&runtime);
        }
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// `entropy_step` with few and with many slots before it.
fn steps(runtime: &LoadedBundle<'_>, with_joined: bool) {
    let tokens = runtime.bundle().system().tokens();
    let lengths = [tokens / 32, tokens - tokens / 32];
    let in_place = || runtime.prepare_cached(GraphName::EntropyStep).unwrap();
    let joined = || -> Box<dyn CachedSession> {
        Box::new(HostCache::new(runtime.prepare(GraphName::EntropyStep).unwrap()).unwrap())
    };
    let step = |session: &mut dyn CachedSession, past: usize| {
        let (ids, positions) = ([1_i64; ROWS], [past as i64; ROWS]);
        let inputs = [
            ("tokens", TensorView::i64([ROWS, 1], &ids)),
            ("positions", TensorView::i64([ROWS, 1], &positions)),
        ];
        session.step(&inputs, &CallRow::all(ROWS, past)).unwrap();
    };
    let mut ways = vec![("in place", [in_place(), in_place()])];
    if with_joined {
        ways.push(("joined", [joined(), joined()]));
    }
    for (_, sessions) in &mut ways {
        for (session, past) in sessions.iter_mut().zip(lengths) {
            session.reset(ROWS);
            (0..=past).for_each(|past| step(session.as_mut(), past));
        }
    }
    let mut times = vec![[const { Vec::new() }; 2]; ways.len()];
    for _ in 0..ROUNDS {
        for ((_, sessions), times) in ways.iter_mut().zip(&mut times) {
            for ((session, past), times) in sessions.iter_mut().zip(lengths).zip(times) {
                let start = Instant::now();
                step(session.as_mut(), past);
                times.push(start.elapsed());
            }
        }
    }
    for ((name, _), times) in ways.iter().zip(times) {
        let [few, many] = times.map(median);
        println!(
            "  entropy_step, {ROWS} rows, caches {name}: {few:.1} ms after {} slots, {many:.1} ms after {}, x {:.2}",
            lengths[0],
            lengths[1],
            many / few
        );
    }
}

/// Whole images under each schedule.
fn images(runtime: &LoadedBundle<'_>) {
    let system = runtime.bundle().system();
    if system.tokens() > 64 {
        return;
    }
    let requests = Request::all_seeded(0, 2 * ROWS as u64, system.num_classes);
    let options =
        DecodeOptions { cfg_scale: 2.0, cfg_interval: None, sampler: SamplerOptions::default(), seed: 0 };
    for rows in [16, ROWS] {
        let mut times = [const { Vec::new() }; Schedule::ALL.len()];
        for _ in 0..3 {
            for (schedule, times) in Schedule::ALL.into_iter().zip(&mut times) {
                let start = Instant::now();
                runtime.decode(&requests, &options, Batching { rows, schedule }, &mut |_, _| true).unwrap();
                times.push(start.elapsed());
            }
        }
        for (schedule, times) in Schedule::ALL.into_iter().zip(times) {
            let each = median(times) / requests.len() as f64;
            println!(
                "  images, {rows} rows, {schedule:?}: {each:.2} ms an image, guidance 2, loading included"
            );
        }
    }
}
