//! Sampled streams: the same image whatever the engine and the batch.

use dpar_export::arrays::ArrayFile;
use dpar_export::bundle::Bundle;
use dpar_export::generate::sampler::{Method, Sampler, SamplerOptions, image_key};
use dpar_export::tolerance::Quantity;
use dpar_export::verify::{CheckId, Status, verify_streams};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::Precision;

use crate::cli::run;
use crate::common::{ENGINES, Temp, change_weights, export, export_as, fixture, limit, llamagen, on, quiet};

/// The first 64 reference streams on one engine with every batch size.
fn check(bundle: &Bundle, streams: &str, engine: &str) {
    for batch in [1, 3, 8] {
        let checks =
            verify_streams(&on(bundle, engine), &fixture(streams), Some(64), batch, &mut quiet).unwrap();
        for check in checks {
            assert_eq!(check.status, Status::Pass, "{streams} {engine} batch {batch}: {check:#?}");
            // A draw is nearer than 1e-5 to a boundary once in 115 slots, but flips far more rarely.
            assert!(check.flips.len() <= 3, "{streams} {engine} batch {batch}: {check:#?}");
        }
    }
}

#[test]
fn no_streams_are_nothing_to_compare() {
    let temp = Temp::new();
    let (file, options) = llamagen("emoji32");
    let bundle = export(file, &options, &temp.path("b"));
    let streams = fixture("emoji32/streams_llamagen.safetensors");
    let e = verify_streams(&on(&bundle, ENGINES[0]), &streams, Some(0), 1, &mut quiet).unwrap_err();
    assert!(e.to_string().contains("nothing to compare"), "{e}");
    let none = ["verify", bundle.folder().as_str(), "--streams", streams.as_str(), "--limit", "0"];
    let out = run(&none);
    assert!(out.code == 2 && out.stderr.contains("--limit"), "{}{}", out.stdout, out.stderr);
}

fn dpar(engine: &str) {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    check(&bundle, "emoji32/streams_dpar.safetensors", engine);
}

fn baseline(engine: &str) {
    let temp = Temp::new();
    let (file, options) = llamagen("emoji32");
    let bundle = export(file, &options, &temp.path("b"));
    check(&bundle, "emoji32/streams_llamagen.safetensors", engine);
}

#[test]
fn dpar_on_tract() {
    dpar(ENGINES[0]);
}

#[test]
fn dpar_on_ort() {
    dpar(ENGINES[1]);
}

#[test]
fn llamagen_on_tract() {
    baseline(ENGINES[0]);
}

#[test]
fn llamagen_on_ort() {
    baseline(ENGINES[1]);
}

/// Where tokens are drawn by the running sum, roundings of fp16 part more streams than elsewhere; a damaged bundle still more.
#[test]
fn good_fp16_bundles_part_within_their_share_and_damaged_ones_beyond_it() {
    let temp = Temp::new();
    let weights = "checkpoints/final/model.safetensors";
    let from = fixture("emoji32/dpar");
    let part = |name: &str, damage: f32| {
        let folder = temp.path(name);
        fs_err::create_dir_all(folder.join("checkpoints/final")).unwrap();
        fs_err::copy(from.join("config.yaml"), folder.join("config.yaml")).unwrap();
        change_weights(&from.join(weights), &folder.join(weights), |_, values| {
            let sign = |i: usize| if (i * 7919 % 13).is_multiple_of(2) { damage } else { -damage };
            values.iter_mut().enumerate().for_each(|(i, v)| *v *= 1.0 + sign(i));
        });
        let parts = LoadOptions {
            entropy: Some(fixture("emoji32/entropy")),
            vq: Some(fixture("emoji32/vq.pt")),
            ..LoadOptions::default()
        };
        let bundle =
            export_as(folder.as_str(), Precision::Fp16, &parts, &temp.path(&format!("{name}-bundle")));
        let streams = fixture("emoji32/streams_dpar.safetensors");
        let checks = verify_streams(&on(&bundle, "ort"), &streams, Some(128), 32, &mut quiet).unwrap();
        checks.into_iter().find(|c| c.id == CheckId::StreamTokens).unwrap()
    };
    let good = part("good", 0.0);
    assert_eq!(good.status, Status::Pass, "{good:#?}");
    let slots: usize = 128 * 64 - good.flips.iter().map(|f| 63 - f.slot).sum::<usize>();
    // What greedy and noisy draws may be, this is not.
    assert!(
        good.flips.len() * 100 > 2 * slots * 9 / 10 && good.flips.iter().all(|f| f.near_tie),
        "{good:#?}"
    );
    let damaged = part("damaged", 5e-3);
    assert_eq!(damaged.status, Status::Fail, "{damaged:#?}");
    // By its share alone: each of its flips looks like a near-tie.
    assert!(damaged.flips.iter().all(|f| f.near_tie), "{damaged:#?}");
}

/// Draws from the logits of the trained baseline in float32 and in fp16: where the two have other candidates, the margins of the
/// draws say nothing of it, and the distance to the other's token does.
#[test]
fn candidates_that_rounding_changes_are_near_ties_of_their_edge() {
    let temp = Temp::new();
    let (file, parts) = llamagen("emoji32");
    let golden = ArrayFile::open(fixture("emoji32/llamagen/golden.safetensors")).unwrap();
    let ids: Vec<i64> = golden.i64("tokens", &[None; 2]).unwrap().iter().copied().collect();
    let labels: Vec<i64> = golden.i64("class_labels", &[None]).unwrap().iter().copied().collect();
    let [exact, rounded] = [Precision::Fp32, Precision::Fp16].map(|precision| {
        let bundle = export_as(file, precision, &parts, &temp.path(precision.name()));
        on(&bundle, "ort").score(&ids, &labels, None, 6, &mut quiet).unwrap().logits
    });
    let vocab = exact.len() / ids.len();
    let width = |quantity| f64::from(limit(Precision::Fp16, quantity));
    let top_k: Vec<(usize, f64)> = (4..40).step_by(3).map(|k| (k, 1.0)).collect();
    let top_p: Vec<(usize, f64)> = (5..19).map(|p| (0, f64::from(p) / 20.0)).collect();
    for (method, width) in [(Method::Gumbel, width(Quantity::ArgMax)), (Method::Cdf, width(Quantity::Draw))] {
        for filters in [&top_k, &top_p] {
            let (mut flips, mut of_edge) = (0, 0);
            for (top_k, top_p) in filters {
                let (top_k, top_p) = (*top_k, *top_p);
                let options = SamplerOptions { method, top_k, top_p, ..SamplerOptions::default() };
                let mut sampler = Sampler::new(options).unwrap();
                for (slot, (x, y)) in exact.chunks(vocab).zip(rounded.chunks(vocab)).enumerate() {
                    for seed in 0..12 {
                        let place = (image_key(seed, 0), slot as u64);
                        let [a, b] = [x, y].map(|row| sampler.draw_at(row, place.0, place.1).unwrap());
                        if a.token == b.token {
                            continue;
                        }
                        let away = |row, token| options.distance(row, token, place).unwrap();
                        let gap = away(x, b.token).max(away(y, a.token));
                        assert!(gap < width, "{options:?}, slot {slot}, seed {seed}: {gap}, {a:?} {b:?}");
                        flips += 1;
                        of_edge += usize::from(f64::from(a.margin.min(b.margin)) > width);
                    }
                }
            }
            assert!(of_edge > 0 && flips > of_edge, "{method:?} {filters:?}: {of_edge} of {flips}");
        }
    }
}
