//! A seeded system, exported and measured on the embedded engine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use camino::Utf8Path;
use dpar_engine_tract::ENGINE;
use dpar_export_bench::{BenchReport, Case, Machine, Phase, measure};
use dpar_export_bundle::{Bundle, write};
use dpar_export_checkpoint::{LoadOptions, Synth, SynthSize, load};
use dpar_export_decode::generate::sampler::SamplerOptions;
use dpar_export_decode::generate::{DecodeOptions, Request, Schedule};
use dpar_export_decode::loaded::{LoadedBundle, RunError};
use dpar_export_spec::{Precision, SystemKind};

const STEPS: f64 = 36.0;

/// 64 tokens an image.
fn bundle(folder: &Utf8Path) -> Bundle {
    let size = |layers: &[usize]| SynthSize { width: 64, heads: 4, layers: layers.to_vec() };
    let synth = Synth {
        transformer: size(&[1, 2, 1]),
        entropy: size(&[2]),
        vocab: 4096,
        classes: 10,
        image_size: 128,
        threshold: 6.5,
        vq: false,
        ..Synth::published(SystemKind::Dpar, "B", 256, STEPS).unwrap()
    };
    let made = synth.write(&folder.join("checkpoint"), &mut |_| true).unwrap();
    let loaded = load(&made.checkpoint, &LoadOptions::default()).unwrap();
    let out = folder.join("bundle");
    write(&loaded, Precision::Fp32, &out, false, &mut |_| true, &mut |_, _| Ok(())).unwrap();
    Bundle::open(&out).unwrap()
}

#[test]
fn shares_add_up_calls_are_the_loops_and_seeded_entropies_give_the_steps_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(Utf8Path::from_path(folder.path()).unwrap());
    let engine = || (ENGINE.open)(&Default::default());
    let case = Case {
        batch: 8,
        schedule: Schedule::Lockstep,
        images: 8,
        cfg_scale: 2.0,
        seed: 1,
        warmup: 1,
        rounds: 2,
    };
    let mut phases = Vec::new();
    let found = measure(&bundle, engine(), &case, &mut |phase| {
        phases.push(phase);
        true
    })
    .unwrap();
    // Told after each of the 64 slots.
    let count = |phase| phases.iter().filter(|p| **p == phase).count();
    assert_eq!([Phase::Opening, Phase::Warmup, Phase::Round(1)].map(count), [1, 64, 64]);

    let requests = Request::all_seeded(1, 8, bundle.system().num_classes);
    let options =
        DecodeOptions { cfg_scale: 2.0, cfg_interval: None, sampler: SamplerOptions::default(), seed: 1 };
    let loaded = LoadedBundle::new(&bundle, engine()).unwrap();
    let (streams, calls) = loaded.decode_counted(&requests, &options, 8.into(), &mut |_, _| true).unwrap();
    let mean = streams.iter().map(|s| s.steps() as f64).sum::<f64>() / 8.0;
    assert_eq!(found.mean_steps, mean);
    // Of 64 tokens; the deviation of one image is below 3.
    assert!((mean - STEPS).abs() < 4.0, "{mean} steps");

    // Every round has the calls of a run of its own.
    for counted in calls {
        let cost = found.graphs[counted.graph.as_str()].cost;
        assert_eq!((cost.calls, cost.rows), (2 * counted.calls, 2 * counted.rows), "{counted:?}");
    }
    // Every token but the last goes to the entropy model and the encoder; the decoder runs at each slot, on two rows an image.
    let rounds = 2;
    assert_eq!(found.calls("entropy_step"), rounds * 63);
    assert_eq!(found.calls("encoder_step"), rounds * 63);
    assert_eq!(found.calls("decoder_step"), rounds * 64);
    assert_eq!(found.graphs["decoder_step"].cost.rows, rounds * 64 * 16);
    let patches: usize = streams.iter().map(|s| s.patch_lengths.len()).sum();
    assert_eq!(found.graphs["global_step"].cost.rows, rounds * 2 * patches as u64);

    let shares: f64 = found.graphs.values().map(|g| g.percent).sum();
    assert!((shares + found.loop_percent - 100.0).abs() < 1e-9 && found.loop_percent > 0.0, "{found:?}");
    for round in &found.rounds {
        let inside: f64 = round.graphs.values().map(|g| g.seconds).sum();
        assert!(round.first_token < round.seconds && inside < round.seconds, "{round:?}");
    }
    // D = 64, FFN 256: a block has 4·64² + 3·64·256 weights and two norms; two of them, the norm, 4096 × 64 of `output`. The
    // table of tokens is picked from.
    let block = 4 * 64 * 64 + 3 * 64 * 256 + 2 * 64;
    let entropy = 4 * (2 * block + 64 + 4096 * 64) as u64;
    let read = found.graphs["entropy_step"].weight_bytes;
    assert!((entropy..entropy + 10_000).contains(&read), "{read}, {entropy} of weights and a few constants");

    let machine = Machine {
        cpu: None,
        cores: 1,
        threads: 1,
        read_bytes_per_second: 2.0 * found.weight_bytes_per_second,
        read_streams: None,
    };
    let report = BenchReport::new(machine, vec![found]);
    assert!((report.bandwidth_percent(&report.cases[0]) - 50.0).abs() < 1e-9);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<BenchReport>(&json).unwrap(), report);
}

#[test]
fn it_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(Utf8Path::from_path(folder.path()).unwrap());
    let case = Case {
        batch: 1,
        schedule: Schedule::Lockstep,
        images: 1,
        cfg_scale: 1.0,
        seed: 0,
        warmup: 0,
        rounds: 9,
    };
    let mut left = 3;
    let stopped = measure(&bundle, (ENGINE.open)(&Default::default()), &case, &mut |_| {
        left -= 1;
        left > 0
    });
    let stopped = stopped.unwrap_err();
    let interrupted = matches!(
        stopped,
        RunError::Interrupted | RunError::Decode(dpar_export_decode::generate::DecodeError::Interrupted)
    );
    assert!(interrupted, "{stopped}");
}
