//! `synth`: full-size checkpoints with seeded random weights.

use std::time::Instant;

use camino::Utf8PathBuf;
use clap::Args;
use dpar_export_checkpoint::Synth;
use dpar_export_spec::SystemKind;
use serde_json::json;

use super::args::OutputArgs;
use super::failure::{Exit, Failure};
use super::printer::{Printer, Text};
use crate::reproduce::paper::{Paper, PaperRow};
use crate::staging::{FolderKind, StagedFolder};

/// Says what the weights are.
const NOTE: &str = "synth.json";
/// What `synth` writes.
const FOLDER: FolderKind = FolderKind {
    marks: &[NOTE],
    writes: |name| [NOTE, "dpar", "llamagen", "entropy", "vq.safetensors"].contains(&name),
};

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.help("Folder to write: an experiment folder per transformer, and the tokenizer")))]
pub(crate) struct SynthArgs {
    /// System of the published table, e.g. DPAR-B, DPAR-384-XXL, LlamaGen-L
    system: String,
    #[command(flatten)]
    output: OutputArgs,
    /// Mean number of patches that an image shall need [default: the system's in the table]
    #[arg(long)]
    steps: Option<f64>,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave the tokenizer out (290 MB): the system then draws tokens, not images
    #[arg(long)]
    no_vq: bool,
}

/// What to make; the name of the output is taken.
pub(super) struct Plan {
    synth: Synth,
    row: PaperRow,
    output: Utf8PathBuf,
    folder: StagedFolder,
}

impl SynthArgs {
    /// Finds the system in the table, takes the name of the output.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let paper = Paper::table()?;
        let row = paper.row(&self.system)?.clone();
        if self.steps.is_some() && row.system != SystemKind::Dpar {
            let message = format!("{} has no patches: every image needs {} steps", row.name, row.steps);
            return Err(Failure::usage(message, Some("leave --steps out")));
        }
        let size = row.name.rsplit('-').next().unwrap_or_default();
        let steps = self.steps.unwrap_or(row.steps);
        let synth = Synth {
            vq: !self.no_vq,
            seed: self.seed,
            ..Synth::published(row.system, size, row.image_size, steps)?
        };
        Ok(Plan { synth, row, folder: self.output.folder(&FOLDER)?, output: self.output.output })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { synth, row, output, folder } = plan;
    let started = Instant::now();
    let bar = printer.progress("writing", "tensors");
    let made = synth.write(folder.path(), &mut |component| bar.step(component))?;
    drop(bar);
    let note = json!({
        "system": row.name, "weights": "seeded random numbers, nothing learned", "seed": synth.seed, "steps": synth.steps,
    });
    let place = folder.path().join(NOTE);
    fs_err::write(&place, format!("{note:#}\n"))?;
    let name = made.checkpoint.file_name().unwrap_or_default();
    folder.commit()?;
    let checkpoint = output.join(name);
    let parameters: u64 = made.parameters.iter().map(|(_, n)| n).sum();
    let text = || {
        let parts = made.parameters.iter().map(|(name, n)| format!("{name} {:.1}M", *n as f64 / 1e6));
        let mut text = Text::from(format!(
            "{output}: {} with seeded random weights ({}), {:.2} GB in {:.1} s",
            row.name,
            parts.collect::<Vec<_>>().join(", "),
            parameters as f64 * 4.0 / 1e9,
            started.elapsed().as_secs_f64(),
        ));
        text.line(format!("export it with: dpar-export {checkpoint} -o BUNDLE"));
        text
    };
    let value = json!({
        "output": output, "checkpoint": checkpoint, "system": row.name, "steps": synth.steps, "seed": synth.seed,
        "parameters": made.parameters.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
    });
    printer.document(text, value)?;
    Ok(Exit::Pass)
}
