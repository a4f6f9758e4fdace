//! The commands: the only part that prints or exits.

mod args;
mod attest;
mod bench;
mod bisect;
mod bus;
mod cause;
mod cli;
mod component;
mod doctor;
mod evaluate;
mod export;
mod failure;
mod generate;
mod inspect;
mod metrics;
mod parity;
mod paths;
mod pixels;
mod printer;
mod quantize;
mod reference;
mod report;
mod reproduce;
mod score;
mod synth;
mod verify;

use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::engines;
use args::TalkArgs;
use cli::{Cli, Command};
use failure::{Exit, Failure};
use printer::{LogWriter, Printer, STOP, refused};

/// Names of the subcommands, in the order of the help.
pub fn subcommands() -> Vec<String> {
    Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    engines::before_threads();
    dpar_engine_api::panics::silence_guarded();
    let mut command = Cli::command();
    let parsed = command.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
        Ok((cli, matches))
    });
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return ExitCode::from(told(e) as u8),
    };
    let printer = Printer { json: cli.talk.json, quiet: cli.talk.quiet };
    start_log(&cli.talk);
    if let Some(bytes) = cli.max_memory {
        dpar_export_inputs::memory::set_most(bytes);
    }
    if let Err(e) = bus::say_lost_pages() {
        tracing::warn!("a mapped file that shrinks will end the program without a message: {e}");
    }
    let handler = ctrlc::set_handler(|| {
        // A second Ctrl-C does not wait for the current step.
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(Exit::Interrupted as u8));
        }
    });
    if let Err(e) = handler {
        tracing::warn!("Ctrl-C will not be handled: {e}");
    }
    let compares = cli.command.as_ref().is_some_and(compares);
    let exit = dispatch(cli, &command, &matches, printer).unwrap_or_else(|failure| {
        printer.failure(&failure);
        failure.cause.exit(compares)
    });
    ExitCode::from(exit as u8)
}

/// Prints what clap answers in place of a command: help, the version, or what is wrong with the command line.
fn told(answer: clap::Error) -> Exit {
    let usage = answer.use_stderr();
    match refused(answer) {
        _ if usage => Exit::Usage,
        Ok(()) => Exit::Pass,
        Err(e) => {
            Printer { json: false, quiet: false }.failure(&e.into());
            Exit::Usage
        }
    }
}

/// Whether a comparison is asked for: then a graph that runs wrong is a failed one.
fn compares(command: &Command) -> bool {
    match command {
        Command::Verify(_) | Command::Parity(_) | Command::Bisect(_) | Command::Reproduce(_) => true,
        Command::Evaluate(a) => a.compares(),
        Command::Inspect(_)
        | Command::Doctor(_)
        | Command::Score(_)
        | Command::Generate(_)
        | Command::Decode(_)
        | Command::Encode(_)
        | Command::Reference(_)
        | Command::Attest(_)
        | Command::Metrics(_)
        | Command::Bench(_)
        | Command::Synth(_)
        | Command::Completions { .. } => false,
    }
}

/// Holds outputs against inputs; then arguments become a plan, and the plan is carried out.
fn dispatch(
    cli: Cli,
    command: &clap::Command,
    matches: &ArgMatches,
    printer: Printer,
) -> Result<Exit, Failure> {
    paths::check(command, matches)?;
    match (cli.command, &cli.export.checkpoint) {
        (Some(Command::Inspect(a)), _) => inspect::run(a.resolve()?, printer),
        (Some(Command::Doctor(a)), _) => doctor::run(a.resolve()?, printer),
        (Some(Command::Score(a)), _) => score::run(a.resolve()?, printer),
        (Some(Command::Generate(a)), _) => generate::run(a.resolve()?, printer),
        (Some(Command::Decode(a)), _) => pixels::decode(a.resolve()?, printer),
        (Some(Command::Encode(a)), _) => pixels::encode(a.resolve()?, printer),
        (Some(Command::Reproduce(a)), _) => reproduce::run(a.resolve()?, printer),
        (Some(Command::Verify(a)), _) => verify::run(a.resolve()?, printer),
        (Some(Command::Reference(a)), _) => reference::run(a.resolve()?, printer),
        (Some(Command::Attest(a)), _) => attest::run(a.resolve()?, printer),
        (Some(Command::Evaluate(a)), _) => evaluate::run(a.resolve()?, printer),
        (Some(Command::Metrics(a)), _) => metrics::run(a.resolve()?, printer),
        (Some(Command::Bench(a)), _) => bench::run(a.resolve()?, printer),
        (Some(Command::Synth(a)), _) => synth::run(a.resolve()?, printer),
        (Some(Command::Parity(a)), _) => parity::run(a.resolve()?, printer),
        (Some(Command::Bisect(a)), _) => bisect::run(a.resolve()?, printer),
        (Some(Command::Completions { shell }), _) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dpar-export", &mut script);
            printer.raw(&script)?;
            Ok(Exit::Pass)
        }
        (None, Some(checkpoint)) => match export::resolve(checkpoint, &cli.export)? {
            export::Plan::Extractor(plan) => component::run(plan, printer),
            export::Plan::System(plan) => export::run(&plan, printer),
        },
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
    let said = std::env::var("RUST_LOG");
    let (filter, unread) = match &said {
        Err(std::env::VarError::NotPresent) => (default.into(), None),
        Ok(text) if text.is_empty() => (default.into(), None),
        Err(e) => (default.into(), Some(e.to_string())),
        Ok(text) => match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(filter) => (filter, None),
            Err(e) => (default.into(), Some(e.to_string())),
        },
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .with_ansi(false)
        .without_time()
        .init();
    if let Some(e) = unread {
        tracing::warn!("RUST_LOG is not read, and `{default}` is taken instead: {e}");
    }
}

/// Says on stderr what a reader took for granted.
fn say(notes: &[String]) {
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}
