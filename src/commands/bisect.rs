//! `bisect`: where two engines, two bundles, or an engine and recorded outputs part.

use camino::Utf8PathBuf;
use clap::Args;

use super::args::guidance;
use super::failure::{Exit, Failure};
use super::parity::ContenderArgs;
use super::printer::{Printer, Text};
use super::verify::word;
use crate::bundle::{Bundle, MANIFEST};
use crate::engines::DEFAULT_ENGINE;
use crate::generate::sampler::SamplerOptions;
use crate::generate::{DecodeOptions, Request};
use crate::parity::bisect::{Bisection, against_recorded, between};
use crate::parity::drawn;
use crate::replay::Forced;
use crate::runtime::{Progress, RunError, Runtime};

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("with").required(true).multiple(true).args(["engines", "reference"])))]
pub(crate) struct BisectArgs {
    /// Bundle folder
    bundle: Utf8PathBuf,
    /// Two engines to compare; with --reference one engine [default: tract]
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = super::args::engine_names())]
    engines: Vec<String>,
    /// A bundle of the same system that is known to be good, or a folder with golden outputs
    #[arg(long, value_name = "DIR")]
    reference: Option<Utf8PathBuf>,
    /// Images to follow, where the reference gives none
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=256))]
    images: u16,
    /// Seed of the images
    #[arg(long, value_name = "K", default_value = "0")]
    seed: u64,
    /// Guidance scale; guidance runs above 1
    #[arg(long, value_name = "S", default_value = "2.0", value_parser = guidance, allow_negative_numbers = true)]
    cfg_scale: f32,
    #[command(flatten)]
    engine: ContenderArgs,
}

pub(super) fn run(args: &BisectArgs, printer: Printer) -> Result<Exit, Failure> {
    let bar = printer.progress("bisecting", "units");
    let found = find(args, &mut |done, total| bar.advance(done, total))?;
    drop(bar);
    printer.result(|| render(&found), &found)?;
    Ok(found.verdict.into())
}

fn find(args: &BisectArgs, progress: Progress<'_>) -> Result<Bisection, Failure> {
    let bundle = Bundle::open(&args.bundle)?;
    let runtime = |bundle, name: &str| -> Result<Runtime<'_>, Failure> {
        let mut made = args.engine.contenders(bundle, &[name.to_owned()])?;
        let Some(contender) = made.pop() else { return Err(Failure::usage("no engine", None)) };
        Ok(Runtime::new(bundle, contender.engine?)?)
    };
    match (&args.reference, args.engines.as_slice()) {
        (None, [a, b]) if a != b => {
            let (x, y) = (runtime(&bundle, a)?, runtime(&bundle, b)?);
            // Where the first engine goes wrong, the second one's tokens are followed.
            let forced = match draw(&x, args, progress) {
                Err(e) if e.went_wrong() => draw(&y, args, progress)?,
                drawn => drawn?,
            };
            Ok(between([a, b], &x, &y, &forced, args.cfg_scale, progress)?)
        }
        (Some(folder), engines @ ([] | [_])) => {
            let engine = engines.first().map_or(DEFAULT_ENGINE, String::as_str);
            let own = runtime(&bundle, engine)?;
            if !folder.join(MANIFEST).is_file() {
                return Ok(against_recorded(&own, folder, usize::from(args.engine.batch), progress)?);
            }
            let good = Bundle::open(folder)?;
            let good = runtime(&good, engine)?;
            let forced = draw(&good, args, progress)?;
            let names =
                [folder.file_name().unwrap_or("reference"), args.bundle.file_name().unwrap_or("bundle")];
            Ok(between(names, &good, &own, &forced, args.cfg_scale, progress)?)
        }
        (None, _) => Err(Failure::usage("two different engines are needed", Some("say --engines tract,ort"))),
        (Some(_), _) => Err(Failure::usage("with --reference, name one engine at most", None)),
    }
}

/// Tokens to follow: what the good source draws.
fn draw(runtime: &Runtime<'_>, args: &BisectArgs, progress: Progress<'_>) -> Result<Forced, RunError> {
    let classes = runtime.bundle().system().num_classes;
    let requests = Request::all_seeded(args.seed, u64::from(args.images), classes);
    let options = DecodeOptions {
        cfg_scale: args.cfg_scale,
        cfg_interval: None,
        sampler: SamplerOptions::default(),
        seed: args.seed,
    };
    Ok(drawn(&runtime.decode(&requests, &options, usize::from(args.engine.batch), progress)?))
}

fn render(found: &Bisection) -> Text {
    let mut text = Text::default();
    for source in &found.sources {
        let what = match &source.engine {
            Some(e) => format!("{} {} on {} ({})", e.engine, e.version, e.device, e.provider),
            None => "recorded outputs".to_owned(),
        };
        text.line(format_args!("{}: {what}", source.name));
    }
    text.line(format_args!("{}: {}", word(found.verdict), found.path()));
    if let Some(note) = &found.note {
        text.line(format_args!("note: {note}"));
    }
    text
}
