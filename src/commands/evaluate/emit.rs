//! `evaluate --emit`: this command line as the job of a cluster.

use camino::Utf8Path;
use clap::ValueEnum;

use crate::cluster::ClusterJob;
use crate::commands::failure::{Exit, Failure};
use crate::targets::shell_word;

/// Who runs the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cluster {
    /// A script that submits an array job, and a job for the merge that waits for it
    Slurm,
    /// An Indexed Job and a Job for the merge, suspended
    K8s,
}

/// The options that say how an evaluation is divided and where it goes: a part has its own.
const OWN: [&str; 4] = ["--emit", "--shards", "--output", "-o"];

/// The words that the program was called with, without its name, as a job.
pub(super) fn job(
    given: impl IntoIterator<Item = std::ffi::OsString>,
    output: &Utf8Path,
    shards: u16,
) -> Result<ClusterJob, Failure> {
    let mut command = String::from("dpar-export");
    let mut given = given.into_iter();
    while let Some(word) = given.next() {
        let Some(word) = word.to_str() else {
            return Err(Failure::usage("a word of the command line is no text", None));
        };
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        match OWN.contains(&name) {
            // The value is in the same word, or is the next one.
            true if name == word => drop(given.next()),
            true => {}
            false if word.starts_with("-o") => {}
            false => command.extend([" ", &shell_word(word)]),
        }
    }
    // Bad input, no engine, a hash that does not match.
    let last = [Exit::Usage, Exit::Unavailable, Exit::Integrity].map(|exit| exit as u8).to_vec();
    let image = concat!("dpar-export:", env!("CARGO_PKG_VERSION")).to_owned();
    Ok(ClusterJob { command, output: shell_word(output.as_str()), shards, image, last })
}

/// What is printed, and what to do with it.
pub(super) fn text(job: &ClusterJob, cluster: Cluster) -> (String, String) {
    match cluster {
        Cluster::Slurm => {
            let next = "call it with bash where the paths are; options of sbatch follow its name".to_owned();
            (job.slurm(), next)
        }
        Cluster::K8s => (format!("{:#}\n", job.kubernetes()), ClusterJob::next_step()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_options_of_the_whole_but_its_own() {
        for own in [
            &["--emit", "slurm", "-o", "out", "--shards", "3"][..],
            &["--emit=slurm", "--output=out", "--shards=3"],
            &["--output", "out", "--emit=slurm", "--shards=3"],
            &["-oout", "--emit", "slurm", "--shards", "3"],
            &["-o=out", "--emit", "slurm", "--shards", "3"],
        ] {
            let line = [&["evaluate", "--bundle", "b"][..], own, &["--reference", "it's.npz"]].concat();
            let job = job(line.iter().map(Into::into), "out".into(), 3).unwrap();
            assert_eq!(job.command, r"dpar-export evaluate --bundle b --reference 'it'\''s.npz'");
        }
    }
}
