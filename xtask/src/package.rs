//! `cargo xtask package`: the crates as a registry would take them, and what they may depend on.

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

use crate::tools::{Tool, tool};
use crate::{cargo, command};

/// Members that are not handed out as crates.
const OWN_USE: [&str; 4] = ["xtask", "xtask-web", "dpar-export-fixtures", "dpar-export-python"];
/// The largest package that a registry takes, in bytes.
const LARGEST: u64 = 10 << 20;
/// Licences, sources and versions of all dependencies, by deny.toml.
const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", features: &[] };

/// Packs every crate. `verify`: also builds each as it would be downloaded, without this checkout.
pub(crate) fn run(root: &Utf8Path, verify: bool) -> Result<()> {
    let mut args = vec!["package", "--quiet", "--workspace", "--allow-dirty"];
    args.extend(OWN_USE.iter().flat_map(|name| ["--exclude", *name]));
    if !verify {
        args.push("--no-verify");
    }
    command(root, &cargo(), &args)?;
    let folder = crate::onnx::target(root)?.join("package");
    let mut packed = 0;
    for entry in folder.read_dir_utf8().with_context(|| format!("cargo packed nothing into {folder}"))? {
        let path = entry?.into_path();
        if path.extension() != Some("crate") {
            continue;
        }
        let bytes = path.metadata()?.len();
        if bytes > LARGEST {
            bail!("{path} has {:.1} MB, and {:.1} are allowed", bytes as f64 / 1e6, LARGEST as f64 / 1e6);
        }
        packed += 1;
    }
    println!("{packed} crates");
    Ok(())
}

/// Holds every dependency against deny.toml. Advisories are another check of the same tool, which needs their data base:
/// `cargo deny check advisories`.
pub(crate) fn deny(root: &Utf8Path) -> Result<()> {
    let program = tool(root, &DENY)?;
    let checks = ["--workspace", "--all-features", "check", "bans", "licenses", "sources"];
    command(root, program.as_str(), &checks)
}
