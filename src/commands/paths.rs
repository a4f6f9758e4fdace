//! Outputs that eat inputs: no output is, holds, or lies in what a command reads, or another output.
//!
//! The rule looks at the parsed command line, so that no command can forget it: [`ROLES`] says of every option that takes a
//! path what it is for, and a test finds options that are not there. What follows from a path (the files that a checkpoint's
//! configuration names) goes through [`apart`] where it is known.

use std::any::TypeId;

use camino::{Utf8Path, Utf8PathBuf};
use clap::{ArgMatches, Command};

use super::failure::Failure;
use crate::staging::{Meeting, Place};

/// What a path of the command line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathRole {
    Read,
    Written,
}

use PathRole::{Read, Written};

/// Every option that takes a path, by its name in the parser: what it is for, and what a message calls it.
const ROLES: &[(&str, PathRole, &str)] = &[
    ("activations", Read, "the samples"),
    ("attestation", Read, "the attestation"),
    ("baseline", Read, "the bundle"),
    ("bundle", Read, "the bundle"),
    ("bundles", Read, "a bundle"),
    ("calibrate_from", Read, "the trace"),
    ("checkpoint", Read, "the checkpoint"),
    ("cite", Read, "a report"),
    ("class_names", Read, "the file of class names"),
    ("compare", Read, "the earlier result"),
    ("config", Read, "the configuration"),
    ("engine_cache", Written, "the engine cache"),
    ("entropy", Read, "the entropy model"),
    ("ep_lib", Read, "the library"),
    ("extractor", Read, "the extractor"),
    ("images", Read, "the images"),
    ("inputs", Read, "the inputs"),
    ("junit", Written, "the JUnit file"),
    ("key", Read, "the key"),
    ("layout", Read, "the layout"),
    ("map", Read, "the rename rules"),
    ("merge", Read, "a shard"),
    ("one_to", Written, "the case"),
    ("ort_lib", Read, "the library"),
    ("output", Written, "the output"),
    ("path", Read, "what is attested"),
    ("reference", Read, "the reference"),
    ("report", Written, "the report"),
    ("runs", Read, "a run"),
    ("runtime_cache", Written, "the runtime cache"),
    ("samples", Read, "the samples"),
    ("streams", Read, "the streams"),
    ("timing_cache", Read, "the timing cache"),
    ("tls_cert", Read, "the certificate"),
    ("tls_key", Read, "the certificate's key"),
    ("token_file", Read, "the token"),
    ("tokens", Read, "the tokens"),
    ("trt_lib", Read, "the folder of the libraries"),
    ("vq", Read, "the tokenizer"),
];

/// The options of one command that take paths.
fn path_options(command: &Command) -> impl Iterator<Item = &str> {
    let paths =
        command.get_arguments().filter(|a| a.get_value_parser().type_id() == TypeId::of::<Utf8PathBuf>());
    paths.map(|a| a.get_id().as_str())
}

/// Holds every output of a command line against everything that it reads, and against the other outputs.
///
/// # Errors
/// When two of them meet.
pub(super) fn check(command: &Command, matches: &ArgMatches) -> Result<(), Failure> {
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        return check(command, matches);
    }
    let (mut read, mut written) = (Vec::new(), Vec::new());
    for option in path_options(command) {
        let given = matches.try_get_many::<Utf8PathBuf>(option).ok().flatten().into_iter().flatten();
        let role = ROLES.iter().find(|r| r.0 == option);
        let &(_, role, what) = role.unwrap_or(&("", Read, "what is read"));
        let list = if role == Written { &mut written } else { &mut read };
        list.extend(given.map(|path| (what, path.as_path())));
    }
    for (at, (what, output)) in written.iter().enumerate() {
        hold(what, output, &read)?;
        let met =
            written.iter().skip(at + 1).find_map(|(other, path)| Some((other, path, met(output, path)?)));
        if let Some((other, path, meeting)) = met {
            return Err(refused(&format!("{what} {output}"), meeting, other, path));
        }
    }
    Ok(())
}

/// Holds an output against what is read: names for messages, and paths.
///
/// # Errors
/// When it is, holds, or lies in one of them.
pub(super) fn apart(output: &Utf8Path, inputs: &[(&str, &Utf8Path)]) -> Result<(), Failure> {
    hold("the output", output, inputs)
}

fn hold(name: &str, output: &Utf8Path, inputs: &[(&str, &Utf8Path)]) -> Result<(), Failure> {
    match inputs.iter().find_map(|(what, input)| Some((what, input, met(output, input)?))) {
        None => Ok(()),
        Some((what, input, meeting)) => Err(refused(&format!("{name} {output}"), meeting, what, input)),
    }
}

fn met(a: &Utf8Path, b: &Utf8Path) -> Option<Meeting> {
    Place::of(a).ok()?.meets(&Place::of(b).ok()?)
}

fn refused(output: &str, meeting: Meeting, what: &str, path: &Utf8Path) -> Failure {
    let message = format!("{output} {} {what}, {path}", meeting.word());
    Failure::usage(message, Some("write it somewhere else"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::commands::cli::Cli;

    fn commands(command: &Command, found: &mut Vec<Command>) {
        found.push(command.clone());
        command.get_subcommands().for_each(|c| commands(c, found));
    }

    #[test]
    fn every_option_that_takes_a_path_has_a_role() {
        let mut all = Vec::new();
        commands(&Cli::command(), &mut all);
        let mut used: Vec<String> = all.iter().flat_map(|c| path_options(c).map(str::to_owned)).collect();
        used.sort();
        used.dedup();
        let roles: Vec<&str> = ROLES.iter().map(|r| r.0).collect();
        assert_eq!(used, roles, "one line for each, in the order of the alphabet");
    }
}
