//! `reproduce`: a reference run again, or runs against the published table.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use dpar_export_metrics::{Compute, Resize, Verdict};
use dpar_export_spec::SystemKind;
use serde_json::json;

use super::args::{EngineArgs, resize};
use super::failure::{Exit, Failure};
use super::printer::{Phases, Printer, Text, fixed, table};
use super::with_runtime;
use crate::bundle::{MANIFEST, Manifest};
use crate::engines::{self, EngineOptions, Runs};
use crate::evaluate::EvaluateError;
use crate::features::{ExtractorOptions, FeatureExtractor};
use crate::reproduce::paper::{Paper, Run, gate};
use crate::reproduce::{
    Gate, ReferenceFolder, ReproduceOptions, StepSummary, SystemReport, reproduce, run_seed,
};

#[derive(Debug, Args)]
pub(crate) struct ReproduceArgs {
    /// Bundle folder; not needed with --runs
    #[arg(required_unless_present = "runs")]
    bundle: Option<Utf8PathBuf>,
    /// Folder with reference.json, streams_dpar.safetensors or streams_llamagen.safetensors, and perhaps
    /// real_images.npz
    #[arg(long, value_name = "DIR", required_unless_present = "runs")]
    reference: Option<Utf8PathBuf>,
    /// A second bundle, of the other system: both in one table
    #[arg(long, value_name = "BUNDLE", conflicts_with = "paper")]
    baseline: Option<Utf8PathBuf>,
    /// Feature extractor: a bundle made with --component, or an ONNX file
    #[arg(long, value_name = "PATH")]
    extractor: Option<Utf8PathBuf>,
    /// Engine of the extractor; it runs on --device where it is the same engine
    #[arg(long, value_name = "ENGINE", default_value = engines::DEFAULT_ENGINE,
          value_parser = extractor_engines())]
    extractor_engine: String,
    /// How images are resized for the extractor [default: the extractor's own rule]
    #[arg(long, value_name = "RULE", value_parser = resize, requires = "extractor")]
    resize: Option<Resize>,
    /// Real images, arr_0 u8 [N, H, W, 3]; stored statistics (mu, sigma) are used as they are [default: real_images.npz
    /// of the reference]
    #[arg(long, value_name = "FILE.npz", requires = "extractor")]
    images: Option<Utf8PathBuf>,
    /// Take N of the real images, evenly spaced [default: all]
    #[arg(long, value_name = "N", requires = "extractor", value_parser = clap::value_parser!(u32).range(2..))]
    real: Option<u32>,
    /// Images to generate [default: as many as the reference has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    num: Option<u32>,
    /// Hold runs against this row of the published table, e.g. DPAR-B
    #[arg(long, value_name = "ROW")]
    paper: Option<String>,
    /// Seeds to run for --paper; three or more can pass
    #[arg(long, value_name = "K,..", value_delimiter = ',', requires = "paper", conflicts_with = "runs")]
    seeds: Vec<u64>,
    /// Reports of runs (metrics.json) for --paper, one a seed
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "paper", conflicts_with_all = ["bundle", "reference", "num"])]
    runs: Vec<Utf8PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Those that run graphs: nothing is built for extractors.
fn extractor_engines() -> clap::builder::PossibleValuesParser {
    engines::all().iter().filter(|e| e.runs == Runs::Graphs).map(|e| e.name).collect::<Vec<_>>().into()
}

pub(super) fn run(args: &ReproduceArgs, printer: Printer) -> Result<Exit, Failure> {
    if let Some(name) = &args.paper {
        return against_paper(args, name, printer);
    }
    let (Some(bundle), Some(folder)) = (&args.bundle, &args.reference) else {
        return Err(Failure::usage("a bundle and --reference are needed", None));
    };
    if let Some(baseline) = &args.baseline
        && let (Some(first), Some(second)) = (kind(bundle), kind(baseline))
        && first == second
    {
        let message = format!("{bundle} and {baseline} are both {first}: --baseline is the other system");
        return Err(Failure::usage(message, Some("reproduce each of them alone, or give the other system")));
    }
    let mut reference = reference(args, folder)?;
    let mut extractor = extractor(args)?;
    let mut reports = Vec::new();
    for path in [Some(bundle), args.baseline.as_ref()].into_iter().flatten() {
        let report = with_runtime(path, &args.engine, |runtime| {
            let mut phases = Phases::new(printer);
            let step = &mut |phase, done, total| phases.show(phase, done, total);
            Ok(reproduce(runtime, &mut reference, extractor.as_mut(), options(args), step)?)
        })?;
        reports.push(report);
    }
    let verdict = Verdict::all(reports.iter().map(|r| r.verdict));
    let value = json!({ "verdict": verdict, "systems": reports });
    printer.result(|| render(&reports, verdict), &value)?;
    Ok(verdict.into())
}

/// The kind of system of a bundle, from its manifest alone; `None` where that cannot be read, which opening it explains.
fn kind(bundle: &Utf8Path) -> Option<SystemKind> {
    let bytes = dpar_export_inputs::read(&bundle.join(MANIFEST), dpar_export_inputs::limits::TEXT).ok()?;
    Some(Manifest::parse(&bytes).ok()?.system)
}

/// The reference run. An extractor without real images measures no distance.
fn reference(args: &ReproduceArgs, folder: &Utf8Path) -> Result<ReferenceFolder, Failure> {
    let reference = ReferenceFolder::open(folder, args.images.as_deref(), args.real.map(|n| n as usize))?;
    if args.extractor.is_some() && !reference.has_real_images() {
        return Err(Failure::usage(
            format!("{folder} has no real_images.npz: --extractor has nothing to measure distances to"),
            Some("give real images with --images FILE.npz, or leave --extractor out"),
        ));
    }
    Ok(reference)
}

fn options(args: &ReproduceArgs) -> ReproduceOptions {
    ReproduceOptions {
        num: args.num.map(|n| n as usize),
        batch: usize::from(args.engine.batch),
        threads: threads(args),
    }
}

fn threads(args: &ReproduceArgs) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    args.engine.threads.map_or_else(available, usize::from).max(1)
}

fn extractor(args: &ReproduceArgs) -> Result<Option<FeatureExtractor>, Failure> {
    let Some(path) = &args.extractor else { return Ok(None) };
    let engine = EngineOptions {
        threads: args.engine.threads.map(usize::from),
        ort_library: args.engine.ort_lib.clone(),
        device: args.engine.device.device.filter(|_| args.extractor_engine == args.engine.engine),
        ..EngineOptions::default()
    };
    let engine = engines::create_among(&args.extractor_engine, &engine)?;
    let options = ExtractorOptions {
        resize: args.resize,
        batch: usize::from(args.engine.batch),
        threads: threads(args),
        ..ExtractorOptions::default()
    };
    Ok(Some(FeatureExtractor::open(path, engine, &options)?))
}

/// Runs of several seeds, computed or read, against a row of the table.
fn against_paper(args: &ReproduceArgs, name: &str, printer: Printer) -> Result<Exit, Failure> {
    let paper = Paper::table()?;
    let row = paper.row(name)?;
    let runs: Vec<Run> = match (&args.bundle, &args.reference) {
        (Some(bundle), Some(folder)) => {
            if args.seeds.is_empty() {
                return Err(Failure::usage(
                    "--paper without runs",
                    Some("give --seeds 0,1,2 or --runs FILE..."),
                ));
            }
            let repeated = args.seeds.iter().enumerate().any(|(i, s)| args.seeds[..i].contains(s));
            if repeated {
                return Err(Failure::usage("a seed is given twice: it would count as two runs", None));
            }
            let mut reference = reference(args, folder)?;
            let mut extractor = extractor(args)?;
            with_runtime(bundle, &args.engine, |runtime| {
                let system = runtime.bundle().system();
                row.check_system(system)?;
                if let Some(extractor) = &extractor {
                    row.check_extractor(system, extractor)?;
                }
                let recorded = reference.streams(system)?;
                let n = args.num.map_or(recorded.len(), |n| n as usize);
                let mut phases = Phases::new(printer);
                let step = &mut |phase, done, total| phases.show(phase, done, total);
                if let Some(extractor) = extractor.as_mut() {
                    let compute = Compute::new(threads(args)).map_err(EvaluateError::metric("threads"))?;
                    reference.look(extractor, &compute, step)?;
                }
                let one = |seed: &u64| {
                    let decode = crate::generate::DecodeOptions { seed: *seed, ..recorded.options() };
                    let (real, options) = (reference.real(), options(args));
                    run_seed(runtime, &decode, n, extractor.as_mut(), real, options, step)
                };
                Ok(args.seeds.iter().map(one).collect::<Result<Vec<_>, _>>()?)
            })?
        }
        _ if args.extractor.is_some() => {
            return Err(Failure::usage(
                "--extractor looks at nothing: finished runs have no images",
                Some("leave it out, or give a bundle, --reference and --seeds instead of --runs"),
            ));
        }
        _ => args.runs.iter().map(|p| Run::read(p)).collect::<Result<_, _>>()?,
    };
    Run::check_alike(&runs)?;
    let gates = gate(&paper, row, &runs).map_err(EvaluateError::metric("runs"))?;
    let verdict = Verdict::all(gates.iter().map(|g| g.verdict));
    let text = || {
        let mut text = Text::from(format!("{}: {} runs against the published table", row.name, runs.len()));
        text.gap();
        text += gate_table(&gates);
        text.gap();
        text.line(verdict);
        text.line(&paper.source);
        text
    };
    let value =
        json!({ "verdict": verdict, "row": row, "source": paper.source, "runs": runs, "gates": gates });
    printer.result(text, &value)?;
    Ok(verdict.into())
}

fn render(reports: &[SystemReport], verdict: Verdict) -> Text {
    let mut text = poster(reports);
    for report in reports {
        let (e, n) = (&report.engine, report.images);
        text.gap();
        text.line(format_args!(
            "{} ({n} images, seed {}, {} {} on {})",
            report.model, report.seed, e.engine, e.version, e.device
        ));
        text += gate_table(&report.gates);
        text.line(steps_text("steps", &report.steps));
        text.line(steps_text("reference", &report.reference_steps));
        text += histogram(&report.steps);
    }
    if let Some(extractor) = reports.iter().find_map(|r| r.extractor.as_ref()) {
        text.gap();
        text.line(format_args!(
            "extractor {} ({}, {} px, {}), digest {}",
            extractor.name,
            extractor.resize.name(),
            extractor.input_size,
            extractor.engine,
            extractor.digest
        ));
    }
    text.gap();
    text.line(verdict);
    text
}

/// The poster's table: model, parameters, distance, score, precision, recall, steps.
fn poster(reports: &[SystemReport]) -> Text {
    let number = |v: Option<f64>, digits: usize| v.map_or("–".to_owned(), |v| fixed(v, digits));
    let distance = reports.iter().find_map(|r| r.extractor.as_ref()).map(|e| e.distance.clone());
    let inception = distance.as_deref() == Some("FID");
    let row = |model: String, parameters: String, steps: f64, m: Option<&crate::reproduce::ImageMetrics>| {
        vec![
            model,
            parameters,
            number(m.and_then(|m| m.distance), 3),
            number(m.and_then(|m| m.score), 2),
            number(m.and_then(|m| m.precision), 3),
            number(m.and_then(|m| m.recall), 3),
            number(m.and_then(|m| m.kid).map(|k| k * 1e3), 3),
            format!("{steps:.2}"),
        ]
    };
    let rows: Vec<Vec<String>> = reports
        .iter()
        .flat_map(|r| {
            let parameters = format!("{:.1}M", r.parameters as f64 / 1e6);
            let system = r.system;
            [
                row(format!("{} ({system})", r.model), parameters, r.steps.mean, r.metrics.as_ref()),
                row(
                    "  its reference".to_owned(),
                    String::new(),
                    r.reference_steps.mean,
                    r.reference_metrics.as_ref(),
                ),
            ]
        })
        .collect();
    let distance = distance.unwrap_or_else(|| "distance".to_owned());
    let score = if inception { "IS" } else { "score" };
    table(&["model", "params", &distance, score, "prec", "rec", "KID·10³", "steps"], &rows)
}

fn gate_table(gates: &[Gate]) -> Text {
    let number = |v: Option<f64>| v.map(|v| fixed(v, 4)).unwrap_or_default();
    let rows: Vec<Vec<String>> = gates
        .iter()
        .map(|g| {
            let interval = g.interval_90.map(|[a, b]| format!("[{}, {}]", fixed(a, 4), fixed(b, 4)));
            let interval = interval.unwrap_or_default();
            let verdict = match g.verdict {
                Verdict::Fail => "FAIL".to_owned(),
                other => other.to_string(),
            };
            let margin = g.margin.map(|m| format!("±{m:.4}")).unwrap_or_default();
            vec![
                g.name.clone(),
                verdict,
                number(g.reference),
                number(g.found),
                number(g.difference),
                interval,
                margin,
                g.detail.clone(),
            ]
        })
        .collect();
    table(
        &["gate", "verdict", "reference", "found", "difference", "90 % interval", "margin", "detail"],
        &rows,
    )
}

fn steps_text(what: &str, s: &StepSummary) -> String {
    format!("{what}: mean {:.4}, std {:.4}, min {}, max {}", s.mean, s.std, s.min, s.max)
}

/// Steps in at most twelve bins, a bar each.
fn histogram(steps: &StepSummary) -> Text {
    const BINS: usize = 12;
    const BAR: usize = 40;
    let width = (steps.max - steps.min + 1).div_ceil(BINS).max(1);
    let mut bins = vec![0_usize; (steps.max - steps.min) / width + 1];
    for (s, count) in &steps.histogram {
        bins[(s - steps.min) / width] += count;
    }
    let most = bins.iter().copied().max().unwrap_or(1).max(1);
    let mut text = Text::default();
    for (i, count) in bins.iter().enumerate() {
        let low = steps.min + i * width;
        let bar = "#".repeat((count * BAR).div_ceil(most));
        text.line(format_args!("{low:>5}..{:<5} {count:>6} {bar}", low + width - 1));
    }
    text
}
