//! Other numbers for a patch rule, at export and at run time.

use camino::Utf8Path;
use dpar_export::arrays::ArrayFile;
use dpar_export::bundle::{Bundle, BundleError};
use dpar_export::generate::sampler::SamplerOptions;
use dpar_export::generate::{DecodeOptions, Request, Stream};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::{PatchRule, RuleChange};

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture, llamagen, on, quiet};

const DPAR: &str = "emoji32/dpar";

fn threshold(threshold: f32) -> RuleChange {
    RuleChange { threshold: Some(threshold), ..RuleChange::default() }
}

fn longest(max_patch_length: usize) -> RuleChange {
    RuleChange { max_patch_length: Some(max_patch_length), ..RuleChange::default() }
}

fn sized(patch_size: f64) -> RuleChange {
    RuleChange { patch_size: Some(patch_size), ..RuleChange::default() }
}

fn streams(bundle: &Bundle, engine: &str) -> Vec<Stream> {
    let requests = Request::all_seeded(5, 6, bundle.system().num_classes);
    let sampler = SamplerOptions::default();
    let options = DecodeOptions { cfg_scale: 2.0, cfg_interval: None, sampler, seed: 5 };
    on(bundle, engine).decode(&requests, &options, 6, &mut quiet).unwrap()
}

fn mean_steps(streams: &[Stream]) -> f64 {
    streams.iter().map(Stream::steps).sum::<usize>() as f64 / streams.len() as f64
}

/// Token for token: at run time a threshold is what it is at export.
#[test]
fn a_rule_at_run_time_is_the_rule_of_an_export() {
    let temp = Temp::new();
    let bundle = export(DPAR, &LoadOptions::default(), &temp.path("b"));
    let own = streams(&bundle, "tract");
    for (i, change) in
        [threshold(4.7), RuleChange { threshold: Some(3.5), ..longest(2) }].into_iter().enumerate()
    {
        let options = LoadOptions { rule: change, ..LoadOptions::default() };
        let exported = export(DPAR, &options, &temp.path(&format!("x{i}")));
        let manifest = exported.manifest();
        assert_eq!(manifest.patch_rule.as_ref().unwrap().threshold, change.threshold);
        assert_eq!(manifest.configured_rule.as_deref(), Some(bundle.patch_rule()));
        let changed = bundle.clone().with_rule(&change).unwrap();
        assert_eq!(changed.patch_rule(), exported.patch_rule());
        assert_eq!(changed.system(), exported.system());
        assert_eq!(changed.manifest(), bundle.manifest(), "the files are what they are");
        let found = streams(&changed, "tract");
        assert_eq!(tokens(&found), tokens(&streams(&exported, "tract")));
        assert_ne!(tokens(&found), tokens(&own));
    }
    assert!(bundle.manifest().configured_rule.is_none());
    let same = bundle.clone().with_rule(&threshold(bundle.patch_rule().threshold.unwrap())).unwrap();
    assert_eq!(tokens(&streams(&same, "tract")), tokens(&own));
}

fn tokens(streams: &[Stream]) -> Vec<(&[u32], &[usize])> {
    streams.iter().map(|s| (&s.tokens[..], &s.patch_lengths[..])).collect()
}

/// More threshold, fewer steps: over the same tokens in every image, and on average over those that are drawn.
#[test]
fn a_sweep_of_thresholds_trades_steps() {
    let temp = Temp::new();
    let bundle = export(DPAR, &LoadOptions::default(), &temp.path("b"));
    let file = ArrayFile::open(fixture("emoji32/golden.safetensors")).unwrap();
    let ids: Vec<i64> = file.i64("tokens", &[None; 2]).unwrap().iter().copied().collect();
    let labels: Vec<i64> = file.i64("class_labels", &[None]).unwrap().iter().copied().collect();
    let at = |value: f32| {
        let bundle = bundle.clone().with_rule(&threshold(value)).unwrap();
        let given = on(&bundle, "tract").score(&ids, &labels, None, 8, &mut quiet).unwrap().patch_lengths;
        let given: usize = given.iter().map(Vec::len).sum();
        (given, mean_steps(&streams(&bundle, "ort")))
    };
    let sweep: Vec<(usize, f64)> = [1.0, 3.0, 4.0, 4.35, 4.7, 5.5].map(at).into();
    for pair in sweep.windows(2) {
        assert!(pair[0].0 > pair[1].0 && pair[0].1 > pair[1].1, "{sweep:?}");
    }
}

#[test]
fn what_the_graphs_or_the_mode_cannot_follow_is_refused() {
    let temp = Temp::new();
    let refused = |bundle: &Bundle, change: &RuleChange| match bundle.clone().with_rule(change) {
        Err(e @ BundleError::OtherGraphs { .. }) => format!("graphs: {e}"),
        Err(BundleError::Rule(e)) => format!("rule: {e}"),
        other => panic!("{other:?}"),
    };
    let bundle = export(DPAR, &LoadOptions::default(), &temp.path("b"));
    let most = bundle.system().longest_patch();
    let e = refused(&bundle, &longest(most + 1));
    assert!(e.starts_with("graphs: ") && e.contains(&format!("exported for {most} at most")), "{e}");
    let shorter = bundle.clone().with_rule(&longest(1)).unwrap();
    assert_eq!(streams(&shorter, "tract")[0].steps(), shorter.system().tokens());
    assert!(refused(&bundle, &sized(2.0)).starts_with("rule: patch_size has no effect"));
    assert!(refused(&bundle, &threshold(f32::NAN)).contains("finite"));

    let (file, options) = llamagen("llamagen-small");
    let baseline = export(file, &options, &temp.path("l"));
    assert!(refused(&baseline, &threshold(4.0)).starts_with("rule: threshold has no effect"));

    // Graphs that place fractional patches place those of one size; where patches are counted, any size is placed.
    let fractional = export("variants/static-fractional-4d/dpar", &LoadOptions::default(), &temp.path("f"));
    for size in [2.0, 1.5] {
        assert!(refused(&fractional, &sized(size)).contains("they place patches of a"), "{size}");
    }
    let counted = export("variants/static-fractional/dpar", &LoadOptions::default(), &temp.path("c"));
    let other = counted.clone().with_rule(&sized(1.5)).unwrap();
    assert_eq!(other.patch_rule(), &PatchRule { patch_size: Some(1.5), ..counted.patch_rule().clone() });
    assert!(streams(&other, "tract")[0].steps() > streams(&counted, "tract")[0].steps());
}

/// The options do at a run what they do at an export, and every output says what ran.
#[test]
fn the_command_line_takes_a_threshold_at_export_and_at_run_time() {
    let temp = Temp::new();
    let checkpoint = fixture("dpar-small/dpar");
    let (plain, other) = (temp.path("plain"), temp.path("other"));
    let made = run(&[checkpoint.as_str(), "-o", plain.as_str(), "--json"]);
    assert!(made.code == 0 && json(&made)["manifest"].get("configured_rule").is_none(), "{}", made.stderr);
    let made = run(&[checkpoint.as_str(), "--threshold", "4.5", "-o", other.as_str(), "--json"]);
    let manifest = json(&made)["manifest"].clone();
    assert_eq!(manifest["patch_rule"]["threshold"], 4.5);
    assert!((manifest["configured_rule"]["threshold"].as_f64().unwrap() - 4.9).abs() < 1e-6);
    assert!(made.stderr.contains("patcher.threshold is 4.9; 4.5 is exported, as asked"), "{}", made.stderr);

    let generate = |bundle: &Utf8Path, more: &[&str], name: &str| {
        let out = temp.path(name);
        let args = ["generate", bundle.as_str(), "--num", "2", "--no-images", "--json", "-o", out.as_str()];
        let done = run(&[&args[..], more].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        (json(&done), ArrayFile::open(out.join("trace.npz")).unwrap())
    };
    let (told, trace) = generate(&plain, &["--threshold", "4.5"], "a");
    let (_, exported) = generate(&other, &[], "b");
    for array in trace.arrays() {
        // NaN is not itself: of entropies the numbers.
        let [a, b] = [&trace, &exported].map(|file| format!("{:?}", file.get(&array.name).unwrap()));
        assert_eq!(a, b, "{}", array.name);
    }
    assert_eq!(told["patch_rule"], manifest["patch_rule"]);
    assert_eq!(trace.f32("threshold", &[Some(1)]).unwrap()[[0]], 4.5);
    assert_eq!(trace.i64("max_patch_length", &[Some(1)]).unwrap()[[0]], 4);
    assert!(!trace.contains("patch_size"));

    // A recording says the rule, and is held against a bundle with the same numbers only.
    let golden = temp.path("golden");
    let record = ["reference", plain.as_str(), "--num", "1", "--threshold", "4.5", "-o", golden.as_str()];
    let greedy = run(&[&record[..], &["--greedy"]].concat());
    assert!(greedy.code == 2 && greedy.stderr.contains("--greedy has no effect"), "{}", greedy.stderr);
    let drawn = [
        "--cfg-scale",
        "2",
        "--cfg-interval",
        "9",
        "--temperature",
        "0.8",
        "--top-k",
        "30",
        "--top-p",
        "0.9",
    ];
    assert_eq!(run(&[&record[..], &drawn].concat()).code, 0);
    let settings = fs_err::read_to_string(golden.join("golden.json")).unwrap();
    assert!(
        settings.contains("\"threshold\": 4.5") && settings.contains("\"max_patch_length\": 4"),
        "{settings}"
    );
    let verify = |bundle: &Utf8Path, more: &[&str]| {
        let args = ["verify", bundle.as_str(), "--reference", golden.as_str(), "--no-probes", "--json"];
        run(&[&args[..], more].concat())
    };
    for (bundle, more, code) in [(&plain, &["--threshold", "4.5"][..], 0), (&other, &[], 0), (&plain, &[], 1)]
    {
        let done = verify(bundle, more);
        assert_eq!(done.code, code, "{}{}", done.stdout, done.stderr);
        let report = json(&done);
        let rule = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "patch rule").unwrap();
        assert_eq!(rule["status"], if code == 0 { "pass" } else { "fail" });
        if code != 0 {
            let detail = rule["detail"].as_str().unwrap();
            assert!(detail.contains("threshold is 4.5, here 4.9"), "{detail}");
        }
    }

    let out = temp.path("none");
    let refused = |args: &[&str], message: &str| {
        let done = run(args);
        assert!(done.code == 2 && done.stderr.contains(message), "{args:?}: {} {}", done.code, done.stderr);
        assert!(!out.exists());
    };
    let draw = ["generate", plain.as_str(), "--num", "1", "--no-images", "-o", out.as_str()];
    refused(
        &[&draw[..], &["--max-patch-length", "5"]].concat(),
        "export the checkpoint again with these numbers",
    );
    refused(&[&draw[..], &["--patch-size", "2"]].concat(), "patch_size has no effect");
    refused(&[&draw[..], &["--threshold", "inf"]].concat(), "finite number");
    refused(&[checkpoint.as_str(), "--patch-size", "2", "-o", out.as_str()], "patch_size has no effect");
    refused(&["--target", "trt", plain.as_str(), "--threshold", "4", "-o", out.as_str()], "is a bundle");
}
