//! `bench` and `synth` as users call them.

use dpar_export_checkpoint::LoadOptions;
use serde_json::Value;

use crate::cli::run;
use crate::common::{ENGINES, Temp, export, llamagen};

/// Every time of a report of `bench`, multiplied.
fn scaled(report: &Value, factor: f64) -> Value {
    let mut report = report.clone();
    let time = |v: &mut Value| *v = (v.as_f64().unwrap() * factor).into();
    for case in report["cases"].as_array_mut().unwrap() {
        for round in case["rounds"].as_array_mut().unwrap() {
            time(&mut round["seconds"]);
            round["graphs"].as_object_mut().unwrap().values_mut().for_each(|g| time(&mut g["seconds"]));
        }
    }
    report
}

#[test]
fn cases_are_measured_shown_and_held_against_an_earlier_report() {
    let temp = Temp::new();
    export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let path = |name: &str| temp.path(name).into_string();
    let (bundle, report, page) = (path("b"), path("r.json"), path("r.html"));
    let case = ["bench", &bundle, "--cfg-scale", "2", "--threads", "1", "--warmup", "0", "--rounds", "2"];
    let engines = ENGINES[..2].join(",");
    let all = ["--engines", &engines, "--sweep", "batch=1,3", "-o", &report, "--report", &page, "--json"];
    let found = run(&[&case[..], &all].concat());
    assert_eq!(found.code, 0, "{}", found.stderr);
    let printed: Value = serde_json::from_str(&found.stdout).unwrap();
    let written: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(printed["report"], written);
    let cases = written["cases"].as_array().unwrap();
    let keys: Vec<_> =
        cases.iter().map(|c| (c["engine"].as_str().unwrap(), c["batch"].as_u64().unwrap())).collect();
    assert_eq!(keys, [(ENGINES[0], 1), (ENGINES[0], 3), (ENGINES[1], 1), (ENGINES[1], 3)]);
    for case in cases {
        // 64 tokens, two rounds; the loop calls the decoder at each.
        assert_eq!(case["graphs"]["decoder_step"]["cost"]["calls"], 128);
        assert_eq!(case["threads"], 1);
        let shares: f64 =
            case["graphs"].as_object().unwrap().values().map(|g| g["percent"].as_f64().unwrap()).sum();
        assert!((shares + case["loop_percent"].as_f64().unwrap() - 100.0).abs() < 1e-6);
        // Both draw the same images.
        assert_eq!(case["mean_steps"], cases[usize::from(case["batch"] == 3)]["mean_steps"]);
    }
    assert!(written["machine"]["read_bytes_per_second"].as_f64().unwrap() > 1e8);
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("Where the time goes") && html.contains("decoder_step") && !html.contains("<script")
    );

    for (factor, code, word) in [(100.0, 0, "pass against"), (0.01, 1, "FAIL against")] {
        let earlier = path("earlier.json");
        std::fs::write(&earlier, scaled(&written, factor).to_string()).unwrap();
        let compared = run(&[&case[..], &["--batch", "3", "--compare", &earlier]].concat());
        assert_eq!(compared.code, code, "{} {}", compared.stdout, compared.stderr);
        assert!(compared.stdout.contains(word), "{}", compared.stdout);
        assert!(compared.stdout.contains("in one of the two reports only"), "{}", compared.stdout);
    }
}

#[test]
fn a_larger_threshold_makes_fewer_steps_of_the_same_images() {
    let temp = Temp::new();
    export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let bundle = temp.path("b").into_string();
    let found = run(&[
        "bench",
        &bundle,
        "--warmup",
        "0",
        "--rounds",
        "1",
        "--sweep",
        "threshold=4,4.35,4.7",
        "--batch",
        "4",
        "--json",
    ]);
    assert_eq!(found.code, 0, "{}", found.stderr);
    let report: Value = serde_json::from_str(&found.stdout).unwrap();
    let cases = report["report"]["cases"].as_array().unwrap();
    let column = |key: &str| cases.iter().map(|c| c[key].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column("threshold"), [4.0, 4.35, 4.7]);
    assert!(column("mean_steps").is_sorted_by(|a, b| a > b), "{:?}", column("mean_steps"));

    // Of a system without a threshold none can be asked for.
    let (checkpoint, options) = llamagen("emoji32");
    export(checkpoint, &options, &temp.path("l"));
    let found = run(&["bench", temp.path("l").as_str(), "--sweep", "threshold=4"]);
    assert_eq!(found.code, 2, "{}", found.stderr);
    assert!(found.stderr.contains("threshold"), "{}", found.stderr);
}

#[test]
fn what_cannot_be_measured_is_said_and_nothing_is_written() {
    let temp = Temp::new();
    export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let path = |name: &str| temp.path(name).into_string();
    let (bundle, report) = (path("b"), path("r.json"));
    for (args, code, said) in [
        (&["--sweep", "batch=1,0"][..], 2, "`0` is no batch from 1 to 256"),
        (&["--sweep", "size=7"], 2, "expected batch=, threshold= or schedule="),
        (&["--sweep", "threshold=7,high"], 2, "`high` is no threshold in nats"),
        (&["--sweep", "batch=1", "--sweep", "batch=2"], 2, "--sweep batch= is given twice"),
        (&["--sweep", "batch=2,1,2"], 2, "2 is there twice"),
        (&["--sweep", "batch=2", "--batch", "4"], 2, "--batch"),
        (&["--batch", "4", "--num", "3"], 2, "a round of 3 images has no 4 that are decoded together"),
        (&["--sweep", "batch=1,8", "--num", "3"], 2, "has no 8"),
        (
            &["--engines", "candle", "--caches", "joined"],
            2,
            "--caches is for an engine that is not in the run",
        ),
        (&["--compare", &path("none.json")], 2, "none.json"),
        (&["--ort-lib", &path("no.so"), "--engines", ENGINES[1]], 3, "no.so"),
        (&["--report", &path("page.pdf")], 2, "does not end in .html"),
    ] {
        let found = run(&[&["bench", &bundle, "-o", &report], args].concat());
        assert_eq!(found.code, code, "{args:?}: {}", found.stderr);
        assert!(found.stderr.contains(said), "{args:?}: {}", found.stderr);
        assert!(!temp.path("r.json").exists());
    }
    // Damaged: the case's own process says it, with its exit code.
    let weights = temp.path("b/onnx/dpar.onnx_data");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let found = run(&["bench", &bundle, "-o", &report]);
    assert_eq!(found.code, 5, "{}", found.stderr);
    assert!(found.stderr.contains("dpar.onnx_data") && !temp.path("r.json").exists(), "{}", found.stderr);
}

/// The processes of cases are told which case they are, also where the bundles stand behind `--`.
#[test]
fn bundles_may_stand_at_the_end_and_caches_are_kept_as_asked() {
    let temp = Temp::new();
    export("dpar-small/dpar", &LoadOptions::default(), &temp.path("b"));
    let bundle = temp.path("b").into_string();
    let bench = |more: &[&str]| {
        let args = ["bench", "--json", "--warmup", "0", "--rounds", "1", "--threads", "1"];
        let found = run(&[&args[..], more, &["--", &bundle]].concat());
        assert_eq!(found.code, 0, "{}", found.stderr);
        serde_json::from_str::<Value>(&found.stdout).unwrap()["report"].clone()
    };
    let report = bench(&["--sweep", "schedule=patch,rolling", "--batch", "2", "--num", "4"]);
    let schedules: Vec<_> =
        report["cases"].as_array().unwrap().iter().map(|c| c["schedule"].clone()).collect();
    assert_eq!(schedules, ["patch", "rolling"]);
    assert!(report["machine"]["read_streams"].as_u64().unwrap() >= 1);
    for (more, form) in [(&[][..], "in_place"), (&["--caches", "joined"], "joined")] {
        let report = bench(more);
        let [case] = &report["cases"].as_array().unwrap()[..] else { panic!("{report:#}") };
        for graph in ["entropy_step", "encoder_step", "global_step", "decoder_step"] {
            assert_eq!(case["graphs"][graph]["caches"], form, "{graph}");
        }
        assert!(case["graphs"]["start"].get("caches").is_none());
        assert_eq!(case.get("caches").is_some(), form == "joined");
        // An earlier report in which nothing was timed.
        let mut empty = report.clone();
        empty["cases"][0]["rounds"] = Value::Array(Vec::new());
        let earlier = temp.path("earlier.json");
        std::fs::write(&earlier, empty.to_string()).unwrap();
        let refused = run(&["bench", &bundle, "--compare", earlier.as_str()]);
        assert!(refused.code == 2 && refused.stderr.contains("has no rounds"), "{}", refused.stderr);
    }
}

#[test]
fn a_system_that_is_not_in_the_table_cannot_be_made() {
    let temp = Temp::new();
    let out = temp.path("out").into_string();
    for (args, said) in [
        (&["DPAR-M"][..], "the table has no `DPAR-M`; it has "),
        (&["LlamaGen-B", "--steps", "100"], "every image needs 256 steps"),
        (&["DPAR-B", "--steps", "300"], "256 tokens make 65 to 256 patches"),
    ] {
        let found = run(&[&["synth", "-o", &out], args].concat());
        assert_eq!(found.code, 2, "{args:?}: {}", found.stderr);
        assert!(found.stderr.contains(said), "{args:?}: {}", found.stderr);
        assert!(!temp.path("out").exists());
    }
}
