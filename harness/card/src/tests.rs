use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::*;

const OWN: &str = "11";

fn written(folder: &Utf8Path, value: &serde_json::Value) -> Utf8PathBuf {
    let path = folder.join("r.json");
    fs_err::write(&path, value.to_string()).unwrap();
    path
}

#[test]
fn a_report_must_say_that_it_is_of_this_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(dir.path()).unwrap();
    let engine = json!({ "engine": "tract", "version": "1" });
    let read = |value| CitedReport::read(&written(folder, &value), OWN);
    let report = |bundle| json!({ "bundle": bundle, "engine": engine, "mean_steps": 35.126 });
    let good = read(report(json!(OWN))).unwrap();
    assert_eq!((good.kind, good.numbers[0].value.as_str()), ("generate", "35.13"));
    let ruled = json!({
        "bundle": OWN, "engine": engine, "mean_steps": 2.0, "cfg_scale": 1.5, "patch_rule": { "threshold": 2.75, "patch_size": null },
    });
    let what = &read(ruled).unwrap().numbers[0].what;
    assert!(what.ends_with(", threshold 2.75, cfg 1.5"), "{what}");
    assert!(matches!(read(report(json!("22"))), Err(CardError::OtherBundle { .. })));
    for (value, message) in [
        (report(json!(null)), "which bundle"),
        (json!({ "systems": [] }), "no bundle"),
        (json!({ "bundle": OWN }), "not a report that"),
    ] {
        let e = read(value).unwrap_err().to_string();
        assert!(e.contains(message), "{e}");
    }
    let path = folder.join("twice.json");
    fs_err::write(&path, r#"{"mean_steps": 1.5, "bundle": "22", "bundle": "11"}"#).unwrap();
    let e = CitedReport::read(&path, OWN).unwrap_err().to_string();
    assert!(e.contains("duplicate"), "{e}");
}

#[test]
fn one_of_several_bundles_that_is_another_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(dir.path()).unwrap();
    let case = |bundle: &str| json!({ "bundle": bundle, "images_per_second": 2.0, "batch": 1 });
    let cases = json!({ "cases": [case(OWN), case("22")] });
    assert!(matches!(CitedReport::read(&written(folder, &cases), OWN), Err(CardError::OtherBundle { .. })));
}
