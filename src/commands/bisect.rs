//! `bisect`: where two engines, two bundles, or an engine and recorded outputs part.

use camino::{Utf8Path, Utf8PathBuf};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use dpar_export_spec::RuleChange;

use super::args::{BundleArgs, DrawArgs, EnginesArgs, EnginesPlan, RuleArgs};
use super::failure::{Exit, Failure};
use super::printer::{Printer, Text};
use super::verify::word;
use crate::bundle::{Bundle, MANIFEST};
use crate::engines::{self, DEFAULT_ENGINE};
use crate::generate::sampler::SamplerOptions;
use crate::generate::{DecodeOptions, Request};
use crate::loaded::{LoadedBundle, Progress, RunError};
use crate::parity::bisect::{Bisection, against_recorded, between};
use crate::replay::ForcedTokens;

#[derive(Debug, Args)]
#[command(
    group(clap::ArgGroup::new("with").required(true).multiple(true).args(["engines", "reference"])),
    mut_arg("engines", |a| a.value_name("A,B")
        .help(format!("Two engines to compare; with --reference one engine [default: {DEFAULT_ENGINE}]"))),
    mut_arg("device", |a| a.help(format!("{}. The others run where they are", engines::device_help()))),
    mut_arg("cfg_scale", |a| a.default_value("2.0")),
    mut_arg("batch", |a| a.default_value("4"))
)]
pub(crate) struct BisectArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// A bundle of the same system that is known to be good, or a folder with golden outputs
    #[arg(long, value_name = "DIR")]
    reference: Option<Utf8PathBuf>,
    /// Number of images to follow, where the reference gives none
    #[arg(long, visible_alias = "images", value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=256))]
    num: u16,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    engines: EnginesArgs,
}

/// Two sources to follow, and what they follow.
pub(super) struct Plan {
    bundle: Utf8PathBuf,
    rule: RuleChange,
    sides: ComparedSides,
    engines: EnginesPlan,
    images: u64,
    options: DecodeOptions,
}

/// What may part.
enum ComparedSides {
    /// Two engines.
    Engines([String; 2]),
    /// A bundle on an engine, and what is known to be good.
    Reference(String, Utf8PathBuf),
}

impl BisectArgs {
    /// Chooses the engines. `matches` are those of the whole command line.
    pub(super) fn resolve(self, matches: &ArgMatches) -> Result<Plan, Failure> {
        if let Some(folder) =
            self.reference.as_deref().filter(|folder| folder.is_dir() && is_recorded(folder))
        {
            // What recorded outputs were drawn with, they say.
            let own = matches.subcommand().map(|(_, own)| own);
            let given = |id: &&str| {
                own.and_then(|m| m.value_source(id)).is_some_and(|s| s == ValueSource::CommandLine)
            };
            if let Some(id) = ["num", "cfg_scale", "seed"].iter().find(|id| given(id)) {
                let message =
                    format!("--{} has no effect: {folder} holds recorded outputs", id.replace('_', "-"));
                return Err(Failure::usage(message, Some("leave it out, or give a bundle as --reference")));
            }
        }
        let engines = self.engines.resolve(vec![DEFAULT_ENGINE.to_owned()])?;
        let sides = match (self.reference, engines.names.as_slice()) {
            (None, [a, b]) => ComparedSides::Engines([a.clone(), b.clone()]),
            (Some(folder), [engine]) => ComparedSides::Reference(engine.clone(), folder),
            (None, _) => {
                return Err(Failure::usage(
                    "two different engines are needed",
                    Some("say --engines tract,ort"),
                ));
            }
            (Some(_), _) => {
                return Err(Failure::usage("with --reference, name one engine at most", None));
            }
        };
        let DrawArgs { cfg_scale, seed } = self.draw;
        let sampler = SamplerOptions::default();
        Ok(Plan {
            bundle: self.bundle.bundle,
            rule: self.rule.change(),
            sides,
            engines,
            images: u64::from(self.num),
            options: DecodeOptions { cfg_scale, cfg_interval: None, sampler, seed },
        })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let bar = printer.progress("bisecting", "units");
    let found = plan.find(&mut |done, total| bar.advance(done, total))?;
    drop(bar);
    printer.result(|| render(&found), &found)?;
    Ok(found.verdict.into())
}

/// Whether a reference is recorded outputs, and no bundle.
fn is_recorded(folder: &Utf8Path) -> bool {
    !folder.join(MANIFEST).is_file()
}

impl Plan {
    fn find(&self, progress: Progress<'_>) -> Result<Bisection, Failure> {
        let Self { engines, options: DecodeOptions { cfg_scale, .. }, .. } = self;
        let bundle = Bundle::open(&self.bundle)?.with_rule(&self.rule)?;
        match &self.sides {
            ComparedSides::Engines([a, b]) => {
                let x = LoadedBundle::new(&bundle, engines.create(a)?)?;
                let y = LoadedBundle::new(&bundle, engines.create(b)?)?;
                // Where the first engine goes wrong, the second one's tokens are followed.
                let forced = match self.draw(&x, progress) {
                    Err(e) if e.went_wrong() => self.draw(&y, progress)?,
                    drawn => drawn?,
                };
                Ok(between([a, b], &x, &y, &forced, *cfg_scale, progress)?)
            }
            ComparedSides::Reference(engine, folder) => {
                let own = LoadedBundle::new(&bundle, engines.create(engine)?)?;
                if is_recorded(folder) {
                    return Ok(against_recorded(&own, folder, engines.batch, progress)?);
                }
                let good = Bundle::open(folder)?.with_rule(&self.rule)?;
                let good = LoadedBundle::new(&good, engines.create(engine)?)?;
                let forced = self.draw(&good, progress)?;
                let names =
                    [folder.file_name().unwrap_or("reference"), self.bundle.file_name().unwrap_or("bundle")];
                Ok(between(names, &good, &own, &forced, *cfg_scale, progress)?)
            }
        }
    }

    /// Tokens to follow: what the good source draws.
    fn draw(&self, runtime: &LoadedBundle<'_>, progress: Progress<'_>) -> Result<ForcedTokens, RunError> {
        let classes = runtime.bundle().system().num_classes;
        let requests = Request::all_seeded(self.options.seed, self.images, classes);
        Ok(ForcedTokens::of(&runtime.decode(&requests, &self.options, self.engines.batch, progress)?))
    }
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
