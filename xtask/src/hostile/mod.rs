//! `cargo xtask hostile`: the promises of docs/threat-model.md, held by runs that try to break them.
//!
//! A check runs the real program many times and counts what it did. Any loss, left-over, packet, raw control character, panic,
//! hang or wrong exit code is a problem, and one problem fails the task.

mod files;
mod ground;
mod inputs;
mod network;
mod outputs;
mod writers;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail};
use camino::Utf8Path;

use crate::{all_engines, cargo, command, onnx};
use ground::Ground;

/// A promise and the runs that try to break it.
struct Promise {
    /// As docs/threat-model.md names it.
    name: &'static str,
    promise: &'static str,
    run: fn(&Ground) -> Result<PromiseOutcome>,
}

/// The table.
const CHECKS: &[Promise] = &[
    Promise {
        name: "kills",
        promise: "killed at any time, an output is whole, the earlier one or absent, and the next run cleans up",
        run: outputs::kills,
    },
    Promise {
        name: "full-disk",
        promise: "on a full disk a run ends with 2, names the file and leaves nothing",
        run: outputs::full_disk,
    },
    Promise {
        name: "races",
        promise: "of two jobs for one output one refuses, and nothing that somebody else wrote is replaced",
        run: outputs::races,
    },
    Promise {
        name: "eaten-inputs",
        promise: "an output that is, holds or lies in an input is refused",
        run: outputs::eaten_inputs,
    },
    Promise {
        name: "swaps",
        promise: "what a run reports is what it ran, also while its bundle is replaced",
        run: outputs::swaps,
    },
    Promise { name: "shell", promise: "no name becomes a command in an emitted script", run: inputs::shell },
    Promise {
        name: "injection",
        promise: "no name steers a terminal or gives orders to a CI log",
        run: injection,
    },
    Promise {
        name: "network",
        promise: "no packet is sent and nothing is written below HOME",
        run: network::run,
    },
    Promise { name: "bombs", promise: "small files that ask for much are refused", run: inputs::bombs },
    Promise { name: "wide", promise: "wide tables take time in proportion", run: inputs::wide },
    Promise { name: "odd-inputs", promise: "what is no regular file is refused at once", run: inputs::odd },
];

/// What a check saw.
#[derive(Default)]
struct PromiseOutcome {
    counts: BTreeMap<&'static str, usize>,
    problems: Vec<String>,
    not_run: Vec<String>,
}

impl PromiseOutcome {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn problem(&mut self, what: &str, wrong: impl Into<String>) {
        self.problems.push(format!("{what}: {}", wrong.into()));
    }

    fn extend(&mut self, what: &str, wrong: Option<String>) {
        if let Some(wrong) = wrong {
            self.problem(what, wrong);
        }
    }

    fn not_run(&mut self, why: &str) {
        self.not_run.push(why.to_owned());
    }
}

/// What to run.
pub(crate) struct Options<'a> {
    /// These checks only; all where none is named.
    pub(crate) checks: &'a [String],
    /// A few repetitions of everything.
    pub(crate) short: bool,
    /// Of the random times; the same seed repeats them.
    pub(crate) seed: u64,
    /// Take the program that `cargo xtask check` built.
    pub(crate) built: bool,
}

/// Runs the checks, says what each counted, and fails if one found a problem.
pub(crate) fn run(root: &Utf8Path, options: &Options<'_>) -> Result<()> {
    if let Some(unknown) = options.checks.iter().find(|n| CHECKS.iter().all(|c| c.name != **n)) {
        let names: Vec<&str> = CHECKS.iter().map(|c| c.name).collect();
        bail!("no check `{unknown}`: there are {}", names.join(", "));
    }
    if !options.built {
        let build = ["build", "--quiet", "--workspace", "--features", &all_engines(), "--bin", "dpar-export"];
        command(root, &cargo(), &build)?;
    }
    let program = onnx::program(root, true)?;
    let ground = Ground::new(root, program, options.short, options.seed)?;
    writers::every_writer_is_here(&ground)?;
    println!("seed {} ({})", options.seed, if options.short { "short form" } else { "all repetitions" });
    let mut failed = Vec::new();
    let mut problems = 0;
    // The short form follows the workspace's tests, which hold the places.
    let asked = |c: &&Promise| match options.checks {
        [] => !(options.short && c.name == "injection"),
        named => named.iter().any(|n| n == c.name),
    };
    for check in CHECKS.iter().filter(asked) {
        let started = Instant::now();
        let outcome = (check.run)(&ground).unwrap_or_else(|e| PromiseOutcome {
            problems: vec![format!("the check itself failed: {e:#}")],
            ..PromiseOutcome::default()
        });
        let counts: Vec<String> = outcome.counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
        let (found, seconds) = (outcome.problems.len(), started.elapsed().as_secs_f64());
        println!("{:<13} {}, {found} problems, {seconds:.1} s", check.name, counts.join(", "));
        for why in &outcome.not_run {
            println!("  NOT RUN: {}", shown(why));
        }
        if found > 0 {
            println!("  promise broken: {}", check.promise);
            for problem in &outcome.problems {
                println!("  - {}", shown(problem));
            }
            failed.push(check.name);
            problems += found;
        }
    }
    if !failed.is_empty() {
        bail!("{problems} problems in {}; repeat with --seed {}", failed.join(", "), options.seed);
    }
    Ok(())
}

/// Messages quote the program, which is on trial here.
fn shown(text: &str) -> String {
    let lines: Vec<String> =
        text.lines().map(|l| l.escape_debug().to_string().replace("\\\"", "\"")).collect();
    lines.join("\n    ")
}

/// The table of places is a test of the workspace, tests/suite/injection.rs: it is run here, and its count is shown.
fn injection(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let mut run = std::process::Command::new(cargo());
    run.args(["nextest", "run", "--workspace", "--features", &all_engines(), "--no-capture"]);
    run.args(["-E", "test(/^injection::/)"]).current_dir(&ground.root);
    let output = run.output()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let places = text.lines().find_map(|l| l.trim().split_once(" places, ")?.0.parse::<usize>().ok());
    outcome.counts.insert("places", places.unwrap_or(0));
    if !output.status.success() || places.is_none() {
        outcome.problem("tests/suite/injection.rs", text);
    }
    Ok(outcome)
}
