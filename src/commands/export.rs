//! `dpar-export [--target onnx|trt] CHECKPOINT -o OUT`.

use std::time::Instant;

use camino::Utf8Path;
use dpar_engine_api::Engine;
use dpar_export_checkpoint::Loaded;
use dpar_export_spec::{Precision, SystemSpec, Tuning};
use serde_json::json;

use super::args::{ExportArgs, Target};
use super::failure::{Exit, Failure};
use super::paths::apart;
use super::printer::{Bar, Printer, Text};
use super::say;
#[cfg(not(feature = "tensorrt"))]
use crate::bundle::TargetErrorKind;
use crate::bundle::{self, Bundle, BundleError, MANIFEST, Manifest, TargetError};
use crate::calibrate::calibrate;
use crate::engines::{self, DEFAULT_ENGINE, EngineOptions};
use crate::runtime::RunError;
use crate::staging;
use crate::targets::plan::{TrtPlan, TuneFor};
use crate::targets::trtexec::{self, Commands, SCRIPT};
use crate::targets::tuning::of_trace;

pub(super) fn run(checkpoint: &Utf8Path, args: &ExportArgs, printer: Printer) -> Result<Exit, Failure> {
    if let Some(component) = args.component.component {
        return super::component::run(component, checkpoint, args, printer);
    }
    let started = Instant::now();
    let precision = args.precision.asked()?.map(|asked| form(asked, args.target));
    if args.target == Target::Trt && args.output.is_none() && !args.dry_run {
        // What is read is what is replaced, perhaps by a run that was killed.
        staging::recover(checkpoint);
    }
    let from_bundle = args.target == Target::Trt && checkpoint.join(MANIFEST).is_file();
    // An option that nothing can meet is not met with --target trt either.
    if let Some((message, hint)) = args.trt.refused() {
        return Err(Failure::usage(message, Some(hint)));
    }
    if args.target == Target::Onnx && args.trt.any() {
        return Err(Failure::usage("TensorRT options without engines", Some("add --target trt")));
    }
    if from_bundle && args.parts.any() {
        let message = format!("{checkpoint} is a bundle: its parts cannot be chosen any more");
        return Err(Failure::usage(message, Some("leave the checkpoint options out")));
    }
    let plan = args.trt.plan();
    plan.check_words()?;
    let bar = printer.progress("exporting", "steps");
    let (mut built, mut commands, mut script) = (Vec::new(), Vec::new(), String::new());
    let mut engines = |folder: &Utf8Path, manifest: &mut Manifest| {
        match args.target {
            Target::Onnx => {}
            Target::Trt if args.trt.emit_trtexec => {
                commands = emit_trtexec(folder, manifest, &plan, &bar)?;
                let path = folder.join(SCRIPT);
                script = fs_err::read_to_string(&path).map_err(|e| BundleError::Io { path, source: e })?;
            }
            Target::Trt => built = build_engines(folder, manifest, &plan, &bar)?,
        }
        Ok(())
    };
    let (summary, manifest, output) = if from_bundle {
        let bundle = Bundle::open(checkpoint)?;
        check_asked(precision, bundle.manifest())?;
        if args.dry_run {
            let manifest = bundle.manifest();
            check_plan(&plan, bundle.system(), manifest.precision, args)?;
            plan.profiles(manifest, &Tuning::of_system(bundle.system()))?;
            return dry_run(printer, checkpoint, &manifest.name, bundle.system());
        }
        let manifest = bundle::extend(&bundle, args.output.as_deref(), args.force, &mut engines)?;
        (manifest.name.clone(), manifest, args.output.as_deref().unwrap_or(checkpoint))
    } else {
        let loaded = dpar_export_checkpoint::load(checkpoint, &args.parts.options())?;
        say(&loaded.notes);
        let summary = summary(&loaded);
        if args.dry_run {
            if args.target == Target::Trt {
                check_plan(&plan, &loaded.system, precision.unwrap_or_default(), args)?;
            }
            return dry_run(printer, checkpoint, &summary, &loaded.system);
        }
        let Some(output) = &args.output else {
            return Err(Failure::usage("no output folder", Some("name one with -o OUT, or try --dry-run")));
        };
        let sources: Vec<(&str, &Utf8Path)> =
            loaded.sources.iter().map(|s| ("a file of the checkpoint", s.path.as_path())).collect();
        apart(output, &sources)?;
        let progress = &mut |graph: &str| bar.step(graph);
        (
            summary,
            bundle::write(
                &loaded,
                precision.unwrap_or_default(),
                output,
                args.force,
                progress,
                &mut engines,
            )?,
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
    let mut value = json!({ "output": output, "manifest": manifest, "engines": built });
    if args.trt.emit_trtexec {
        value["commands"] = json!(commands);
        let text = || {
            let mut text = Text::of_lines(&script);
            text.gap();
            text.line(format_args!("# {output}/{SCRIPT}"));
            text
        };
        printer.result(text, &value)?;
        return Ok(Exit::Pass);
    }
    printer.result(text, &value)?;
    Ok(Exit::Pass)
}

/// What a dry run can say about a build without the library: settings, a trace, and whether images can be generated.
fn check_plan(
    plan: &TrtPlan,
    system: &SystemSpec,
    precision: Precision,
    args: &ExportArgs,
) -> Result<(), Failure> {
    if !args.trt.emit_trtexec {
        check_settings(plan)?;
    }
    match &plan.tune_for {
        TuneFor::Table => {}
        TuneFor::Trace(path) => drop(of_trace(path, system)?),
        TuneFor::Images(_) => drop(embedded(precision)?),
    }
    Ok(())
}

#[cfg(feature = "tensorrt")]
fn check_settings(plan: &TrtPlan) -> Result<(), TargetError> {
    crate::targets::trt::settings(plan).map(|_| ())
}

/// A build without the feature has checked the words, and cannot build.
#[cfg(not(feature = "tensorrt"))]
fn check_settings(_: &TrtPlan) -> Result<(), TargetError> {
    Ok(())
}

/// The form of the graphs that a target takes: TensorRT has bfloat16, the engines of ONNX graphs on a CPU have not.
fn form(asked: Precision, target: Target) -> Precision {
    match (asked, target) {
        (Precision::Bf16Autocast, Target::Onnx) => Precision::Bf16AutocastExplicit,
        _ => asked,
    }
}

/// The graphs of a bundle have their precision already.
fn check_asked(asked: Option<Precision>, manifest: &Manifest) -> Result<(), Failure> {
    match asked.filter(|p| *p != manifest.precision) {
        None => Ok(()),
        Some(asked) => {
            let message = format!("the graphs of this bundle are {}, not {asked}", manifest.precision);
            let hint = format!("export the checkpoint with --target trt --precision {asked}");
            Err(Failure::usage(message, Some(&hint)))
        }
    }
}

fn dry_run(printer: Printer, from: &Utf8Path, summary: &str, system: &SystemSpec) -> Result<Exit, Failure> {
    let text = || format!("{from} can be exported: {summary}");
    printer.result(text, &json!({ "dry_run": true, "system": system }))?;
    Ok(Exit::Pass)
}

/// The engine that calibrates: the embedded one, if it computes graphs of a precision.
fn embedded(precision: Precision) -> Result<Box<dyn Engine>, BundleError> {
    let failed = |e| BundleError::from(RunError::Engine(e));
    let engine = engines::create(DEFAULT_ENGINE, &EngineOptions::default()).map_err(failed)?;
    match engine.arithmetic(precision) {
        Ok(_) => Ok(engine),
        // The engine's own hint, to build TensorRT engines, is what led here.
        Err(e) => Err(failed(
            e.hint("give the trace.npz of the fp32 bundle with --calibrate-from, or leave --calibrate out"),
        )),
    }
}

/// Patch lengths of images that the embedded engine generates.
fn patch_lengths(
    bundle: &Bundle,
    images: u32,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Vec<usize>>, BundleError> {
    let engine = embedded(bundle.manifest().precision)?;
    Ok(calibrate(bundle, engine, images, progress)?)
}

/// Writes the builds down for other tools.
fn emit_trtexec(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    plan: &TrtPlan,
    bar: &Bar,
) -> Result<Vec<Commands>, BundleError> {
    let (tuning, profiles) = trtexec::resolve(folder, manifest, plan, &mut |bundle, images| {
        patch_lengths(bundle, images, &mut |done, total| bar.advance(done, total))
    })?;
    trtexec::add_script(folder, manifest, plan, &profiles, &tuning)
}

#[cfg(feature = "tensorrt")]
fn build_engines(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    plan: &TrtPlan,
    bar: &Bar,
) -> Result<Vec<crate::targets::trt::BuiltGraph>, BundleError> {
    let mut calibrate = |bundle: &Bundle, images| {
        let phase = "calibration: generating images";
        patch_lengths(bundle, images, &mut |done, total| bar.phase(phase, done, total))
    };
    crate::targets::trt::add_engines(
        folder,
        manifest,
        plan,
        &mut calibrate,
        &mut |graph, phase, step, total| bar.phase(&format!("{graph}: {phase}"), step, total),
    )
}

#[cfg(not(feature = "tensorrt"))]
fn build_engines(_: &Utf8Path, _: &mut Manifest, _: &TrtPlan, _: &Bar) -> Result<Vec<()>, BundleError> {
    let hint = "build with the Cargo feature `tensorrt` (docs/tensorrt.md); --emit-trtexec writes the command lines of \
                NVIDIA's tools without it";
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
