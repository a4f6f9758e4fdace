//! `reproduce`: a reference run again, or runs against the published table.

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Arg, Args};
use dpar_export_metrics::{Compute, Resize, Verdict};
use dpar_export_spec::SystemKind;
use serde_json::json;

use super::args::{ENGINE, EngineArgs, ExtractorEngineArgs, ExtractorPlan, OnEngine, RULE, RuleArgs, resize};
use super::failure::{Exit, Failure};
use super::github::{self, Finding};
use super::printer::{Phases, Printer, Text, fixed, table};
use crate::bundle::{MANIFEST, Manifest};
use crate::check::SCHEMA_VERSION;
use crate::engines::DEFAULT_ENGINE;
use crate::evaluate::EvaluateError;
use crate::features::ExtractorOptions;
use crate::generate::DecodeOptions;
use crate::reproduce::paper::{Paper, Run, gate};
use crate::reproduce::{
    Gate, ReferenceFolder, ReproduceOptions, StepSummary, SystemReport, reproduce, run_seed,
};

#[derive(Debug, Args)]
#[command(
    mut_args(of_a_run),
    mut_arg("extractor_engine", |a| a.requires("extractor").help(format!(
        "Engine of the extractor; it runs on --device where it is the same engine [default: {DEFAULT_ENGINE}]")))
)]
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
    /// How images are resized for the extractor [default: the extractor's own rule]
    #[arg(long, value_name = "RULE", value_parser = resize, requires = "extractor")]
    resize: Option<Resize>,
    /// Real images: a folder of RGB PNGs, or an .npz with arr_0 u8 [N, H, W, 3], whose stored statistics (mu, sigma) are
    /// used as they are [default: real_images.npz of the reference]
    #[arg(long, value_name = "DIR|X.npz", requires = "extractor")]
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
    #[arg(long, value_name = "K,..", value_delimiter = ',', requires = "paper", conflicts_with_all = ["runs", "baseline"])]
    seeds: Vec<u64>,
    /// Reports of runs (metrics.json) for --paper, one a seed
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "paper", conflicts_with_all = ["bundle", "reference", "num", "baseline"])]
    runs: Vec<Utf8PathBuf>,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    extractor_engine: ExtractorEngineArgs,
}

/// Finished runs are not run again. Refused by name: the parser drops a requirement whose option conflicts with one that is given.
fn of_a_run(arg: Arg) -> Arg {
    let id = arg.get_id().as_str();
    match id == "extractor_engine" || ENGINE.iter().chain(&RULE).any(|name| *name == id) {
        true => arg.conflicts_with("runs"),
        false => arg,
    }
}

/// What to do.
pub(super) enum Plan {
    /// Reference runs made again, each on its bundle.
    Again(Vec<OnEngine>, MeasurePlan),
    /// Runs of several seeds against a row of the table.
    Seeds { table: Paper, row: String, seeds: Vec<u64>, on: OnEngine, measure: MeasurePlan },
    /// Runs that are there, against a row of the table.
    Runs { table: Paper, row: String, runs: Vec<Run> },
}

/// What runs are held against, and how they are measured.
pub(super) struct MeasurePlan {
    reference: ReferenceFolder,
    extractor: Option<ExtractorPlan>,
    options: ReproduceOptions,
}

impl ReproduceArgs {
    /// Opens the reference, reads finished runs, chooses the engines.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        match (&self.paper, &self.bundle, &self.reference) {
            (None, Some(bundle), Some(folder)) => self.again(bundle, folder),
            (None, ..) => Err(Failure::usage("a bundle and --reference are needed", None)),
            (Some(row), Some(bundle), Some(folder)) => {
                let table = self.table(row)?;
                if self.seeds.is_empty() {
                    return Err(Failure::usage(
                        "--paper without runs",
                        Some("give --seeds 0,1,2 or --runs FILE..."),
                    ));
                }
                let repeated = self.seeds.iter().enumerate().any(|(i, s)| self.seeds[..i].contains(s));
                if repeated {
                    return Err(Failure::usage("a seed is given twice: it would count as two runs", None));
                }
                let measure = self.measure(folder)?;
                let (on, seeds) = (self.on(bundle)?, self.seeds.clone());
                Ok(Plan::Seeds { table, row: row.clone(), seeds, on, measure })
            }
            (Some(_), ..) if self.extractor.is_some() => Err(Failure::usage(
                "--extractor looks at nothing: finished runs have no images",
                Some("leave it out, or give a bundle, --reference and --seeds instead of --runs"),
            )),
            (Some(row), ..) => {
                let table = self.table(row)?;
                let runs = self.runs.iter().map(|p| Run::read(p)).collect::<Result<_, _>>()?;
                Ok(Plan::Runs { table, row: row.clone(), runs })
            }
        }
    }

    /// The published table, which has the row.
    fn table(&self, row: &str) -> Result<Paper, Failure> {
        let table = Paper::table()?;
        table.row(row)?;
        Ok(table)
    }

    fn again(&self, bundle: &Utf8Path, folder: &Utf8Path) -> Result<Plan, Failure> {
        if let Some(baseline) = &self.baseline
            && let (Some(first), Some(second)) = (kind(bundle), kind(baseline))
            && first == second
        {
            let message = format!("{bundle} and {baseline} are both {first}: --baseline is the other system");
            let hint = "reproduce each of them alone, or give the other system";
            return Err(Failure::usage(message, Some(hint)));
        }
        let measure = self.measure(folder)?;
        let bundles = [Some(bundle), self.baseline.as_deref()].into_iter().flatten();
        Ok(Plan::Again(bundles.map(|b| self.on(b)).collect::<Result<_, _>>()?, measure))
    }

    /// A bundle on its engine, beside the extractor's.
    fn on(&self, bundle: &Utf8Path) -> Result<OnEngine, Failure> {
        let on = match &self.extractor {
            Some(_) => self.engine.on_beside(bundle, &[self.extractor_engine()]),
            None => self.engine.on(bundle),
        };
        Ok(on?.with_rule(self.rule))
    }

    fn extractor_engine(&self) -> &str {
        self.extractor_engine.extractor_engine.as_deref().unwrap_or(DEFAULT_ENGINE)
    }

    /// The reference run and the network. A network without real images measures no distance.
    fn measure(&self, folder: &Utf8Path) -> Result<MeasurePlan, Failure> {
        let reference = ReferenceFolder::open(folder, self.images.as_deref(), self.real.map(|n| n as usize))?;
        if self.extractor.is_some() && !reference.has_real_images() {
            return Err(Failure::usage(
                format!("{folder} has no real_images.npz: --extractor has nothing to measure distances to"),
                Some("give real images with --images DIR|X.npz, or leave --extractor out"),
            ));
        }
        let prepared = ExtractorOptions { resize: self.resize, ..ExtractorOptions::default() };
        let extractor = self
            .extractor
            .as_ref()
            .map(|path| ExtractorPlan::new(path, self.extractor_engine(), &self.engine, true, prepared));
        let settings = &self.engine.settings;
        Ok(MeasurePlan {
            reference,
            extractor: extractor.transpose()?,
            options: ReproduceOptions {
                num: self.num.map(|n| n as usize),
                batch: settings.batch(),
                threads: settings.threads.or_all(),
            },
        })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    match plan {
        Plan::Again(systems, measure) => again(systems, measure, printer),
        Plan::Seeds { table, row, seeds, on, measure } => {
            let runs = seeded(&table, &row, &seeds, on, measure, printer)?;
            against_paper(&table, &row, &runs, printer)
        }
        Plan::Runs { table, row, runs } => against_paper(&table, &row, &runs, printer),
    }
}

fn again(systems: Vec<OnEngine>, measure: MeasurePlan, printer: Printer) -> Result<Exit, Failure> {
    let MeasurePlan { mut reference, extractor, options } = measure;
    let mut extractor = extractor.map(ExtractorPlan::open).transpose()?;
    let mut reports = Vec::new();
    for on in systems {
        let report = on.run(|runtime| {
            let mut phases = Phases::new(printer);
            let step = &mut |phase, done, total| phases.show(phase, done, total);
            Ok(reproduce(runtime, &mut reference, extractor.as_mut(), options, step)?)
        })?;
        reports.push(report);
    }
    let verdict = Verdict::all(reports.iter().map(|r| r.verdict));
    let value = json!({ "schema_version": SCHEMA_VERSION, "verdict": verdict, "systems": reports });
    printer.result(|| render(&reports, verdict), &value)?;
    let findings: Vec<Finding> = reports.iter().flat_map(|r| findings(&r.gates)).collect();
    github::say("reproduce", verdict, &findings, || render(&reports, verdict), printer);
    Ok(verdict.into())
}

/// The kind of system of a bundle, from its manifest alone; `None` where that cannot be read, which opening it explains.
fn kind(bundle: &Utf8Path) -> Option<SystemKind> {
    let bytes = dpar_export_inputs::read(&bundle.join(MANIFEST), dpar_export_inputs::limits::TEXT).ok()?;
    Some(Manifest::parse(&bytes).ok()?.system)
}

/// A run of each seed.
fn seeded(
    table: &Paper,
    row: &str,
    seeds: &[u64],
    on: OnEngine,
    measure: MeasurePlan,
    printer: Printer,
) -> Result<Vec<Run>, Failure> {
    let row = table.row(row)?;
    let MeasurePlan { mut reference, extractor, options } = measure;
    let mut extractor = extractor.map(ExtractorPlan::open).transpose()?;
    on.run(|runtime| {
        let system = runtime.bundle().system();
        row.check_system(system)?;
        if let Some(extractor) = &extractor {
            row.check_extractor(system, extractor)?;
        }
        let recorded = reference.streams(system)?;
        let n = options.num.unwrap_or(recorded.len());
        let mut phases = Phases::new(printer);
        let step = &mut |phase, done, total| phases.show(phase, done, total);
        if let Some(extractor) = extractor.as_mut() {
            let compute = Compute::new(options.threads).map_err(EvaluateError::metric("threads"))?;
            reference.look(extractor, &compute, step)?;
        }
        let one = |seed: &u64| {
            let decode = DecodeOptions { seed: *seed, ..recorded.options() };
            run_seed(runtime, &decode, n, extractor.as_mut(), reference.real(), options, step)
        };
        Ok(seeds.iter().map(one).collect::<Result<Vec<_>, _>>()?)
    })
}

/// Runs against a row of the table.
fn against_paper(paper: &Paper, row: &str, runs: &[Run], printer: Printer) -> Result<Exit, Failure> {
    let row = paper.row(row)?;
    Run::check_alike(runs)?;
    let gates = gate(paper, row, runs).map_err(EvaluateError::metric("runs"))?;
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
    let value = json!({
        "schema_version": SCHEMA_VERSION, "verdict": verdict, "row": row, "source": paper.source, "runs": runs,
        "gates": gates,
    });
    printer.result(text, &value)?;
    github::say("reproduce", verdict, &findings(&gates), text, printer);
    Ok(verdict.into())
}

/// The gates that did not pass.
fn findings(gates: &[Gate]) -> Vec<Finding> {
    let open = gates.iter().filter(|g| g.verdict != Verdict::Pass);
    open.map(|g| Finding { what: g.name.clone(), detail: g.verdict.to_string() }).collect()
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
