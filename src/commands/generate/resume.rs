//! `generate --resume`: images go into the output folder as they are done, and a run goes on where an earlier one ended.

use std::time::Instant;

use camino::Utf8Path;
use serde_json::json;

use super::{GenerateJob, GenerateOutcome, Which, row, with_rule};
use crate::commands::failure::Failure;
use crate::commands::pixels::SAMPLE_FOLDER;
use crate::commands::printer::Bar;
use crate::generate::{Batching, DecodeError, GraphCalls, Stream};
use crate::loaded::RunError;
use crate::picture::to_u8_resized;
use crate::samples::{ResumableSamples, SampleRun};
use crate::tokenizer::VqDecoder;

/// Batches that are saved together where the rows of a batch are filled again: at the end of each chunk they run empty.
const REFILLED: usize = 16;

pub(super) fn run(
    job: &GenerateJob<'_>,
    output: &Utf8Path,
    bar: &Bar<'_>,
) -> Result<GenerateOutcome, Failure> {
    let bundle = job.runtime.bundle();
    // Before a folder is begun that the right command line could not go on with.
    job.runtime.check_requests(&job.requests).map_err(RunError::from)?;
    if job.options.cfg_scale > 1.0 && bundle.system().null_class().is_none() {
        return Err(RunError::from(DecodeError::NoNullClass).into());
    }
    let chunk = match job.batching.schedule.refills() {
        // Whole batches: what they hold is what they would without an end in between.
        false => job.batching.rows,
        true => REFILLED * job.batching.rows,
    };
    let run = SampleRun {
        record: record(job)?,
        images: job.requests.len(),
        tokens: bundle.system().tokens(),
        chunk,
        size: job.images.then(|| job.size()),
    };
    let mut folder = ResumableSamples::open(output, run, &SAMPLE_FOLDER)?;
    if folder.is_whole() {
        let steps = folder.steps()?;
        return Ok(GenerateOutcome { steps, seconds: 0.0, written: 0.0, calls: Vec::new() });
    }
    let drawn = draw(job, chunk, &mut folder, bar);
    let hint = "go on with the same command line";
    let (seconds, written, calls) = drawn.map_err(|e| e.when_interrupted(hint))?;
    let all = with_rule(bundle.system(), |rule| folder.gather(rule, job.shown()))?;
    if job.images {
        job.draw_sheet(&all.pixels, all.patches, &folder.grid())?;
    }
    folder.commit()?;
    Ok(GenerateOutcome { steps: all.steps, seconds, written, calls })
}

/// Draws the images that are not done, chunk by chunk; the seconds of decoding, those of pixels and files, and the calls.
fn draw(
    job: &GenerateJob<'_>,
    chunk: usize,
    folder: &mut ResumableSamples,
    bar: &Bar<'_>,
) -> Result<(f64, f64, Vec<GraphCalls>), Failure> {
    let (runtime, n) = (job.runtime, job.requests.len());
    let tokens = runtime.bundle().system().tokens();
    let batching = Batching { rows: job.batching.rows.min(n).max(1), ..job.batching };
    let mut decoder = runtime.decoder(batching, job.options.cfg_scale > 1.0)?;
    let mut vq = job.images.then(|| runtime.vq_decoder()).transpose()?;
    let (mut seconds, mut written) = (0.0, 0.0);
    for requests in job.requests[folder.done()..].chunks(chunk) {
        let (started, before) = (Instant::now(), folder.done() * tokens);
        let streams = decoder
            .run(requests, &job.options, &mut |drawn| bar.advance(before + drawn, n * tokens))
            .map_err(RunError::from)?;
        seconds += started.elapsed().as_secs_f64();
        let complete = Instant::now();
        if let Some(vq) = &mut vq {
            streams.chunks(job.batching.rows).try_for_each(|batch| pictures(job, vq, batch, folder))?;
        }
        // Before it counts, and its images are seen.
        runtime.bundle().unchanged()?;
        folder.save(&streams.iter().map(row).collect::<Vec<_>>())?;
        written += complete.elapsed().as_secs_f64();
    }
    Ok((seconds, written, decoder.calls()))
}

/// The images of a batch.
fn pictures(
    job: &GenerateJob<'_>,
    vq: &mut VqDecoder,
    streams: &[Stream],
    folder: &mut ResumableSamples,
) -> Result<(), Failure> {
    let size = job.size();
    let images = vq.decode(&Stream::ids(streams))?;
    let pixels = to_u8_resized(&images, streams.len(), job.runtime.bundle().system().image_size, size);
    Ok(pixels.chunks(3 * size * size).try_for_each(|pixels| folder.push_image(pixels))?)
}

/// All that decides what a run makes.
fn record(job: &GenerateJob<'_>) -> Result<String, Failure> {
    let (runtime, options, sampler) = (job.runtime, &job.options, &job.options.sampler);
    let info = runtime.info();
    let engine = json!({
        "engine": info.engine, "version": info.version, "device": info.device, "provider": info.provider,
        "threads": info.threads, "caches": info.caches,
    });
    let classes = match &job.which {
        Which::Number(_) => None,
        Which::Classes(classes) => Some(classes),
    };
    let record = json!({
        "tool": env!("CARGO_PKG_VERSION"), "bundle": runtime.bundle().manifest_sha256(), "engine": engine,
        "images": job.requests.len(), "classes": classes,
        "seed": options.seed, "cfg_scale": options.cfg_scale, "cfg_interval": options.cfg_interval,
        "sampler": sampler.method, "greedy": sampler.greedy, "temperature": sampler.temperature,
        "top_k": sampler.top_k, "top_p": sampler.top_p, "patch_rule": runtime.bundle().patch_rule(),
        "batch": job.batching.rows, "schedule": job.batching.schedule, "side": job.images.then(|| job.size()),
        "overlay": job.sheet.overlay, "class_names": job.sheet.names,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&record).map_err(std::io::Error::from)?))
}
