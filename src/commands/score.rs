//! `score`: teacher-forced outputs as arrays.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde_json::json;

use super::args::{ArrayOutput, BundleArgs, EngineArgs, ManyArgs, OnEngine, OutputArgs, RuleArgs};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::arrays::{ArrayErrorKind, ArrayFile, ArrayRef, Elements, NpzStream, Spool};
use crate::loaded::{PatchLengths, RunError};
use crate::patches::{PatchSpool, unpad_row};

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.value_name("OUT.npz")
    .help("Output: `logits` f32 [N, T, V], `entropy` f32 [N, T], `patch_lengths` i64 [N, M]")))]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Arrays `tokens` i64 [N, T], `class_labels` i64 [N], optional `patch_lengths` i64 [N, M] (.npz, .safetensors)
    #[arg(long, value_name = "FILE")]
    inputs: Utf8PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    many: ManyArgs,
    #[command(flatten)]
    rule: RuleArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// The inputs are open, the output's name is taken.
pub(super) struct Plan {
    inputs: ArrayFile,
    output: ArrayOutput,
    on: OnEngine,
}

impl ScoreArgs {
    /// Opens the inputs, takes the output's name, chooses the engine.
    pub(super) fn resolve(&self) -> Result<Plan, Failure> {
        let inputs = ArrayFile::open(&self.inputs)?;
        self.many.check(&inputs, "tokens")?;
        if inputs.contains("patch_lengths") && !self.rule.change().is_empty() {
            let message = format!(
                "{} has patch_lengths: --threshold, --max-patch-length and --patch-size have no effect",
                self.inputs
            );
            return Err(Failure::usage(message, Some("leave them out, or the array")));
        }
        Ok(Plan {
            inputs,
            output: self.output.array_file()?,
            on: self.engine.on(&self.bundle.bundle)?.with_rule(self.rule),
        })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { inputs, output, on } = plan;
    let batch = on.batch;
    on.run(|runtime| {
        let system = runtime.bundle().system();
        let vocab = system.vocab;
        let folder = output.path().parent().unwrap_or(Utf8Path::new("."));
        let disk = |e| ArrayErrorKind::Io(e).in_file(folder);
        let ids = inputs.i64_spooled("tokens", &[None, None], ("token", 0..vocab as i64), folder)?;
        let shape = &inputs.info("tokens")?.shape;
        let (n, t) = (shape[0], shape[1]);
        let labels = inputs.i64_in("class_labels", &[Some(n)], "class label", system.class_labels())?;
        let lengths = match inputs.contains("patch_lengths") {
            true => {
                let any = ("patch length", i64::MIN..i64::MAX);
                let given = inputs.i64_spooled("patch_lengths", &[Some(n), None], any, folder)?;
                let columns = inputs.info("patch_lengths")?.shape[1];
                let flat = given.i64().map_err(disk)?;
                for i in 0..n {
                    let row = flat[i * columns..][..columns].iter();
                    unpad_row(i, row, t, (inputs.path(), "patch_lengths"))?;
                }
                Some((given, columns))
            }
            false => None,
        };
        let given = lengths.as_ref().map(|(given, columns)| Ok((given.i64()?, *columns)));
        let given = given.transpose().map_err(disk)?;
        let bar = printer.progress("scoring", "images");
        let labels = labels.into_raw_vec_and_offset().0;
        let given = given.map(|(flat, columns)| PatchLengths::Padded(flat, columns));
        let mut scoring = runtime.scoring_of(ids.i64().map_err(disk)?, &labels, given, batch)?;
        let mut stream = NpzStream::f32(output.path(), "logits", &[n, t, vocab])?;
        let mut entropy = Spool::create_in(folder).map_err(disk)?;
        let mut patches = PatchSpool::create_in(folder).map_err(disk)?;
        while let Some(scores) = scoring.next_images()? {
            stream.push(Elements::F32(&scores.logits))?;
            scores.patch_lengths.iter().try_for_each(|row| patches.push(row)).map_err(disk)?;
            entropy.push(Elements::F32(&scores.entropy.unwrap_or_default())).map_err(disk)?;
            if !bar.advance(patches.counts().len(), n) {
                return Err(RunError::Interrupted.into());
            }
        }
        drop(bar);
        let (padded, columns) = patches.finish().map_err(disk)?;
        let entropy = entropy.finish().map_err(disk)?;
        let (matrix, rows) = ([n, t], [n, columns]);
        let mut more = Vec::new();
        if system.dpar().is_some() {
            more.push(("patch_lengths", ArrayRef::i64(&rows, padded.i64().map_err(disk)?)));
        }
        if system.entropy().is_some() {
            more.push(("entropy", ArrayRef::f32(&matrix, entropy.f32().map_err(disk)?)));
        }
        stream.finish_with(&more)?;
        let name = output.name.clone();
        output.commit()?;
        let names: Vec<&str> = std::iter::once("logits").chain(more.iter().map(|(name, _)| *name)).collect();
        let text = || format!("{name}: {} of {n} images of {t} tokens", names.join(", "));
        let info = runtime.info();
        printer.document(text, json!({ "output": name, "arrays": names, "images": n, "patch_rule": system.patch_rule, "engine": info }))?;
        Ok(Exit::Pass)
    })
}
