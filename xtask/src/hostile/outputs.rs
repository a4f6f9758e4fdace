//! Outputs: killed at random times, on a full disk, raced for, made of their own inputs.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use camino::Utf8Path;

use super::PromiseOutcome;
use super::ground::{Ended, Ground, HANG, Running, copy, names, tree};
use super::writers::{WRITERS, WritingCommand};

type Tree = BTreeMap<String, String>;

/// Both contents of a writer's output, and how long writing one takes.
fn contents(ground: &Ground, writer: &WritingCommand) -> Result<([Tree; 2], Duration)> {
    let place = ground.place("contents")?;
    let mut took = Duration::ZERO;
    let mut made = Vec::new();
    for content in [0, 1] {
        took = ground.good(&writer.line(ground, content, &place))?.took;
        made.push(tree(&writer.path(&place))?);
        fs_err::remove_dir_all(&place)?;
        fs_err::create_dir(&place)?;
    }
    let [first, second] = [made.remove(0), made.remove(0)];
    Ok(([first, second], took))
}

/// What lies at the place before the killed run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    EmptyFolder,
    AnotherOutput,
}

/// How the names begin under which work lies in a folder that was there before; the next run removes it or completes it.
const HIDDEN: &str = "/.dpar-export-";

/// Killed at a random time, an output is whole, the earlier one, or not there; the next run works and leaves nothing else.
pub(super) fn kills(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    for writer in WRITERS {
        let ([first, second], took) = contents(ground, writer)?;
        let mut random = ground.random(&format!("kills {}", writer.name));
        for round in 0..ground.times(3, 40) {
            let before = match round % 3 {
                1 if writer.resume.is_none() => Before::AnotherOutput,
                2 if writer.folder() => Before::EmptyFolder,
                _ => Before::Nothing,
            };
            // Mostly the kill that nothing can catch; now and then a polite one, which leaves nothing behind.
            let signal = if round % 4 == 3 { "TERM" } else { "KILL" };
            let after = took.mul_f64(random.f64() * 1.1);
            let what = format!("{} with {before:?} before it, {signal} after {after:.0?}", writer.name);
            outcome.count("kills");
            let place = ground.place("kills")?;
            match before {
                Before::Nothing => {}
                Before::EmptyFolder => fs_err::create_dir(writer.path(&place))?,
                Before::AnotherOutput => drop(ground.good(&writer.line(ground, 0, &place))?),
            }
            let mut run = Running::start(ground.command(&writer.again(ground, 1, &place)))?;
            while run.alive() && run.age() < after {
                std::thread::sleep(Duration::from_millis(1));
            }
            run.signal(signal)?;
            let ended = run.end(HANG)?;
            let mut there = tree(&writer.path(&place))?;
            // A folder that was there may be a mount point: the work lies hidden in it, and entries move up one by one.
            let hidden = there.len();
            there.retain(|name, _| !name.starts_with(HIDDEN));
            let hidden = there.len() < hidden;
            let whole = there == second;
            let begun = hidden
                || names(&place)?.iter().any(|n| n != writer.out)
                || match before {
                    Before::Nothing => !there.is_empty(),
                    Before::EmptyFolder => there.len() != 1,
                    Before::AnotherOutput => there != first,
                };
            // A polite signal that comes while the program is still being loaded ends it, with nothing begun.
            let killed = ended.code.is_none() && (signal == "KILL" || !begun);
            if let Some(wrong) = ended.wrong().filter(|_| !killed) {
                outcome.problem(&what, wrong);
            }
            let allowed = match before {
                Before::Nothing => there.is_empty(),
                Before::EmptyFolder if hidden => {
                    there.iter().all(|(name, file)| second.get(name) == Some(file))
                }
                Before::EmptyFolder => there.len() == 1,
                Before::AnotherOutput => there == first,
            };
            // An evaluation that goes on later keeps its state where its result will be.
            if !whole && !allowed && writer.resume.is_none() {
                let lost = before == Before::AnotherOutput && there.is_empty();
                outcome
                    .problem(&what, if lost { "LOST: the earlier output is gone" } else { "half an output" });
            }
            if signal == "TERM" && writer.resume.is_none() {
                leftovers(&mut outcome, &what, &place, writer)?;
            }
            next_run(ground, &mut outcome, &what, writer, &place, &second)?;
        }
    }
    Ok(outcome)
}

/// The next run to a place works, writes the right thing and removes what the last one left.
fn next_run(
    ground: &Ground,
    outcome: &mut PromiseOutcome,
    what: &str,
    writer: &WritingCommand,
    place: &Utf8Path,
    want: &Tree,
) -> Result<()> {
    let path = writer.path(place);
    // An empty folder is no output to be replaced: it must be taken without an option.
    let empty = tree(&path)?.len() == 1 && writer.folder();
    let line = if empty && writer.resume.is_none() {
        writer.line(ground, 1, place)
    } else {
        writer.again(ground, 1, place)
    };
    match ground.run(&line)?.not(0) {
        Some(wrong) => outcome.problem(what, format!("the next run fails: {wrong}")),
        None if tree(&path)? != *want => outcome.problem(what, "the next run writes something else"),
        None => leftovers(outcome, what, place, writer)?,
    }
    Ok(())
}

/// Nothing lies beside the output.
fn leftovers(
    outcome: &mut PromiseOutcome,
    what: &str,
    place: &Utf8Path,
    writer: &WritingCommand,
) -> Result<()> {
    let left: Vec<String> = names(place)?.into_iter().filter(|n| n != writer.out).collect();
    if !left.is_empty() {
        outcome.problem(what, format!("left over: {}", left.join(", ")));
    }
    Ok(())
}

/// Mounts a small disk at `$0`, seen by this run alone, and tells afterwards what lies there.
const DISK: &str = "mount -t tmpfs -o size=$DISK_SIZE tmpfs \"$0\" || exit 99
\"$@\" >&2; code=$?; ls -A \"$0\"; exit $code";
/// Without a mount: no file may grow beyond a limit.
const LIMIT: &str = "trap '' XFSZ; ulimit -f $DISK_BLOCKS; \"$@\" >&2; code=$?; ls -A \"$0\"; exit $code";

/// On a full disk a run ends with 2, names the file, and leaves nothing.
pub(super) fn full_disk(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let mount = super::network::allowed("-rm", &["sh", "-c", "mount -t tmpfs tmpfs /tmp"]);
    if !mount {
        outcome.not_run("no small disk could be mounted here: files were limited in size instead");
    }
    for writer in WRITERS {
        let measure = ground.place("full")?;
        ground.good(&writer.line(ground, 0, &measure))?;
        let bytes = size(&measure)?;
        let mut random = ground.random(&format!("full {}", writer.name));
        for _ in 0..ground.times(1, 8) {
            outcome.count("full disks");
            let place = ground.place("full")?;
            let room = (bytes as f64 * random.f64() * 0.9) as u64;
            let what = format!("{} with room for {room} of {bytes} bytes", writer.name);
            let line = writer.line(ground, 0, &place);
            let mut command = ground.shell(if mount { DISK } else { LIMIT }, place.as_str(), &line);
            if mount {
                command = within("-rm", &command);
            }
            command
                .env("DISK_SIZE", room.max(4096).to_string())
                .env("DISK_BLOCKS", (room / 512).max(1).to_string());
            let ended = Running::start(command)?.end(HANG)?;
            // A disk has room in whole pages: the last few bytes may still fit.
            if ended.code == Some(0) && bytes < room + 64 * 1024 {
                continue;
            }
            if let Some(wrong) = ended.not(2) {
                outcome.problem(&what, wrong);
            } else if !ended.stderr.contains(place.as_str()) {
                outcome.problem(&what, format!("no file is named: {}", ended.stderr.trim()));
            }
            let left: Vec<&str> =
                ended.stdout.lines().filter(|n| writer.resume.is_none() || *n != writer.out).collect();
            if !left.is_empty() {
                outcome.problem(&what, format!("left over: {}", left.join(", ")));
            }
        }
    }
    full_streams(ground, &mut outcome)?;
    Ok(outcome)
}

/// stdout that cannot be written is exit 2 for every command, also for the help.
fn full_streams(ground: &Ground, outcome: &mut PromiseOutcome) -> Result<()> {
    let b = ground.models[0].bundle.as_str();
    let lines: [&[&str]; 6] = [
        &["--help"],
        &["--version"],
        &["generate", "--help"],
        &["inspect", b],
        &["doctor", "--json"],
        &["completions", "bash"],
    ];
    for line in lines {
        outcome.count("full streams");
        let ended = Running::start(ground.shell("\"$@\" > /dev/full", "sh", line))?.end(HANG)?;
        if let Some(wrong) = ended.not(2) {
            outcome.problem(&format!("`{}` to a full device", line.join(" ")), wrong);
        }
        let script = "\"$@\" 2> /dev/full";
        let ended = Running::start(ground.shell(script, "sh", &["inspect", "/none"]))?.end(HANG)?;
        if let Some(wrong) = ended.not(2) {
            outcome.problem("an error to a full device", wrong);
        }
    }
    Ok(())
}

fn size(folder: &Utf8Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// The same command inside `unshare`.
fn within(flags: &str, command: &std::process::Command) -> std::process::Command {
    let mut inside = std::process::Command::new("unshare");
    inside.arg(flags).arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        inside.current_dir(folder);
    }
    inside
}

/// Of two jobs for one output the second refuses, and what somebody else puts there while a job runs stays.
pub(super) fn races(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    for writer in WRITERS.iter().filter(|w| w.force.is_some()) {
        let ([first, second], took) = contents(ground, writer)?;
        let mut random = ground.random(&format!("races {}", writer.name));
        for _ in 0..ground.times(1, 12) {
            two_jobs(ground, &mut outcome, writer, [&first, &second], &mut random)?;
            somebody_else(ground, &mut outcome, writer, took.mul_f64(random.f64() * 0.9), &first)?;
        }
    }
    Ok(outcome)
}

fn two_jobs(
    ground: &Ground,
    outcome: &mut PromiseOutcome,
    writer: &WritingCommand,
    contents: [&Tree; 2],
    random: &mut fastrand::Rng,
) -> Result<()> {
    outcome.count("races of two jobs");
    let place = ground.place("races")?;
    let start = |content| Running::start(ground.command(&writer.line(ground, content, &place)));
    let first = start(0)?;
    std::thread::sleep(Duration::from_millis(random.u64(..30)));
    let second = start(1)?;
    let ended = [first.end(HANG)?, second.end(HANG)?];
    for run in &ended {
        if let Some(wrong) = run.wrong() {
            outcome.problem(writer.name, wrong);
        }
    }
    let codes = ended.each_ref().map(|e| e.code.unwrap_or(-1));
    let there = tree(&writer.path(&place))?;
    match codes {
        [0, 2] if there == *contents[0] => {}
        [2, 0] if there == *contents[1] => {}
        [0, 0] => outcome.problem(writer.name, "LOST: both jobs ended with 0, and one result is gone"),
        codes => outcome.problem(writer.name, format!("exit codes {codes:?}, or neither result is there")),
    }
    leftovers(outcome, writer.name, &place, writer)
}

/// A name of what another program writes meanwhile.
const PRECIOUS: &str = "precious";

fn somebody_else(
    ground: &Ground,
    outcome: &mut PromiseOutcome,
    writer: &WritingCommand,
    after: Duration,
    own: &Tree,
) -> Result<()> {
    outcome.count("outputs taken meanwhile");
    let what = format!("{}, its name taken after {after:.0?}", writer.name);
    let place = ground.place("races")?;
    let path = writer.path(&place);
    let mut run = Running::start(ground.command(&writer.line(ground, 0, &place)))?;
    while run.alive() && run.age() < after {
        std::thread::sleep(Duration::from_millis(1));
    }
    let file = if writer.folder() {
        if fs_err::create_dir(&path).is_err() {
            // The job was faster.
            return run.end(HANG).map(drop);
        }
        path.join(PRECIOUS)
    } else {
        path.clone()
    };
    let mut options = fs_err::OpenOptions::new();
    let Ok(mut made) = options.write(true).create_new(true).open(&file) else {
        return run.end(HANG).map(drop);
    };
    std::io::Write::write_all(&mut made, PRECIOUS.as_bytes())?;
    let ended = run.end(HANG)?;
    if fs_err::read_to_string(&file).ok().as_deref() != Some(PRECIOUS) {
        outcome.problem(&what, format!("LOST: what somebody else wrote is gone, exit code {:?}", ended.code));
        return Ok(());
    }
    if let Some(wrong) = ended.not(2) {
        outcome.problem(&what, wrong);
        return Ok(());
    }
    kept(outcome, &what, &place, writer, &ended, own)
}

/// A finished result is kept beside its place and named; a job that saw the conflict at its start has none.
fn kept(
    outcome: &mut PromiseOutcome,
    what: &str,
    place: &Utf8Path,
    writer: &WritingCommand,
    ended: &Ended,
    own: &Tree,
) -> Result<()> {
    for name in names(place)?.iter().filter(|n| *n != writer.out) {
        if !ended.stderr.contains(name.as_str()) {
            outcome.problem(what, format!("left over and not named: {name}"));
        } else if tree(&place.join(name))? != *own {
            outcome.problem(what, format!("{name} was kept and is not the result"));
        }
    }
    Ok(())
}

/// An output that is, holds or lies in an input is exit 2, and the input stays as it was.
pub(super) fn eaten_inputs(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let place = ground.place("eaten")?;
    let (b, d, g) = (place.join("b"), place.join("drawn"), place.join("golden"));
    let restore = || -> Result<()> {
        fs_err::remove_dir_all(&place)?;
        fs_err::create_dir(&place)?;
        copy(&ground.models[0].bundle, &b)?;
        copy(&ground.models[0].drawn, &d)?;
        copy(&ground.models[0].golden, &g)?;
        fs_err::copy(&ground.network, place.join("n.onnx"))?;
        fs_err::copy(&ground.samples[0], place.join("s.npz"))?;
        fs_err::copy(&ground.reference, place.join("r.npz"))?;
        fs_err::copy(&ground.key, place.join("key.pem"))?;
        ground.good(&[
            "--component",
            "features",
            ground.network.as_str(),
            "--input-size",
            "16",
            "-o",
            &join(&place, "e"),
        ])?;
        #[cfg(unix)]
        std::os::unix::fs::symlink(&b, place.join("link"))?;
        Ok(())
    };
    restore()?;
    let p = |name: &str| join(&place, name);
    let (s, r, e, n) = (p("s.npz"), p("r.npz"), p("e"), p("n.onnx"));
    let evaluate = |out: String| -> Vec<String> {
        ["evaluate", "--samples", &s, "--reference", &r, "--extractor", &e, "-o", &out]
            .map(str::to_owned)
            .to_vec()
    };
    let owned = |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
    let lines: Vec<Vec<String>> = vec![
        owned(&["--target", "trt", b.as_str(), "--emit-trtexec", "-o", &p("b/sub")]),
        owned(&["--target", "trt", b.as_str(), "--emit-trtexec", "-o", &p("."), "--force"]),
        owned(&["--target", "trt", b.as_str(), "--emit-trtexec", "-o", &p("link/sub")]),
        owned(&[g.join("dpar").as_str(), "-o", &p("golden"), "--force"]),
        owned(&[g.join("dpar").as_str(), "-o", &p("golden/dpar/out")]),
        owned(&["--component", "features", &n, "--input-size", "16", "-o", &n, "--force"]),
        owned(&["generate", b.as_str(), "--num", "1", "-o", &p("b/g")]),
        owned(&["generate", b.as_str(), "--num", "1", "-o", &p("."), "--force"]),
        owned(&["decode", b.as_str(), "--tokens", &p("drawn/trace.npz"), "-o", &p("drawn"), "--force"]),
        owned(&["encode", b.as_str(), "--images", &s, "-o", &s, "--force"]),
        owned(&[
            "encode",
            b.as_str(),
            "--images",
            &p("drawn/samples.npz"),
            "-o",
            &p("drawn/../drawn/samples.npz"),
            "--force",
        ]),
        owned(&[
            "score",
            b.as_str(),
            "--inputs",
            &p("drawn/trace.npz"),
            "-o",
            &p("drawn/trace.npz"),
            "--force",
        ]),
        owned(&["reference", b.as_str(), "--num", "1", "-o", &p("link/r")]),
        owned(&["attest", b.as_str(), "--key", &p("key.pem"), "-o", &p("b/a.jsonl")]),
        owned(&["attest", b.as_str(), "--key", &p("key.pem"), "-o", &p("key.pem"), "--force"]),
        owned(&["verify", b.as_str(), "--reference", &p("golden"), "--no-probes", "--junit", &p("b/x.xml")]),
        evaluate(p("e/ev")),
        evaluate(p("e")),
        evaluate(p(".")),
    ];
    let before = tree(&place)?;
    for line in lines {
        outcome.count("outputs that are inputs");
        let what = format!("`{}`", line.join(" ").replace(place.as_str(), ""));
        if let Some(wrong) = ground.run(&line)?.not(2) {
            outcome.problem(&what, wrong);
        }
        if tree(&place)? != before {
            outcome.problem(&what, "LOST: its inputs are not what they were");
            restore()?;
        }
    }
    Ok(outcome)
}

fn join(place: &Utf8Path, name: &str) -> String {
    place.join(name).into_string()
}

/// While one bundle replaces another again and again, what a run reports belongs to what it ran, or it ends with 5 or 2.
pub(super) fn swaps(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let place = ground.place("swaps")?;
    let shared = place.join("b");
    let both = ["one", "two"].map(|n| place.join(n));
    for (to, model) in both.iter().zip(&ground.models) {
        copy(&model.bundle, to)?;
    }
    // What each bundle reports and draws.
    let mut right = Vec::new();
    for bundle in &both {
        right.push(drawn(ground, bundle, &place)?.1);
    }
    copy(&both[0], &shared)?;
    let stop = place.join("stop");
    // Whole folders, in one step each: as fast as a job can find them changed.
    let script = "while [ ! -e \"$0\" ]; do mv \"$3\" \"$3.away\" && mv \"$2\" \"$3\" && mv \"$3.away\" \"$2\"; sleep 0.0$((RANDOM % 9 + 1)) 2>/dev/null || sleep 0.02; done";
    let mut swapper = std::process::Command::new("bash");
    swapper.args(["-c", script, stop.as_str(), "bash", both[1].as_str(), shared.as_str()]);
    let mut swapper = swapper.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut result = Ok(());
    for _ in 0..ground.times(6, 100) {
        outcome.count("runs on a bundle that is swapped");
        match drawn(ground, &shared, &place) {
            Ok((ended, found)) => match ended.code {
                Some(0) if right.contains(&found) => {}
                Some(0) => outcome.problem("generate", "it reports one bundle and ran another"),
                _ => outcome.extend(
                    "generate",
                    ended.wrong().or_else(|| ended.not(5).filter(|_| ended.code != Some(2))),
                ),
            },
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    fs_err::write(&stop, "")?;
    swapper.wait()?;
    result.map(|()| outcome)
}

/// The digest that a run reports, with the tokens it drew.
fn drawn(ground: &Ground, bundle: &Utf8Path, place: &Utf8Path) -> Result<(Ended, Option<(String, String)>)> {
    let out = place.join("out");
    let line =
        ["generate", bundle.as_str(), "--num", "2", "--no-images", "--json", "-o", out.as_str(), "--force"];
    let ended = ground.run(&line)?;
    let report: Option<serde_json::Value> = serde_json::from_str(&ended.stdout).ok();
    let found = report.and_then(|r| r["bundle"].as_str().map(str::to_owned));
    let tokens = tree(&out.join("trace.npz"))?.remove("");
    let found = found.zip(tokens).filter(|_| ended.code == Some(0));
    Ok((ended, found))
}
