//! Programs of others that cargo builds, pinned by version and by the lock file that came with them: what only a nightly task needs,
//! so that no set-up waits for them.

use anyhow::Result;
use camino::{Utf8Path, Utf8PathBuf};

use crate::{cargo, command};

/// Below the workspace.
const FOLDER: &str = "third_party/cargo";

/// A package with the program of its name.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// Of the package's features.
    pub(crate) features: &'static [&'static str],
}

/// The program, built if it is not there in this version.
pub(crate) fn tool(root: &Utf8Path, tool: &Tool) -> Result<Utf8PathBuf> {
    let folder = root.join(FOLDER).join(format!("{}-{}", tool.name, tool.version));
    let program = folder.join("bin").join(tool.name);
    if !program.is_file() {
        let package = format!("{}@{}", tool.name, tool.version);
        println!("building {package}: minutes, once");
        let features = tool.features.join(",");
        let mut args = vec!["install", "--quiet", "--locked", "--root", folder.as_str(), &package];
        args.push("--no-default-features");
        if !features.is_empty() {
            args.extend(["--features", &features]);
        }
        command(root, &cargo(), &args)?;
    }
    Ok(program)
}
