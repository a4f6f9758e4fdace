//! `cargo xtask api-check`: schemathesis, which makes requests of the OpenAPI document, valid and not, and holds every answer against
//! it.

use std::process::Command;

use anyhow::{Result, bail};
use camino::Utf8Path;

use crate::served::{Served, emoji32};

/// Where the report is left, ignored by git.
const OUT: &str = "out/api-check";

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct ApiArgs {
    /// How long
    #[arg(long, value_name = "N", default_value = "120")]
    seconds: u32,
    /// Seed of the requests
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Take the program that `cargo xtask check` built, instead of building it
    #[arg(long)]
    pub built: bool,
}

/// Serves the trained system with this program and lets schemathesis of these tools ask it for so many seconds.
///
/// # Errors
/// When an answer is none of those that are documented, or a server's error; when schemathesis is not there.
pub fn run(root: &Utf8Path, program: &Utf8Path, tools: &Utf8Path, asked: &ApiArgs) -> Result<()> {
    let schemathesis = tools.join("st");
    if !schemathesis.is_file() {
        bail!("there is no {schemathesis}: run `cargo xtask setup --load-tools`");
    }
    let out = root.join(OUT);
    let bundle = emoji32(root, program, &out)?;
    let server = Served::start(program, &bundle, &["--max-request-images", "4"])?;
    let document = format!("http://{}/openapi.json", server.address);
    let (seconds, seed) = (asked.seconds.to_string(), asked.seed.to_string());
    // What fits the document may still be refused: which classes there are, and how many images, is said by the bundle and the
    // limits. Bundles are opened again in no time that random requests would leave.
    let checked = Command::new(schemathesis.as_str())
        .args([
            "run",
            &document,
            "--exclude-path",
            "/admin/reload",
            "--exclude-checks",
            "positive_data_acceptance",
        ])
        .args(["--continue-on-failure", "--max-time", &seconds, "--seed", &seed, "--warnings", "off"])
        .args(["--report", "junit", "--report-dir", out.as_str()])
        .current_dir(&out)
        .status()?;
    if !checked.success() {
        bail!("schemathesis found something: the report is in {OUT}");
    }
    Ok(())
}
