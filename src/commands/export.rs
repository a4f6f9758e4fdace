//! `dpar-export [--target onnx|trt|triton] CHECKPOINT -o OUT`.

use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::Engine;
use dpar_export_checkpoint::{LoadOptions, Loaded};
use dpar_export_spec::{
    AccuracyLevel, AskedPrecisions, ComponentKind, Form, Precisions, Quantize, SystemSpec, Tuning, WeightBits,
};
use serde_json::json;

use super::args::{ExportArgs, Target};
use super::component;
use super::failure::{Exit, Failure};
use super::paths::apart;
use super::printer::{Bar, Printer, Text};
use super::{quantize, say, triton};
#[cfg(not(feature = "tensorrt"))]
use crate::bundle::TargetErrorKind;
use crate::bundle::{self, Bundle, BundleError, MANIFEST, Manifest, TargetError};
use crate::calibrate::calibrate;
use crate::engines::{self, DEFAULT_ENGINE, EngineOptions};
use crate::loaded::RunError;
use crate::staging;
use crate::targets::plan::{TrtPlan, TuneFor};
use crate::targets::trtexec::{self, Commands, SCRIPT};
use crate::targets::tuning::of_trace;

/// What to export.
pub(super) enum Plan {
    /// A feature network.
    Extractor(component::Plan),
    /// A system.
    System(Box<SystemPlan>),
    /// A bundle, for Triton.
    Triton(triton::Plan),
}

/// A system to export, or a bundle to build engines from.
pub(super) struct SystemPlan {
    from: Utf8PathBuf,
    /// How to read a checkpoint; `None`: it is a bundle.
    checkpoint: Option<LoadOptions>,
    /// `None`: those of the bundle, or float32.
    precision: Option<AskedPrecisions>,
    /// Weights to keep in whole numbers.
    quantize: Quantize,
    /// What engines may round in products with them.
    accuracy: AccuracyLevel,
    engines: Option<Engines>,
    /// `None`: the bundle itself.
    output: Option<Utf8PathBuf>,
    force: bool,
    dry_run: bool,
}

/// What to build from the graphs.
struct Engines {
    plan: TrtPlan,
    /// Write the builds down for other tools.
    emit: bool,
}

/// Looks at what is there, and refuses options that are not for it.
pub(super) fn resolve(from: &Utf8Path, args: &ExportArgs) -> Result<Plan, Failure> {
    if let Some(component) = args.component.component {
        return Ok(Plan::Extractor(component::resolve(component, from, args)?));
    }
    if args.target == Target::Triton {
        return Ok(Plan::Triton(triton::resolve(from, args)?));
    }
    if args.triton.any() {
        return Err(Failure::usage("Triton options without a repository", Some("add --target triton")));
    }
    let precision = args.precision.asked()?.map(|asked| form(asked.clone(), args.target));
    let output = args.output.output.clone();
    if args.target == Target::Trt && output.is_none() && !args.dry_run {
        // What is read is what is replaced, perhaps by a run that was killed.
        staging::recover(from);
    }
    let from_bundle = args.target == Target::Trt && from.join(MANIFEST).is_file();
    // An option that nothing can meet is not met with --target trt either.
    if let Some((message, hint)) = args.trt.refused() {
        return Err(Failure::usage(message, Some(hint)));
    }
    if args.target == Target::Onnx && args.trt.any() {
        return Err(Failure::usage("TensorRT options without engines", Some("add --target trt")));
    }
    if from_bundle && args.parts.any() {
        let message = format!("{from} is a bundle: its parts cannot be chosen any more");
        return Err(Failure::usage(message, Some("leave the checkpoint options out")));
    }
    if from_bundle && args.quantize.is_some() {
        let message = format!("{from} is a bundle: its weights are what they are");
        return Err(Failure::usage(message, Some("export the checkpoint with --quantize")));
    }
    let plan = args.trt.plan();
    plan.check_words()?;
    let emit = args.trt.emit_trtexec;
    Ok(Plan::System(Box::new(SystemPlan {
        from: from.to_owned(),
        checkpoint: (!from_bundle).then(|| args.parts.options()),
        precision,
        quantize: args.quantize.clone().unwrap_or_default(),
        accuracy: args.accuracy_level.unwrap_or_default(),
        engines: (args.target == Target::Trt).then_some(Engines { plan, emit }),
        output,
        force: args.output.replace.force,
        dry_run: args.dry_run,
    })))
}

pub(super) fn run(plan: &SystemPlan, printer: Printer) -> Result<Exit, Failure> {
    let started = Instant::now();
    let SystemPlan { from, checkpoint, precision, quantize, accuracy, engines, output, force, dry_run: dry } =
        plan;
    let emits = engines.as_ref().is_some_and(|e| e.emit);
    let bar = printer.progress("exporting", "steps");
    let (mut built, mut commands, mut script) = (Vec::new(), Vec::new(), String::new());
    let mut add = |folder: &Utf8Path, manifest: &mut Manifest| {
        match engines {
            None => {}
            Some(Engines { plan, emit: true }) => {
                commands = emit_trtexec(folder, manifest, plan, &bar)?;
                let path = folder.join(SCRIPT);
                script = fs_err::read_to_string(&path).map_err(|e| BundleError::Io { path, source: e })?;
            }
            Some(Engines { plan, emit: false }) => built = build_engines(folder, manifest, plan, &bar)?,
        }
        Ok(())
    };
    let (summary, manifest, output) = match checkpoint {
        None => {
            let bundle = Bundle::open(from)?;
            check_asked(precision.as_ref(), bundle.manifest())?;
            engines.iter().try_for_each(|e| e.check_weights(bundle.manifest().numbers().weights()))?;
            if *dry {
                let manifest = bundle.manifest();
                if let Some(engines) = engines {
                    engines.check(bundle.system(), &manifest.precisions())?;
                    engines.plan.profiles(manifest, &Tuning::of_system(bundle.system()))?;
                }
                return dry_run(printer, from, &manifest.name, bundle.system());
            }
            let manifest = bundle::extend(&bundle, output.as_deref(), *force, &mut add)?;
            (manifest.name.clone(), manifest, output.as_ref().unwrap_or(from))
        }
        Some(options) => {
            let loaded = dpar_export_checkpoint::load(from, options)?;
            say(&loaded.notes);
            let summary = summary(&loaded);
            let form = quantize::form(precision.as_ref(), quantize, &loaded)?;
            let form = Form { accuracy: *accuracy, ..form };
            let weights =
                loaded.components.iter().filter_map(|c| Some(quantize.of(c.spec.kind())?.bits)).max();
            engines.iter().try_for_each(|e| e.check_weights(weights))?;
            if *dry {
                engines.iter().try_for_each(|e| e.check(&loaded.system, &form.precision))?;
                return dry_run(printer, from, &summary, &loaded.system);
            }
            let Some(output) = output else {
                let hint = Some("name one with -o OUT, or try --dry-run");
                return Err(Failure::usage("no output folder", hint));
            };
            let sources: Vec<(&str, &Utf8Path)> =
                loaded.sources.iter().map(|s| ("a file of the checkpoint", s.path.as_path())).collect();
            apart(output, &sources)?;
            let progress = &mut |graph: &str| bar.step(graph);
            (summary, bundle::write(&loaded, form, output, *force, progress, &mut add)?, output)
        }
    };
    drop(bar);
    say(&quantize::notes(&manifest));
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
            manifest.numbers(),
            started.elapsed().as_secs_f64(),
        )
    };
    let mut value = json!({ "output": output, "manifest": manifest, "engines": built });
    if emits {
        value["commands"] = json!(commands);
        let text = || {
            let mut text = Text::of_lines(&script);
            text.gap();
            text.line(format_args!("# {output}/{SCRIPT}"));
            text
        };
        printer.document(text, value)?;
        return Ok(Exit::Pass);
    }
    printer.document(text, value)?;
    Ok(Exit::Pass)
}

impl Engines {
    /// Whether engines can be built of graphs with such weights. Command lines are for tools that are not here.
    fn check_weights(&self, weights: Option<WeightBits>) -> Result<(), Failure> {
        if !self.emit {
            check_weights(weights)?;
        }
        Ok(())
    }

    /// What a dry run can say about a build without the library: settings, a trace, and whether images can be generated.
    fn check(&self, system: &SystemSpec, precision: &Precisions) -> Result<(), Failure> {
        if !self.emit {
            check_settings(&self.plan)?;
        }
        match &self.plan.tune_for {
            TuneFor::Table => {}
            TuneFor::Trace(path) => drop(of_trace(path, system)?),
            TuneFor::Images(_) => drop(embedded(precision)?),
        }
        Ok(())
    }
}

#[cfg(feature = "tensorrt")]
fn check_weights(weights: Option<WeightBits>) -> Result<(), TargetError> {
    crate::targets::trt::check_weights(weights)
}

/// A build without the feature says what it lacks.
#[cfg(not(feature = "tensorrt"))]
fn check_weights(_: Option<WeightBits>) -> Result<(), TargetError> {
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
fn form(asked: AskedPrecisions, target: Target) -> AskedPrecisions {
    match target {
        Target::Onnx => asked.explicit(),
        Target::Trt | Target::Triton => asked,
    }
}

/// The graphs of a bundle have their precision already.
fn check_asked(asked: Option<&AskedPrecisions>, manifest: &Manifest) -> Result<(), Failure> {
    let Some(asked) = asked else { return Ok(()) };
    let kinds: Vec<ComponentKind> = manifest.components.iter().map(|c| c.kind).collect();
    let (asked, found) = (quantize::precisions(asked, &kinds)?, manifest.precisions());
    match asked == found {
        true => Ok(()),
        false => {
            let message = format!("the graphs of this bundle are {found}, not {asked}");
            let hint = "export the checkpoint with --target trt and that --precision";
            Err(Failure::usage(message, Some(hint)))
        }
    }
}

fn dry_run(printer: Printer, from: &Utf8Path, summary: &str, system: &SystemSpec) -> Result<Exit, Failure> {
    let text = || format!("{from} can be exported: {summary}");
    printer.document(text, json!({ "dry_run": true, "system": system }))?;
    Ok(Exit::Pass)
}

/// The engine that calibrates: the embedded one, if it computes graphs of these precisions.
fn embedded(precision: &Precisions) -> Result<Box<dyn Engine>, BundleError> {
    let failed = |e| BundleError::from(RunError::Engine(e));
    let engine = engines::create(DEFAULT_ENGINE, &EngineOptions::default()).map_err(failed)?;
    match precision.all().try_for_each(|precision| engine.arithmetic(precision).map(drop)) {
        Ok(()) => Ok(engine),
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
    let engine = embedded(&bundle.manifest().precisions())?;
    Ok(calibrate(bundle, engine, images, progress)?)
}

/// Writes the builds down for other tools.
fn emit_trtexec(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    plan: &TrtPlan,
    bar: &Bar<'_>,
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
    bar: &Bar<'_>,
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
fn build_engines(_: &Utf8Path, _: &mut Manifest, _: &TrtPlan, _: &Bar<'_>) -> Result<Vec<()>, BundleError> {
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
