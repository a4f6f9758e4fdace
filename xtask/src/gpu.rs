//! `cargo xtask gpu`: everything that needs an NVIDIA GPU, in one command, with a log of what happened.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

use crate::{cargo, demo};

/// Below the workspace's folder, ignored by git.
const OUT: &str = "out/gpu";

/// The exit code of `dpar-export` for what is not available.
const UNAVAILABLE: i32 = 3;

/// Files that an NVIDIA driver brings: the control device of Linux, and under WSL2, which has none, the library that Windows'
/// driver puts there.
const SIGNS: [&str; 2] = ["/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"];

/// The fixture that has references of its own in both half types.
const HALVES: &str = "fixtures/variants/combined";

/// Steps that ran, and what they said.
struct StepLog<'a> {
    root: &'a Utf8Path,
    text: String,
    steps: Vec<(String, StepOutcome)>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepOutcome {
    Ok,
    /// What it needs is not here, and it need not be.
    Absent,
    /// With this exit code, where there was one.
    Failed(Option<i32>),
}

impl std::fmt::Display for StepOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Absent => f.write_str("not available here"),
            Self::Failed(Some(code)) => write!(f, "FAILED with exit code {code}"),
            Self::Failed(None) => f.write_str("FAILED"),
        }
    }
}

impl StepLog<'_> {
    /// Runs a program to its end and keeps what it printed; goes on whatever comes back. `optional`: what is not
    /// available is no failure.
    fn run(&mut self, name: &str, program: &str, args: &[&str], optional: bool) -> bool {
        println!("== {name}");
        let run = Command::new(program).args(args).current_dir(self.root).output();
        let (code, said) = match &run {
            Ok(output) => {
                let said = [&output.stdout[..], &output.stderr[..]].concat();
                (output.status.code(), String::from_utf8_lossy(&said).into_owned())
            }
            Err(e) => (None, format!("`{program}` cannot be started: {e}")),
        };
        let outcome = match code {
            Some(0) => StepOutcome::Ok,
            Some(UNAVAILABLE) | None if optional => StepOutcome::Absent,
            code => StepOutcome::Failed(code),
        };
        println!("{said}== {name}: {outcome}");
        let tool = Utf8Path::new(program).file_name().unwrap_or(program);
        let _ = write!(self.text, "## {name}: {outcome}\n\n```\n$ {tool} {}\n{said}```\n\n", args.join(" "));
        self.steps.push((name.to_owned(), outcome));
        outcome == StepOutcome::Ok
    }

    /// Writes the log and says how every step ended.
    fn finish(self, file: &Utf8Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            fs_err::create_dir_all(folder)?;
        }
        fs_err::write(file, &self.text)?;
        println!("\n== {file}");
        for (name, outcome) in &self.steps {
            println!("{name}: {outcome}");
        }
        let bad = self.steps.iter().filter(|(_, outcome)| matches!(outcome, StepOutcome::Failed(_)));
        let failed: Vec<&str> = bad.map(|(name, _)| name.as_str()).collect();
        if failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", failed.join(", "))
    }
}

/// Loud where there is no GPU; else runs everything, also after a failure: a device that TensorRT-RTX refuses is a
/// result too.
pub(crate) fn run(root: &Utf8Path) -> Result<()> {
    let Some(sign) = driver(&SIGNS, "nvidia-smi") else {
        let signs = SIGNS.join(", no ");
        println!("SKIPPED: there is no NVIDIA driver here (no {signs}, and `nvidia-smi -L` lists no GPU).");
        println!("SKIPPED: nothing was tested on a GPU.");
        return Ok(());
    };
    println!("== an NVIDIA driver is here: {sign}");
    let text = format!("# A run of `cargo xtask gpu`\n\nThe driver: {sign}\n\n");
    let mut log = StepLog { root, text, steps: Vec::new() };
    let query = "--query-gpu=name,compute_cap,driver_version,memory.total";
    log.run("the device", "nvidia-smi", &[query, "--format=csv"], true);
    let suite = ["test", "-p", "dpar-engine-tensorrt", "--features", "gpu-tests", "--test", "gpu"];
    log.run(
        "engines",
        &cargo(),
        &[&suite[..], &["--", "--nocapture", "--test-threads", "1"]].concat(),
        false,
    );
    let build = ["build", "--release", "--features", "tensorrt", "--bin", "dpar-export"];
    if log.run("the program", &cargo(), &build, false) {
        let program = demo::built(root).context("the program")?;
        let program = program.as_str();
        let cache = format!("{OUT}/cache");
        for (name, checkpoint) in demo::SYSTEMS {
            let bundle = format!("{OUT}/{name}");
            let reference = if name == "dpar" { "fixtures/emoji32" } else { "fixtures/emoji32/llamagen" };
            let streams = format!("fixtures/emoji32/streams_{name}.safetensors");
            let target =
                ["--target", "trt", "--profile", "decode", "--profile", "default", "-o", &bundle, "--force"];
            if !log.run(&format!("{name}: build"), program, &[&target[..], checkpoint].concat(), false) {
                continue;
            }
            let trt = ["--engine", "tensorrt"];
            let verify = ["verify", &bundle, "--reference", reference];
            log.run(&format!("{name}: verify"), program, &[&verify[..], &trt].concat(), false);
            let graphs = ["--cuda-graphs", "--runtime-cache", cache.as_str()];
            let what = format!("{name}: verify with CUDA graphs and a runtime cache");
            log.run(&what, program, &[&verify[..], &trt, &graphs].concat(), false);
            let sampled = ["verify", &bundle, "--streams", &streams, "--batch", "32"];
            log.run(&format!("{name}: all streams"), program, &[&sampled[..], &trt].concat(), false);
            for device in ["cuda", "tensorrt", "nvrtx"] {
                let ort = ["--engine", "ort", "--device", device];
                log.run(&format!("{name}: ort on {device}"), program, &[&verify[..], &ort].concat(), true);
            }
        }
        halves(&mut log, program);
    }
    log.finish(&root.join(OUT).join("log.md"))
}

/// What says that there is a driver: one of the files, or the tool that lists GPUs. A driver that does not work is seen by
/// the steps, which then fail.
fn driver(signs: &[&str], tool: &str) -> Option<String> {
    if let Some(sign) = signs.iter().find(|s| Utf8Path::new(s).exists()) {
        return Some((*sign).to_owned());
    }
    let output = Command::new(tool).arg("-L").output().ok()?;
    let listed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !listed.is_empty()).then_some(listed)
}

/// Engines of fp16 and bf16 graphs, against the references of their own precision and of fp32; of bf16-autocast graphs,
/// against what the authors' code gave under autocast.
fn halves(log: &mut StepLog<'_>, program: &str) {
    let checkpoint = format!("{HALVES}/dpar");
    for precision in ["fp16", "bf16"] {
        let bundle = format!("{OUT}/combined-{precision}");
        let build = ["--target", "trt", "--precision", precision, &checkpoint, "-o", &bundle, "--force"];
        if !log.run(&format!("combined in {precision}: build"), program, &build, false) {
            continue;
        }
        let verify = ["verify", &bundle, "--reference", HALVES, "--engine"];
        let trt = [&verify[..], &["tensorrt"]].concat();
        log.run(&format!("combined in {precision}: verify"), program, &trt, false);
        let cuda = [&verify[..], &["ort", "--device", "cuda"]].concat();
        log.run(&format!("combined in {precision}: ort on cuda"), program, &cuda, true);
    }
    let bundle = format!("{OUT}/emoji32-autocast");
    let form = [
        "--target",
        "trt",
        "--precision",
        "bf16-autocast",
        "fixtures/emoji32/dpar",
        "-o",
        &bundle,
        "--force",
    ];
    if log.run("emoji32 in bf16-autocast: build", program, &form, false) {
        let verify = ["verify", &bundle, "--reference", "fixtures/emoji32-autocast", "--engine"];
        let trt = [&verify[..], &["tensorrt"]].concat();
        log.run("emoji32 in bf16-autocast: verify", program, &trt, false);
        let cuda = [&verify[..], &["ort", "--device", "cuda"]].concat();
        log.run("emoji32 in bf16-autocast: ort on cuda", program, &cuda, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_driver_is_seen_by_a_file_or_by_its_tool() {
        let folder = tempfile::tempdir().unwrap();
        let sign = Utf8Path::from_path(folder.path()).unwrap().join("nvidiactl");
        assert_eq!(driver(&[sign.as_str()], "dpar-no-such-program"), None);
        // A tool that fails says nothing.
        assert_eq!(driver(&[sign.as_str()], "false"), None);
        assert!(driver(&["/none"], "echo").is_some_and(|listed| listed == "-L"));
        fs_err::write(&sign, "").unwrap();
        assert_eq!(driver(&[sign.as_str()], "dpar-no-such-program").as_deref(), Some(sign.as_str()));
    }

    #[test]
    fn every_step_is_run_and_logged_and_a_failure_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let file = root.join("out/log.md");
        let log = || StepLog { root, text: String::new(), steps: Vec::new() };
        let mut good = log();
        assert!(good.run("version", &cargo(), &["--version"], false));
        assert!(!good.run("no such program", "dpar-no-such-program", &[], true));
        good.finish(&file).unwrap();
        let text = fs_err::read_to_string(&file).unwrap();
        assert!(text.contains("## version: ok") && text.contains("--version\ncargo 1."), "{text}");
        assert!(text.contains("## no such program: not available here"), "{text}");

        let mut bad = log();
        assert!(!bad.run("wrong", &cargo(), &["no-such-command"], true));
        assert!(bad.run("version", &cargo(), &["--version"], false));
        let e = bad.finish(&file).unwrap_err();
        assert_eq!(e.to_string(), "failed: wrong");
        assert!(fs_err::read_to_string(&file).unwrap().contains("## wrong: FAILED with exit code 101"));
    }
}
