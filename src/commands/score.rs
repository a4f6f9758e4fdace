//! `score`: teacher-forced outputs as arrays.

use serde_json::json;

use super::args::ScoreArgs;
use super::failure::{Exit, Failure};
use super::printer::Printer;
use super::{array_file, with_runtime};
use crate::arrays::{ArrayFile, ArrayRef, write_npz};
use crate::patches::{pad, unpad};

pub(super) fn run(args: &ScoreArgs, printer: Printer) -> Result<Exit, Failure> {
    let file = ArrayFile::open(&args.inputs)?;
    let ids = file.i64("tokens", &[None, None])?;
    let (n, t) = (ids.shape()[0], ids.shape()[1]);
    let labels = file.i64("class_labels", &[Some(n)])?;
    let lengths = match file.contains("patch_lengths") {
        true => Some(unpad(&file.i64("patch_lengths", &[Some(n), None])?, t, &args.inputs, "patch_lengths")?),
        false => None,
    };
    let output = array_file(&args.output, args.force)?;
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let vocab = runtime.bundle().system().vocab;
        let bar = printer.progress("scoring", "images");
        let ids: Vec<i64> = ids.iter().copied().collect();
        let labels: Vec<i64> = labels.iter().copied().collect();
        let batch = usize::from(args.engine.batch);
        let scores = runtime
            .score(&ids, &labels, lengths.as_deref(), batch, &mut |done, total| bar.advance(done, total))?;
        drop(bar);
        let (padded, columns) = pad(scores.patch_lengths.iter().map(Vec::as_slice));
        let (shape, matrix, rows) = ([n, t, vocab], [n, t], [n, columns]);
        let mut arrays = vec![("logits", ArrayRef::f32(&shape, &scores.logits))];
        if runtime.bundle().system().dpar().is_some() {
            arrays.push(("patch_lengths", ArrayRef::i64(&rows, &padded)));
        }
        if let Some(entropy) = &scores.entropy {
            arrays.push(("entropy", ArrayRef::f32(&matrix, entropy)));
        }
        write_npz(output.path(), &arrays)?;
        output.commit()?;
        let names: Vec<&str> = arrays.iter().map(|(name, _)| *name).collect();
        let text = || format!("{}: {} of {n} images of {t} tokens", args.output, names.join(", "));
        let info = runtime.info();
        printer
            .result(text, &json!({ "output": args.output, "arrays": names, "images": n, "engine": info }))?;
        Ok(Exit::Pass)
    })
}
