//! `cargo xtask check`: what CI calls.

use std::time::Instant;

use anyhow::{Result, bail};
use camino::Utf8Path;

use crate::{cargo, command, onnx, step, tidy};

/// Runs every step, also after one failed, and fails if any did.
pub(crate) fn run(root: &Utf8Path) -> Result<()> {
    let cargo = cargo();
    let run_cargo = |args: &[&str]| command(root, &cargo, args);
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    let nextest = ["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "fail"];
    type Step<'a> = (&'a str, Box<dyn FnOnce() -> Result<()> + 'a>);
    let steps: Vec<Step<'_>> = vec![
        ("fmt", Box::new(|| run_cargo(&["fmt", "--all", "--check"]))),
        ("clippy", Box::new(|| run_cargo(&clippy))),
        ("tests", Box::new(|| run_cargo(&nextest))),
        ("doctests", Box::new(|| run_cargo(&["test", "--doc", "--workspace", "--quiet"]))),
        ("tidy", Box::new(|| tidy::run(root))),
        ("onnx-check", Box::new(|| onnx::run(root, &[]))),
    ];
    let start = Instant::now();
    let mut failed = Vec::new();
    for (name, body) in steps {
        if let Err(e) = step(name, body) {
            eprintln!("error: {e:#}");
            failed.push(name);
        }
    }
    println!("== check took {:.0} s", start.elapsed().as_secs_f64());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
