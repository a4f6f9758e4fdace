//! The commands: the only part that prints or exits.

mod attest;
mod bench;
mod bisect;
mod bus;
mod card;
mod cli;
mod component;
mod demo;
mod deploy;
mod doctor;
mod evaluate;
mod export;
mod generate;
mod github;
mod inspect;
mod log;
mod metrics;
mod package;
mod parity;
mod paths;
mod pixels;
mod printer;
mod quantize;
mod reference;
mod report;
mod reproduce;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod synth;
mod triton;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::engines;
use args::LogFormat;
pub use args::MAX_IMAGES;
use cli::{Cli, Command};
pub use dpar_export_args::failure;
use dpar_export_args::stop::STOP;
use dpar_export_args::{args, cause};
use failure::{Exit, Failure};
pub use printer::Host;
use printer::{Printer, first_steps, refused};
pub use reference::GOLDEN_FOLDER;

/// Names of the subcommands, in the order of the help.
pub fn subcommands() -> Vec<String> {
    Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    engines::before_threads();
    let program = std::env::current_exe().map(std::path::PathBuf::into_os_string);
    let program = program.unwrap_or_else(|_| "dpar-export".into());
    ExitCode::from(run(vec![program], std::env::args_os().skip(1).collect()) as u8)
}

/// The command line of this process: how it is started, and what it was given.
#[derive(Debug)]
struct CommandLine {
    program: Vec<OsString>,
    args: Vec<OsString>,
}

static COMMAND_LINE: OnceLock<CommandLine> = OnceLock::new();

/// Runs the command line `args` as all that this process does: it prints, has a handler of Ctrl-C, and keeps what holds for
/// the process (`--max-memory`, the log). `program` is what starts a process that does the same.
pub fn run(program: Vec<OsString>, args: Vec<OsString>) -> Exit {
    dpar_engine_api::panics::silence_guarded();
    let mut command = Cli::command();
    let line = COMMAND_LINE.get_or_init(|| CommandLine { program, args });
    let (cli, matches) = match parse(&mut command, &line.args) {
        Ok(parsed) => parsed,
        Err(e) => return told(e),
    };
    let talk = &cli.talk;
    let printer = Printer { json: talk.json, quiet: talk.quiet, log: talk.log_format, host: None };
    log::start(&cli.talk);
    if let Some(bytes) = cli.max_memory {
        dpar_export_inputs::memory::set_most(bytes);
    }
    if let Err(e) = bus::say_lost_pages() {
        tracing::warn!("a mapped file that shrinks will end the program without a message: {e}");
    }
    // A service ends in its own way.
    if !cli.command.as_ref().is_some_and(serves) {
        stop_when_told();
    }
    let compares = cli.command.as_ref().is_some_and(compares);
    dispatch(cli, &command, &matches, printer).unwrap_or_else(|failure| {
        printer.failure(&failure);
        if compares {
            github::failed(&failure, printer);
        }
        failure.cause.exit(compares)
    })
}

/// Ctrl-C asks the work to stop.
fn stop_when_told() {
    let handler = ctrlc::set_handler(|| {
        // A second Ctrl-C does not wait for the current step.
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(Exit::Interrupted as u8));
        }
    });
    if let Err(e) = handler {
        tracing::warn!("Ctrl-C will not be handled: {e}");
    }
}

/// Carries out one command of a program that does more than that: nothing is printed, and nothing of the process is set.
/// Without a failure there is the exit code that the command line would have ended with: a comparison may have found a
/// mismatch.
///
/// # Errors
/// What the command line would have said, and ended with.
pub fn call(args: &[OsString], host: &dyn Host) -> Result<Exit, Called> {
    let mut command = Cli::command();
    let (cli, matches) =
        understood(&mut command, args).map_err(|failure| Called { failure, exit: Exit::Usage })?;
    let compares = cli.command.as_ref().is_some_and(compares);
    let called = |failure: Failure| Called { exit: failure.cause.exit(compares), failure };
    let of_a_process = match (&cli.command, cli.max_memory) {
        (Some(Command::Bench(_)), _) => Some("bench measures processes of its own"),
        #[cfg(feature = "serve")]
        (Some(Command::Serve(_)), _) => Some("serve takes the signals of its process"),
        (Some(Command::Evaluate(a)), _) if a.pulls() => {
            Some("--pull reads the standard input of its process")
        }
        (_, Some(_)) => Some("--max-memory holds for a process"),
        _ => None,
    };
    if let Some(why) = of_a_process {
        let hint = "run it as a command line, in a process of its own";
        return Err(called(Failure::usage(format!("{why}: this one does other work too"), Some(hint))));
    }
    let printer = Printer { json: true, quiet: true, log: LogFormat::Text, host: Some(host) };
    dispatch(cli, &command, &matches, printer).map_err(called)
}

/// Carries out a command that is a part of another one.
fn part(words: &[String], printer: Printer<'_>) -> Result<Exit, Failure> {
    let args: Vec<OsString> = words.iter().map(OsString::from).collect();
    let mut command = Cli::command();
    let (cli, matches) = understood(&mut command, &args)?;
    dispatch(cli, &command, &matches, printer)
}

/// Parses what no user has typed on a command line.
fn understood(command: &mut clap::Command, args: &[OsString]) -> Result<(Cli, ArgMatches), Failure> {
    parse(command, args).map_err(|e| {
        let text = e.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        let said = first.strip_prefix("error: ").unwrap_or(first);
        Failure::usage(said, Some("see --help of the command line"))
    })
}

/// Why a called command ended without its result.
#[derive(Debug)]
pub struct Called {
    /// What failed.
    pub failure: Failure,
    /// What the command line would have ended with.
    pub exit: Exit,
}

fn parse(command: &mut clap::Command, args: &[OsString]) -> Result<(Cli, ArgMatches), clap::Error> {
    let name = OsString::from("dpar-export");
    let matches = command.try_get_matches_from_mut(std::iter::once(&name).chain(args))?;
    let cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(command))?;
    Ok((cli, matches))
}

/// Prints what clap answers in place of a command: help, the version, or what is wrong with the command line.
fn told(answer: clap::Error) -> Exit {
    let usage = answer.use_stderr();
    let said = match answer.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => first_steps(),
        _ => refused(answer),
    };
    match said {
        _ if usage => Exit::Usage,
        Ok(()) => Exit::Pass,
        Err(e) => {
            let printer = Printer { json: false, quiet: false, log: LogFormat::Text, host: None };
            printer.failure(&e.into());
            Exit::Usage
        }
    }
}

/// Whether a service is asked for.
fn serves(command: &Command) -> bool {
    match command {
        #[cfg(feature = "serve")]
        Command::Serve(_) => true,
        _ => false,
    }
}

/// Whether a comparison is asked for: then a graph that runs wrong is a failed one.
fn compares(command: &Command) -> bool {
    match command {
        Command::Verify(_) | Command::Parity(_) | Command::Bisect(_) | Command::Reproduce(_) => true,
        Command::Evaluate(a) => a.compares(),
        #[cfg(feature = "serve")]
        Command::Serve(_) => false,
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
        | Command::Demo(_)
        | Command::Deploy(_)
        | Command::Card(_)
        | Command::Package(_)
        | Command::Unpack(_)
        | Command::Completions { .. }
        | Command::Manual { .. } => false,
    }
}

/// Holds outputs against inputs; then arguments become a plan, and the plan is carried out.
fn dispatch(
    cli: Cli,
    command: &clap::Command,
    matches: &ArgMatches,
    printer: Printer<'_>,
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
        (Some(Command::Package(a)), _) => package::run(a.resolve()?, printer),
        (Some(Command::Unpack(a)), _) => package::unpack(a.resolve()?, printer),
        (Some(Command::Evaluate(a)), _) => evaluate::run(a.resolve()?, printer),
        (Some(Command::Metrics(a)), _) => metrics::run(a.resolve()?, printer),
        (Some(Command::Bench(a)), _) => bench::run(a.resolve()?, printer),
        #[cfg(feature = "serve")]
        (Some(Command::Serve(a)), _) => serve::run(a.resolve()?, printer),
        (Some(Command::Synth(a)), _) => synth::run(a.resolve()?, printer),
        (Some(Command::Card(a)), _) => card::run(a.resolve()?, printer),
        (Some(Command::Deploy(a)), _) => deploy::run(a.resolve()?, printer),
        (Some(Command::Demo(a)), _) => demo::run(a.resolve()?, printer),
        (Some(Command::Parity(a)), _) => parity::run(a.resolve()?, printer),
        (Some(Command::Bisect(a)), _) => bisect::run(a.resolve(matches)?, printer),
        (Some(Command::Completions { shell }), _) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dpar-export", &mut script);
            printer.raw(&script)?;
            Ok(Exit::Pass)
        }
        (Some(Command::Manual { markdown: true, .. }), _) => {
            printer.raw(clap_markdown::help_markdown_command(&Cli::command()).as_bytes())?;
            Ok(Exit::Pass)
        }
        (Some(Command::Manual { name, markdown: false }), _) => {
            printer.raw(&manual(name.as_deref())?)?;
            Ok(Exit::Pass)
        }
        (None, Some(checkpoint)) => match export::resolve(checkpoint, &cli.export)? {
            export::Plan::Extractor(plan) => component::run(plan, printer),
            export::Plan::System(plan) => export::run(&plan, printer),
            export::Plan::Triton(plan) => triton::run(&plan, printer),
        },
        (None, None) => Err(Failure::usage("no CHECKPOINT and no command", Some("see --help"))),
    }
}

/// The manual page of the program, or of a subcommand.
fn manual(name: Option<&str>) -> Result<Vec<u8>, Failure> {
    let mut all = Cli::command();
    all.build();
    let page = match name {
        None => all,
        Some(name) => {
            let found = all.find_subcommand(name).cloned();
            found.ok_or_else(|| Failure::usage(format!("no command `{name}`"), Some("see --help")))?
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    Ok(text)
}

/// Says on stderr what a reader took for granted.
fn say(notes: &[String]) {
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}
