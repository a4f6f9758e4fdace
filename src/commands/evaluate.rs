//! `evaluate`: from images, or from a bundle that draws them, to `metrics.json`; resumable, in shards.

mod args;

use dpar_export_metrics::Variant;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::metrics::{compute, text};
use super::paths::apart;
use super::printer::{Phases, Printer, fixed, signed};
use super::{engine_options, with_runtime};
use crate::engines;
use crate::evaluate::images::{ImageSet, Reading};
use crate::evaluate::job::{Drawn, Evaluation, Job, JobOptions, Outcome, Part, Source, samples_of};
use crate::features::{ExtractorOptions, FeatureExtractor};
use crate::generate::DecodeOptions;
use crate::generate::sampler::SamplerOptions;
pub(crate) use args::EvaluateArgs;

pub(super) fn run(args: &EvaluateArgs, printer: Printer) -> Result<Exit, Failure> {
    let draw = &args.draw;
    let folders = [args.samples.as_ref(), Some(&args.reference)];
    if reading(args) != Reading::default() && !folders.into_iter().flatten().any(|p| p.is_dir()) {
        let message = "--convert and --recursive are for folders of images, and none is given";
        return Err(Failure::usage(message, Some("leave them out")));
    }
    if let Some(samples) = args.compare.as_deref().map(samples_of) {
        apart(&args.output, &[("the other evaluation", samples.as_path())])?;
    }
    let Some(path) = &draw.bundle else {
        let path =
            args.samples.as_ref().ok_or_else(|| Failure::usage("no --samples and no --bundle", None))?;
        let limit = args.limit.and_then(|n| usize::try_from(n).ok());
        let set = ImageSet::open(path, Reading { limit, ..reading(args) })?;
        return evaluate(args, &Source::Images(set), printer);
    };
    let sampler = SamplerOptions {
        method: draw.sampler.into(),
        temperature: draw.temperature,
        top_k: draw.top_k,
        top_p: draw.top_p,
        greedy: draw.greedy,
    };
    sampler.validate().map_err(|e| Failure::usage(e.to_string(), None))?;
    let options = DecodeOptions {
        cfg_scale: draw.cfg_scale,
        cfg_interval: draw.cfg_interval.flatten(),
        sampler,
        seed: draw.seed,
    };
    with_runtime(path, &args.engine, |runtime| {
        let drawn =
            Drawn::new(runtime, draw.num.unwrap_or_default(), options, usize::from(args.engine.batch))?;
        evaluate(args, &Source::Drawn(drawn), printer)
    })
}

fn evaluate(args: &EvaluateArgs, source: &Source<'_>, printer: Printer) -> Result<Exit, Failure> {
    let compute = compute(args.engine.threads)?;
    let engine = engines::create(&args.engine.engine, &engine_options(&args.engine))?;
    let options = ExtractorOptions {
        // A bundle says how its images are prepared; a plain file leaves it to the variant.
        resize: args.protocol.variant().filter(|_| args.extractor.is_file()).map(Variant::resize),
        batch: usize::from(args.engine.batch),
        threads: compute.threads(),
        input_size: args.input_size,
    };
    let extractor = FeatureExtractor::open(&args.extractor, engine, &options)?;
    let job = Job::new(extractor, compute, job_options(args))?;
    let mut phases = Phases::new(printer);
    let done = job.run(source, &mut |phase, done, total| phases.show(phase, done, total));
    drop(phases);
    match done
        .map_err(|e| Failure::from(e).when_interrupted("go on with the same command line and --resume"))?
    {
        Outcome::Shard { shard, images, of } => {
            let (output, count) = (&args.output, shard.count());
            let text = || format!("{output}: {images} of {of} images; merge all {count} shards with --merge");
            let value = json!({ "output": output, "images": images, "of": of, "shard": shard.index(), "shards": count });
            printer.result(text, &value)?;
            Ok(Exit::Pass)
        }
        Outcome::Whole(evaluation) => tell(&evaluation, printer),
    }
}

/// How folders are read.
fn reading(args: &EvaluateArgs) -> Reading {
    Reading { limit: None, convert: args.convert.is_some(), recursive: args.recursive }
}

fn job_options(args: &EvaluateArgs) -> JobOptions {
    JobOptions {
        reference: args.reference.clone(),
        reading: reading(args),
        output: args.output.clone(),
        resume: args.resume,
        part: match args.shard {
            Some(shard) => Part::Shard(shard),
            None if args.merge.is_empty() => Part::Whole,
            None => Part::Merge(args.merge.clone()),
        },
        compare: args.compare.clone(),
        chunk: usize::from(args.chunk),
        variant: args.protocol.variant(),
        pr_mode: args.protocol.pr_mode(),
        kid: args.protocol.kid(args.metric_seed),
    }
}

fn tell(evaluation: &Evaluation, printer: Printer) -> Result<Exit, Failure> {
    let Evaluation { file, path, comparison } = evaluation;
    let mut value = serde_json::to_value(file)?;
    if let Some(comparison) = comparison {
        value["comparison"] = serde_json::to_value(comparison)?;
    }
    let words = || {
        let mut out = text(&file.report, &file.protocol.network, &file.protocol.settings);
        if let Some(c) = comparison {
            out.line(format_args!(
                "difference {} ({} here, {} there), 90 % interval {} to {}, margin {:.4}: {}",
                signed(c.difference, 4),
                fixed(c.here, 4),
                fixed(c.there, 4),
                signed(c.interval_90[0], 4),
                signed(c.interval_90[1], 4),
                c.margin,
                c.verdict
            ));
        }
        if let Some(steps) = file.samples.mean_steps {
            out.line(format_args!("{steps:.4} steps of the large transformer an image"));
        }
        out.line(format_args!("{path}: {} images", file.protocol.images));
        out
    };
    printer.result(words, &value)?;
    Ok(comparison.as_ref().map_or(Exit::Pass, |c| c.verdict.into()))
}
