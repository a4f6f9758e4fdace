//! `dpar-export [--target onnx|trt] CHECKPOINT -o OUT`.

use std::time::Instant;

use camino::Utf8Path;
use dpar_export_checkpoint::Loaded;
use dpar_export_spec::{Precision, SystemSpec};
use serde_json::json;

use super::args::{ExportArgs, Target, TrtArgs};
use super::failure::{Exit, Failure};
use super::printer::{Bar, Printer};
use crate::bundle::{self, Bundle, BundleError, MANIFEST, Manifest};
#[cfg(not(feature = "tensorrt"))]
use crate::targets::{TargetError, TargetErrorKind};

pub(super) fn run(checkpoint: &Utf8Path, args: &ExportArgs, printer: Printer) -> Result<Exit, Failure> {
    if let Some(component) = args.component.component {
        return super::component::run(component, checkpoint, args, printer);
    }
    let started = Instant::now();
    let from_bundle = args.target == Target::Trt && checkpoint.join(MANIFEST).is_file();
    if args.target == Target::Onnx && args.trt.any() {
        return Err(Failure::usage("TensorRT options without engines", Some("add --target trt")));
    }
    if from_bundle && args.parts.any() {
        let message = format!("{checkpoint} is a bundle: its parts cannot be chosen any more");
        return Err(Failure::usage(message, Some("leave the checkpoint options out")));
    }
    let bar = printer.progress("exporting", "steps");
    let mut built = Vec::new();
    let mut engines = |folder: &Utf8Path, manifest: &mut Manifest| {
        if args.target == Target::Trt {
            built = build_engines(folder, manifest, &args.trt, &bar)?;
        }
        Ok(())
    };
    let (summary, manifest, output) = if from_bundle {
        let bundle = Bundle::open(checkpoint)?;
        if args.dry_run {
            return dry_run(printer, checkpoint, &bundle.manifest().name, bundle.system());
        }
        let manifest = bundle::extend(&bundle, args.output.as_deref(), args.force, &mut engines)?;
        (manifest.name.clone(), manifest, args.output.as_deref().unwrap_or(checkpoint))
    } else {
        let loaded = dpar_export_checkpoint::load(checkpoint, &args.parts.options())?;
        let summary = summary(&loaded);
        if args.dry_run {
            return dry_run(printer, checkpoint, &summary, &loaded.system);
        }
        let Some(output) = &args.output else {
            return Err(Failure::usage("no output folder", Some("name one with -o OUT, or try --dry-run")));
        };
        let progress = &mut |graph: &str| bar.step(graph);
        (
            summary,
            bundle::write(&loaded, Precision::Fp32, output, args.force, progress, &mut engines)?,
            output.as_path(),
        )
    };
    drop(bar);
    let bytes: u64 = manifest.files.iter().map(|f| f.size).sum();
    let text = || {
        let engines = match built.len() {
            0 => String::new(),
            n => format!("{n} engines, "),
        };
        format!(
            "{output}: {summary} ({} graphs, {engines}{:.1} MB, opset {}, {}) in {:.1} s",
            manifest.graphs.len(),
            bytes as f64 / 1e6,
            manifest.opset,
            manifest.precision,
            started.elapsed().as_secs_f64(),
        )
    };
    printer.result(text, &json!({ "output": output, "manifest": manifest, "engines": built }))?;
    Ok(Exit::Pass)
}

fn dry_run(printer: Printer, from: &Utf8Path, summary: &str, system: &SystemSpec) -> Result<Exit, Failure> {
    let text = || format!("{from} can be exported: {summary}");
    printer.result(text, &json!({ "dry_run": true, "system": system }))?;
    Ok(Exit::Pass)
}

#[cfg(feature = "tensorrt")]
fn build_engines(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    args: &TrtArgs,
    bar: &Bar,
) -> Result<Vec<crate::targets::trt::BuiltGraph>, BundleError> {
    let plan = crate::targets::trt::TrtPlan {
        library_dir: args.trt_lib.clone(),
        profiles: args.profile.clone(),
        shapes: [args.min_shapes.clone(), args.opt_shapes.clone(), args.max_shapes.clone()],
        compute_capabilities: args.compute_capability.clone(),
        optimization_level: args.builder_optimization_level,
        workspace: args.workspace.map(|mib| (mib as usize) << 20),
    };
    crate::targets::trt::add_engines(folder, manifest, &plan, &mut |graph, phase, step, total| {
        bar.phase(&format!("{graph}: {phase}"), step, total)
    })
}

#[cfg(not(feature = "tensorrt"))]
fn build_engines(_: &Utf8Path, _: &mut Manifest, _: &TrtArgs, _: &Bar) -> Result<Vec<()>, BundleError> {
    let hint = "build with the Cargo feature `tensorrt` (docs/tensorrt.md)";
    Err(BundleError::Target(TargetError {
        kind: TargetErrorKind::Unavailable,
        message: "this build cannot make TensorRT engines".to_owned(),
        hint: Some(hint.to_owned()),
    }))
}

/// The components and their sizes in one line.
fn summary(loaded: &Loaded) -> String {
    let parts = loaded.components.iter().map(|c| {
        let millions = c.weights.parameters() as f64 / 1e6;
        format!("{} {millions:.1}M", c.spec.kind().name())
    });
    parts.collect::<Vec<_>>().join(", ")
}
