//! `dpar-export --target triton BUNDLE -o REPOSITORY`.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::args::ExportArgs;
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::bundle::{Bundle, MANIFEST};
use crate::triton::{self, TritonPlan};

/// A bundle, and the repository that it becomes.
pub(super) struct Plan {
    from: Utf8PathBuf,
    plan: TritonPlan,
    /// `None`: check, and write nothing.
    output: Option<Utf8PathBuf>,
    force: bool,
}

/// Refuses what is for checkpoints and for other targets.
pub(super) fn resolve(from: &Utf8Path, args: &ExportArgs) -> Result<Plan, Failure> {
    if !from.join(MANIFEST).is_file() {
        let message = format!("{from} is no bundle: Triton gets one");
        return Err(Failure::usage(message, Some("export it first, without --target")));
    }
    if args.parts.any() || args.quantize.is_some() || args.precision.asked()?.is_some() {
        let message = format!("{from} is a bundle: what it was exported with cannot be chosen any more");
        return Err(Failure::usage(message, Some("leave the options of the export out")));
    }
    if args.trt.any() {
        let hint = "build the engines first, with --target trt";
        return Err(Failure::usage("TensorRT options without engines", Some(hint)));
    }
    let output = args.output.output.clone().filter(|_| !args.dry_run);
    if output.is_none() && !args.dry_run {
        return Err(Failure::usage(
            "no output folder",
            Some("name one with -o REPOSITORY, or try --dry-run"),
        ));
    }
    Ok(Plan { from: from.to_owned(), plan: args.triton.plan(), output, force: args.output.replace.force })
}

pub(super) fn run(plan: &Plan, printer: Printer<'_>) -> Result<Exit, Failure> {
    let Plan { from, plan, output, force } = plan;
    let bundle = Bundle::open(from)?;
    let name = &bundle.manifest().name;
    let Some(output) = output else {
        let text = || format!("{from} can be a model of Triton: {name}");
        printer.document(text, json!({ "dry_run": true, "system": bundle.system() }))?;
        return Ok(Exit::Pass);
    };
    let models = triton::write(&bundle, plan, output, *force)?;
    let text = || format!("{output}: {name} for Triton, {} models", models.len());
    printer
        .document(text, json!({ "output": output, "bundle": bundle.manifest_sha256(), "models": models }))?;
    Ok(Exit::Pass)
}
