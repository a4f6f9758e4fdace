//! `parity`: engines compared with each other and with a reference.

use camino::Utf8PathBuf;
use clap::Args;
use dpar_engine_api::{EngineError, EngineErrorKind};
use dpar_export_metrics::Verdict;
use dpar_export_spec::Precision;

use super::args::{SamplerWord, guidance};
use super::failure::{Exit, Failure};
use super::printer::{Printer, Text, table};
use super::verify::{flip_row, word};
use crate::bundle::Bundle;
use crate::engines::{self, EngineOptions, Runs};
use crate::parity::report::{EngineResult, EngineStatus, Mode, Pair, ParityReport};
use crate::parity::{Contender, ParityOptions};
use crate::report::{Draw, Page, Samples};
use crate::runtime::Runtime;
use crate::stats::TensorStats;
use crate::verify::{GOLDEN_JSON, Status, array_file};

#[derive(Debug, Args)]
pub(crate) struct ParityArgs {
    /// Bundle folder
    bundle: Utf8PathBuf,
    /// Engines to compare, the first that runs being the baseline [default: all that are built in]
    #[arg(long, value_name = "E,..", value_delimiter = ',', value_parser = super::args::engine_names())]
    engines: Vec<String>,
    /// Folder with golden.safetensors and golden.json, compared with each engine
    #[arg(long, value_name = "DIR")]
    reference: Option<Utf8PathBuf>,
    /// Images that every engine draws
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=4096))]
    images: u16,
    /// Seed of classes and draws
    #[arg(long, value_name = "K", default_value = "0")]
    seed: u64,
    /// How a random number picks a token
    #[arg(long, value_enum, value_name = "METHOD", default_value = "gumbel")]
    sampler: SamplerWord,
    /// Guidance scale; guidance runs above 1
    #[arg(long, value_name = "S", default_value = "2.0", value_parser = guidance, allow_negative_numbers = true)]
    cfg_scale: f32,
    /// Leave out the probes that need no reference
    #[arg(long)]
    no_probes: bool,
    #[command(flatten)]
    reports: super::report::ReportArgs,
    #[command(flatten)]
    engine: ContenderArgs,
}

/// Where engines find their libraries, and how they run.
#[derive(Debug, Args)]
pub(crate) struct ContenderArgs {
    /// Threads of one run [default: each engine's choice]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Engine")]
    threads: Option<u16>,
    /// ONNX Runtime library [default: $ORT_DYLIB_PATH, then what `cargo xtask setup` fetched, then the system's]
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    ort_lib: Option<Utf8PathBuf>,
    /// Folder of the TensorRT libraries
    #[arg(long, value_name = "DIR", help_heading = "Engine")]
    trt_lib: Option<Utf8PathBuf>,
    /// Images in one call of a graph
    #[arg(long, value_name = "B", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine")]
    pub(super) batch: u16,
}

impl ContenderArgs {
    /// The engines named, or all that are built in.
    pub(super) fn contenders(&self, bundle: &Bundle, named: &[String]) -> Result<Vec<Contender>, Failure> {
        let names: Vec<String> = match named {
            [] => engines::built().map(|(e, _)| e.name.to_owned()).collect(),
            _ => named.to_vec(),
        };
        if let Some(twice) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            return Err(Failure::usage(format!("engine {} is named twice", twice.1), None));
        }
        let options = EngineOptions {
            threads: self.threads.map(usize::from),
            ort_library: self.ort_lib.clone(),
            trt_library: self.trt_lib.clone(),
            ..EngineOptions::default()
        };
        let has = |name: &str, option| engines::find(name).is_some_and(|e| e.has(option));
        let libraries = options.libraries();
        if let Some(option) = libraries.iter().find(|o| !names.iter().any(|n| has(n, **o))) {
            let message = format!("{} is for an engine that is not in the run", option.flag());
            return Err(Failure::usage(message, None));
        }
        let make = |name: String| {
            let asked_for = !named.is_empty() || libraries.iter().any(|o| has(&name, *o));
            let built_files = engines::find(&name).is_some_and(|e| e.runs == Runs::BuiltFiles);
            // Of the engines that nobody named, one that needs more than the graphs.
            let engine = if built_files && !asked_for && bundle.manifest().engines.is_empty() {
                Err(no_engines(&name))
            } else {
                engines::create_among(&name, &options)
            };
            Contender { engine, name, asked_for }
        };
        Ok(names.into_iter().map(make).collect())
    }
}

/// Nothing was built from the bundle's graphs.
fn no_engines(name: &str) -> EngineError {
    EngineError::new(EngineErrorKind::Unavailable, name, "the bundle has no engines of its graphs")
        .hint("build them with `dpar-export --target trt BUNDLE`")
}

pub(super) fn run(args: &ParityArgs, printer: Printer) -> Result<Exit, Failure> {
    let files = args.reports.take()?;
    let bundle = Bundle::open(&args.bundle)?;
    let contenders = args.engine.contenders(&bundle, &args.engines)?;
    if let ([alone], None) = (contenders.as_slice(), &args.reference) {
        let message = format!("nothing to compare {} with", alone.name);
        return Err(Failure::usage(
            message,
            Some("name two engines with --engines, or give --reference DIR"),
        ));
    }
    let options = ParityOptions {
        images: usize::from(args.images),
        seed: args.seed,
        sampler: args.sampler.into(),
        cfg_scale: args.cfg_scale,
        batch: usize::from(args.engine.batch),
        probes: !args.no_probes,
    };
    let bar = printer.progress("comparing", "units");
    let report =
        crate::parity::run(&bundle, contenders, args.reference.as_deref(), &options, &mut |done, total| {
            bar.advance(done, total)
        })?;
    drop(bar);
    if args.reports.any() {
        let mut page = Page::of_parity(&report, &bundle);
        if let Some(folder) = &args.reference {
            page.compared = super::report::compared(&[array_file(folder)?, folder.join(GOLDEN_JSON)])?;
        }
        page.samples = samples(args, &bundle, &report, printer)?;
        files.write(&page)?;
    }
    printer.result(|| render(&report), &report)?;
    Ok(exit(&report))
}

/// The images that the first engine which ran has drawn, for the report.
fn samples(
    args: &ParityArgs,
    bundle: &Bundle,
    report: &ParityReport,
    printer: Printer,
) -> Result<Option<Samples>, Failure> {
    let ran = report.engines.iter().find(|e| e.status == EngineStatus::Ran && !e.free_running.is_empty());
    let (Some(ran), Some(num)) = (ran, args.reports.images()) else { return Ok(None) };
    let again = args.engine.contenders(bundle, std::slice::from_ref(&ran.engine))?;
    let Some(contender) = again.into_iter().next() else { return Ok(None) };
    let runtime = Runtime::new(bundle, contender.engine?)?;
    let settings = &report.settings;
    let draw = Draw { num, seed: settings.seed, cfg_scale: settings.cfg_scale, batch: settings.batch };
    let bar = printer.progress("decoding", "images");
    let traces = &ran.free_running;
    Ok(Some(Samples::of_traces(&runtime, draw, traces, &mut |done, total| bar.advance(done, total))?))
}

/// A failure outweighs an engine that is missing, and a comparison that is. Nothing was compared for want of an engine here,
/// or because no more was asked for.
fn exit(report: &ParityReport) -> Exit {
    match report.verdict {
        Verdict::Incomplete if report.lacks_engine() => Exit::Unavailable,
        verdict => verdict.into(),
    }
}

fn render(report: &ParityReport) -> Text {
    let mut text = Text::default();
    let rows: Vec<Vec<String>> = report.engines.iter().map(|e| engine_row(e, report)).collect();
    text += table(&["engine", "what ran", "probes", "checks", "seconds"], &rows);
    for engine in &report.engines {
        if let Some(reason) = &engine.reason {
            text.line(format_args!("{reason}"));
        }
        if let Some(hint) = &engine.hint {
            text.line(format_args!(" hint: {hint}"));
        }
        for check in engine.probes.iter().chain(&engine.checks).filter(|c| c.status == Status::Fail) {
            text.line(format_args!("{}: {} FAILS: {}", engine.engine, check.name, check.detail));
        }
    }
    if !report.pairs.is_empty() {
        text.gap();
        let rows: Vec<Vec<String>> = report.pairs.iter().map(pair_row).collect();
        let header =
            ["compared", "result", "logits", "entropy", "worst output", "given tokens", "own tokens"];
        text += table(&header, &rows);
    }
    for pair in &report.pairs {
        for note in &pair.notes {
            text.line(format_args!("{} against {}: {note}", pair.engine, pair.baseline));
        }
    }
    for pair in report.pairs.iter().filter(|p| p.decisions.iter().any(|d| !d.flips.is_empty())) {
        text.gap();
        text.line(format_args!("{} against {}: decisions that differ", pair.engine, pair.baseline));
        let flips = pair.decisions.iter().flat_map(|d| {
            d.flips.iter().map(|f| {
                let mode = if d.mode == Mode::TeacherForced { "given" } else { "own" };
                [vec![mode.to_owned()], flip_row(f)].concat()
            })
        });
        text += table(
            &["tokens", "image", "slot", "decision", &pair.baseline, &pair.engine, "margin", "verdict"],
            &flips.collect::<Vec<_>>(),
        );
    }
    let failing = report.pairs.iter().flat_map(|p| p.tensors.iter().map(move |t| (p, t)));
    let rows: Vec<Vec<String>> = failing
        .filter(|(_, t)| t.status == Status::Fail)
        .map(|(p, t)| [vec![format!("{} : {}", p.baseline, p.engine)], tensor_row(t)].concat())
        .collect();
    if !rows.is_empty() {
        text.gap();
        text.line("outputs out of tolerance");
        text += table(
            &["compared", "output", "max abs", "max rel", "ULP", "cosine", "found", "limit", "of"],
            &rows,
        );
    }
    let missing = match () {
        () if report.missing_engine() => "; an engine that was asked for did not run",
        () if !report.compared() => {
            "; nothing was compared: fewer than two engines ran, and there is no --reference"
        }
        () => "",
    };
    let verdict = word(report.verdict);
    text.gap();
    text.line(format_args!("{verdict}: {} {}{missing}", report.bundle.name, report.bundle.precision));
    text
}

fn engine_row(engine: &EngineResult, report: &ParityReport) -> Vec<String> {
    let count = |checks: &[crate::verify::Check]| {
        let passed = checks.iter().filter(|c| c.status == Status::Pass).count();
        let ran = checks.iter().filter(|c| c.status != Status::NotRun).count();
        if ran == 0 { "–".to_owned() } else { format!("{passed} of {ran}") }
    };
    let what = match (&engine.info, engine.status) {
        (Some(i), EngineStatus::Ran) => {
            let threads = i.threads.map(|n| format!(", {n} threads")).unwrap_or_default();
            // fp32 graphs have one arithmetic; of others, what the engine makes of them.
            let precision = match &engine.arithmetic {
                Some(a) if report.bundle.precision != Precision::Fp32 => a.text.clone(),
                _ => report.bundle.precision.to_string(),
            };
            format!("{} {precision}, {}, {}{threads}", i.version, i.device, i.provider)
        }
        (_, status) => {
            if status == EngineStatus::Failed { "FAILED, see below" } else { "not run, see below" }.to_owned()
        }
    };
    vec![
        engine.engine.clone(),
        what,
        count(&engine.probes),
        count(&engine.checks),
        format!("{:.1}", engine.seconds),
    ]
}

fn pair_row(pair: &Pair) -> Vec<String> {
    let of = |name: &str| {
        let found = pair.tensors.iter().find(|t| t.name == name);
        found.map_or_else(|| "–".to_owned(), |t| format!("{:.1e}", t.max_abs))
    };
    let worst =
        pair.tensors.iter().filter(|t| t.graph.is_some()).max_by(|a, b| a.used().total_cmp(&b.used()));
    let decided = |mode: Mode| {
        let found = pair.decisions.iter().find(|d| d.mode == mode);
        found.map_or_else(
            || "–".to_owned(),
            |d| {
                let near = d.flips.iter().filter(|f| f.near_tie).count();
                let defects = d.flips.len() - near;
                let mut text = format!("{} of {} images equal", d.equal, d.images);
                if near > 0 {
                    text += &format!(", {near} near-ties");
                }
                if defects > 0 {
                    text += &format!(", {defects} DEFECTS");
                }
                text
            },
        )
    };
    vec![
        format!("{} : {}", pair.baseline, pair.engine),
        pair.status.word().to_owned(),
        of("logits"),
        of("entropy"),
        worst.map_or_else(|| "–".to_owned(), |t| format!("{} {:.1e}, {} ULP", t.name, t.max_abs, t.max_ulp)),
        decided(Mode::TeacherForced),
        decided(Mode::FreeRunning),
    ]
}

fn tensor_row(t: &TensorStats) -> Vec<String> {
    vec![
        t.name.clone(),
        format!("{:.2e}", t.max_abs),
        format!("{:.2e}", t.max_rel),
        t.max_ulp.to_string(),
        format!("{:.9}", t.cosine),
        format!("{:.1e}", t.measured),
        format!("{:.0e}", t.limit),
        t.measure.text().to_owned(),
    ]
}
