//! `parity`: every engine of this build against each other and against the golden outputs.

use dpar_export::bundle::Bundle;
use dpar_export::engines;
use dpar_export::generate::sampler::Method;
use dpar_export::parity::report::{EngineStatus, Mode, ParityReport};
use dpar_export::parity::{Contender, ParityOptions};
use dpar_export::verify::Status;
use dpar_export_checkpoint::LoadOptions;
use dpar_export_metrics::Verdict;

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, engine_options, export, fixture, llamagen, quiet};

fn compare(bundle: &Bundle, golden: &str, images: usize, probes: bool) -> ParityReport {
    let contenders = ENGINES
        .iter()
        .map(|name| Contender {
            name: (*name).to_owned(),
            asked_for: true,
            engine: engines::create(name, &engine_options(name)),
        })
        .collect();
    let options =
        ParityOptions { images, seed: 5, sampler: Method::default(), cfg_scale: 2.0, batch: 3, probes };
    dpar_export::parity::run(bundle, contenders, Some(&fixture(golden)), &options, &mut quiet).unwrap()
}

/// Every comparison ran and passed without a flip.
fn check(report: &ParityReport, images: usize, probes: usize) {
    let text = serde_json::to_string_pretty(report).unwrap();
    assert_eq!(report.verdict, Verdict::Pass, "{text}");
    assert_eq!(report.pairs.len(), 2 * ENGINES.len() - 1, "{text}");
    for (engine, name) in report.engines.iter().zip(ENGINES) {
        assert_eq!((engine.engine.as_str(), engine.status), (name, EngineStatus::Ran), "{text}");
        assert!(engine.info.as_ref().is_some_and(|i| i.device == "cpu" && !i.version.is_empty()));
        assert!(engine.checks.iter().any(|c| c.name == "logits" && c.status == Status::Pass));
        assert_eq!(engine.probes.len(), probes);
        assert_eq!(engine.free_running.len(), images);
        for image in engine.free_running.iter().chain(&engine.teacher_forced) {
            assert_eq!(image.patch_lengths.iter().sum::<usize>(), report.bundle.tokens);
            assert_eq!(
                (image.tokens.len(), image.entropy.len()),
                (report.bundle.tokens, report.bundle.tokens)
            );
        }
    }
    for pair in &report.pairs {
        assert_eq!(pair.status, Status::Pass, "{text}");
        let modes: Vec<Mode> = pair.decisions.iter().map(|d| d.mode).collect();
        let graphs = pair.tensors.iter().filter(|t| t.graph.is_some()).count();
        if pair.baseline == "reference" {
            assert_eq!((modes.as_slice(), graphs), (&[Mode::TeacherForced][..], 0));
        } else {
            assert_eq!(modes, [Mode::TeacherForced, Mode::FreeRunning]);
            assert!(graphs > 3, "{text}");
            let beside = ["score/logits", "vq_decode/image", "vq_encode/tokens"];
            let dpar = report.bundle.system == dpar_export_spec::SystemKind::Dpar;
            let wanted = beside
                .iter()
                .filter(|n| if n.starts_with("vq") { report.bundle.has_tokenizer } else { dpar });
            for name in wanted {
                assert!(pair.tensors.iter().any(|t| t.name == *name), "{name}: {text}");
            }
        }
        // Two libraries do not agree to the last bit: so they were compared.
        let logits = pair.tensors.iter().find(|t| t.name == "logits").unwrap();
        assert!(logits.max_abs > 0.0 && logits.max_abs < 1e-4 && logits.cosine > 0.999_999, "{text}");
        assert_eq!(logits.histogram.iter().map(|b| b.count).sum::<u64>(), logits.elements);
        // The fixtures were made with margins far above rounding.
        assert!(pair.decisions.iter().all(|d| d.flips.is_empty() && d.equal == d.images), "{text}");
        assert!(pair.observed.logit.is_some_and(|e| e > 0.0) && pair.observed.draw.is_some());
    }
}

#[test]
fn every_engine_agrees_on_dpar_small() {
    let temp = Temp::new();
    let bundle = export("dpar-small/dpar", &LoadOptions::default(), &temp.path("b"));
    let report = compare(&bundle, "dpar-small", 3, false);
    check(&report, 3, 0);
    assert!(report.pairs.iter().all(|p| p.tensors.iter().any(|t| t.name == "entropy")));
}

#[test]
fn every_engine_agrees_on_llamagen_small_and_the_probes_hold() {
    let temp = Temp::new();
    let (file, options) = llamagen("llamagen-small");
    let bundle = export(file, &options, &temp.path("b"));
    check(&compare(&bundle, "llamagen-small", 3, true), 3, 8);
}

#[test]
fn every_engine_agrees_on_the_trained_dpar() {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    check(&compare(&bundle, "emoji32", 1, false), 1, 0);
}

#[test]
fn every_engine_agrees_on_the_trained_llamagen() {
    let temp = Temp::new();
    let (file, options) = llamagen("emoji32");
    let bundle = export(file, &options, &temp.path("b"));
    check(&compare(&bundle, "emoji32/llamagen", 1, false), 1, 0);
}

/// An engine that was asked for and cannot run is exit code 3, and the others' results are printed all the same.
#[test]
fn a_missing_engine_is_listed_and_exit_code_3() {
    let temp = Temp::new();
    let (file, options) = llamagen("llamagen-small");
    let bundle = temp.path("b");
    export(file, &options, &bundle);
    let golden = fixture("llamagen-small");
    let common = ["--reference", golden.as_str(), "--no-probes", "--images", "1"];
    let missing = ["parity", bundle.as_str(), "--engines", "tract,ort", "--ort-lib", "no/such/lib.so"];
    let out = run(&[&missing[..], &common].concat());
    assert_eq!(out.code, 3, "{}{}", out.stdout, out.stderr);
    assert!(
        out.stdout.contains("not run") && out.stdout.contains("reference : tract  pass"),
        "{}",
        out.stdout
    );
    let out = run(&[&missing[..], &common, &["--json"]].concat());
    let report = json(&out);
    assert_eq!((out.code, report["schema_version"].as_u64()), (3, Some(2)));
    assert_eq!(report["engines"][0]["status"], "ran");
    assert_eq!(report["engines"][1]["status"], "not_run");
    assert!(report["engines"][1]["reason"].as_str().unwrap().contains("no/such/lib.so"));
    assert_eq!(report["verdict"], "incomplete");

    // One engine without a reference compares nothing.
    let alone = ["parity", bundle.as_str(), "--engines", "tract", "--no-probes", "--images", "1"];
    let out = run(&alone);
    assert!(
        out.code == 2 && out.stderr.contains("nothing to compare tract with"),
        "{}{}",
        out.stdout,
        out.stderr
    );
    // Nor does one that is left because this machine lacks the other.
    let left =
        ["parity", bundle.as_str(), "--engines", "tract,ort", "--ort-lib", "no/such/lib.so", "--no-probes"];
    let out = run(&[&left[..], &["--images", "1"]].concat());
    assert!(out.code == 3 && out.stdout.contains("did not run"), "{}{}", out.stdout, out.stderr);
    let out = run(&[&left[..], &["--images", "1", "--json"]].concat());
    assert_eq!((out.code, json(&out)["verdict"].as_str()), (3, Some("incomplete")));

    for (args, why) in [
        (&["--engines", "tract,tract"][..], "named twice"),
        (&["--engines", "tract", "--ort-lib", "x"], "not in the run"),
        (&["--engines", "none"], "none"),
    ] {
        let out = run(&[&["parity", bundle.as_str()], args].concat());
        assert!(out.code == 2 && out.stderr.contains(why), "{args:?}: {}", out.stderr);
    }
}
