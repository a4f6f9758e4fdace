//! Times `entropy_step` of several bundles of one system, in turns: a step of one token of each image behind 128 others, at
//! batch 1, 8 and 16, and how far their entropies lie from those of the first bundle.
//! `cargo bench --bench quantized -- FLOAT INT8 INT4` (with `taskset -c 0` in front of the program, on one core); `--engine NAME`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints its measurements")]

use std::time::Instant;

use camino::Utf8Path;
use dpar_engine_api::{CachedSession, CallRow, TensorView};
use dpar_export::bundle::Bundle;
use dpar_export::engines::{self, EngineOptions};
use dpar_export::loaded::LoadedBundle;
use dpar_export_spec::GraphName;

/// Earlier slots.
const PAST: usize = 128;
/// Rounds, in each of which every bundle has its turn.
const ROUNDS: usize = 9;
/// Steps of a turn.
const STEPS: usize = 12;

/// Tokens that follow from nothing but their places.
fn tokens(n: usize, codes: usize) -> Vec<i64> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as i64 % codes as i64).collect()
}

/// A call of `count` tokens of each image behind `past` others.
fn step(session: &mut dyn CachedSession, batch: usize, past: usize, ids: &[i64]) -> Vec<f32> {
    let count = ids.len() / batch;
    let positions: Vec<i64> = (0..batch).flat_map(|_| (past..past + count).map(|p| p as i64)).collect();
    let inputs = [
        ("tokens", TensorView::i64([batch, count], ids)),
        ("positions", TensorView::i64([batch, count], &positions)),
    ];
    session.step(&inputs, &CallRow::all(batch, past)).unwrap().floats("entropy").unwrap()
}

fn middle(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn main() {
    // Cargo adds `--bench`.
    let mut args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let named = args.iter().position(|a| a == "--engine");
    let engine = named.map_or("ort".to_owned(), |at| args.drain(at..at + 2).nth(1).unwrap());
    engines::before_threads();
    let bundles: Vec<Bundle> = args.iter().map(|a| Bundle::open(Utf8Path::new(a)).unwrap()).collect();
    let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
    let runtimes: Vec<LoadedBundle<'_>> = bundles
        .iter()
        .map(|b| LoadedBundle::new(b, engines::create(&engine, &options).unwrap()).unwrap())
        .collect();
    let mut sessions: Vec<Box<dyn CachedSession>> =
        runtimes.iter().map(|r| r.prepare_cached(GraphName::EntropyStep).unwrap()).collect();
    let codes = bundles[0].system().vocab;
    println!("{engine}, one thread, {PAST} past slots, {ROUNDS} rounds of {STEPS} steps");
    println!(
        "| batch | bundle | ms a step, median (least to most of the rounds) | times as fast |\n|---|---|---|---|"
    );
    for batch in [1, 8, 16] {
        let ids = tokens(batch * PAST, codes);
        for session in &mut sessions {
            session.reset(batch);
            step(session.as_mut(), batch, 0, &ids);
        }
        let mut times = vec![Vec::new(); sessions.len()];
        for _ in 0..ROUNDS {
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                let turn = (0..STEPS).map(|_| {
                    let start = Instant::now();
                    step(session.as_mut(), batch, PAST, &ids[..batch]);
                    start.elapsed().as_secs_f64() * 1e3
                });
                times.push(middle(turn.collect())[1]);
            }
        }
        let times: Vec<[f64; 3]> = times.into_iter().map(middle).collect();
        for (bundle, [least, median, most]) in bundles.iter().zip(&times) {
            let numbers = bundle.manifest().numbers();
            println!(
                "| {batch} | {numbers} | {median:.2} ({least:.2} to {most:.2}) | {:.2} |",
                times[0][1] / median
            );
        }
    }
    let entropies = |session: &mut Box<dyn CachedSession>| {
        session.reset(4);
        step(session.as_mut(), 4, 0, &tokens(4 * PAST, codes))
    };
    let all: Vec<Vec<f32>> = sessions.iter_mut().map(entropies).collect();
    for (bundle, found) in bundles.iter().zip(&all).skip(1) {
        let apart: Vec<f64> = found.iter().zip(&all[0]).map(|(a, b)| f64::from((a - b).abs())).collect();
        let (sum, most) = apart.iter().fold((0.0, 0.0_f64), |(sum, most), d| (sum + d, most.max(*d)));
        println!(
            "{}: entropies are {:.4} nats away, {most:.4} at most",
            bundle.manifest().numbers(),
            sum / apart.len() as f64
        );
    }
}
