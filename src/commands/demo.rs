//! `demo`: the main job, images and a verification, on a trained system that the program carries.

use std::cell::RefCell;
use std::time::Instant;

use camino::Utf8Path;
use clap::Args;
use serde_json::{Value, json};

use super::args::OutputArgs;
use super::failure::{Exit, Failure};
use super::part;
use super::printer::{Host, Printer, Text};
use crate::staging::{FolderKind, StagedFolder, StagingError};
use crate::targets::shell_word;

const BUNDLE: &str = "bundle";
const SAMPLES: &str = "samples";
const REPORT: &str = "report.html";
/// What `demo` writes.
const FOLDER: FolderKind = FolderKind {
    marks: &[REPORT],
    writes: |name| ["README.md", "checkpoint", "reference", BUNDLE, SAMPLES, REPORT].contains(&name),
};
/// Stands for the output in a command line.
const OUT: &str = "{out}";

/// The three jobs, as a user would type them.
const EXPORT: &str = "--target onnx {out}/checkpoint/dpar -o {out}/bundle --force";
const GENERATE: &str = "generate {out}/bundle --num 24 --cfg-scale 2 --seed 0 --overlay --class-names \
                        {out}/checkpoint/classes.json -o {out}/samples --force";
const VERIFY: &str = "verify {out}/bundle --reference {out}/reference --report {out}/report.html";

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.required(false).default_value("dpar-demo")))]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Where to; the name of the output is taken.
pub(super) struct Plan {
    output: OutputArgs,
    folder: StagedFolder,
}

impl DemoArgs {
    /// Takes the name of the output.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        Ok(Plan { folder: self.output.folder(&FOLDER)?, output: self.output })
    }
}

/// Who calls a part of the demonstration: its document is kept, nothing is printed.
struct Kept<'h> {
    caller: Option<&'h dyn Host>,
    document: RefCell<String>,
}

impl Host for Kept<'_> {
    fn result(&self, document: String) {
        self.document.replace(document);
    }

    fn stopped(&self) -> bool {
        self.caller.is_some_and(Host::stopped)
    }
}

/// The words of a job.
fn words(line: &str, out: &Utf8Path) -> Vec<String> {
    line.split(' ').map(|word| word.replace(OUT, out.as_str())).collect()
}

/// A job, as it is typed.
fn typed(line: &str, out: &Utf8Path) -> String {
    let words: Vec<String> = words(line, out).iter().map(|w| shell_word(w)).collect();
    format!("dpar-export {}", words.join(" "))
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let started = Instant::now();
    let Plan { output, folder } = plan;
    for file in &dpar_export_demo::FILES {
        write(&folder.path().join(file.path), file.bytes)?;
    }
    let kept = Kept { caller: printer.host, document: RefCell::default() };
    let job = |line: &str| {
        let exit = part(&words(line, folder.path()), Printer { host: Some(&kept), ..printer })?;
        let document: Value = serde_json::from_str(&kept.document.take()).map_err(std::io::Error::from)?;
        Ok::<_, Failure>((exit, document))
    };
    let (_, exported) = job(EXPORT)?;
    let (_, drawn) = job(GENERATE)?;
    let (exit, verified) = job(VERIFY)?;
    folder.commit()?;

    let out = &output.output;
    let files = exported["manifest"]["files"].as_array().into_iter().flatten();
    let bytes: u64 = files.filter_map(|f| f["size"].as_u64()).sum();
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    let (graphs, checks) = (count(&exported["manifest"]["graphs"]), count(&verified["checks"]));
    let seconds = started.elapsed().as_secs_f64();
    let (report, grid) = (out.join(REPORT), out.join(SAMPLES).join(crate::samples::GRID));
    let text = || {
        let mut text = Text::default();
        let verdict = if exit == Exit::Pass { "pass" } else { "FAIL" };
        let steps = drawn["mean_steps"].as_f64().unwrap_or_default();
        let engine = &verified["engine"];
        let name = |key: &str| engine[key].as_str().unwrap_or_default();
        text.line(format_args!("{out}: a small trained DPAR, from checkpoint to report in {seconds:.1} s"));
        text.gap();
        text.line(format_args!("exported: {graphs} ONNX graphs, {:.1} MB", bytes as f64 / 1e6));
        text.line(format_args!("  {}", typed(EXPORT, out)));
        text.line(format_args!(
            "drawn: {} images of 64 tokens; {steps:.1} steps of the large transformer an image, not 64",
            drawn["images"]
        ));
        text.line(format_args!("  {}", typed(GENERATE, out)));
        text.line(format_args!(
            "verified: {verdict}, {checks} checks on {} {} against other code's outputs",
            name("engine"),
            name("version")
        ));
        text.line(format_args!("  {}", typed(VERIFY, out)));
        text.gap();
        text.line("Look at");
        text.line(format_args!("  {grid}: the images, with the borders of their patches"));
        text.line(format_args!("  {report}: what was verified, one page that loads nothing"));
        text.line(format_args!("  {out}/README.md: whose pictures it was trained on"));
        text
    };
    let commands = [EXPORT, GENERATE, VERIFY].map(|line| words(line, out));
    let value = json!({
        "output": out, "seconds": seconds, "graphs": graphs, "bytes": bytes, "images": drawn["images"],
        "mean_steps": drawn["mean_steps"], "engine": verified["engine"], "verdict": verified["verdict"],
        "checks": checks, "grid": grid, "report": report,
        "commands": commands,
    });
    printer.document(text, value)?;
    Ok(exit)
}

fn write(path: &Utf8Path, bytes: &[u8]) -> Result<(), StagingError> {
    let folder = path.parent().unwrap_or(path);
    let written = fs_err::create_dir_all(folder).and_then(|()| fs_err::write(path, bytes));
    written.map_err(|source| StagingError::Io { path: path.to_owned(), source })
}
