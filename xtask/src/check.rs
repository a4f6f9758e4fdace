//! `cargo xtask check`: what CI calls.

use std::time::Instant;

use anyhow::{Result, bail};
use camino::Utf8Path;
use xtask_web::page;

use crate::{
    NamedStep, all_engines, cargo, command, each_step, hostile, npz, onnx, package, python, report, tidy,
};

/// The steps that run only where they are named, as `cargo xtask nightly` does: clippy sees in a plain build all code but that of
/// optional engines, and the tests compile that; every crate is packed and built by `cargo xtask package --verify`.
const BY_NAME: [&str; 2] = [CLIPPY_OF_ALL, PACKAGE];
pub(crate) const CLIPPY_OF_ALL: &str = "clippy of all engines";
const PACKAGE: &str = "package";

/// Runs every step but those of [`BY_NAME`], or those named in `only`, also after one failed, and fails if any did. `minimal` is a
/// build without optional engines.
pub(crate) fn run(root: &Utf8Path, only: &[String], minimal: bool) -> Result<()> {
    let cargo = cargo();
    let run_cargo = |args: &[&str]| command(root, &cargo, args);
    let features = all_engines();
    let optional = dpar_engine_table::all().iter().filter(|e| !e.plain);
    let optional: Vec<String> = optional.map(dpar_engine_table::TableEntry::package).collect();
    let mut plain = vec!["--workspace"];
    plain.extend(optional.iter().flat_map(|c| ["--exclude", c]));
    let scope = if minimal { plain.clone() } else { vec!["--workspace", "--features", &features] };
    let strictly = ["--all-targets", "--quiet", "--", "-D", "warnings"];
    let clippy = [&["clippy"], &plain[..], &strictly[..]].concat();
    let clippy_of_all = [&["clippy"], &scope[..], &strictly[..]].concat();
    let nextest = [
        &["nextest", "run"],
        &scope[..],
        &["--no-fail-fast", "--status-level", "fail", "--final-status-level", "slow"],
    ]
    .concat();
    let doctests = [&["test", "--doc", "--quiet"], &scope[..]].concat();
    let short = hostile::Options { checks: &[], short: true, seed: 1, built: true };
    let mut steps: Vec<NamedStep<'_>> = vec![
        ("fmt", Box::new(|| run_cargo(&["fmt", "--all", "--check"]))),
        // A plain build is what users build: it compiles nothing of the optional engines (`tidy`).
        ("clippy", Box::new(|| run_cargo(&clippy))),
        ("tests", Box::new(|| run_cargo(&nextest))),
        ("doctests", Box::new(|| run_cargo(&doctests))),
        ("tidy", Box::new(|| tidy::run(root))),
        ("onnx-check", Box::new(|| onnx::run(root, &[], true))),
        ("npz-check", Box::new(|| npz::run(root, true))),
        (PACKAGE, Box::new(|| package::run(root, false))),
        ("python", Box::new(|| python::check(root, &scope))),
    ];
    if !minimal {
        steps.push((CLIPPY_OF_ALL, Box::new(|| run_cargo(&clippy_of_all))));
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
    steps.retain(|(name, _)| match only {
        [] => !BY_NAME.contains(name),
        only => only.iter().any(|o| o == name),
    });
    let start = Instant::now();
    let ended = each_step(steps);
    println!("== check took {:.0} s", start.elapsed().as_secs_f64());
    ended
}
