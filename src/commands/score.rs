//! `score`: teacher-forced outputs as arrays.

use serde_json::json;

use super::args::ScoreArgs;
use super::failure::{Exit, Failure};
use super::printer::Printer;
use super::{array_file, with_runtime};
use crate::arrays::{ArrayFile, ArrayRef, Elements, NpzStream};
use crate::patches::{pad, unpad};
use crate::runtime::RunError;

pub(super) fn run(args: &ScoreArgs, printer: Printer) -> Result<Exit, Failure> {
    let file = ArrayFile::open(&args.inputs)?;
    args.many.check(&file, "tokens")?;
    let output = array_file(&args.output, args.force)?;
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let system = runtime.bundle().system();
        let vocab = system.vocab;
        let ids = file.i64_in("tokens", &[None, None], "token", 0..vocab as i64)?;
        let (n, t) = (ids.shape()[0], ids.shape()[1]);
        let labels = file.i64_in("class_labels", &[Some(n)], "class label", system.class_labels())?;
        let lengths = match file.contains("patch_lengths") {
            true => {
                let array = file.i64("patch_lengths", &[Some(n), None])?;
                Some(unpad(&array, t, &args.inputs, "patch_lengths")?)
            }
            false => None,
        };
        let bar = printer.progress("scoring", "images");
        let ids = ids.into_raw_vec_and_offset().0;
        let labels = labels.into_raw_vec_and_offset().0;
        let batch = usize::from(args.engine.batch);
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
        output.commit()?;
        let names: Vec<&str> = std::iter::once("logits").chain(more.iter().map(|(name, _)| *name)).collect();
        let text = || format!("{}: {} of {n} images of {t} tokens", args.output, names.join(", "));
        let info = runtime.info();
        printer
            .result(text, &json!({ "output": args.output, "arrays": names, "images": n, "engine": info }))?;
        Ok(Exit::Pass)
    })
}
