//! `bench`: what decoding costs, graph by graph.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use dpar_engine_api::CacheForm;
use dpar_export_args::stop::stopped;
use dpar_export_bench::{
    BenchReport, Case, Change, Comparison, Machine, Measurement, Phase, compare, measure, page,
};
use dpar_export_inputs::limits;
use dpar_export_spec::RuleChange;

use super::args::{DrawArgs, EnginesArgs, EnginesPlan, OptionalOutputArgs, ScheduleArgs};
use super::failure::{Exit, Failure};
use super::printer::{Printer, Text, table};
use super::verify::word;
use super::{COMMAND_LINE, CommandLine};
use crate::bundle::Bundle;
use crate::engines::DEFAULT_ENGINE;
use crate::generate::Schedule;
use crate::loaded::RunError;
use crate::staging::StagedFile;

/// How often a case in a process of its own is asked whether it has ended.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
#[command(
    mut_arg("engines", |a| a.help(format!("Engines to measure [default: {DEFAULT_ENGINE}]"))),
    mut_arg("output", |a| a.value_name("FILE.json").help("Also write the report as JSON")),
    mut_arg("batch", |a| a.default_value("1"))
)]
pub(crate) struct BenchArgs {
    /// Bundle folders: one system in several precisions, say
    #[arg(required = true, value_name = "BUNDLE")]
    bundles: Vec<Utf8PathBuf>,
    #[command(flatten)]
    output: OptionalOutputArgs,
    /// Also write the report as an offline HTML page; an earlier one is replaced
    #[arg(long, value_name = "FILE.html", help_heading = "Report")]
    report: Option<Utf8PathBuf>,
    /// Earlier report (JSON) of this machine: say what got slower; exit 1 if something did, 4 if it cannot be told
    #[arg(long, value_name = "FILE.json")]
    compare: Option<Utf8PathBuf>,
    /// Values to go through, instead of one: batch=1,2,4,8, threshold=7.4,7.8,8.2 (nats) or schedule=lockstep,rolling; several may
    /// be given
    #[arg(long, value_name = "WHAT=N,..")]
    sweep: Vec<Sweep>,
    /// Images of a round [default: as many as are decoded together]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    num: Option<u32>,
    /// Rounds that are timed
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Rounds before those
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(0..=100))]
    warmup: u16,
    /// Measure the case of this number only, in this process
    #[arg(long, hide = true, requires = "one_to")]
    one: Option<usize>,
    /// Where to
    #[arg(long, hide = true, requires = "one")]
    one_to: Option<Utf8PathBuf>,
    #[command(flatten)]
    schedule: ScheduleArgs,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    engines: EnginesArgs,
}

/// Values to go through.
#[derive(Debug, Clone)]
enum Sweep {
    Batch(Vec<usize>),
    Threshold(Vec<f32>),
    Schedule(Vec<Schedule>),
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let batch = |v: &str| match v.parse() {
            Ok(n @ 1..=256) => Ok(n),
            _ => Err(format!("`{v}` is no batch from 1 to 256")),
        };
        let threshold = |v: &str| match v.parse::<f32>() {
            Ok(n) if n.is_finite() => Ok(n),
            _ => Err(format!("`{v}` is no threshold in nats")),
        };
        let schedule = |v: &str| {
            let known = Schedule::ALL.into_iter().find(|s| s.as_str() == v);
            known
                .ok_or_else(|| format!("`{v}` is none of {}", Schedule::ALL.map(Schedule::as_str).join(", ")))
        };
        match text.split_once('=') {
            Some(("schedule", values)) => {
                let values = values.split(',').map(schedule).collect::<Result<Vec<_>, _>>()?;
                once(values.iter().map(|s| s.as_str()).collect())?;
                Ok(Self::Schedule(values))
            }
            Some(("batch", values)) => {
                once(values.split(',').map(batch).collect::<Result<_, _>>()?).map(Self::Batch)
            }
            Some(("threshold", values)) => {
                once(values.split(',').map(threshold).collect::<Result<_, _>>()?).map(Self::Threshold)
            }
            _ => Err("expected batch=, threshold= or schedule= and values, such as batch=1,2,4".to_owned()),
        }
    }
}

/// Values of which none is there twice: which of two cases is meant could not be told.
fn once<T: PartialEq + std::fmt::Display>(values: Vec<T>) -> Result<Vec<T>, String> {
    match values.iter().enumerate().find(|(i, v)| values[..*i].contains(v)) {
        Some((_, twice)) => Err(format!("{twice} is there twice")),
        None => Ok(values),
    }
}

/// What to measure; the names of the outputs are taken.
pub(super) struct Plan {
    bundles: Vec<Utf8PathBuf>,
    batches: Vec<usize>,
    /// `None` = as the bundle has it.
    thresholds: Vec<Option<f32>>,
    schedules: Vec<Schedule>,
    engines: EnginesPlan,
    case: Case,
    num: Option<usize>,
    one: Option<usize>,
    earlier: Option<BenchReport>,
    json: Option<StagedFile>,
    html: Option<StagedFile>,
}

impl BenchArgs {
    /// Reads the earlier report, takes the names of the outputs.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let engines = self.engines.resolve(vec![DEFAULT_ENGINE.to_owned()])?;
        let (mut batches, mut thresholds, mut schedules) = (None, None, None);
        for sweep in self.sweep {
            let again = match sweep {
                Sweep::Batch(values) => batches.replace(values).map(|_| "batch"),
                Sweep::Threshold(values) => thresholds.replace(values).map(|_| "threshold"),
                Sweep::Schedule(values) => schedules.replace(values).map(|_| "schedule"),
            };
            if let Some(what) = again {
                return Err(Failure::usage(
                    format!("--sweep {what}= is given twice"),
                    Some("give all values at once"),
                ));
            }
        }
        if batches.is_some() && engines.batch != 1 {
            let message = format!("--batch {} has no effect: --sweep says the batches", engines.batch);
            return Err(Failure::usage(message, Some("leave it out")));
        }
        if schedules.is_some() && self.schedule.schedule != Schedule::default() {
            let message = format!(
                "--schedule {} has no effect: --sweep says the schedules",
                self.schedule.schedule.as_str()
            );
            return Err(Failure::usage(message, Some("leave it out")));
        }
        let batches = batches.unwrap_or_else(|| vec![engines.batch]);
        let num = self.num.map(|n| n as usize);
        if let (Some(num), Some(most)) = (num, batches.iter().max())
            && num < *most
        {
            let message = format!("a round of {num} images has no {most} that are decoded together");
            return Err(Failure::usage(message, Some("give a larger --num, or a smaller batch")));
        }
        let ending = |path: &Utf8Path, ending: &str| match path.extension() {
            Some(found) if found == ending => Ok(()),
            _ => Err(Failure::usage(format!("{path} does not end in .{ending}"), None)),
        };
        // Of a case alone, the process that asked for it holds the names and compares.
        let (output, report, compare) = match self.one {
            Some(_) => (&self.one_to, &None, &None),
            None => (&self.output.output, &self.report, &self.compare),
        };
        let earlier = compare.as_deref().map(read).transpose()?;
        let take = |path: &Option<Utf8PathBuf>, wanted, replace| {
            let Some(path) = path else { return Ok::<_, Failure>(None) };
            ending(path, wanted)?;
            Ok(Some(StagedFile::create(path, replace)?))
        };
        let json = take(output, "json", self.output.replace.force)?;
        let html = take(report, "html", true)?;
        Ok(Plan {
            batches,
            schedules: schedules.unwrap_or_else(|| vec![self.schedule.schedule]),
            thresholds: thresholds.map_or_else(|| vec![None], |t| t.into_iter().map(Some).collect()),
            case: Case {
                batch: engines.batch,
                schedule: self.schedule.schedule,
                images: engines.batch,
                cfg_scale: self.draw.cfg_scale,
                seed: self.draw.seed,
                warmup: usize::from(self.warmup),
                rounds: usize::from(self.rounds),
            },
            bundles: self.bundles,
            engines,
            num,
            one: self.one,
            earlier,
            json,
            html,
        })
    }
}

fn read(path: &Utf8Path) -> Result<BenchReport, Failure> {
    let text = dpar_export_inputs::read_to_string(path, limits::TEXT)?;
    BenchReport::parse(&text).map_err(|e| {
        let error = anyhow::Error::msg(format!("{path}: {e}"));
        Failure { error, ..Failure::from(e) }
    })
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let mut wanted = Vec::new();
    for bundle in &plan.bundles {
        for name in &plan.engines.names {
            for batch in &plan.batches {
                for threshold in &plan.thresholds {
                    let case = |schedule: &Schedule| Wanted {
                        bundle,
                        engine: name,
                        batch: *batch,
                        threshold: *threshold,
                        schedule: *schedule,
                    };
                    wanted.extend(plan.schedules.iter().map(case));
                }
            }
        }
    }
    if let Some(wanted) = plan.one.and_then(|one| wanted.get(one)) {
        let case = here(wanted, &plan, printer)?;
        if let Some(file) = plan.json {
            file.write(&serde_json::to_vec(&case).map_err(std::io::Error::from)?)?;
            file.commit()?;
        }
        return Ok(Exit::Pass);
    }
    let threads = plan
        .engines
        .threads()
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let machine = Machine::here(threads)?;
    // Each in a process of its own: what one leaves in memory and caches is no cost of the next.
    let bar = printer.progress("measuring", "cases");
    let mut cases = Vec::with_capacity(wanted.len());
    for one in 0..wanted.len() {
        bar.advance(one, wanted.len());
        match apart(one)? {
            Ok(case) => cases.push(case),
            Err(exit) => return Ok(exit),
        }
    }
    drop(bar);
    let report = BenchReport::new(machine, cases);
    let comparison = plan.earlier.as_ref().map(|earlier| compare(earlier, &report)).transpose()?;
    if let Some(file) = plan.json {
        file.write(&serde_json::to_vec_pretty(&report).map_err(std::io::Error::from)?)?;
        file.commit()?;
    }
    if let Some(file) = plan.html {
        file.write(page(&report).as_bytes())?;
        file.commit()?;
    }
    let value = serde_json::json!({ "report": report, "comparison": comparison });
    printer.document(|| render(&report, comparison.as_ref()), value)?;
    Ok(comparison.map_or(Exit::Pass, |c| c.verdict.into()))
}

/// A case among all.
struct Wanted<'a> {
    bundle: &'a Utf8Path,
    engine: &'a str,
    batch: usize,
    threshold: Option<f32>,
    schedule: Schedule,
}

/// Measures a case in this process.
fn here(wanted: &Wanted<'_>, plan: &Plan, printer: Printer) -> Result<Measurement, Failure> {
    let &Wanted { bundle, engine, batch, threshold, schedule } = wanted;
    let opened = Bundle::open(bundle)?.with_rule(&RuleChange { threshold, ..RuleChange::default() })?;
    let case = Case { batch, schedule, images: plan.num.unwrap_or(batch), ..plan.case.clone() };
    let bar = printer.progress("measuring", "steps");
    let total = (case.warmup + case.rounds) * opened.system().tokens() * case.images.div_ceil(case.batch);
    let mut done = 0;
    let measured = measure(&opened, plan.engines.create(engine)?, &case, &mut |phase| {
        done += usize::from(phase != Phase::Opening);
        bar.advance(done, total)
    });
    if measured.is_err() {
        // A file that was swapped may be why.
        opened.unchanged()?;
    }
    Ok(measured?)
}

/// Measures a case in a process of its own, which says on stderr what goes wrong.
fn apart(one: usize) -> Result<Result<Measurement, Exit>, Failure> {
    let folder = tempfile::tempdir()?;
    let Some(place) = Utf8Path::from_path(folder.path()) else {
        return Err(Failure::usage("the folder for temporary files has a name that is not UTF-8", None));
    };
    let file = place.join("case.json");
    let Some(CommandLine { program, args }) = COMMAND_LINE.get() else {
        return Err(Failure::usage("nobody said how this program is started", None));
    };
    // Behind `--` everything is a bundle.
    let mut args: Vec<OsString> = args.clone();
    let end = args.iter().position(|a| a == "--").unwrap_or(args.len());
    let own = ["--one".into(), one.to_string().into(), "--one-to".into(), file.as_str().into()];
    args.splice(end..end, own);
    let mut words = program.iter().cloned().chain(args);
    let mut child =
        Command::new(words.next().ok_or(std::io::ErrorKind::NotFound).map_err(std::io::Error::from)?)
            .args(words)
            .stdout(Stdio::null())
            .spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stopped() {
            child.kill()?;
            child.wait()?;
            return Err(RunError::Interrupted.into());
        }
        std::thread::sleep(POLL);
    };
    let ends = [Exit::Usage, Exit::Unavailable, Exit::Integrity, Exit::Interrupted];
    match status.code() {
        Some(0) => {
            let text = dpar_export_inputs::read_to_string(&file, limits::TEXT)?;
            Ok(Ok(serde_json::from_str(&text).map_err(std::io::Error::from)?))
        }
        Some(code) => Ok(Err(ends.into_iter().find(|e| *e as i32 == code).unwrap_or(Exit::Usage))),
        None => Err(Failure::usage(
            format!("the process that measured a case was ended: {status}"),
            Some("its memory may not have sufficed: take a smaller --batch"),
        )),
    }
}

fn render(report: &BenchReport, comparison: Option<&Comparison>) -> Text {
    let mut text = Text::default();
    let machine = &report.machine;
    text.line(format!(
        "{}, {} cores; {} threads read {:.1} GB/s{}",
        machine.cpu.as_deref().unwrap_or("a processor without a name"),
        machine.cores,
        machine.threads,
        machine.read_bytes_per_second / 1e9,
        machine.read_streams.map(|n| format!(" from {n} places in turns")).unwrap_or_default()
    ));
    text.gap();
    let header = [
        "system",
        "precision",
        "engine",
        "batch",
        "schedule",
        "threshold",
        "images/s",
        "first token ms",
        "step ms p50",
        "p90",
        "p99",
        "bandwidth",
        "anonymous MB",
        "mapped MB",
        "steps",
    ];
    let megabytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |b| format!("{:.0}", b as f64 / 1e6));
    let row = |c: &Measurement| {
        vec![
            c.system.clone(),
            c.precision.clone(),
            c.engine.clone(),
            c.batch.to_string(),
            c.schedule.as_str().to_owned(),
            c.threshold.map_or("-".to_owned(), |nats| nats.to_string()),
            format!("{:.3}", c.images_per_second),
            format!("{:.2}", c.first_token_ms()),
            format!("{:.2}", c.step_ms.p50),
            format!("{:.2}", c.step_ms.p90),
            format!("{:.2}", c.step_ms.p99),
            format!("{:.0} %", report.bandwidth_percent(c)),
            megabytes(c.memory.map(|m| m.anonymous)),
            megabytes(c.memory.map(|m| m.mapped)),
            format!("{:.1}", c.mean_steps),
        ]
    };
    text += table(&header, &report.cases.iter().map(row).collect::<Vec<_>>());
    for case in &report.cases {
        text.gap();
        text.line(case.name());
        let mut rows: Vec<Vec<String>> = case
            .graphs
            .iter()
            .map(|(name, g)| {
                let calls = g.cost.calls.max(1) as f64;
                vec![
                    name.clone(),
                    g.caches.map_or("-", CacheForm::as_str).to_owned(),
                    format!("{:.1} %", g.percent),
                    format!("{}", g.cost.calls),
                    format!("{:.1}", g.cost.rows as f64 / calls),
                    format!("{:.3}", 1e3 * g.cost.seconds / calls),
                    format!("{:.1}", g.weight_bytes as f64 * calls / g.cost.seconds / 1e9),
                ]
            })
            .collect();
        rows.push(vec!["the loop".to_owned(), "-".to_owned(), format!("{:.1} %", case.loop_percent)]);
        text +=
            table(&["graph", "caches", "share", "calls", "rows a call", "ms a call", "weights GB/s"], &rows);
    }
    if let Some(comparison) = comparison {
        text.gap();
        text.line(format!("{} against the earlier report", word(comparison.verdict)));
        let row = |c: &Change| {
            vec![
                c.case.clone(),
                c.graph.clone().unwrap_or_else(|| "whole".to_owned()),
                format!("{:.3}", 1e3 * c.earlier),
                format!("{:.3}", 1e3 * c.now),
                format!("{:.2}", c.ratio),
                if c.counts { word(c.verdict).to_owned() } else { "(too small to count)".to_owned() },
            ]
        };
        let rows: Vec<Vec<String>> = comparison.changes.iter().map(row).collect();
        text += table(&["case", "part", "ms a round before", "now", "ratio", "verdict"], &rows);
        for case in &comparison.alone {
            text.line(format!("in one of the two reports only: {case}"));
        }
    }
    text
}
