//! Other numbers for a patch rule, at export and at run time.

use dpar_export::arrays::ArrayFile;
use dpar_export::bundle::{Bundle, BundleError};
use dpar_export::generate::sampler::SamplerOptions;
use dpar_export::generate::{DecodeOptions, Request, Stream};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::{PatchRule, RuleChange};

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
    let most = bundle.system().dpar().unwrap().longest_patch;
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
