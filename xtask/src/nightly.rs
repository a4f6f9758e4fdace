//! `cargo xtask nightly`: what is too slow, or needs too much of others, for every change.

use anyhow::{Result, bail};
use camino::Utf8Path;
use clap::builder::PossibleValuesParser;

use crate::{command, step};

/// The tasks in their order, each a command line of `cargo xtask`; from minutes to half an hour each.
const TASKS: [(&str, &[&str]); 13] = [
    ("book", &["book"]),
    ("deny", &["deny"]),
    ("oms-check", &["oms-check"]),
    ("oci-check", &["oci-check"]),
    ("api-check", &["api-check"]),
    ("deploy-check", &["deploy-check"]),
    ("triton", &["triton"]),
    ("wheel", &["wheel"]),
    ("ray", &["ray"]),
    ("slurm", &["slurm"]),
    ("k8s", &["k8s"]),
    ("package", &["package", "--verify"]),
    ("release", &["release", "--twice"]),
];

/// The names, for the command line.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(TASKS.map(|(name, _)| name))
}

/// Runs each, or those that are named, also after one failed, and fails if any did.
pub(crate) fn run(root: &Utf8Path, only: &[String]) -> Result<()> {
    let program = std::env::current_exe()?;
    let Some(program) = program.to_str() else { bail!("the path of this program is not UTF-8") };
    let mut failed = Vec::new();
    for (name, args) in TASKS {
        if !only.is_empty() && !only.iter().any(|o| o == name) {
            continue;
        }
        if let Err(e) = step(name, || command(root, program, args)) {
            println!("error: {e:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
