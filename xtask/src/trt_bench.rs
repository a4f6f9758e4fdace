//! `cargo xtask trt-bench`: what building engines costs, from the smallest fixture to the paper's smallest model.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_checkpoint::Synth;
use dpar_export_spec::SystemKind;
use serde_json::Value;

use crate::all_engines;
use crate::{cargo, command, onnx, samplers};

/// Below the workspace's folder, ignored by git.
const OUT: &str = "out/trt-bench";
/// What DPAR-B with its entropy model may take on two cores.
const MOST_SECONDS: f64 = 300.0;
const MOST_BYTES: u64 = 6 << 30;
/// How often the memory of the running program is read. Its high-water mark only grows, so little is missed.
const POLL: Duration = Duration::from_millis(20);

/// One checkpoint.
struct BuildCase {
    name: String,
    export: Vec<String>,
    /// Whether the limits are for it.
    limited: bool,
}

/// Builds the engines of every case in every precision and prints a Markdown table. `small` leaves DPAR-B out.
pub(crate) fn run(root: &Utf8Path, precisions: &[String], small: bool) -> Result<()> {
    // As `cargo xtask check` builds it, so that nothing is compiled again. Time goes to the library, not to this program.
    let build = ["test", "--workspace", "--features", &all_engines(), "--test", "suite", "--no-run"];
    command(root, &cargo(), &build)?;
    let program =
        onnx::target(root)?.join("debug").join(format!("dpar-export{}", std::env::consts::EXE_SUFFIX));
    let out = root.join(OUT);
    fs_err::create_dir_all(&out)?;
    let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect();
    let mut cases = vec![
        BuildCase {
            name: "trained DPAR".to_owned(),
            export: words(&["fixtures/emoji32/dpar"]),
            limited: false,
        },
        BuildCase {
            name: "trained LlamaGen".to_owned(),
            export: words(&[
                "fixtures/emoji32/llamagen/c2i_emoji32.pt",
                "--config",
                "fixtures/emoji32/llamagen/config.yaml",
                "--vq",
                "fixtures/emoji32/vq.pt",
            ]),
            limited: false,
        },
        BuildCase {
            name: "dpar-small".to_owned(),
            export: words(&["fixtures/dpar-small/dpar"]),
            limited: false,
        },
    ];
    if !small {
        let full = Synth::published(SystemKind::Dpar, "B", 256, samplers::STEPS)?;
        let made = Synth { vq: false, ..full }.write(&out.join("dpar-b"), &mut |_| {})?;
        let parts: Vec<String> =
            made.parameters.iter().map(|(name, n)| format!("{name} {:.1}M", *n as f64 / 1e6)).collect();
        cases.push(BuildCase {
            name: format!("DPAR-B: {} (random weights)", parts.join(", ")),
            export: vec![made.checkpoint.into_string()],
            limited: true,
        });
    }
    let mut lines = vec![
        "| checkpoint | precision | engines | engines MB | build s | with export s | peak memory GB |"
            .to_owned(),
        format!("|{}", "---|".repeat(7)),
    ];
    let mut over = Vec::new();
    for case in &cases {
        for precision in precisions {
            let row = measure(root, &program, &out, case, precision)?;
            lines.push(row.line(&case.name, precision));
            println!("{}", lines[lines.len() - 1]);
            if case.limited && (row.build > MOST_SECONDS || row.peak > Some(MOST_BYTES)) {
                over.push(format!("{} {precision}", case.name));
            }
        }
    }
    let cores = std::thread::available_parallelism()?;
    println!("\nOn {cores} cores, TensorRT-RTX without a GPU:\n\n{}", lines.join("\n"));
    if !over.is_empty() {
        bail!("over {MOST_SECONDS} s or {} GiB: {}", MOST_BYTES >> 30, over.join(", "));
    }
    Ok(())
}

/// What one build cost.
struct BuildCost {
    engines: usize,
    bytes: u64,
    build: f64,
    wall: f64,
    peak: Option<u64>,
}

impl BuildCost {
    fn line(&self, name: &str, precision: &str) -> String {
        let peak = self.peak.map_or("–".to_owned(), |p| format!("{:.2}", p as f64 / 1e9));
        format!(
            "| {name} | {precision} | {} | {:.1} | {:.1} | {:.1} | {peak} |",
            self.engines,
            self.bytes as f64 / 1e6,
            self.build,
            self.wall
        )
    }
}

fn measure(
    root: &Utf8Path,
    program: &Utf8PathBuf,
    out: &Utf8Path,
    case: &BuildCase,
    precision: &str,
) -> Result<BuildCost> {
    let bundle = out.join("bundle");
    let stdout = out.join("result.json");
    let mut args: Vec<&str> = vec!["--target", "trt", "--json", "--quiet", "--force", "-o", bundle.as_str()];
    args.extend(case.export.iter().map(String::as_str));
    if precision != "fp32" {
        args.extend(["--precision", precision]);
    }
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(&args)
        .current_dir(root)
        .stdout(Stdio::from(fs_err::File::create(&stdout)?.into_parts().0))
        .spawn()?;
    let mut peak = None;
    let status = loop {
        peak = high_water(child.id()).max(peak);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(POLL);
    };
    let wall = started.elapsed().as_secs_f64();
    if !status.success() {
        bail!("`{program} {}` failed: {status}", args.join(" "));
    }
    let result: Value = serde_json::from_slice(&fs_err::read(&stdout)?).context("the result is not JSON")?;
    let engines = result["engines"].as_array().context("the result lists no engines")?;
    fs_err::remove_dir_all(&bundle)?;
    Ok(BuildCost {
        engines: engines.len(),
        bytes: engines.iter().filter_map(|e| e["size"].as_u64()).sum(),
        build: engines.iter().filter_map(|e| e["seconds"].as_f64()).sum(),
        wall,
        peak,
    })
}

/// Most memory that a process has held so far in bytes (`VmHWM`), where the system says it.
fn high_water(process: u32) -> Option<u64> {
    let text = fs_err::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_of_this_process_is_read() {
        let peak = high_water(std::process::id()).unwrap();
        assert!(peak > 1 << 20 && peak < 1 << 40, "{peak}");
        assert_eq!(high_water(u32::MAX), None);
    }
}
