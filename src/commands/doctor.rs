//! `doctor`: which engines can run here, and why not.

use camino::Utf8PathBuf;
use clap::Args;
use dpar_engine_api::Driver;
use serde_json::json;

use super::args::{LibraryArgs, engine_names};
use super::failure::{Exit, Failure};
use super::printer::{Printer, Text};
use crate::bundle::Bundle;
use crate::doctor::{DoctorReport, EngineReport, examine};
use crate::engines::{DEFAULT_ENGINE, EngineOptions};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Bundle to run: its hashes, and its engines against this machine's library and GPU
    bundle: Option<Utf8PathBuf>,
    /// Engine that must work for exit code 0 [default: the default engine]
    #[arg(long, value_name = "ENGINE", value_parser = engine_names(), help_heading = "Engine")]
    engine: Option<String>,
    #[command(flatten)]
    libraries: LibraryArgs,
}

/// What to look at, and what must work.
pub(super) struct Plan {
    bundle: Option<Utf8PathBuf>,
    options: EngineOptions,
    asked: String,
}

impl DoctorArgs {
    /// The engine that must work.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let options = EngineOptions {
            ort_library: self.libraries.ort_lib,
            ep_library: self.libraries.ep_lib,
            trt_library: self.libraries.trt.trt_lib,
            ..EngineOptions::default()
        };
        let asked = self.engine.unwrap_or_else(|| DEFAULT_ENGINE.to_owned());
        Ok(Plan { bundle: self.bundle, options, asked })
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    let Plan { bundle, options, asked } = &plan;
    let bundle = bundle.as_deref().map(Bundle::open).transpose()?;
    let report = examine(options, bundle.as_ref());
    if let Some(bundle) = &bundle {
        bundle.unchanged()?;
    }
    printer.document(|| text(&report, asked), json!(report))?;
    Ok(match report.engine(asked) {
        Some(e) if e.works => Exit::Pass,
        Some(e) if e.finds_damage() => Exit::Integrity,
        _ => Exit::Unavailable,
    })
}

fn text(report: &DoctorReport, asked: &str) -> Text {
    let mut text = Text::default();
    for engine in &report.engines {
        engine_text(&mut text, engine);
    }
    match &report.driver {
        None => text.line("NVIDIA driver: not asked, this build has no engine that needs one"),
        Some(driver) => driver_text(&mut text, driver),
    }
    let verdict = match report.engine(asked) {
        Some(e) if e.works && report.bundle.is_some() => "runs this bundle here",
        Some(e) if e.works => "runs here",
        _ if report.bundle.is_some() => "does NOT run this bundle here",
        _ => "does NOT run here",
    };
    text.line(format_args!("{asked} {verdict}"));
    text
}

fn engine_text(text: &mut Text, e: &EngineReport) {
    let state = match (e.works, e.built_in) {
        (true, _) => "works",
        (false, true) => "DOES NOT WORK",
        (false, false) => "not built in",
    };
    text.line(format_args!("{}: {state}", e.name));
    if let Some(info) = &e.info {
        text.line(format_args!("  version {}, {} on {}", info.version, info.provider, info.device));
    }
    if let Some(reason) = &e.reason {
        text.line(format_args!("  reason: {reason}"));
    }
    if let Some(hint) = &e.hint {
        text.line(format_args!("  hint: {hint}"));
    }
    for library in &e.libraries {
        text.line(format_args!("  library: {} ({})", library.path, library.version));
    }
    for place in &e.searched {
        let mark = if place.taken { "taken from" } else { "not in" };
        text.line(format_args!("  {mark} {} ({})", place.path, place.origin));
    }
    if !e.providers.is_empty() {
        text.line(format_args!("  execution providers in the library: {}", e.providers.join(", ")));
    }
    for file in &e.files {
        let devices = match file.compute_capabilities.as_slice() {
            [] => "Ampere and later".to_owned(),
            some => some.join(", "),
        };
        let fits = file.reason.as_deref().unwrap_or("nothing against it");
        text.line(format_args!("  {} ({}, {devices}): {fits}", file.file, file.version));
    }
}

fn driver_text(text: &mut Text, driver: &Driver) {
    match (&driver.cuda, &driver.reason) {
        (Some(cuda), _) => {
            text.line(format_args!("NVIDIA driver: CUDA {cuda}, {} devices", driver.gpus.len()));
        }
        (None, reason) => {
            text.line(format_args!("NVIDIA driver: {}", reason.as_deref().unwrap_or("none")));
        }
    }
    for gpu in &driver.gpus {
        let memory = gpu.memory as f64 / f64::from(1 << 30);
        text.line(format_args!(
            "  cuda:{} {}, compute capability {}, {memory:.1} GiB",
            gpu.ordinal, gpu.name, gpu.compute_capability
        ));
    }
}
