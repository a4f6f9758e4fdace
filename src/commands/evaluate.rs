//! `evaluate`: from images, or from a bundle that draws them, to `metrics.json`; resumable, in shards.

mod args;
mod emit;
mod parts;

use camino::Utf8Path;
use dpar_export_metrics::{Compute, Variant};
use serde_json::json;

use super::args::{ExtractorPlan, OnEngine};
use super::failure::{Exit, Failure};
use super::metrics::{compute, text};
use super::paths::apart;
use super::printer::{Phases, Printer, Text, fixed, signed};
use super::{COMMAND_LINE, CommandLine};
use crate::cluster::ClusterJob;
use crate::evaluate::images::{ImageSet, Reading};
use crate::evaluate::job::{
    DecidedComparison, Drawn, Evaluation, FrechetComparison, Job, JobOptions, JobOutcome, SamplePart,
    SampleSource, StoredPart, samples_of,
};
use crate::features::ExtractorOptions;
use crate::generate::{Batching, DecodeOptions};
pub(crate) use args::EvaluateArgs;
use emit::Cluster;
use parts::Handout;

/// What to do.
pub(super) enum Plan {
    /// To evaluate.
    Run(Box<RunPlan>),
    /// To print the job of a cluster.
    Emit(Cluster, ClusterJob),
}

/// Samples, the network that looks at them, and the job.
pub(super) struct RunPlan {
    samples: SamplesPlan,
    extractor: ExtractorPlan,
    compute: Compute,
    options: JobOptions,
    who: Who,
}

/// Who evaluates which of the samples.
enum Who {
    /// This process, what the options of the job say.
    Here,
    /// This process, those of so many parts that it is told.
    Pull(u16),
    /// Others.
    Others(Handout),
}

/// Where the samples come from.
enum SamplesPlan {
    /// Images that are there.
    Images(ImageSet),
    /// A bundle draws so many.
    Drawn { on: OnEngine, num: u64, decode: DecodeOptions, batching: Batching, side: Option<usize> },
}

impl EvaluateArgs {
    /// Finds the samples, chooses the engines, starts the threads.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        if let Some(cluster) = self.emit {
            let Some(CommandLine { args, .. }) = COMMAND_LINE.get() else {
                let message =
                    "--emit prints this command line, and there is none: the command was called by a program";
                return Err(Failure::usage(message, Some("run it as a command line")));
            };
            return Ok(Plan::Emit(cluster, emit::job(args.iter().cloned(), &self.output, self.shards)?));
        }
        let folders = [self.samples.as_ref(), Some(&self.reference)];
        if self.reading() != Reading::default() && !folders.into_iter().flatten().any(|p| p.is_dir()) {
            let message = "--convert and --recursive are for folders of images, and none is given";
            return Err(Failure::usage(message, Some("leave them out")));
        }
        if let Some(samples) = self.compare.as_deref().map(samples_of) {
            apart(&self.output, &[("the other evaluation", samples.as_path())])?;
        }
        let own = self.extractor_engine.extractor_engine.as_deref();
        let extractor_engine = own.unwrap_or(self.engine.name());
        let samples = match (&self.bundle, &self.samples) {
            (Some(bundle), _) => {
                let on = self.engine.on_beside(bundle, &[extractor_engine])?.with_rule(self.rule);
                let batching = Batching { rows: on.batch, schedule: self.schedule.schedule };
                let (num, side) = (self.num.unwrap_or_default(), self.resize.side());
                SamplesPlan::Drawn { on, num, decode: self.sampling.resolve()?, batching, side }
            }
            (None, Some(path)) => {
                if self.engine.engine.is_some() && self.engine.name() != extractor_engine {
                    let message = "--engine runs a bundle, and none is given";
                    return Err(Failure::usage(message, Some("leave it out, or --extractor-engine")));
                }
                let limit = self.limit.and_then(|n| usize::try_from(n).ok());
                SamplesPlan::Images(ImageSet::open(path, Reading { limit, ..self.reading() })?)
            }
            (None, None) => return Err(Failure::usage("no --samples and no --bundle", None)),
        };
        let extractor = ExtractorOptions {
            // A bundle says how its images are prepared; a plain file leaves it to the variant.
            resize: self.protocol.variant().filter(|_| self.extractor.is_file()).map(Variant::resize),
            input_size: self.input_size,
            ..ExtractorOptions::default()
        };
        let beside = self.bundle.is_some();
        let who = match (self.pull, self.on.clone()) {
            (Some(count), _) => Who::Pull(count),
            (None, None) => Who::Here,
            (None, Some(on)) => {
                let named = json!({
                    "bundle": self.bundle, "extractor": self.extractor, "threads": self.engine.settings.threads.given(),
                    "workers": self.workers, "resources": self.resource,
                });
                Who::Others(Handout { on, named })
            }
        };
        Ok(Plan::Run(Box::new(RunPlan {
            samples,
            who,
            compute: compute(self.engine.settings.threads)?,
            extractor: ExtractorPlan::new(
                &self.extractor,
                extractor_engine,
                &self.engine,
                beside,
                extractor,
            )?,
            options: JobOptions {
                reading: self.reading(),
                resume: self.resume,
                part: match self.shard {
                    Some(shard) => SamplePart::Shard(shard),
                    None if self.merge.is_empty() => SamplePart::Whole,
                    None => SamplePart::Merge(self.merge),
                },
                chunk: usize::from(self.chunk),
                variant: self.protocol.variant(),
                pr_mode: self.protocol.pr_mode(),
                kid: self.protocol.kid(self.metric_seed),
                reference: self.reference,
                output: self.output,
                compare: self.compare,
                until: self.until.map(|_| usize::from(self.looks)),
                resamples: self.resample_distances.map(|n| n as usize),
            },
        })))
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let RunPlan { samples, extractor, compute, options, who } = match plan {
        Plan::Run(plan) => *plan,
        Plan::Emit(..) if printer.json => {
            return Err(Failure::usage("--emit prints a job, and no document", Some("leave out --json")));
        }
        Plan::Emit(cluster, job) => {
            let (text, next) = emit::text(&job, cluster);
            printer.raw(text.as_bytes())?;
            tracing::warn!("{next}");
            return Ok(Exit::Pass);
        }
    };
    if let Who::Others(_) = who {
        Handout::driver(printer)?;
    }
    let evaluate = |source: &SampleSource<'_>| {
        let output = options.output.clone();
        let job = Job::new(extractor.open()?, compute, options)?;
        match who {
            Who::Here => evaluate(job, source, &output, printer),
            Who::Pull(count) => parts::pull(job, source, count, &output, printer),
            Who::Others(handout) => handout.tell(&job, source, &output, printer),
        }
    };
    match samples {
        SamplesPlan::Images(set) => evaluate(&SampleSource::Images(set)),
        SamplesPlan::Drawn { on, num, decode, batching, side } => on.run(|runtime| {
            let drawn = Drawn::new(runtime, num, decode, batching)?.resized(side);
            evaluate(&SampleSource::Drawn(drawn))
        }),
    }
}

fn evaluate(
    job: Job,
    source: &SampleSource<'_>,
    output: &Utf8Path,
    printer: Printer,
) -> Result<Exit, Failure> {
    let mut phases = Phases::new(printer);
    let done = job.run(source, &mut |phase, done, total| phases.show(phase, done, total));
    drop(phases);
    match done
        .map_err(|e| Failure::from(e).when_interrupted("go on with the same command line and --resume"))?
    {
        JobOutcome::Shard(StoredPart { shard, images, of, .. }) => {
            let count = shard.count();
            let text = || format!("{output}: {images} of {of} images; merge all {count} shards with --merge");
            let value = json!({ "output": output, "images": images, "of": of, "shard": shard.index(), "shards": count });
            printer.document(text, value)?;
            Ok(Exit::Pass)
        }
        JobOutcome::Whole(evaluation) => tell(&evaluation, printer),
        JobOutcome::Decided(decided) => tell_decided(&decided, printer),
    }
}

/// A comparison that was decided before all images were there.
fn tell_decided(decided: &DecidedComparison, printer: Printer) -> Result<Exit, Failure> {
    let DecidedComparison { comparison, path, images, of } = decided;
    let mut value = json!({ "images": images, "of": of });
    value["comparison"] = serde_json::to_value(comparison).map_err(std::io::Error::from)?;
    let words = || {
        let mut out = Text::default();
        compared(comparison, &mut out);
        out.line(format_args!("{path}: decided after {images} of {of} images"));
        out
    };
    printer.document(words, value)?;
    Ok(comparison.verdict.into())
}

/// A comparison, its looks first.
fn compared(c: &FrechetComparison, out: &mut Text) {
    for look in c.sequential.iter().flat_map(|s| &s.looks) {
        let critical = look.critical.map_or_else(|| "none".to_owned(), |c| fixed(c, 3));
        out.line(format_args!(
            "after {} images: difference {}, standard error {}, critical value {critical}: {}",
            look.images,
            signed(look.difference, 4),
            fixed(look.standard_error, 4),
            look.verdict
        ));
    }
    let interval = if c.sequential.is_some() { "interval of all looks" } else { "90 % interval" };
    out.line(format_args!(
        "difference {} ({} here, {} there), {interval} {} to {}, margin {:.4}: {}",
        signed(c.difference, 4),
        fixed(c.here, 4),
        fixed(c.there, 4),
        signed(c.interval_90[0], 4),
        signed(c.interval_90[1], 4),
        c.margin,
        c.verdict
    ));
    if let Some(r) = &c.resampled {
        out.line(format_args!(
            "distances computed again for {} resamples: standard error {}, 90 % interval {} to {}",
            r.bootstrap.resamples,
            fixed(r.standard_error, 4),
            signed(r.interval_90[0], 4),
            signed(r.interval_90[1], 4)
        ));
    }
}

fn tell(evaluation: &Evaluation, printer: Printer) -> Result<Exit, Failure> {
    let Evaluation { file, path, comparison } = evaluation;
    let mut value = serde_json::to_value(file).map_err(std::io::Error::from)?;
    if let Some(comparison) = comparison {
        value["comparison"] = serde_json::to_value(comparison).map_err(std::io::Error::from)?;
    }
    let words = || {
        let mut out = text(&file.report, &file.protocol.network, &file.protocol.settings);
        if let Some(c) = comparison {
            compared(c, &mut out);
        }
        if let Some(steps) = file.samples.mean_steps {
            out.line(format_args!("{steps:.4} steps of the large transformer an image"));
        }
        out.line(format_args!("{path}: {} images", file.protocol.images));
        out
    };
    printer.document(words, value)?;
    Ok(comparison.as_ref().map_or(Exit::Pass, |c| c.verdict.into()))
}
