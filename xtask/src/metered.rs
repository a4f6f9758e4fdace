//! A run of the program: its result, and what it cost.

use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::Utf8Path;
use serde_json::Value;

/// How often the memory of the running program is read. Its high-water mark only grows, so little is missed.
const POLL: Duration = Duration::from_millis(20);

/// How a run ended.
pub(crate) struct MeteredRun {
    /// What it wrote to stdout, as JSON.
    pub(crate) result: Value,
    /// Wall time.
    pub(crate) seconds: f64,
    /// Most resident memory in bytes, mapped files included, where the system says it.
    pub(crate) resident: Option<u64>,
    /// Most memory of no file that was seen.
    pub(crate) anonymous: Option<u64>,
}

/// Runs `program args --json --quiet` in the workspace's folder; it must succeed.
pub(crate) fn run(root: &Utf8Path, program: &Utf8Path, args: &[&str]) -> Result<MeteredRun> {
    match attempt(root, program, args)? {
        Ok(run) => Ok(run),
        Err(status) => bail!("`{program} {}` failed: {status}", args.join(" ")),
    }
}

/// As [`run`], but how it failed is for the caller to judge.
pub(crate) fn attempt(
    root: &Utf8Path,
    program: &Utf8Path,
    args: &[&str],
) -> Result<std::result::Result<MeteredRun, ExitStatus>> {
    let stdout = tempfile::NamedTempFile::new()?;
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .args(["--json", "--quiet"])
        .current_dir(root)
        .stdout(Stdio::from(stdout.reopen()?))
        .spawn()
        .with_context(|| format!("`{program}` cannot be started"))?;
    let (mut resident, mut anonymous) = (None, None);
    let status = loop {
        resident = memory(child.id(), "VmHWM:").max(resident);
        anonymous = memory(child.id(), "RssAnon:").max(anonymous);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(POLL);
    };
    let seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        return Ok(Err(status));
    }
    let result = serde_json::from_slice(&fs_err::read(stdout.path())?).context("the result is not JSON")?;
    Ok(Ok(MeteredRun { result, seconds, resident, anonymous }))
}

/// A line of the system's account of a process, in bytes.
fn memory(process: u32, line: &str) -> Option<u64> {
    let text = fs_err::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(line))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Gigabytes, or a dash.
pub(crate) fn gigabytes(bytes: Option<u64>) -> String {
    bytes.map_or("–".to_owned(), |p| format!("{:.2}", p as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_of_this_process_is_read() {
        let peak = memory(std::process::id(), "VmHWM:").unwrap();
        assert!(peak > 1 << 20 && peak < 1 << 40, "{peak}");
        let now = memory(std::process::id(), "RssAnon:").unwrap();
        assert!(now > 0 && now < peak, "{now}");
        assert_eq!(memory(u32::MAX, "VmHWM:"), None);
    }
}
