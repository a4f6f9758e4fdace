//! The commands: the only part that prints or exits.

mod args;
mod attest;
mod bisect;
mod component;
mod doctor;
mod evaluate;
mod export;
mod failure;
mod generate;
mod inspect;
mod metrics;
mod parity;
mod pixels;
mod precision;
mod printer;
mod reference;
mod report;
mod reproduce;
mod score;
mod verify;

use std::process::ExitCode;
use std::sync::atomic::Ordering;

use camino::Utf8Path;
use clap::{CommandFactory, Parser};

use crate::bundle::Bundle;
use crate::engines::{self, EngineOptions};
use crate::runtime::Runtime;
use args::{Cli, Command, EngineArgs, TalkArgs};
use failure::{Exit, Failure};
use printer::{Printer, STOP, stopped};

/// Names of the subcommands, in the order of the help.
pub fn subcommands() -> Vec<String> {
    Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer { json: cli.talk.json, quiet: cli.talk.quiet };
    start_log(&cli.talk);
    let handler = ctrlc::set_handler(|| {
        // A second Ctrl-C does not wait for the current step.
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(Exit::Interrupted as u8));
        }
    });
    if let Err(e) = handler {
        tracing::warn!("Ctrl-C will not be handled: {e}");
    }
    let exit = dispatch(cli, printer).unwrap_or_else(|failure| {
        printer.failure(&failure);
        failure.exit
    });
    ExitCode::from(exit as u8)
}

fn dispatch(cli: Cli, printer: Printer) -> Result<Exit, Failure> {
    match (cli.command, &cli.export.checkpoint) {
        (Some(Command::Inspect(a)), _) => inspect::run(&a, printer),
        (Some(Command::Doctor(a)), _) => doctor::run(&a, printer),
        (Some(Command::Score(a)), _) => score::run(&a, printer),
        (Some(Command::Generate(a)), _) => generate::run(&a, printer),
        (Some(Command::Decode(a)), _) => pixels::decode(&a, printer),
        (Some(Command::Encode(a)), _) => pixels::encode(&a, printer),
        (Some(Command::Reproduce(a)), _) => reproduce::run(&a, printer),
        (Some(Command::Verify(a)), _) => verify::run(&a, printer),
        (Some(Command::Reference(a)), _) => reference::run(&a, printer),
        (Some(Command::Attest(a)), _) => attest::run(&a, printer),
        (Some(Command::Evaluate(a)), _) => evaluate::run(&a, printer),
        (Some(Command::Metrics(a)), _) => metrics::run(&a, printer),
        (Some(Command::Parity(a)), _) => parity::run(&a, printer),
        (Some(Command::Bisect(a)), _) => bisect::run(&a, printer),
        (Some(Command::Completions { shell }), _) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dpar-export", &mut script);
            printer.raw(&script)?;
            Ok(Exit::Pass)
        }
        (None, Some(checkpoint)) => export::run(checkpoint, &cli.export, printer),
        (None, None) => Err(Failure::usage("no CHECKPOINT and no command", Some("see --help"))),
    }
}

fn start_log(talk: &TalkArgs) {
    let default = match (talk.quiet, talk.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "dpar=info,dpar_export=info,warn",
        (false, 2) => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .without_time()
        .init();
}

/// Says on stderr what a reader took for granted.
fn say(notes: &[String]) {
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}

/// Checks, before the work, that an array file may be written: an `.npz` in an existing folder, not there yet (or
/// `force`), and no part of the bundle.
fn new_file(path: &Utf8Path, force: bool, bundle: &Utf8Path) -> Result<(), Failure> {
    if path.extension() != Some("npz") {
        return Err(Failure::usage(format!("{path} does not end in .npz"), None));
    }
    let folder = path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    fs_err::canonicalize(folder)?;
    outside(path, bundle)?;
    if path.exists() && !(force && path.is_file()) {
        return Err(Failure::usage(format!("{path} already exists"), Some("replace it with --force")));
    }
    Ok(())
}

/// Checks, before the work, that an output is no part of the bundle: a bundle holds what its manifest lists.
fn outside(output: &Utf8Path, bundle: &Utf8Path) -> Result<(), Failure> {
    let output = camino::absolute_utf8(output)?;
    // What does not exist yet is where its nearest existing ancestor is.
    let place = output.ancestors().find_map(|p| p.canonicalize_utf8().ok());
    if bundle.canonicalize_utf8().is_ok_and(|b| place.is_some_and(|p| p.starts_with(b))) {
        return Err(Failure::usage(format!("{output} lies in the bundle"), Some("write it somewhere else")));
    }
    Ok(())
}

/// Libraries are for their engine.
fn check_engine(args: &EngineArgs) -> Result<(), Failure> {
    if args.ort_lib.is_some() && args.engine != "ort" {
        return Err(Failure::usage("--ort-lib is for --engine ort", None));
    }
    if args.trt_lib.is_some() && args.engine != "tensorrt" {
        return Err(Failure::usage("--trt-lib is for --engine tensorrt", None));
    }
    Ok(())
}

/// What the engine is told.
fn engine_options<'a>(args: &EngineArgs, bundle: Option<&'a Bundle>) -> EngineOptions<'a> {
    EngineOptions {
        threads: args.threads.map(usize::from),
        ort_library: args.ort_lib.clone(),
        trt_library: args.trt_lib.clone(),
        device: args.device.device,
        cuda_graphs: args.device.cuda_graphs,
        runtime_cache: args.device.runtime_cache.clone(),
        bundle,
    }
}

/// Opens a bundle (checking its hashes) and calls `f` with it on the chosen engine.
fn with_runtime<T>(
    bundle: &Utf8Path,
    args: &EngineArgs,
    f: impl FnOnce(&Runtime<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    check_engine(args)?;
    if let Some(folder) = &args.device.runtime_cache {
        outside(folder, bundle)?;
    }
    let bundle = Bundle::open(bundle)?;
    let engine = engines::create(&args.engine, &engine_options(args, Some(&bundle)))?;
    let runtime = Runtime::new(&bundle, engine)?;
    if stopped() {
        return Err(crate::runtime::RunError::Interrupted.into());
    }
    f(&runtime)
}
