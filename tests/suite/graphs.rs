//! The graphs of every fixture, byte for byte: `fixtures/graphs.sha256` lists the SHA-256 of each manifest and graph.

use std::fmt::Write;

use camino::Utf8Path;
use dpar_export::bundle::{ForeignExtractor, GraphEntry, Manifest, write_features};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_metrics::Resize;
use dpar_export_spec::{ComponentKind, Precision};
use sha2::{Digest, Sha256};

use crate::common::{Temp, export_as, fixture, llamagen};

/// The list, made by [`every_export_has_the_listed_bytes`].
const LIST: &str = "graphs.sha256";

/// Systems with their names in the list, and the precisions that they are exported in.
const SYSTEMS: &[(&str, &[Precision])] = &[
    ("dpar-small/dpar", &Precision::ALL),
    ("emoji32/dpar", &[Precision::Fp32]),
    ("variants/block-causal/dpar", &[Precision::Fp32]),
    ("variants/combined/dpar", &Precision::ALL),
    ("variants/dynamic-3d/dpar", &[Precision::Fp32]),
    ("variants/encoder-layers/dpar", &[Precision::Fp32]),
    ("variants/entropy-unlimited/dpar", &[Precision::Fp32]),
    ("variants/eoi/dpar", &[Precision::Fp32]),
    ("variants/full-cross/dpar", &[Precision::Fp32]),
    ("variants/index-rope/dpar", &[Precision::Fp32]),
    ("variants/monotonicity/dpar", &[Precision::Fp32]),
    ("variants/static-fractional/dpar", &[Precision::Fp32]),
    ("variants/token/dpar", &[Precision::Fp32]),
    ("wrappings/experiment", &[Precision::Fp32]),
];

/// Baselines, in the same way.
const BASELINES: &[(&str, &[Precision])] =
    &[("llamagen-small", &Precision::ALL), ("emoji32", &[Precision::Fp32, Precision::Fp16])];

/// Systems with quantized weights, as `--quantize` has them.
const QUANTIZED: &[(&str, &str)] = &[("emoji32/dpar", "entropy=int8,dpar=int4"), ("emoji32/dpar", "int8:32")];

/// A line for the manifest and one for each graph, as `sha256sum` writes them.
fn lines(name: &str, folder: &Utf8Path, manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut line = |file: &str| {
        let sha256 = hex::encode(Sha256::digest(fs_err::read(folder.join(file)).unwrap()));
        writeln!(text, "{sha256}  {name}/{file}").unwrap();
    };
    line("manifest.json");
    manifest.graphs.iter().flat_map(GraphEntry::files).for_each(|(_, file)| line(file));
    text
}

/// Calls `look` with the name, the folder and the manifest of every export of a fixture.
pub(crate) fn every_export(mut look: impl FnMut(&str, &Utf8Path, &Manifest)) {
    let temp = Temp::new();
    let out = temp.path("b");
    let mut add = |name: &str, manifest: &Manifest| {
        look(name, &out, manifest);
        fs_err::remove_dir_all(&out).unwrap();
    };
    let dpar = SYSTEMS.iter().map(|(path, precisions)| (*path, *path, LoadOptions::default(), *precisions));
    let baselines = BASELINES.iter().map(|(name, precisions)| {
        let (file, options) = llamagen(name);
        (*name, file, options, *precisions)
    });
    for (name, checkpoint, options, precisions) in dpar.chain(baselines) {
        for precision in precisions {
            let bundle = export_as(checkpoint, *precision, &options, &out);
            add(&format!("{name} {precision}"), bundle.manifest());
        }
    }
    for (name, quantize) in QUANTIZED {
        let bundle = crate::quantize::export_quantized(name, quantize, &out);
        add(&format!("{name} {}", quantize.replace(['=', ',', ':'], "-")), bundle.manifest());
    }
    let efficientnet = crate::extractor::efficientnet_weights();
    let bundle = crate::extractor::export(&efficientnet, ComponentKind::EfficientnetLite0, &out);
    add("efficientnet-lite0", bundle.manifest());
    let tiny = fixture("features/tiny.onnx");
    let features = ForeignExtractor::read(&tiny, Some(16), Resize::default(), None).unwrap();
    add("features", &write_features(&tiny, &features, &out, false).unwrap());
}

#[test]
fn every_export_has_the_listed_bytes() {
    let mut found = String::new();
    every_export(|name, folder, manifest| found += &lines(name, folder, manifest));
    let listed = fs_err::read_to_string(fixture(LIST)).unwrap_or_default();
    if found != listed {
        let new = Utf8Path::new(env!("CARGO_TARGET_TMPDIR")).join(LIST);
        fs_err::write(&new, &found).unwrap();
        let changed: Vec<&str> = found.lines().filter(|l| listed.lines().all(|o| o != *l)).collect();
        panic!("these are not as listed; if that is meant, {new} is the new list:\n{}", changed.join("\n"));
    }
}
