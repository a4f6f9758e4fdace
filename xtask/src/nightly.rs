//! `cargo xtask nightly`: what is too slow, or needs too much of others, for every change.

use anyhow::{Result, bail};
use camino::Utf8Path;
use clap::builder::PossibleValuesParser;

use crate::check::CLIPPY_OF_ALL;
use crate::{NamedStep, command, each_step};

/// The tasks in their order, each a command line of `cargo xtask`; from minutes to half an hour each.
const TASKS: [(&str, &[&str]); 18] = [
    (CLIPPY_OF_ALL, &["check", CLIPPY_OF_ALL]),
    ("book", &["book"]),
    ("deny", &["deny"]),
    ("oms-check", &["oms-check"]),
    ("oci-check", &["oci-check"]),
    ("api-check", &["api-check"]),
    ("deploy-check", &["deploy-check"]),
    ("triton", &["triton"]),
    ("aiperf", &["aiperf"]),
    ("wheel", &["wheel"]),
    ("record-check", &["record-check"]),
    ("ray", &["ray"]),
    ("sequential", &["sequential"]),
    ("manifolds", &["manifolds"]),
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
    let asked = TASKS.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name));
    let one = |(name, args): &(&'static str, &'static [&'static str])| -> NamedStep<'_> {
        let args = *args;
        (*name, Box::new(move || command(root, program, args)))
    };
    each_step(asked.map(one).collect())
}
