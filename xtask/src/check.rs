//! `cargo xtask check`: what CI calls.

use std::time::Instant;

use anyhow::{Result, bail};
use camino::Utf8Path;
use xtask_web::page;

use crate::{
    NamedStep, all_engines, cargo, command, each_step, hostile, npz, onnx, package, python, report, tidy,
};

/// Runs every step, or those named in `only`, also after one failed, and fails if any did. `minimal` is a build without
/// optional engines.
pub(crate) fn run(root: &Utf8Path, only: &[String], minimal: bool) -> Result<()> {
    let cargo = cargo();
    let run_cargo = |args: &[&str]| command(root, &cargo, args);
    let features = all_engines();
    let optional = dpar_engine_table::all().iter().filter(|e| !e.plain);
    let optional: Vec<String> = optional.map(dpar_engine_table::TableEntry::package).collect();
    let mut scope = vec!["--workspace"];
    if minimal {
        scope.extend(optional.iter().flat_map(|c| ["--exclude", c]));
    } else {
        scope.extend(["--features", &features]);
    }
    let clippy = [&["clippy"], &scope[..], &["--all-targets", "--quiet", "--", "-D", "warnings"]].concat();
    let nextest = [&["nextest", "run"], &scope[..], &["--no-fail-fast", "--status-level", "fail"]].concat();
    let doctests = [&["test", "--doc", "--quiet"], &scope[..]].concat();
    let short = hostile::Options { checks: &[], short: true, seed: 1, built: true };
    let mut steps: Vec<NamedStep<'_>> = vec![
        ("fmt", Box::new(|| run_cargo(&["fmt", "--all", "--check"]))),
        ("clippy", Box::new(|| run_cargo(&clippy))),
        ("tests", Box::new(|| run_cargo(&nextest))),
        ("doctests", Box::new(|| run_cargo(&doctests))),
        ("tidy", Box::new(|| tidy::run(root))),
        ("onnx-check", Box::new(|| onnx::run(root, &[], true))),
        ("npz-check", Box::new(|| npz::run(root, true))),
        ("package", Box::new(|| package::run(root, false))),
        ("python", Box::new(|| python::check(root, &scope))),
    ];
    if !minimal {
        // What users build: it compiles nothing of the optional engines (`tidy`), and has no warnings either.
        steps.insert(
            1,
            (
                "clippy of a plain build",
                Box::new(|| run_cargo(&["clippy", "--quiet", "--", "-D", "warnings"])),
            ),
        );
        steps.push(("report-check", Box::new(|| report::run(root, true))));
        steps.push(("page-check", Box::new(|| page::run(root, &onnx::program(root, true)?))));
    } else {
        println!(
            "SKIPPED: report-check and page-check need a Chromium, which `cargo xtask setup` (without --minimal) installs."
        );
        println!("SKIPPED: no report was opened in a browser.");
    }
    steps.push(("hostile, short form", Box::new(|| hostile::run(root, &short))));
    let names: Vec<&str> = steps.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("no step `{unknown}`: there are {}", names.join(", "));
    }
    steps.retain(|(name, _)| only.is_empty() || only.iter().any(|o| o == name));
    let start = Instant::now();
    let ended = each_step(steps);
    println!("== check took {:.0} s", start.elapsed().as_secs_f64());
    ended
}
