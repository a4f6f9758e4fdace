//! `generate`: images, token streams and their trace.

mod resume;

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use dpar_export_inputs::limits;
use dpar_export_spec::{GraphName, SystemSpec};
use serde::Deserialize;
use serde_json::json;

use super::args::{
    BundleArgs, EngineArgs, MAX_IMAGES, OnEngine, OutputArgs, ResizeArgs, RuleArgs, SamplingArgs,
    ScheduleArgs,
};
use super::failure::{Exit, Failure};
use super::pixels::{SamplePictures, sample_folder};
use super::printer::{Bar, Printer};
use crate::arrays::ArrayRef;
use crate::generate::{Batching, DecodeOptions, GraphCalls, Request, Schedule, Stream};
use crate::loaded::LoadedBundle;
use crate::picture::{GridOptions, grid};
use crate::samples::{GRID, TraceFile, TraceRow};

/// Images on `grid.png`.
const GRID_IMAGES: usize = 64;
/// `grid.png` enlarges images to about this many pixels.
const GRID_PIXELS: usize = 128;

#[derive(Debug, Args)]
#[command(mut_arg("resize", |a| a.conflicts_with("no_images")))]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Class labels, one image each
    #[arg(
        long,
        value_name = "C,..",
        allow_negative_numbers = true,
        value_delimiter = ',',
        conflicts_with = "num",
        required_unless_present = "num"
    )]
    classes: Vec<i64>,
    /// Number of images; their classes follow from the seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_IMAGES))]
    num: Option<u64>,
    /// Tokens and trace only
    #[arg(long)]
    no_images: bool,
    /// Draw patch boundaries over the images of grid.png
    #[arg(long, conflicts_with = "no_images")]
    overlay: bool,
    /// Labels of grid.png: a JSON list of class names, or an object with the list under "classes"
    #[arg(long, value_name = "FILE", conflicts_with = "no_images")]
    class_names: Option<Utf8PathBuf>,
    #[command(flatten)]
    resize: ResizeArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Put images into the output folder as they are done, and go on where an earlier run of this command line ended
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    schedule: ScheduleArgs,
}

/// What to draw, how, and what of it to show.
pub(super) struct Plan {
    which: Which,
    options: DecodeOptions,
    images: bool,
    side: Option<usize>,
    sheet: SheetPlan,
    output: OutputArgs,
    resume: bool,
    on: OnEngine,
    schedule: Schedule,
}

/// How `grid.png` is drawn.
struct SheetPlan {
    overlay: bool,
    names: Option<Vec<String>>,
}

/// The images asked for.
enum Which {
    /// So many; their classes follow from the seed.
    Number(u64),
    /// One of each class.
    Classes(Vec<i64>),
}

impl GenerateArgs {
    /// Checks how to draw, reads the names, chooses the engine.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let names = self.class_names.as_deref().map(class_names).transpose()?;
        Ok(Plan {
            options: self.sampling.resolve()?,
            on: self.engine.on(&self.bundle.bundle)?.with_rule(self.rule),
            which: self.num.map_or(Which::Classes(self.classes), Which::Number),
            images: !self.no_images,
            side: self.resize.side(),
            sheet: SheetPlan { overlay: self.overlay, names },
            output: self.output,
            resume: self.resume,
            schedule: self.schedule.schedule,
        })
    }
}

/// A plan and the bundle that it is for.
struct GenerateJob<'a> {
    runtime: &'a LoadedBundle<'a>,
    which: Which,
    requests: Vec<Request>,
    options: DecodeOptions,
    batching: Batching,
    images: bool,
    /// Of images that are resized.
    side: Option<usize>,
    sheet: SheetPlan,
}

/// What a run came to.
struct GenerateOutcome {
    /// Patches of every image.
    steps: Vec<usize>,
    /// Of decoding alone.
    seconds: f64,
    /// Of pixels and files beside it.
    written: f64,
    calls: Vec<GraphCalls>,
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { which, options, images, side, sheet, output, resume, on, schedule } = plan;
    let batching = Batching { rows: on.batch, schedule };
    on.run(|runtime| {
        let system = runtime.bundle().system();
        if images {
            // Asked first: decoding thousands of images to find no tokenizer would waste hours.
            runtime.bundle().with_graph_ahead(GraphName::VqDecode.as_str(), &[], |_| Ok::<_, Failure>(()))?;
        }
        if let Some(names) = sheet.names.as_ref().filter(|n| n.len() < system.num_classes) {
            let message = format!("{} class names for {} classes", names.len(), system.num_classes);
            return Err(Failure::usage(message, None));
        }
        let requests = which.requests(options.seed, system.num_classes);
        let job = GenerateJob { runtime, which, requests, options, batching, images, side, sheet };
        let bar = printer.progress("generating", "tokens");
        let outcome = match resume {
            true => resume::run(&job, &output.output, &bar)?,
            false => job.at_once(&output, &bar)?,
        };
        drop(bar);
        job.report(&output.output, &outcome, printer)?;
        Ok(Exit::Pass)
    })
}

impl GenerateJob<'_> {
    /// Side of the images that are written, in pixels.
    fn size(&self) -> usize {
        self.side.unwrap_or(self.runtime.bundle().system().image_size)
    }

    /// Images on `grid.png`.
    fn shown(&self) -> usize {
        self.requests.len().min(GRID_IMAGES)
    }

    /// Makes a folder that appears when it is complete.
    fn at_once(&self, output: &OutputArgs, bar: &Bar<'_>) -> Result<GenerateOutcome, Failure> {
        let (runtime, n, shown) = (self.runtime, self.requests.len(), self.shown());
        let system = runtime.bundle().system();
        let staged = sample_folder(output)?;
        let (started, mut written) = (Instant::now(), Duration::ZERO);
        let mut trace = TraceFile::create(staged.path(), n, system.tokens())?;
        let mut pictures = match self.images {
            true => {
                Some(SamplePictures::new(runtime, staged.path(), n, self.side, self.batching.rows, shown)?)
            }
            false => None,
        };
        let (mut steps, mut patches): (Vec<usize>, Vec<Vec<usize>>) = (Vec::with_capacity(n), Vec::new());
        let calls = runtime.decode_each(
            &self.requests,
            &self.options,
            self.batching,
            &mut |done, total| bar.advance(done, total),
            &mut |stream| {
                let complete = Instant::now();
                trace.push(row(&stream))?;
                steps.push(stream.steps());
                if let Some(pictures) = &mut pictures {
                    pictures.push(stream.tokens.iter().map(|t| i64::from(*t)))?;
                }
                if patches.len() < shown {
                    patches.push(stream.patch_lengths);
                }
                written += complete.elapsed();
                Ok::<_, Failure>(())
            },
        )?;
        let (seconds, written) = ((started.elapsed() - written).as_secs_f64(), written.as_secs_f64());
        with_rule(system, |rule| trace.finish(rule))?;
        if let Some(pictures) = pictures {
            self.draw_sheet(&pictures.finish()?, patches, &staged.path().join(GRID))?;
        }
        staged.commit()?;
        Ok(GenerateOutcome { steps, seconds, written, calls })
    }

    /// Draws the first images, u8 `[n, H, W, 3]`, as a contact sheet.
    fn draw_sheet(&self, pixels: &[u8], patches: Vec<Vec<usize>>, path: &Utf8Path) -> Result<(), Failure> {
        let (system, shown) = (self.runtime.bundle().system(), self.shown());
        let size = self.size();
        let names = self.sheet.names.as_deref();
        let sheet = GridOptions {
            columns: columns(shown),
            scale: (GRID_PIXELS / size).max(1),
            labels: self.requests[..shown].iter().map(|r| label(r, names)).collect(),
            overlay: self.sheet.overlay.then_some(patches),
            grid_width: system.grid(),
        };
        Ok(grid(pixels, shown, size, size, &sheet)?.write_png(path)?)
    }

    fn report(&self, output: &Utf8Path, outcome: &GenerateOutcome, printer: Printer) -> Result<(), Failure> {
        let GenerateOutcome { steps, seconds, written, calls } = outcome;
        let (runtime, options, n) = (self.runtime, &self.options, self.requests.len());
        let system = runtime.bundle().system();
        let mean = steps.iter().sum::<usize>() as f64 / n.max(1) as f64;
        let text = || {
            format!(
                "{output}: {n} images, {mean:.2} steps of {} tokens on average, {seconds:.1} s on {} {}",
                system.tokens(),
                runtime.info().engine,
                runtime.info().version,
            )
        };
        let value = json!({
            "output": output, "images": n, "mean_steps": mean, "steps": steps, "seconds": seconds,
            "written_seconds": written,
            "seed": options.seed, "cfg_scale": options.cfg_scale, "greedy": options.sampler.greedy,
            "sampler": options.sampler.method, "temperature": options.sampler.temperature,
            "top_k": options.sampler.top_k, "top_p": options.sampler.top_p,
            "cfg_interval": options.cfg_interval, "patch_rule": system.patch_rule,
            "schedule": self.batching.schedule, "calls": calls,
            "engine": runtime.info(), "bundle": runtime.bundle().manifest_sha256(),
        });
        printer.document(text, value)
    }
}

/// What the trace has of an image.
fn row(stream: &Stream) -> TraceRow<'_> {
    TraceRow {
        tokens: &stream.tokens,
        patch_lengths: &stream.patch_lengths,
        entropy: &stream.entropy,
        margin: &stream.margin,
        class: stream.request.class,
    }
}

impl Which {
    fn requests(&self, seed: u64, num_classes: usize) -> Vec<Request> {
        match self {
            Self::Number(n) => Request::all_seeded(seed, *n, num_classes),
            Self::Classes(classes) => {
                let numbered = classes.iter().enumerate();
                numbered.map(|(i, class)| Request { index: i as u64, class: *class }).collect()
            }
        }
    }
}

fn columns(images: usize) -> usize {
    (1..=8).find(|c| c * c >= images).unwrap_or(8)
}

fn label(request: &Request, names: Option<&[String]>) -> String {
    let class = request.class;
    let name = usize::try_from(class).ok().and_then(|c| names.and_then(|n| n.get(c)));
    name.cloned().unwrap_or_else(|| format!("class {class}"))
}

pub(super) fn class_names(path: &Utf8Path) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(Vec<String>),
        Object { classes: Vec<String> },
    }
    let text = dpar_export_inputs::read_to_string(path, limits::TEXT)?;
    match serde_json::from_str(&text) {
        Ok(Names::List(names) | Names::Object { classes: names }) => Ok(names),
        Err(_) => Err(Failure::usage(
            format!("{path} is neither a JSON list of class names nor an object with \"classes\""),
            None,
        )),
    }
}

/// Calls `f` with the numbers of the rule that ran, each an array of one element.
fn with_rule<T>(system: &SystemSpec, f: impl FnOnce(&[(&str, ArrayRef<'_>)]) -> T) -> T {
    let rule = system.patch_rule.numbers();
    let (threshold, patch_size) = (rule.threshold.map(|n| [n]), rule.patch_size.map(|n| [n]));
    let longest = rule.max_patch_length.map(|n| [n as i64]);
    let mut arrays = Vec::new();
    arrays.extend(threshold.as_ref().map(|n| ("threshold", ArrayRef::f32(&[1], n))));
    arrays.extend(longest.as_ref().map(|n| ("max_patch_length", ArrayRef::i64(&[1], n))));
    arrays.extend(patch_size.as_ref().map(|n| ("patch_size", ArrayRef::f64(&[1], n))));
    f(&arrays)
}
