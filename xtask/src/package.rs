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
    let target = crate::onnx::target(root)?.join("packages");
    let mut args =
        vec!["package", "--quiet", "--workspace", "--allow-dirty", "--target-dir", target.as_str()];
    args.extend(OWN_USE.iter().flat_map(|name| ["--exclude", *name]));
    // Whether they compile is the question: all are built alike, which takes what they depend on once, and unoptimised.
    let settings = unoptimised(&fs_err::read_to_string(root.join("Cargo.toml"))?);
    if verify {
        args.extend(settings.iter().flat_map(|setting| ["--config", setting]));
    } else {
        args.push("--no-verify");
    }
    command(root, &cargo(), &args)?;
    let folder = target.join("package");
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

/// Settings of cargo that take back what the manifest says of builds for development, which the package at the workspace's root
/// carries, and the other packages do not.
fn unoptimised(manifest: &str) -> Vec<String> {
    let profiles = manifest.lines().filter_map(|line| line.strip_prefix("[profile.dev")?.strip_suffix(']'));
    let of = |key: &str| format!("profile.dev{key}=0");
    profiles
        .filter(|p| p.starts_with(".package"))
        .map(|p| of(&format!("{p}.opt-level")))
        .chain([of(".debug")])
        .collect()
}

/// Holds every dependency against deny.toml. Advisories are another check of the same tool, which needs their data base:
/// `cargo deny check advisories`.
pub(crate) fn deny(root: &Utf8Path) -> Result<()> {
    let program = tool(root, &DENY)?;
    let checks = ["--workspace", "--all-features", "check", "bans", "licenses", "sources"];
    command(root, program.as_str(), &checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_of_a_package_is_taken_back() {
        let manifest = "[profile.dev]\ndebug = 1\n\n[profile.dev.package.\"*\"]\nopt-level = 1\n\n[profile.dev.package.a]\n[profile.release]\n";
        let wanted = [
            "profile.dev.package.\"*\".opt-level=0",
            "profile.dev.package.a.opt-level=0",
            "profile.dev.debug=0",
        ];
        assert_eq!(unoptimised(manifest), wanted);
    }
}
