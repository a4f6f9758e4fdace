//! `reference`: golden outputs recorded from an engine.

use clap::Args;
use serde_json::json;

use super::args::{BundleArgs, EngineArgs, OnEngine, OutputArgs, RuleArgs, SamplingArgs};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::staging::FolderKind;
use crate::verify::{ARRAYS, GOLDEN_JSON, Recording, record};

/// What a recording writes: a folder for `verify --reference`.
pub const GOLDEN_FOLDER: FolderKind =
    FolderKind { marks: &[GOLDEN_JSON], writes: |name| [GOLDEN_JSON, ARRAYS[0]].contains(&name) };

#[derive(Debug, Args)]
#[command(
    mut_arg("cfg_scale", |a| a.help("Guidance scale of the sampled and the greedy images; guidance runs above 1")),
    mut_arg("greedy", |a| a.hide(true)),
    mut_arg("seed", |a| a.help("Seed of the classes and of the teacher-forced tokens")),
    mut_arg("output", |a| a.help("Output folder: golden.safetensors and golden.json"))
)]
pub(crate) struct ReferenceArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Number of images; their classes follow from the seed, the last of several is of the null class
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u64).range(1..=4096))]
    num: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What to record, and where.
pub(super) struct Plan {
    recording: Recording,
    output: OutputArgs,
    on: OnEngine,
}

impl ReferenceArgs {
    /// Chooses the engine.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let on = self.engine.on(&self.bundle.bundle)?.with_rule(self.rule);
        let decode = self.sampling.resolve()?;
        if decode.sampler.greedy {
            let message = "--greedy has no effect: greedy images are recorded beside those that are drawn";
            return Err(Failure::usage(message, Some("leave it out")));
        }
        let recording = Recording { num: self.num, decode, batch: on.batch };
        Ok(Plan { recording, output: self.output, on })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { recording, output, on } = plan;
    on.run(|runtime| {
        let staged = output.folder(&GOLDEN_FOLDER)?;
        let bar = printer.progress("recording", "units");
        let golden = record(runtime, &recording, staged.path(), &mut |done, total| bar.advance(done, total))?;
        drop(bar);
        staged.commit()?;
        let text = || {
            let info = runtime.info();
            format!(
                "{}: {} images recorded on {} {}; smallest greedy margin {}, smallest distance to the threshold {}",
                output.output,
                recording.num,
                info.engine,
                info.version,
                short(golden.min_greedy_margin),
                short(golden.min_entropy_threshold_distance),
            )
        };
        printer.document(text, json!({ "output": output.output, "golden": golden }))?;
        Ok(Exit::Pass)
    })
}

fn short(value: Option<f32>) -> String {
    value.map_or_else(|| "none".to_owned(), |v| format!("{v:.1e}"))
}
