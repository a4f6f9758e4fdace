//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md that a machine can check. No network.
//!
//! A rule is a function from facts to problems; reading the facts is separate, so that each rule has a test that
//! shows it firing.

mod dependencies;
mod engines;
mod errors;
mod files;
mod modules;
mod names;
mod source;
mod tolerances;

use std::process::Command;

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};

/// A tracked file.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    /// Path below the workspace's folder.
    pub(crate) path: Utf8PathBuf,
    pub(crate) bytes: u64,
    /// Content, if it is text.
    pub(crate) text: Option<String>,
}

/// The code of a file in front of its tests. `#[cfg(test)]` at another item, or at `mod tests;`, does not end it.
pub(crate) fn product(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(code, _)| code)
}

/// Largest file that is read as text.
const TEXT_LIMIT: u64 = 4 << 20;

pub(crate) fn run(root: &Utf8Path) -> Result<()> {
    let tracked = tracked(root)?;
    let metadata = metadata(root)?;
    let mut problems = dependencies::members(&metadata);
    let edges = dependencies::edges(&metadata)?;
    problems.extend(dependencies::check(&edges));
    problems.extend(dependencies::plain(&plain_tree(root)?, &edges));
    problems.extend(files::check(&tracked));
    problems.extend(modules::check(&tracked));
    problems.extend(names::check(&tracked));
    problems.extend(tracked.iter().flat_map(source::check));
    problems.extend(tracked.iter().flat_map(tolerances::check));
    problems.extend(tracked.iter().flat_map(engines::check));
    problems.extend(tracked.iter().flat_map(errors::check));
    for problem in &problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => {
            println!("{} files are tidy", tracked.len());
            Ok(())
        }
        n => bail!("{n} problems"),
    }
}

/// Names of the packages that a plain build of the tool compiles, a line each.
fn plain_tree(root: &Utf8Path) -> Result<String> {
    let args = [
        "tree",
        "--package=dpar-export",
        "--edges=normal,build",
        "--prefix=none",
        "--format={p}",
        "--offline",
    ];
    let output = Command::new(crate::cargo()).args(args).current_dir(root).output()?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("cargo tree is not UTF-8")
}

/// What `cargo metadata` says about the workspace, without its dependencies' dependencies.
pub(crate) fn metadata(root: &Utf8Path) -> Result<serde_json::Value> {
    let args = ["metadata", "--format-version=1", "--no-deps", "--offline"];
    let output = Command::new(crate::cargo()).args(args).current_dir(root).output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// Every file that git tracks or would add.
fn tracked(root: &Utf8Path) -> Result<Vec<Tracked>> {
    let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output =
        Command::new("git").args(args).current_dir(root).output().context("`git` cannot be started")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let list = String::from_utf8(output.stdout).context("a tracked file's name is not UTF-8")?;
    let mut files = Vec::new();
    for path in list.split('\0').filter(|p| !p.is_empty()).map(Utf8PathBuf::from) {
        let full = root.join(&path);
        // Deleted but still tracked, or a link or submodule: nothing to read.
        let Some(meta) = fs_err::symlink_metadata(&full).ok().filter(std::fs::Metadata::is_file) else {
            continue;
        };
        let text = (meta.len() <= TEXT_LIMIT).then(|| fs_err::read(&full)).transpose()?;
        let text = text.filter(|b| !b.contains(&0)).and_then(|b| String::from_utf8(b).ok());
        files.push(Tracked { path, bytes: meta.len(), text });
    }
    Ok(files)
}
