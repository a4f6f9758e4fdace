//! `cargo xtask check`: what CI calls.

use std::time::Instant;

use anyhow::{Result, bail};
use camino::Utf8Path;

use crate::{cargo, command, onnx, step, tidy};

/// The crate that only the feature `tensorrt` compiles.
const TENSORRT: &str = "dpar-engine-tensorrt";
/// Numeric core of a command that is still to come: tested on its own until then.
const METRICS: &str = "dpar-export-metrics";

/// Runs every step, also after one failed, and fails if any did. The parts of the feature `tensorrt` are steps of their
/// own: a plain build neither needs nor compiles anything of TensorRT.
pub(crate) fn run(root: &Utf8Path, tensorrt: bool) -> Result<()> {
    let cargo = cargo();
    let run_cargo = |args: &[&str]| command(root, &cargo, args);
    let plain = ["--workspace", "--exclude", TENSORRT, "--exclude", METRICS];
    let with_feature = ["-p", TENSORRT, "-p", "dpar-export", "--features", "dpar-export/tensorrt"];
    let scope: &[&str] = if tensorrt { &with_feature } else { &plain };
    let clippy = [&["clippy"], scope, &["--all-targets", "--quiet", "--", "-D", "warnings"]].concat();
    let mut nextest = [&["nextest", "run"], scope, &["--no-fail-fast", "--status-level", "fail"]].concat();
    if tensorrt {
        // The rest of the root package is the same with and without the feature.
        nextest.extend(["-E", "package(dpar-engine-tensorrt) or test(trt::)"]);
    }
    type Step<'a> = (&'a str, Box<dyn FnOnce() -> Result<()> + 'a>);
    let mut steps: Vec<Step<'_>> = vec![
        ("fmt", Box::new(|| run_cargo(&["fmt", "--all", "--check"]))),
        ("clippy", Box::new(|| run_cargo(&clippy))),
        ("tests", Box::new(|| run_cargo(&nextest))),
    ];
    if !tensorrt {
        let doctests = [&["test", "--doc", "--quiet"], scope].concat();
        steps.push(("doctests", Box::new(move || run_cargo(&doctests))));
        steps.push(("tidy", Box::new(|| tidy::run(root))));
        steps.push(("onnx-check", Box::new(|| onnx::run(root, &[], true))));
    }
    let start = Instant::now();
    let mut failed = Vec::new();
    for (name, body) in steps {
        if let Err(e) = step(name, body) {
            eprintln!("error: {e:#}");
            failed.push(name);
        }
    }
    println!("== check took {:.0} s", start.elapsed().as_secs_f64());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// The suite that needs a GPU: loud where there is none.
pub(crate) fn gpu(root: &Utf8Path) -> Result<()> {
    if !Utf8Path::new("/dev/nvidiactl").exists() {
        println!("SKIPPED: there is no NVIDIA driver here (no /dev/nvidiactl). Nothing was tested on a GPU.");
        return Ok(());
    }
    let args = ["test", "-p", TENSORRT, "--features", "gpu-tests", "--test", "gpu", "--", "--nocapture"];
    step("gpu", || command(root, &cargo(), &args))
}
