//! `dpar-export CHECKPOINT -o OUT`.

use std::time::Instant;

use camino::Utf8Path;
use dpar_export_checkpoint::Loaded;
use serde_json::json;

use super::args::{ExportArgs, Target};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::bundle;

pub(super) fn run(checkpoint: &Utf8Path, args: &ExportArgs, printer: Printer) -> Result<Exit, Failure> {
    let Target::Onnx = args.target;
    let started = Instant::now();
    let loaded = dpar_export_checkpoint::load(checkpoint, &args.parts.options())?;
    if args.dry_run {
        let text = || format!("{checkpoint} can be exported: {}", summary(&loaded));
        printer.result(text, &json!({ "dry_run": true, "system": loaded.system }))?;
        return Ok(Exit::Pass);
    }
    let Some(output) = &args.output else {
        return Err(Failure::usage("no output folder", Some("name one with -o OUT, or try --dry-run")));
    };
    let bar = printer.progress("exporting", "graphs");
    let manifest = bundle::write(&loaded, output, args.force, &mut |graph| bar.step(graph))?;
    drop(bar);
    let bytes: u64 = manifest.files.iter().map(|f| f.size).sum();
    let text = || {
        format!(
            "{output}: {} ({} graphs, {:.1} MB, opset {}, {}) in {:.1} s",
            summary(&loaded),
            manifest.graphs.len(),
            bytes as f64 / 1e6,
            manifest.opset,
            manifest.precision,
            started.elapsed().as_secs_f64(),
        )
    };
    printer.result(text, &json!({ "output": output, "manifest": manifest }))?;
    Ok(Exit::Pass)
}

/// The components and their sizes in one line.
fn summary(loaded: &Loaded) -> String {
    let parts = loaded.components.iter().map(|c| {
        let millions = c.weights.parameters() as f64 / 1e6;
        format!("{} {millions:.1}M", c.spec.kind().name())
    });
    parts.collect::<Vec<_>>().join(", ")
}
