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
const OWN: [&str; 3] = ["--emit", "--shards", "--output"];

/// The words that the program was called with, without its name, as a job.
pub(super) fn job(
    given: impl IntoIterator<Item = std::ffi::OsString>,
    output: &Utf8Path,
    shards: u16,
) -> Result<ClusterJob, Failure> {
    // In a script a word may be a line of a text that ends with a line of its own.
    let quoted = |word: &str| match word.contains(['\n', '\r']) {
        true => {
            let message = "a word of the command line has a line break, which no emitted job can hold";
            Err(Failure::usage(message, None))
        }
        false => Ok(shell_word(word)),
    };
    let mut command = String::from("dpar-export");
    let mut given = given.into_iter();
    while let Some(word) = given.next() {
        let Some(word) = word.to_str() else {
            return Err(Failure::usage("a word of the command line is no text", None));
        };
        // Of grouped short options, `-qo OUT`.
        let short = word.strip_prefix('-').filter(|w| !w.starts_with('-')).and_then(|w| w.split_once('o'));
        if let Some((flags, value)) = short.filter(|(flags, _)| flags.chars().all(|c| "qv".contains(c))) {
            if !flags.is_empty() {
                command.extend([" -", flags]);
            }
            if value.is_empty() {
                given.next();
            }
            continue;
        }
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        match OWN.contains(&name) {
            // The value is in the same word, or is the next one.
            true if name == word => drop(given.next()),
            true => {}
            false => command.extend([" ", &quoted(word)?]),
        }
    }
    // Bad input, no engine, a hash that does not match.
    let last = [Exit::Usage, Exit::Unavailable, Exit::Integrity].map(|exit| exit as u8).to_vec();
    let image = concat!("dpar-export:", env!("CARGO_PKG_VERSION")).to_owned();
    Ok(ClusterJob { command, output: quoted(output.as_str())?, shards, image, last })
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
        let grouped = job(["evaluate", "-qo", "out", "-v"].map(Into::into), "out".into(), 3).unwrap();
        assert_eq!(grouped.command, "dpar-export evaluate -q -v");
        for line in [["--reference", "a\nPART\ntouch x #"], ["-v", "b\rc"]] {
            assert!(job(line.map(Into::into), "out".into(), 3).is_err(), "{line:?}");
        }
        assert!(job([], "out\nMERGE\n".into(), 3).is_err());
    }
}
