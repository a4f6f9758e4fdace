//! No packet is sent and nothing is written below HOME, whichever command and engine runs.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use camino::Utf8Path;

use super::PromiseOutcome;
use super::ground::{Ended, Ground, Running, tree};

/// A network of its own, in which every address is this machine's loopback and what is sent is counted, and a home of its
/// own. `$0` is the home. The last line of the output is the number of packets.
const SCRIPT: &str = r#"
ip link set lo up && ip addr add 192.0.2.1/24 dev lo && ip route add default dev lo || exit 99
packets() { awk '/:/ { sub(/.*:/, ""); n += $10 } END { print n + 0 }' /proc/net/dev; }
before=$(packets)
"$@" >&2
code=$?
sleep 0.2
echo $(($(packets) - before))
exit $code"#;

/// What the program needs of the environment: where programs and engines' libraries lie.
const KEPT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "ORT_DYLIB_PATH"];

/// Whether a program runs inside `unshare` here.
pub(super) fn allowed(flags: &str, command: &[&str]) -> bool {
    let mut unshare = Command::new("unshare");
    unshare.arg(flags).args(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    unshare.status().is_ok_and(|s| s.success())
}

/// The command line inside the empty network, with an empty home.
fn watched(ground: &Ground, home: &Utf8Path, program: &str, args: &[String]) -> Result<Ended> {
    let mut command = Command::new("unshare");
    command.args(["-rn", "sh", "-c", SCRIPT, home.as_str(), program]).args(args).current_dir(&ground.root);
    // What names a build service (`CI` and others) switches ONNX Runtime's telemetry off: there it would prove nothing.
    command.env_clear().envs(KEPT.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    for name in ["HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR"] {
        command.env(name, home);
    }
    command.env("NO_COLOR", "1");
    Running::start(command)?.end(Duration::from_secs(120))
}

/// Runs every kind of job on every engine that is there.
pub(super) fn run(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let home = ground.place("home")?;
    if !allowed("-rn", &["sh", "-c", "ip link set lo up && ip route add default dev lo"]) {
        outcome.not_run("no network of its own can be made here (`unshare -rn`, `ip`): nothing was watched");
        return Ok(outcome);
    }
    // That a packet would be seen.
    let knock = ["-c", "echo x > /dev/udp/192.0.2.9/53"].map(str::to_owned);
    let seen = watched(ground, &home, "bash", &knock)?.stdout;
    if seen.trim().parse::<u64>().unwrap_or(0) == 0 {
        outcome.problem("a packet sent on purpose", format!("is not counted: {seen}"));
    }
    let (b, place) = (ground.models[0].bundle.as_str(), ground.place("network")?);
    let (golden, out) = (ground.models[0].golden.as_str(), place.join("out"));
    // Long enough for what a library does in the background after some seconds.
    let images = if ground.short { "24" } else { "1500" };
    let mut lines: Vec<Vec<&str>> =
        vec![vec!["doctor", b], vec!["inspect", b], vec!["parity", b, "--images", "1", "--no-probes"]];
    let engines = crate::graph_engines(false);
    for engine in &engines {
        lines.push(vec!["verify", b, "--reference", golden, "--no-probes", "--engine", engine]);
        lines.push(vec![
            "generate",
            b,
            "--num",
            images,
            "--no-images",
            "-o",
            out.as_str(),
            "--engine",
            engine,
            "--force",
        ]);
    }
    for line in lines {
        let what = line.join(" ");
        let ended = watched(
            ground,
            &home,
            ground.program.as_str(),
            &line.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>(),
        )?;
        if ended.code == Some(3) {
            outcome.not_run(&format!("`{what}`: {}", ended.stderr.trim()));
            continue;
        }
        outcome.count("runs in an empty network");
        if let Some(wrong) = ended.not(0) {
            outcome.problem(&what, wrong);
        }
        match ended.stdout.trim().parse::<u64>() {
            Ok(0) => {}
            Ok(n) => outcome.problem(&what, format!("{n} packets")),
            Err(_) => outcome.problem(&what, format!("no count of packets: {}", ended.stdout)),
        }
        let left = tree(&home)?;
        if left.len() > 1 {
            let names: Vec<&String> = left.keys().filter(|n| *n != "/").collect();
            outcome.problem(&what, format!("files below HOME: {names:?}"));
            fs_err::remove_dir_all(&home)?;
            fs_err::create_dir(&home)?;
        }
    }
    Ok(outcome)
}
