//! `--component`: a feature network becomes an extractor bundle.

use std::time::Instant;

use camino::Utf8Path;
use dpar_export_checkpoint::load_extractor;
use dpar_export_spec::{ComponentKind, Precision};
use serde_json::json;

use super::args::{Component, ComponentArgs, ExportArgs, Target};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::bundle::{ExtractorSpec, ForeignExtractor, Manifest, Normalise, write_extractor, write_features};

impl ComponentArgs {
    fn normalise(&self) -> Result<Option<Normalise>, Failure> {
        let three = |values: &[f32]| match values {
            [v] => Ok([*v; 3]),
            [r, g, b] => Ok([*r, *g, *b]),
            _ => Err(Failure::usage("--mean and --std take one number or three", None)),
        };
        if self.mean.is_empty() {
            return Ok(None);
        }
        Ok(Some(Normalise { mean: three(&self.mean)?, std: three(&self.std)? }))
    }
}

pub(super) fn run(
    component: Component,
    file: &Utf8Path,
    args: &ExportArgs,
    printer: Printer,
) -> Result<Exit, Failure> {
    let started = Instant::now();
    if args.target != Target::Onnx || args.trt.any() {
        return Err(Failure::usage(
            "feature extractors are exported to ONNX only",
            Some("leave --target out"),
        ));
    }
    if args.parts.any_but_map() {
        let message =
            "--entropy, --vq, --epoch, --weights and --config are for systems, not for feature extractors";
        return Err(Failure::usage(message, Some("leave them out")));
    }
    if args.precision.asked()?.is_some_and(|p| p != Precision::Fp32) {
        let message = "feature extractors are float32: a metric of other features could not be compared";
        return Err(Failure::usage(message, Some("leave --precision out")));
    }
    let own = &args.component;
    let (normalise, input_size) = (own.normalise()?, own.input_size.map(usize::from));
    let output = || {
        let hint = Some("name one with -o OUT, or try --dry-run");
        args.output.as_deref().ok_or_else(|| Failure::usage("no output folder", hint))
    };
    let kind = match component {
        Component::Inception => ComponentKind::Inception,
        Component::EfficientnetLite0 => ComponentKind::EfficientnetLite0,
        Component::Features => {
            if args.parts.map().is_some() {
                return Err(Failure::usage("--map is for weight files, not for ONNX files", None));
            }
            let resize = own.resize.unwrap_or_default();
            let features = ForeignExtractor::read(file, input_size, resize, normalise)?;
            if args.dry_run {
                return dry_run(printer, file, &features.spec);
            }
            let manifest = write_features(file, &features, output()?, args.force)?;
            return report(printer, output()?, &features.spec, &manifest, started);
        }
    };
    let loaded = load_extractor(file, kind, input_size, args.parts.map())?;
    super::say(&loaded.notes);
    let spec = ExtractorSpec::of(&loaded, own.resize, normalise)?;
    if args.dry_run {
        return dry_run(printer, file, &spec);
    }
    let bar = printer.progress("exporting", "steps");
    let manifest = write_extractor(&loaded, &spec, output()?, args.force, &mut |graph| bar.step(graph))?;
    drop(bar);
    report(printer, output()?, &spec, &manifest, started)
}

fn dry_run(printer: Printer, file: &Utf8Path, spec: &ExtractorSpec) -> Result<Exit, Failure> {
    let text = || format!("{file} can be exported: feature extractor {}, {} px", spec.name, spec.input_size);
    printer.result(text, &json!({ "dry_run": true, "extractor": spec }))?;
    Ok(Exit::Pass)
}

fn report(
    printer: Printer,
    output: &Utf8Path,
    spec: &ExtractorSpec,
    manifest: &Manifest,
    started: Instant,
) -> Result<Exit, Failure> {
    let bytes: u64 = manifest.files.iter().map(|f| f.size).sum();
    let text = || {
        format!(
            "{output}: feature extractor {} ({} px, {}), its metric is the {}, {:.1} MB, opset {}, {} in {:.1} s",
            spec.name,
            spec.input_size,
            spec.resize.name(),
            spec.distance_name(),
            bytes as f64 / 1e6,
            manifest.opset,
            manifest.precision,
            started.elapsed().as_secs_f64(),
        )
    };
    printer.result(text, &json!({ "output": output, "manifest": manifest, "extractor": spec }))?;
    Ok(Exit::Pass)
}
