//! `evaluate`, the second time: gone on with, joined from shards, compared with another.

use dpar_export::arrays::{ArrayFile, ArrayRef, write_npz};
use serde_json::Value;

use crate::cli::json;
use crate::evaluate::{Case, images};

#[test]
fn another_evaluation_is_opened_before_the_first_image_is_looked_at() {
    let case = Case::new(40);
    assert_eq!(case.run("a", &[]).code, 0);
    let (report, pool) = (case.temp.path("a/metrics.json"), case.temp.path("a/samples/pool_3.f32"));
    let refused = |code: i32, why: &str| {
        let out = case.run("b", &["--compare", report.as_str()]);
        assert!(out.code == code && out.stderr.contains(why), "{why}: {} {}", out.code, out.stderr);
        assert!(!case.temp.path("b").exists(), "{why}");
    };
    // Its features are changed, or gone.
    let good = fs_err::read(&pool).unwrap();
    let mut bad = good.clone();
    bad[0] ^= 1;
    fs_err::write(&pool, bad).unwrap();
    refused(5, "pool_3.f32");
    fs_err::remove_file(&pool).unwrap();
    refused(2, "pool_3.f32");
    fs_err::write(&pool, good).unwrap();
    let text = fs_err::read_to_string(&report).unwrap();
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        edit(&mut value);
        fs_err::write(&report, value.to_string()).unwrap();
    };
    edited(&|value| value["samples"]["pixels_sha256"] = "0".repeat(64).into());
    refused(2, "does not hold the samples of");
    edited(&|value| drop(value["metrics"].as_object_mut().unwrap().remove("frechet_distance")));
    refused(2, "no Fréchet distance");
    // Of another schema a field may mean something else.
    edited(&|value| value["schema"] = 2.into());
    refused(2, "schema 2, this version reads 1");
    fs_err::write(&report, text).unwrap();
    assert_eq!(case.run("b", &["--compare", report.as_str()]).code, 0);
}

#[test]
fn a_shard_of_other_images_is_never_skipped() {
    let mut case = Case::new(64);
    let first = case.samples.clone();
    for (seed, names) in [(1, ["a1", "a2"]), (7, ["b1", "b2"])] {
        images(&case.samples, 64, seed, 100);
        for (name, shard) in names.into_iter().zip(["1/2", "2/2"]) {
            assert_eq!(case.run(name, &["--shard", shard]).code, 0);
        }
        case.samples = case.temp.path("other.npz");
    }
    case.samples = first;
    let merge = |out: &str, names: &[&str], more: &[&str]| {
        let folders: Vec<String> = names.iter().map(|n| case.temp.path(n).to_string()).collect();
        let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
        case.run(out, &[more, &["--merge"], &folders].concat())
    };
    let twice = merge("twice", &["a1", "b1", "a2"], &[]);
    assert!(twice.code == 2 && twice.stderr.contains("the same images twice"), "{}", twice.stderr);
    let whole = merge("whole", &["a2", "a1"], &[]);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    let metrics = case.metrics("whole");
    // A merge that is gone on with finds its shards there.
    assert_eq!(merge("whole", &["a1", "a2"], &["--resume"]).code, 0);
    assert!(case.metrics("whole") == metrics);
    for names in [["b1", "a2"], ["a1", "b2"]] {
        let other = merge("whole", &names, &["--resume"]);
        assert!(other.code == 2 && other.stderr.contains("other images"), "{names:?}: {}", other.stderr);
    }
}

#[test]
fn numbers_may_be_made_in_another_way_and_no_old_comparison_stays() {
    let case = Case::new(60);
    assert_eq!(case.run("a", &[]).code, 0);
    let other = case.temp.path("a/metrics.json");
    assert_eq!(case.run("b", &["--compare", other.as_str()]).code, 0);
    let comparison = case.temp.path("b/comparison.json");
    assert!(comparison.is_file());
    let again = case.run("b", &["--resume", "--pr-mode", "adm"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(!comparison.exists(), "its numbers are of another protocol");
    let report: Value = serde_json::from_slice(&case.metrics("b")).unwrap();
    assert_eq!(report["protocol"]["settings"]["pr_mode"], "adm");
    let features = case.run("b", &["--resume", "--batch", "3"]);
    assert!(features.code == 2 && features.stderr.contains("other options"), "{}", features.stderr);
}

#[test]
fn a_reference_of_activations_stores_no_statistics() {
    let mut case = Case::new(40);
    let values: Vec<f32> = (0..40 * 3).map(|i| (i * 7919 % 101) as f32 / 101.0).collect();
    let name = b"tiny.onnx";
    let activations = [("pool_3", ArrayRef::f32(&[40, 3], &values)), ("extractor", ArrayRef::u8(&[9], name))];
    case.reference = case.temp.path("activations.npz");
    write_npz(&case.reference, &activations).unwrap();
    let out = case.run("a", &[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(json(&out)["protocol"]["reference"]["stored_statistics"], false);
    // With statistics beside them, which are then used.
    let statistics = ArrayFile::open(case.temp.path("a/statistics.npz")).unwrap();
    let (mu, sigma) =
        (statistics.f64("mu", &[Some(3)]).unwrap(), statistics.f64("sigma", &[Some(3); 2]).unwrap());
    let more = [
        ("mu", ArrayRef::f64(&[3], mu.as_slice().unwrap())),
        ("sigma", ArrayRef::f64(&[3, 3], sigma.as_slice().unwrap())),
    ];
    case.reference = case.temp.path("both.npz");
    write_npz(&case.reference, &[&activations[..], &more].concat()).unwrap();
    let out = case.run("b", &[]);
    assert_eq!(json(&out)["protocol"]["reference"]["stored_statistics"], true, "{}", out.stderr);
}
