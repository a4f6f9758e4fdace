//! Every golden case on both engines.

use dpar_export::verify::{Status, verify_golden};
use dpar_export_checkpoint::LoadOptions;

use crate::common::{ENGINES, Temp, export, fixture, llamagen, on, quiet};

/// Exports `checkpoint` and holds it against `golden` on both engines; `ran` names checks that must have run.
fn check(checkpoint: &str, options: &LoadOptions, golden: &str, ran: &[&str]) {
    let temp = Temp::new();
    let bundle = export(checkpoint, options, &temp.path("b"));
    for engine in ENGINES {
        let checks = verify_golden(&on(&bundle, engine), &fixture(golden), 4, &mut quiet).unwrap();
        for name in ran {
            let check = checks.iter().find(|c| c.name == *name);
            assert_eq!(check.map(|c| c.status), Some(Status::Pass), "{golden} {engine} {name}: {checks:#?}");
        }
        for check in &checks {
            assert_ne!(check.status, Status::Fail, "{golden} on {engine}: {check:#?}");
            // The fixtures were made with margins far above rounding: no near-tie is expected here.
            assert!(check.flips.is_empty(), "{golden} on {engine}: {check:#?}");
        }
    }
}

const DPAR: [&str; 6] =
    ["entropy", "patch lengths", "mean steps", "logits", "greedy tokens", "greedy mean steps"];

#[test]
fn the_trained_dpar() {
    let all: Vec<&str> = DPAR.into_iter().chain(["images", "codes"]).collect();
    check("emoji32/dpar", &LoadOptions::default(), "emoji32", &all);
}

#[test]
fn dpar_small() {
    let all: Vec<&str> = DPAR.into_iter().chain(["images", "codes"]).collect();
    check("dpar-small/dpar", &LoadOptions::default(), "dpar-small", &all);
}

#[test]
fn the_trained_llamagen() {
    let (file, options) = llamagen("emoji32");
    check(file, &options, "emoji32/llamagen", &["logits", "greedy tokens"]);
}

#[test]
fn llamagen_small() {
    let (file, options) = llamagen("llamagen-small");
    check(file, &options, "llamagen-small", &["logits", "greedy tokens"]);
}

/// The variants of the spec that the trained and the golden checkpoints do not have.
#[test]
fn every_variant() {
    let mut names: Vec<String> = fixture("variants")
        .read_dir_utf8()
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().join("dpar").is_dir())
        .map(|e| e.file_name().to_owned())
        .collect();
    names.sort();
    assert_eq!(names.len(), 14, "{names:?}");
    for name in names {
        let folder = format!("variants/{name}");
        let entropy = name != "token" && !name.starts_with("static-fractional");
        let ran: &[&str] = if entropy { &DPAR } else { &DPAR[1..] };
        check(&format!("{folder}/dpar"), &LoadOptions::default(), &folder, ran);
    }
}

/// Every wrapping of the same LlamaGen weights gives the same logits.
#[test]
fn every_wrapping() {
    let config = Some(fixture("wrappings/config.yaml"));
    let files = [
        "model.pt",
        "module.pt",
        "state_dict.pt",
        "bare.pt",
        "training.pt",
        "float16.pt",
        "bfloat16.pt",
        "views.pt",
    ];
    for file in files {
        let options = LoadOptions { config: config.clone(), ..LoadOptions::default() };
        check(&format!("wrappings/{file}"), &options, "wrappings", &["logits", "greedy tokens"]);
    }
    let map = Some(fixture("wrappings/rules.yaml"));
    let options = LoadOptions { config, map, ..LoadOptions::default() };
    check("wrappings/renamed.safetensors", &options, "wrappings", &["logits"]);
    // Without `final`, the newest epoch.
    check("wrappings/experiment", &LoadOptions::default(), "wrappings", &["logits"]);
}

#[test]
fn another_epoch_is_another_model() {
    let temp = Temp::new();
    let options = LoadOptions { epoch: Some(3), ..LoadOptions::default() };
    let bundle = export("wrappings/experiment", &options, &temp.path("b"));
    let checks = verify_golden(&on(&bundle, "tract"), &fixture("wrappings"), 4, &mut quiet).unwrap();
    let logits = checks.iter().find(|c| c.name == "logits").unwrap();
    assert_eq!(logits.status, Status::Fail, "{logits:#?}");
    let greedy = checks.iter().find(|c| c.name == "greedy tokens").unwrap();
    assert!(greedy.flips.iter().any(|f| !f.near_tie), "{greedy:#?}");
}
