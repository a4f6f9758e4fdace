//! `--component`: a feature network becomes an extractor bundle.

use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_checkpoint::load_extractor;
use dpar_export_metrics::Resize;
use dpar_export_spec::{ComponentKind, Precision};
use serde_json::json;

use super::args::{Component, ExportArgs, Target};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::bundle::{ExtractorSpec, ForeignExtractor, Manifest, Normalise, write_extractor, write_features};

/// A network to export.
pub(super) struct Plan {
    file: Utf8PathBuf,
    from: From,
    resize: Option<Resize>,
    input_size: Option<usize>,
    normalise: Option<Normalise>,
    /// `None`: write nothing.
    output: Option<Utf8PathBuf>,
    force: bool,
}

/// What the file is.
enum From {
    /// Weights of a known network, and rename rules.
    Weights(ComponentKind, Option<Utf8PathBuf>),
    /// An ONNX file.
    Onnx,
}

/// Refuses what is for systems.
pub(super) fn resolve(component: Component, file: &Utf8Path, args: &ExportArgs) -> Result<Plan, Failure> {
    if args.target != Target::Onnx || args.trt.any() || args.triton.any() {
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
    if args.precision.asked()?.is_some_and(|asked| !asked.is_all(Precision::Fp32)) {
        let message = "feature extractors are float32: a metric of other features could not be compared";
        return Err(Failure::usage(message, Some("leave --precision out")));
    }
    if args.quantize.is_some() {
        let message = "feature extractors are convolutions, which are not quantized";
        return Err(Failure::usage(message, Some("leave --quantize out")));
    }
    let map = args.parts.map().map(Utf8Path::to_owned);
    let from = match component {
        Component::Inception => From::Weights(ComponentKind::Inception, map),
        Component::EfficientnetLite0 => From::Weights(ComponentKind::EfficientnetLite0, map),
        Component::Features if map.is_some() => {
            return Err(Failure::usage("--map is for weight files, not for ONNX files", None));
        }
        Component::Features => From::Onnx,
    };
    let output = args.output.output.clone();
    if output.is_none() && !args.dry_run {
        return Err(Failure::usage("no output folder", Some("name one with -o OUT, or try --dry-run")));
    }
    let own = &args.component;
    Ok(Plan {
        file: file.to_owned(),
        from,
        resize: own.resize,
        input_size: own.input_size.map(usize::from),
        normalise: own.normalise()?,
        output: output.filter(|_| !args.dry_run),
        force: args.output.replace.force,
    })
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let started = Instant::now();
    let Plan { file, from, resize, input_size, normalise, output, force } = plan;
    match from {
        From::Onnx => {
            let features = ForeignExtractor::read(&file, input_size, resize.unwrap_or_default(), normalise)?;
            let Some(output) = output else { return dry_run(printer, &file, &features.spec) };
            let manifest = write_features(&file, &features, &output, force)?;
            report(printer, &output, &features.spec, &manifest, started)
        }
        From::Weights(kind, map) => {
            let loaded = load_extractor(&file, kind, input_size, map.as_deref())?;
            super::say(&loaded.notes);
            let spec = ExtractorSpec::of(&loaded, resize, normalise)?;
            let Some(output) = output else { return dry_run(printer, &file, &spec) };
            let bar = printer.progress("exporting", "steps");
            let manifest = write_extractor(&loaded, &spec, &output, force, &mut |graph| bar.step(graph))?;
            drop(bar);
            report(printer, &output, &spec, &manifest, started)
        }
    }
}

fn dry_run(printer: Printer, file: &Utf8Path, spec: &ExtractorSpec) -> Result<Exit, Failure> {
    let text = || format!("{file} can be exported: feature extractor {}, {} px", spec.name, spec.input_size);
    printer.document(text, json!({ "dry_run": true, "extractor": spec }))?;
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
    printer.document(text, json!({ "output": output, "manifest": manifest, "extractor": spec }))?;
    Ok(Exit::Pass)
}
