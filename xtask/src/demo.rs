//! `cargo xtask demo`: what `cargo demo` does. `cargo xtask streams`: all reference streams.

use anyhow::{Context, Result};
use camino::{Utf8Path, Utf8PathBuf};

use crate::{cargo, command, onnx};

/// Below the workspace's folder, ignored by git.
pub(crate) const OUT: &str = "out/demo";

/// The two trained systems: name, checkpoint and further options.
pub(crate) const SYSTEMS: [(&str, &[&str]); 2] = [
    ("dpar", &["fixtures/emoji32/dpar"]),
    (
        "llamagen",
        &[
            "fixtures/emoji32/llamagen/c2i_emoji32.pt",
            "--config",
            "fixtures/emoji32/llamagen/config.yaml",
            "--vq",
            "fixtures/emoji32/vq.pt",
        ],
    ),
];

/// Builds the program as users run it.
pub(crate) fn program(root: &Utf8Path) -> Result<Utf8PathBuf> {
    program_with(root, &[])
}

/// Builds the program with features that a plain build has not.
pub(crate) fn program_with(root: &Utf8Path, features: &[&str]) -> Result<Utf8PathBuf> {
    let features = features.join(",");
    let mut args = vec!["build", "--release", "--bin", "dpar-export"];
    if !features.is_empty() {
        args.extend(["--features", &features]);
    }
    command(root, &cargo(), &args)?;
    built(root)
}

/// Where a release build puts the program.
pub(crate) fn built(root: &Utf8Path) -> Result<Utf8PathBuf> {
    let name = format!("dpar-export{}", std::env::consts::EXE_SUFFIX);
    Ok(onnx::target(root)?.join("release").join(name))
}

/// Runs one command line, shown as a user would type it.
pub(crate) fn shown(root: &Utf8Path, program: &Utf8Path, args: &[&str]) -> Result<()> {
    println!("\n$ dpar-export {}", args.join(" "));
    command(root, program.as_str(), args)
}

/// The program's own demonstration, as the alias in .cargo/config.toml builds it.
pub(crate) fn run(root: &Utf8Path) -> Result<()> {
    command(root, &cargo(), &["demo"])
}

/// Decodes every reference stream of both systems on the given engines and compares them.
pub(crate) fn streams(root: &Utf8Path, engines: &[String], limit: Option<usize>) -> Result<()> {
    let program = program(root)?;
    for (name, checkpoint) in SYSTEMS {
        let bundle = format!("{OUT}/{name}");
        let export: Vec<&str> = checkpoint.iter().copied().chain(["-o", &bundle, "--force"]).collect();
        shown(root, &program, &export)?;
        let streams = format!("fixtures/emoji32/streams_{name}.safetensors");
        for engine in engines {
            let mut args =
                vec!["verify", &bundle, "--streams", &streams, "--engine", engine, "--batch", "32"];
            let limit = limit.map(|n| n.to_string());
            if let Some(limit) = &limit {
                args.extend(["--limit", limit]);
            }
            shown(root, &program, &args).with_context(|| format!("{name} on {engine}"))?;
        }
    }
    Ok(())
}
