//! What export and opening cost beside what they cannot be cheaper than: a copy of the same files.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

/// How often a process's memory is looked at.
const POLL: Duration = Duration::from_millis(2);
/// Pages that were just freed are the cheapest to get: every turn waits until they are not.
const PAUSE: Duration = Duration::from_secs(5);

/// The turns of one kind: seconds, and the most anonymous memory in bytes.
#[derive(Default)]
struct Turns {
    seconds: Vec<f64>,
    anonymous: u64,
}

impl Turns {
    fn add(&mut self, (seconds, anonymous): (f64, u64)) {
        self.seconds.push(seconds);
        self.anonymous = self.anonymous.max(anonymous);
    }
}

/// Makes `system` with seeded weights and exports it, in turns with a copy of the bundle, in `folder`.
pub(crate) fn run(
    root: &Utf8Path,
    system: &str,
    precision: &str,
    rounds: usize,
    folder: Option<&Utf8Path>,
) -> Result<()> {
    let program = crate::demo::program(root)?;
    let folder = folder.map_or_else(|| root.join("out/export-cost"), Utf8Path::to_owned);
    fs_err::create_dir_all(&folder)?;
    let (made, bundle, copy) = (folder.join(system), folder.join("bundle"), folder.join("copy"));
    if !made.is_dir() {
        timed(&program, &["synth", system, "-o", made.as_str()])?;
    }
    let kind = if system.starts_with("LlamaGen") { "llamagen" } else { "dpar" };
    let from = checkpoint(&made, kind)?;
    let export = ["--precision", precision, "--force", "--quiet", from.as_str(), "-o", bundle.as_str()];
    // Both sides begin with the checkpoint in the system's cache.
    timed(&program, &export)?;
    let bytes: u64 = files(&bundle)?.iter().map(|f| Ok(fs_err::metadata(f)?.len())).sum::<Result<u64>>()?;
    let (mut copies, mut synced, mut exports, mut opened) =
        (Turns::default(), Turns::default(), Turns::default(), Turns::default());
    for _ in 0..rounds {
        std::thread::sleep(PAUSE);
        let copied = timed(Utf8Path::new("cp"), &["-r", bundle.as_str(), copy.as_str()])?;
        let started = Instant::now();
        for file in files(&copy)? {
            fs_err::File::open(file)?.sync_all()?;
        }
        copies.add(copied);
        synced.add((copied.0 + started.elapsed().as_secs_f64(), copied.1));
        fs_err::remove_dir_all(&copy)?;
        fs_err::remove_dir_all(&bundle)?;
        std::thread::sleep(PAUSE);
        exports.add(timed(&program, &export)?);
        opened.add(timed(&program, &["inspect", bundle.as_str()])?);
    }
    println!("{system}, {precision}: {:.2} GB, {rounds} rounds", bytes as f64 / 1e9);
    println!("| | s (min to max) | × cp | × cp and sync | anonymous MB |\n|---|---|---|---|---|");
    for (name, turns) in
        [("cp", &copies), ("cp, then sync", &synced), ("export", &exports), ("open (inspect)", &opened)]
    {
        let [low, mid, high] = spread(turns.seconds.clone());
        let beside = |other: &Turns| {
            let ratios = turns.seconds.iter().zip(&other.seconds).map(|(a, b)| a / b).collect();
            let [low, mid, high] = spread(ratios);
            format!("{mid:.2} ({low:.2} to {high:.2})")
        };
        let memory = turns.anonymous as f64 / 1e6;
        println!(
            "| {name} | {mid:.2} ({low:.2} to {high:.2}) | {} | {} | {memory:.0} |",
            beside(&copies),
            beside(&synced)
        );
    }
    Ok(())
}

/// Where the transformer of a system that `synth` made is.
fn checkpoint(made: &Utf8Path, kind: &str) -> Result<Utf8PathBuf> {
    let found = made.read_dir_utf8()?.filter_map(Result::ok);
    let mut found = found.filter(|e| e.file_name().starts_with(kind) && !e.file_name().ends_with(".json"));
    match found.next() {
        Some(entry) => Ok(entry.into_path()),
        None => bail!("no `{kind}` in {made}"),
    }
}

/// Every file below a folder.
fn files(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let mut all = Vec::new();
    for entry in folder.read_dir_utf8()? {
        let path = entry?.into_path();
        if path.is_dir() { all.extend(files(&path)?) } else { all.push(path) }
    }
    Ok(all)
}

/// Runs a program: seconds, and the most anonymous memory that was seen.
fn timed(program: &Utf8Path, args: &[&str]) -> Result<(f64, u64)> {
    let started = Instant::now();
    let mut child = Command::new(program).args(args).stdout(Stdio::null()).spawn()?;
    let status = Utf8PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut anonymous = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        anonymous = anonymous.max(rss_anon(&text).unwrap_or(0));
        if let Some(ended) = child.try_wait()? {
            if !ended.success() {
                bail!("`{program} {}` failed: {ended}", args.join(" "));
            }
            return Ok((started.elapsed().as_secs_f64(), anonymous));
        }
        std::thread::sleep(POLL);
    }
}

/// `RssAnon` of a process's status in bytes.
fn rss_anon(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Least, median and greatest.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => [0.0; 3],
        all => [all[0], all[all.len() / 2], all[all.len() - 1]],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_medians_are_read() {
        assert_eq!(rss_anon("VmRSS:\t 9 kB\nRssAnon:\t     148 kB\nRssFile:\t 4 kB\n"), Some(148 << 10));
        assert_eq!(rss_anon(""), None);
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
    }
}
