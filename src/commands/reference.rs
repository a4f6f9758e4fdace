//! `reference`: golden outputs recorded from an engine.

use camino::Utf8PathBuf;
use clap::Args;
use serde_json::json;

use super::args::{EngineArgs, guidance};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use super::with_runtime;
use crate::staging::{Kind, StagedFolder};
use crate::verify::{ARRAYS, GOLDEN_JSON, Recording, record};

/// What a recording writes.
const GOLDEN_FOLDER: Kind =
    Kind { marks: &[GOLDEN_JSON], writes: |name| [GOLDEN_JSON, ARRAYS[0]].contains(&name) };

#[derive(Debug, Args)]
pub(crate) struct ReferenceArgs {
    /// Bundle folder
    bundle: Utf8PathBuf,
    /// Number of images; their classes follow from the seed, the last of several is of the null class
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u64).range(1..=4096))]
    num: u64,
    /// Guidance scale of the sampled and the greedy images; guidance runs above 1
    #[arg(long, value_name = "S", default_value = "1.0", value_parser = guidance, allow_negative_numbers = true)]
    cfg_scale: f32,
    /// Seed of the classes and of the teacher-forced tokens
    #[arg(long, value_name = "K", default_value = "0")]
    seed: u64,
    /// Output folder: golden.safetensors and golden.json
    #[arg(short, long, value_name = "DIR")]
    output: Utf8PathBuf,
    /// Replace an earlier recording
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &ReferenceArgs, printer: Printer) -> Result<Exit, Failure> {
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let staged = StagedFolder::create(&args.output, args.force, &GOLDEN_FOLDER)?;
        let recording = Recording {
            num: args.num,
            cfg_scale: args.cfg_scale,
            seed: args.seed,
            batch: usize::from(args.engine.batch),
        };
        let bar = printer.progress("recording", "units");
        let golden = record(runtime, &recording, staged.path(), &mut |done, total| bar.advance(done, total))?;
        drop(bar);
        staged.commit()?;
        let text = || {
            let info = runtime.info();
            format!(
                "{}: {} images recorded on {} {}; smallest greedy margin {}, smallest distance to the threshold {}",
                args.output,
                args.num,
                info.engine,
                info.version,
                short(golden.min_greedy_margin),
                short(golden.min_entropy_threshold_distance),
            )
        };
        printer.result(text, &json!({ "output": args.output, "golden": golden }))?;
        Ok(Exit::Pass)
    })
}

fn short(value: Option<f32>) -> String {
    value.map_or_else(|| "none".to_owned(), |v| format!("{v:.1e}"))
}
