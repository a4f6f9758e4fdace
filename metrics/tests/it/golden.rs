//! Every number of `fixtures/metrics/expected.json`.

use crate::synthetic::{named, softmax_w};
use dpar_export_metrics::*;
use sha2::{Digest, Sha256};
use std::sync::OnceLock;

fn expected() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/metrics/expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn number(path: &str) -> f64 {
    expected().pointer(path).and_then(|v| v.as_f64()).unwrap_or_else(|| panic!("{path}"))
}

pub(crate) fn compute() -> &'static Compute {
    static POOL: OnceLock<Compute> = OnceLock::new();
    POOL.get_or_init(|| Compute::new(2).unwrap())
}

fn sha(v: &[f32]) -> String {
    let mut hash = Sha256::new();
    v.iter().for_each(|v| hash.update(v.to_le_bytes()));
    hex::encode(hash.finalize())
}

fn set(name: &str) -> Vec<f32> {
    let data = named(name).activations();
    let want = expected().pointer(&format!("/sha256_f32le/{name}")).unwrap().as_str().unwrap().to_owned();
    assert_eq!(sha(&data), want, "activations {name}");
    data
}

fn rows(data: &[f32]) -> Rows<'_> {
    Rows::new("activations", data, 2048).unwrap()
}

fn moments(data: &[f32]) -> Moments {
    let mut m = MomentsAccumulator::new(2048).unwrap();
    m.push(rows(data), compute()).unwrap();
    m.finish(compute()).unwrap()
}

/// Fails with both values and the distance.
fn close(what: &str, found: f64, want: f64, tolerance: f64) {
    println!(
        "{what}: {found:.13e} want {want:.10e} off {:.1e} (rel {:.1e})",
        found - want,
        (found - want) / want
    );
    assert!((found - want).abs() <= tolerance, "{what}: {found:e} want {want:e} off {:e}", found - want);
}

/// Half a unit of the tenth digit that the expected values are printed with.
fn printed(v: f64) -> f64 {
    5e-10 * v.abs()
}

fn frechet_case(pair: (&str, &str), a: &[f32], b: &[f32], full_rank: bool) {
    let (a, b) = (moments(a), moments(b));
    let found = frechet_distance(&a, &b, compute()).unwrap();
    assert_eq!(found.full_rank, full_rank);
    let at = |key: &str| number(&format!("/fid/{}|{}/{key}", pair.0, pair.1));
    let want = at("exact_fid");
    close("fid", found.distance, want, if full_rank { 1e-8 * want } else { 2e-5 });
    close("mean term", found.mean_term, at("exact_mean_term"), 1e-8 * at("exact_mean_term"));
    close("trace 1", found.trace1, at("exact_trace1"), 2.0 * printed(at("exact_trace1")));
    close("trace 2", found.trace2, at("exact_trace2"), 2.0 * printed(at("exact_trace2")));
    close("trace of the root", found.trace_sqrt, at("exact_tr_sqrt"), if full_rank { 1e-7 } else { 1e-5 });
    let turned = frechet_distance(&b, &a, compute()).unwrap();
    close("symmetry", turned.distance, found.distance, if full_rank { 1e-9 } else { 1e-6 });
}

#[test]
fn frechet_full_rank() {
    frechet_case(("B1", "B2"), &set("B1"), &set("B2"), true);
}

#[test]
fn frechet_of_equal_singular_sets() {
    let a = set("A");
    let a = moments(&a);
    let found = frechet_distance(&a, &a, compute()).unwrap();
    assert!(!found.full_rank);
    close("fid A|A", found.distance, number("/fid/A|A/exact_fid"), 2e-5);
    close("trace of the root", found.trace_sqrt, number("/fid/A|A/exact_tr_sqrt"), 1e-6);
}

#[test]
fn frechet_singular() {
    frechet_case(("LR", "T"), &set("LR"), &set("T"), false);
}

#[test]
fn inception_score() {
    let (data, w) = (set("IS"), softmax_w(5));
    assert_eq!(
        sha(&w),
        expected()["sha256_f32le"]["W(seed5)"].as_str().unwrap(),
        "weights of the synthetic softmax"
    );
    let logits = crate::logits(&data, &w, 2048, 1008);
    let mut score = InceptionScoreAccumulator::new(1008, ADM_CHUNK).unwrap();
    for part in logits.chunks(1008 * 777) {
        score.push_f64(part).unwrap();
    }
    let score = score.finish().unwrap();
    let want = number("/is/IS/f64_nobias");
    close("is", score.mean, want, 1e-9 * want);
    for (i, split) in score.splits.iter().enumerate() {
        let want = number(&format!("/is/IS/f64_nobias_splits/{i}"));
        close("split", *split, want, 1e-9 * want);
    }
    let single: Vec<f32> = logits.iter().map(|&v| v as f32).collect();
    let single = Rows::new("logits", &single, 1008).unwrap();
    let mut score = InceptionScoreAccumulator::new(1008, ADM_CHUNK).unwrap();
    score.push(single).unwrap();
    let want = number("/is/IS/ref_f32_nobias");
    close("is, of float32 logits", score.finish().unwrap().mean, want, 5e-6 * want);
    let fidelity = inception_score_torch_fidelity(single, 10, 2020, compute()).unwrap();
    let want = number("/is/IS/torch_fidelity_10split_shuf2020_mean");
    close("is, torch-fidelity", fidelity.mean, want, 5e-6 * want);
    close("its std", fidelity.std, number("/is/IS/torch_fidelity_std"), 1e-6);
}

#[test]
fn precision_and_recall() {
    let (reference, samples) = (set("P1"), set("P2"));
    let case = |mode, key: &str, slack: f64, radii: f64| {
        let found = precision_recall(rows(&samples), rows(&reference), mode, compute()).unwrap();
        let at = |name: &str| number(&format!("/pr/P1|P2|{key}/{name}"));
        close("precision count", found.precision_count as f64, at("precision_count"), slack);
        close("recall count", found.recall_count as f64, at("recall_count"), slack);
        close("reference radii", found.reference_radii_sum, at("radii_ref_sum"), radii);
        close("sample radii", found.sample_radii_sum, at("radii_smp_sum"), radii);
        close("precision", found.precision, found.precision_count as f64 / 5000.0, 0.0);
    };
    case(PrMode::F32, "f64", 0.0, 1e-4);
    case(PrMode::F32, "f32", 1.0, 1.0);
    case(PrMode::Adm, "tf_fp16path", 3.0, 2.0);
}

#[test]
fn kernel_distance() {
    let (t, a) = (set("T"), set("A"));
    let found = kid(rows(&t), rows(&a), compute()).unwrap();
    let want = number("/kid/T|A");
    close("kid", found.value, want, 1e-9 * want);
    assert!(found.standard_error > 0.0 && found.standard_error < 10.0 * want);
}
