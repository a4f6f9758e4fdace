//! `evaluate --until`: a comparison that ends when it is decided, with the error of one that does not.

use serde_json::Value;

use crate::cli::json;
use crate::evaluate::{Case, images};

const UNTIL: [&str; 2] = ["--until", "inconclusive-resolved"];

fn looks(comparison: &Value) -> &Vec<Value> {
    comparison["sequential"]["looks"].as_array().unwrap()
}

#[test]
fn a_comparison_ends_when_it_is_decided_and_goes_on_to_all_images() {
    let mut case = Case::new(480);
    assert_eq!(case.run("a", &[]).code, 0);
    let report = case.temp.path("a/metrics.json");
    let compare = ["--compare", report.as_str()];
    let run = |case: &Case, name: &str, more: &[&str]| case.run(name, &[&compare[..], &UNTIL, more].concat());

    // Far apart: shown long before all images are there. There are no numbers of all then.
    let first = case.samples.clone();
    case.samples = case.temp.path("flat.npz");
    images(&case.samples, 480, 3, 5);
    let out = run(&case, "flat", &[]);
    assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
    let found = json(&out);
    let (seen, looked) = (found["images"].as_u64().unwrap(), looks(&found["comparison"]));
    assert!(seen < 480 && seen.is_multiple_of(16) && found["of"] == 480, "{found}");
    let last = looked.last().unwrap();
    assert_eq!((&last["images"], &last["verdict"]), (&seen.into(), &"fail".into()));
    assert!(looked[..looked.len() - 1].iter().all(|l| l["verdict"] == "inconclusive"));
    // Each look was harder to pass than one look would be, the first the hardest.
    let critical: Vec<f64> = looked.iter().filter_map(|l| l["critical"].as_f64()).collect();
    assert!(critical.is_sorted_by(|a, b| a > b) && critical.iter().all(|c| *c > 1.645), "{critical:?}");
    let folder = case.temp.path("flat");
    assert!(!folder.join("metrics.json").exists() && folder.join("comparison.json").is_file());

    // Looks are planned once; without them the same folder goes on to all images.
    let other = run(&case, "flat", &["--resume", "--looks", "20"]);
    assert!(other.code == 2 && other.stderr.contains("begun with other looks"), "{}", other.stderr);
    // One look more, at 1.645, would undo the plan.
    let plain = case.run("flat", &[&compare[..], &["--resume"]].concat());
    assert!(plain.code == 2 && plain.stderr.contains("has planned looks"), "{}", plain.stderr);
    let again = run(&case, "flat", &["--resume"]);
    assert_eq!(json(&again)["comparison"], found["comparison"]);
    let all = case.run("flat", &["--resume"]);
    assert_eq!(all.code, 0, "{}", all.stderr);
    assert_eq!(case.run("whole", &[]).code, 0);
    assert!(case.metrics("flat") == case.metrics("whole"));

    // The same images: as long as none differs nothing is known of those to come.
    case.samples = first;
    let same = run(&case, "same", &["--looks", "3"]);
    assert_eq!(same.code, 0, "{}{}", same.stdout, same.stderr);
    let found = &json(&same)["comparison"];
    let at: Vec<u64> = looks(found).iter().map(|l| l["images"].as_u64().unwrap()).collect();
    assert_eq!((at, &found["same_images"]), (vec![160, 320, 480], &Value::from(true)));
    assert!(case.temp.path("same/metrics.json").is_file());
}

#[test]
fn what_is_not_decided_takes_all_images_and_a_wider_interval() {
    let mut case = Case::new(300);
    assert_eq!(case.run("a", &[]).code, 0);
    let report = case.temp.path("a/metrics.json");
    case.samples = case.temp.path("near.npz");
    images(&case.samples, 300, 3, 100);
    let compare = ["--compare", report.as_str(), "--resample-distances", "2000"];
    let [plain, looked] = [("plain", &[][..]), ("looked", &UNTIL[..])].map(|(name, more)| {
        let out = case.run(name, &[&compare[..], more].concat());
        assert_eq!(out.code, 4, "{}{}", out.stdout, out.stderr);
        json(&out)["comparison"].clone()
    });
    let width = |ends: &Value| ends[1].as_f64().unwrap() - ends[0].as_f64().unwrap();
    assert_eq!(plain["difference"], looked["difference"]);
    assert!(width(&looked["interval_90"]) > 1.01 * width(&plain["interval_90"]));
    let last = looks(&looked).last().unwrap();
    assert_eq!((&last["images"], &last["difference"]), (&Value::from(300), &looked["difference"]));
    assert!(case.metrics("plain") == case.metrics("looked"));
    // More looks than chunks: each chunk has one.
    let often = case.run("often", &[&compare[..2], &UNTIL, &["--looks", "200"]].concat());
    assert_eq!(often.code, 4, "{}", often.stderr);
    let at =
        looks(&json(&often)["comparison"]).iter().map(|l| l["images"].as_u64().unwrap()).collect::<Vec<_>>();
    assert!(at.is_sorted_by(|a, b| a < b) && at.len() > 10 && at.last() == Some(&300), "{at:?}");
    let late = case.run("plain", &[&compare[..], &UNTIL, &["--resume"]].concat());
    assert!(late.code == 2 && late.stderr.contains("was compared already"), "{}", late.stderr);
    // Distances that are computed again spread as the linearised ones do.
    let ratio = width(&plain["resampled"]["interval_90"]) / width(&plain["interval_90"]);
    assert!((ratio - 1.0).abs() < 0.25, "{ratio}");
    for more in [&["--looks", "5"][..], &UNTIL, &["--resample-distances", "50"]] {
        let out = case.run("alone", more);
        assert!(out.code == 2 && out.stderr.contains("--"), "{more:?}: {}", out.stderr);
    }
    // A part has no comparison, so nothing of one is taken with it.
    for part in [&["--shard", "1/2"][..], &["--emit", "k8s"], &["--pull", "2"]] {
        for of_comparison in [&UNTIL[..], &["--resample-distances", "50"]] {
            let out = case.run("part", &[part, of_comparison].concat());
            assert!(out.code == 2 && out.stderr.contains("cannot be used with"), "{part:?}: {}", out.stderr);
        }
    }
    // As many chunks as one.
    case.samples = case.temp.path("few.npz");
    images(&case.samples, 16, 3, 100);
    assert_eq!(case.run("few", &[]).code, 0);
    let few = case.temp.path("few/metrics.json");
    let late = case.run("late", &[&["--compare", few.as_str()], &UNTIL[..]].concat());
    assert!(late.stderr.contains("nothing is decided before all 16 images"), "{}", late.stderr);
}
