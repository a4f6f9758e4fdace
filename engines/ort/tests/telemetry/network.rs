//! An empty network and empty folders for a test: what a program sends or leaves behind shows.

#![allow(clippy::print_stderr, reason = "what is left out is said")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Says that this process is the test's part inside.
const INSIDE: &str = "DPAR_TEST_INSIDE";
/// Leaves these tests out on a machine that allows no network namespaces.
const SKIP: &str = "DPAR_TEST_NO_NAMESPACES";

/// Variables that lead to a user's folders.
const FOLDERS: [&str; 8] = [
    "HOME",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "USERPROFILE",
];

/// Variables of build services: where one is set, ONNX Runtime's telemetry is off of itself, and a test would see nothing
/// whatever the program does.
const BUILD_SERVICES: [&str; 11] = [
    "APPVEYOR",
    "BUILDKITE",
    "CI",
    "CIRCLECI",
    "CODEBUILD_BUILD_ID",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "JENKINS_URL",
    "TEAMCITY_VERSION",
    "TF_BUILD",
    "TRAVIS",
];

/// What the part inside is told, where this process is it.
pub(crate) fn role() -> Option<String> {
    std::env::var(INSIDE).ok()
}

/// The command with every folder of a user at an empty one below `place`, and telemetry neither on nor off.
pub(crate) fn alone<'c>(command: &'c mut Command, place: &Path) -> &'c mut Command {
    for name in FOLDERS {
        let folder = place.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        command.env(name, folder);
    }
    BUILD_SERVICES.into_iter().for_each(|name| {
        command.env_remove(name);
    });
    command.env_remove("ORT_DISABLE_TELEMETRY")
}

/// Runs `test` of this test program again in a network namespace of its own, with nothing in it, as `role`.
/// `None` where this machine allows none and that was said to be known.
pub(crate) fn inside(test: &str, role: &str, place: &Path, more: &[(&str, &str)]) -> Option<Output> {
    let works = |flags: &str| {
        Command::new("unshare").args([flags, "true"]).output().is_ok_and(|o| o.status.success())
    };
    let Some(flags) = ["-rn", "-n"].into_iter().find(|f| works(f)) else {
        assert!(
            std::env::var_os(SKIP).is_some(),
            "`unshare -rn` does not work here, so it cannot be seen what is sent: run this test as root, or set {SKIP}=1 to \
             leave it out"
        );
        eprintln!("SKIPPED, as {SKIP} says: nobody looked at what is sent");
        return None;
    };
    let mut command = Command::new("unshare");
    command.arg(flags).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, role);
    alone(&mut command, place).envs(more.iter().copied());
    Some(command.output().unwrap())
}

/// What was sent, or could not be for want of a way, since this network is there. In it no interface is up, so the system
/// counts an attempt as one without a route.
pub(crate) fn attempts() -> u64 {
    let count = |text: &str, protocol: &str, wanted: &[&str]| -> u64 {
        let lines: Vec<Vec<&str>> = text
            .lines()
            .filter(|l| l.starts_with(protocol))
            .map(|l| l.split_whitespace().collect())
            .collect();
        let [names, values] = lines.as_slice() else { panic!("{text}") };
        let sum = names
            .iter()
            .zip(values)
            .filter(|(n, _)| wanted.contains(n))
            .map(|(_, v)| v.parse::<u64>().unwrap());
        let counted: Vec<u64> = sum.collect();
        assert_eq!(counted.len(), wanted.len(), "{text}");
        counted.iter().sum()
    };
    let snmp = std::fs::read_to_string("/proc/self/net/snmp").unwrap();
    let fourth =
        count(&snmp, "Ip:", &["OutRequests", "OutNoRoutes"]) + count(&snmp, "Tcp:", &["ActiveOpens"]);
    let snmp6 = std::fs::read_to_string("/proc/self/net/snmp6").unwrap_or_default();
    let sixth = snmp6.lines().filter_map(|l| l.split_once(char::is_whitespace));
    let sixth =
        sixth.filter(|(name, _)| *name == "Ip6OutNoRoutes").map(|(_, n)| n.trim().parse::<u64>().unwrap());
    fourth + sixth.sum::<u64>()
}

/// Every file below `place`.
pub(crate) fn files(place: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
