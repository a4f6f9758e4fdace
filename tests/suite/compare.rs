//! `parity`: every engine of this build against each other and against the golden outputs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dpar_engine_api::{
    Engine, EngineError, EngineErrorKind, EngineInfo, GraphFile, Session, Tensor, TensorView,
};
use dpar_export::bundle::Bundle;
use dpar_export::engines;
use dpar_export::generate::sampler::Method;
use dpar_export::parity::report::{EngineStatus, Mode, ParityReport};
use dpar_export::parity::{ParityEngine, ParityOptions};
use dpar_export::verify::Status;
use dpar_export_checkpoint::LoadOptions;
use dpar_export_metrics::Verdict;
use dpar_export_spec::GraphSpec;

use crate::cli::{json, run};
use crate::common::{ENGINES, Temp, engine_options, export, fixture, llamagen, quiet};

fn compare(bundle: &Bundle, golden: &str, images: usize, probes: bool) -> ParityReport {
    let contenders = ENGINES
        .iter()
        .map(|name| ParityEngine {
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
    check(&compare(&bundle, "llamagen-small", 3, true), 3, 9);
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

/// A real engine whose logits come out negated, so that it draws other tokens, and whose graph of steps fails from the call of
/// `prepare` on whose number is given.
struct Turned {
    engine: Box<dyn Engine>,
    fails_from: usize,
    prepared: Arc<AtomicUsize>,
}

struct TurnedSession {
    session: Box<dyn Session>,
    fails: bool,
}

impl Engine for Turned {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        self.engine.probe()
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        let session = self.engine.prepare(graph)?;
        let fails = self.prepared.fetch_add(1, Ordering::Relaxed) >= self.fails_from;
        Ok(Box::new(TurnedSession { session, fails }))
    }
}

impl Session for TurnedSession {
    fn spec(&self) -> &GraphSpec {
        self.session.spec()
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        if self.fails {
            return Err(EngineError::new(EngineErrorKind::Run, "turned", "the device is gone"));
        }
        let mut outputs = self.session.run_unchecked(inputs)?;
        if let Some(at) = self.spec().output_index("logits") {
            let values = outputs[at].as_f32().unwrap().iter().map(|v| -v).collect();
            outputs[at] = Tensor::f32(outputs[at].shape().to_vec(), values);
        }
        Ok(outputs)
    }
}

/// What differs is judged by following the tokens once more. An engine that goes wrong there has failed, as one that goes wrong
/// before it has, and the report is whole.
#[test]
fn an_engine_that_fails_while_draws_are_judged_does_not_end_the_run() {
    let temp = Temp::new();
    let (file, options) = llamagen("llamagen-small");
    let bundle = export(file, &options, &temp.path("b"));
    let engine = || engines::create("tract", &engine_options("tract")).unwrap();
    let run = |fails_from| {
        let prepared = Arc::new(AtomicUsize::new(0));
        let turned = Turned { engine: engine(), fails_from, prepared: prepared.clone() };
        let made: [(&str, Box<dyn Engine>); 2] = [("tract", engine()), ("turned", Box::new(turned))];
        let contenders = made.map(|(name, engine)| ParityEngine {
            name: name.to_owned(),
            asked_for: true,
            engine: Ok(engine),
        });
        let (sampler, probes) = (Method::default(), false);
        let options = ParityOptions { images: 2, seed: 5, sampler, cfg_scale: 2.0, batch: 2, probes };
        let report =
            dpar_export::parity::run(&bundle, contenders.into(), None, &options, &mut quiet).unwrap();
        let free = report.pairs[0].decisions.iter().find(|d| d.mode == Mode::FreeRunning).unwrap().clone();
        assert!(report.verdict == Verdict::Fail && free.flips.len() == 2, "{report:#?}");
        (report, free, prepared.load(Ordering::Relaxed))
    };
    let (report, free, prepared) = run(usize::MAX);
    assert_eq!(report.engines[1].status, EngineStatus::Ran);
    assert!(free.flips.iter().all(|f| f.margin.is_some() && !f.near_tie), "{free:#?}");
    // The last graph that is prepared is the one for the margins.
    let (report, free, _) = run(prepared - 1);
    let statuses: Vec<EngineStatus> = report.engines.iter().map(|e| e.status).collect();
    assert_eq!(statuses, [EngineStatus::Ran, EngineStatus::Failed]);
    assert!(report.engines[1].reason.as_ref().unwrap().contains("the device is gone"));
    assert!(free.flips.iter().all(|f| f.margin.is_none() && !f.near_tie), "{free:#?}");
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
