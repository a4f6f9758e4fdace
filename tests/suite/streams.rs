//! Sampled streams: the same image whatever the engine and the batch.

use dpar_export::bundle::Bundle;
use dpar_export::verify::{Status, verify_streams};
use dpar_export_checkpoint::LoadOptions;

use crate::cli::run;
use crate::common::{ENGINES, Temp, export, fixture, llamagen, on, quiet};

/// The first 64 reference streams on one engine with every batch size.
fn check(bundle: &Bundle, streams: &str, engine: &str) {
    for batch in [1, 3, 8] {
        let checks =
            verify_streams(&on(bundle, engine), &fixture(streams), Some(64), batch, &mut quiet).unwrap();
        for check in checks {
            assert_eq!(check.status, Status::Pass, "{streams} {engine} batch {batch}: {check:#?}");
            // A draw is nearer than 1e-5 to a boundary once in 115 slots, but flips far more rarely.
            assert!(check.flips.len() <= 3, "{streams} {engine} batch {batch}: {check:#?}");
        }
    }
}

#[test]
fn no_streams_are_nothing_to_compare() {
    let temp = Temp::new();
    let (file, options) = llamagen("emoji32");
    let bundle = export(file, &options, &temp.path("b"));
    let streams = fixture("emoji32/streams_llamagen.safetensors");
    let e = verify_streams(&on(&bundle, ENGINES[0]), &streams, Some(0), 1, &mut quiet).unwrap_err();
    assert!(e.to_string().contains("nothing to compare"), "{e}");
    let none = ["verify", bundle.folder().as_str(), "--streams", streams.as_str(), "--limit", "0"];
    let out = run(&none);
    assert!(out.code == 2 && out.stderr.contains("--limit"), "{}{}", out.stdout, out.stderr);
}

fn dpar(engine: &str) {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    check(&bundle, "emoji32/streams_dpar.safetensors", engine);
}

fn baseline(engine: &str) {
    let temp = Temp::new();
    let (file, options) = llamagen("emoji32");
    let bundle = export(file, &options, &temp.path("b"));
    check(&bundle, "emoji32/streams_llamagen.safetensors", engine);
}

#[test]
fn dpar_on_tract() {
    dpar(ENGINES[0]);
}

#[test]
fn dpar_on_ort() {
    dpar(ENGINES[1]);
}

#[test]
fn llamagen_on_tract() {
    baseline(ENGINES[0]);
}

#[test]
fn llamagen_on_ort() {
    baseline(ENGINES[1]);
}
