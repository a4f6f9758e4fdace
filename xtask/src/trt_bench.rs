//! `cargo xtask trt-bench`: what building engines costs, from the smallest fixture to the paper's smallest model.

use anyhow::{Context, Result, bail};
use camino::Utf8Path;
use dpar_export_checkpoint::Synth;
use dpar_export_spec::SystemKind;

use crate::all_engines;
use crate::metered::{self, MeteredRun, gigabytes};
use crate::{cargo, command, onnx, samplers};

/// Below the workspace's folder, ignored by git.
const OUT: &str = "out/trt-bench";
/// What DPAR-B with its entropy model may take on two cores.
const MOST_SECONDS: f64 = 300.0;
const MOST_BYTES: u64 = 6 << 30;

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
        let made = Synth { vq: false, ..full }.write(&out.join("dpar-b"), &mut |_| true)?;
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
pub(crate) struct BuildCost {
    pub(crate) engines: usize,
    pub(crate) bytes: u64,
    pub(crate) build: f64,
    pub(crate) wall: f64,
    pub(crate) peak: Option<u64>,
}

impl BuildCost {
    /// Of a run with `--target trt`.
    pub(crate) fn new(done: &MeteredRun) -> Result<Self> {
        let engines = done.result["engines"].as_array().context("the result lists no engines")?;
        Ok(Self {
            engines: engines.len(),
            bytes: engines.iter().filter_map(|e| e["size"].as_u64()).sum(),
            build: engines.iter().filter_map(|e| e["seconds"].as_f64()).sum(),
            wall: done.seconds,
            peak: done.resident,
        })
    }

    fn line(&self, name: &str, precision: &str) -> String {
        let peak = gigabytes(self.peak);
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
    program: &Utf8Path,
    out: &Utf8Path,
    case: &BuildCase,
    precision: &str,
) -> Result<BuildCost> {
    let bundle = out.join("bundle");
    let mut args: Vec<&str> = vec!["--target", "trt", "--force", "-o", bundle.as_str()];
    args.extend(case.export.iter().map(String::as_str));
    if precision != "fp32" {
        args.extend(["--precision", precision]);
    }
    let done = metered::run(root, program, &args)?;
    fs_err::remove_dir_all(&bundle)?;
    BuildCost::new(&done)
}
