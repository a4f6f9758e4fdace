//! `parity`: engines compared with each other and with a reference.

use camino::Utf8PathBuf;
use clap::Args;
use dpar_export_metrics::Verdict;
use dpar_export_spec::RuleChange;

use super::args::{BundleArgs, DrawArgs, EnginesArgs, EnginesPlan, RuleArgs, SamplerArgs};
use super::cause::Cause;
use super::failure::{Exit, Failure};
use super::github::{self, Finding};
use super::printer::{Printer, Text, table};
use super::report::{ReportArgs, ReportFiles};
use super::verify::{flip_row, word};
use crate::bundle::Bundle;
use crate::engines;
use crate::loaded::LoadedBundle;
use crate::parity::ParityOptions;
use crate::parity::report::{EngineResult, EngineStatus, Mode, Pair, ParityReport, ParitySettings};
use crate::report::{DrawOptions, Page, Samples};
use crate::stats::TensorStats;
use crate::verify::{CheckId, GOLDEN_JSON, Status, array_file};

#[derive(Debug, Args)]
#[command(
    mut_arg("engines", |a| a
        .help("Engines to compare, the first that runs being the baseline [default: all that are built in]")),
    mut_arg("device", |a| a.help(format!("{}. The others run where they are", engines::device_help()))),
    mut_arg("cfg_scale", |a| a.default_value("2.0")),
    mut_arg("batch", |a| a.default_value("4"))
)]
pub(crate) struct ParityArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Folder with golden.safetensors and golden.json, compared with each engine
    #[arg(long, value_name = "DIR")]
    reference: Option<Utf8PathBuf>,
    /// Number of images that every engine draws; their classes follow from the seed
    #[arg(long, visible_alias = "images", value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=4096))]
    num: u16,
    /// Leave out the probes that need no reference
    #[arg(long)]
    no_probes: bool,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    engines: EnginesArgs,
}

/// What to compare; the names of the reports are taken.
pub(super) struct Plan {
    bundle: Utf8PathBuf,
    rule: RuleChange,
    reference: Option<Utf8PathBuf>,
    engines: EnginesPlan,
    options: ParityOptions,
    reports: ReportArgs,
    files: ReportFiles,
}

impl ParityArgs {
    /// Chooses the engines, takes the names of the reports.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let engines = self.engines.resolve(engines::built().map(|(e, _)| e.name.to_owned()).collect())?;
        if let ([alone], None) = (engines.names.as_slice(), &self.reference) {
            return Err(Failure::usage(
                format!("nothing to compare {alone} with"),
                Some("name two engines with --engines, or give --reference DIR"),
            ));
        }
        let options = ParityOptions {
            images: usize::from(self.num),
            seed: self.draw.seed,
            sampler: self.sampler.method(),
            cfg_scale: self.draw.cfg_scale,
            batch: engines.batch,
            probes: !self.no_probes,
        };
        Ok(Plan {
            files: self.reports.take()?,
            bundle: self.bundle.bundle,
            rule: self.rule.change(),
            reference: self.reference,
            engines,
            options,
            reports: self.reports,
        })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { bundle, rule, reference, engines, options, reports, files } = plan;
    let bundle = Bundle::open(&bundle)?.with_rule(&rule)?;
    let contenders = engines.contenders(&bundle);
    let bar = printer.progress("comparing", "units");
    let mut report =
        crate::parity::run(&bundle, contenders, reference.as_deref(), &options, &mut |done, total| {
            bar.advance(done, total)
        })?;
    drop(bar);
    if reports.any() {
        let ran = report.engines.iter().find(|e| e.status == EngineStatus::Ran && !e.free_running.is_empty());
        let mut shown = None;
        if let (Some(num), Some(ran)) = (reports.images(), ran) {
            shown = match samples(num, &engines, &bundle, (ran, &report.settings), printer) {
                Ok(samples) => Some(samples),
                // Outputs that cannot be: the report says so, without them.
                Err(e) if e.cause == Cause::Run => {
                    let engine = ran.engine.clone();
                    report.fail(&engine, CheckId::SampleImages, e.error.to_string());
                    None
                }
                Err(e) => return Err(e),
            };
            // A file that was swapped may be why.
            bundle.unchanged()?;
        }
        let mut page = Page::of_parity(&report, &bundle);
        if let Some(folder) = &reference {
            page.compared = super::report::compared(&[array_file(folder)?, folder.join(GOLDEN_JSON)])?;
        }
        page.samples = shown;
        files.write(&page)?;
    }
    printer.result(|| render(&report), &report)?;
    github::say("parity", report.verdict, &findings(&report), || render(&report), printer);
    Ok(exit(&report))
}

/// The images that an engine has drawn, for the report.
fn samples(
    num: u16,
    engines: &EnginesPlan,
    bundle: &Bundle,
    (ran, settings): (&EngineResult, &ParitySettings),
    printer: Printer,
) -> Result<Samples, Failure> {
    let runtime = LoadedBundle::new(bundle, engines.create(&ran.engine)?)?;
    let draw = DrawOptions { num, seed: settings.seed, cfg_scale: settings.cfg_scale, batch: settings.batch };
    let bar = printer.progress("decoding", "images");
    let traces = &ran.free_running;
    Ok(Samples::of_traces(&runtime, draw, traces, &mut |done, total| bar.advance(done, total))?)
}

/// A failure outweighs an engine that is missing, and a comparison that is. Nothing was compared for want of an engine here,
/// or because no more was asked for.
fn exit(report: &ParityReport) -> Exit {
    match report.verdict {
        Verdict::Incomplete if report.lacks_engine() => Exit::Unavailable,
        verdict => verdict.into(),
    }
}

/// What failed, engine by engine and pair by pair.
fn findings(report: &ParityReport) -> Vec<Finding> {
    let engines = report.engines.iter().flat_map(|engine| {
        let checks = engine.probes.iter().chain(&engine.checks).filter(|c| c.status == Status::Fail);
        let checks = checks.map(|c| Finding::from(c).of(&engine.engine));
        let why = engine.reason.clone().filter(|_| engine.status == EngineStatus::Failed);
        checks.chain(why.map(|detail| Finding { what: engine.engine.clone(), detail }))
    });
    let pairs = report.pairs.iter().filter(|p| p.status == Status::Fail);
    let pairs = pairs.map(|p| Finding {
        what: format!("{} against {}", p.engine, p.baseline),
        detail: "they differ by more than rounding".to_owned(),
    });
    engines.chain(pairs).collect()
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
    text.line(format_args!("{verdict}: {} {}{missing}", report.bundle.name, report.bundle.numbers()));
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
            let what = engine.computed().unwrap_or_else(|| report.bundle.numbers());
            format!("{} {what}, {}, {}{threads}", i.version, i.device, i.provider)
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
                if let Some(expected) = d.expected {
                    text += &format!(" ({expected:.1} boundaries expected)");
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
