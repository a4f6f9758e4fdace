//! `score`: teacher-forced outputs as arrays.

use camino::Utf8PathBuf;
use clap::Args;
use serde_json::json;

use super::args::{ArrayOutput, BundleArgs, EngineArgs, ManyArgs, OnEngine, OutputArgs, RuleArgs};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::arrays::{ArrayFile, ArrayRef, Elements, NpzStream};
use crate::loaded::RunError;
use crate::patches::{pad, unpad};

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
        let ids = inputs.i64_in("tokens", &[None, None], "token", 0..vocab as i64)?;
        let (n, t) = (ids.shape()[0], ids.shape()[1]);
        let labels = inputs.i64_in("class_labels", &[Some(n)], "class label", system.class_labels())?;
        let lengths = match inputs.contains("patch_lengths") {
            true => {
                let array = inputs.i64("patch_lengths", &[Some(n), None])?;
                Some(unpad(&array, t, inputs.path(), "patch_lengths")?)
            }
            false => None,
        };
        let bar = printer.progress("scoring", "images");
        let ids = ids.into_raw_vec_and_offset().0;
        let labels = labels.into_raw_vec_and_offset().0;
        let mut scoring = runtime.scoring(&ids, &labels, lengths.as_deref(), batch)?;
        let mut stream = NpzStream::f32(output.path(), "logits", &[n, t, vocab])?;
        let (mut entropy, mut patches) = (Vec::new(), Vec::with_capacity(n));
        while let Some(scores) = scoring.next_images()? {
            stream.push(Elements::F32(&scores.logits))?;
            patches.extend(scores.patch_lengths);
            entropy.extend(scores.entropy.into_iter().flatten());
            if !bar.advance(patches.len(), n) {
                return Err(RunError::Interrupted.into());
            }
        }
        drop(bar);
        let (padded, columns) = pad(patches.iter().map(Vec::as_slice));
        let (matrix, rows) = ([n, t], [n, columns]);
        let mut more = Vec::new();
        if system.dpar().is_some() {
            more.push(("patch_lengths", ArrayRef::i64(&rows, &padded)));
        }
        if system.entropy().is_some() {
            more.push(("entropy", ArrayRef::f32(&matrix, &entropy)));
        }
        stream.finish_with(&more)?;
        let name = output.name.clone();
        output.commit()?;
        let names: Vec<&str> = std::iter::once("logits").chain(more.iter().map(|(name, _)| *name)).collect();
        let text = || format!("{name}: {} of {n} images of {t} tokens", names.join(", "));
        let info = runtime.info();
        printer.result(text, &json!({ "output": name, "arrays": names, "images": n, "patch_rule": system.patch_rule, "engine": info }))?;
        Ok(Exit::Pass)
    })
}
