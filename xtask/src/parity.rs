//! `cargo xtask parity`: the README's table, measured.

use std::process::Command;

use anyhow::{Context, Result, bail};
use camino::Utf8Path;
use serde_json::Value;

use crate::demo::{OUT, program_with};
use crate::onnx;

/// Name, reference folder and export arguments of each case, relative to the workspace's folder.
const CASES: [(&str, &str, &[&str]); 4] = [
    ("trained DPAR", "fixtures/emoji32", &["fixtures/emoji32/dpar"]),
    (
        "trained LlamaGen",
        "fixtures/emoji32/llamagen",
        &["fixtures/emoji32/llamagen/c2i_emoji32.pt", "--config", "fixtures/emoji32/llamagen/config.yaml"],
    ),
    ("dpar-small", "fixtures/dpar-small", &["fixtures/dpar-small/dpar"]),
    (
        "llamagen-small",
        "fixtures/llamagen-small",
        &["fixtures/llamagen-small/c2i_tiny.pt", "--config", "fixtures/llamagen-small/config.yaml"],
    ),
];

/// Columns: heading and the check that fills it.
const COLUMNS: [(&str, &str); 7] = [
    ("logits", "logits"),
    ("entropy", "entropy"),
    ("patch lengths", "patch lengths"),
    ("mean steps", "mean steps"),
    ("greedy tokens", "greedy tokens"),
    ("images (LSB)", "images"),
    ("codes", "codes"),
];

/// Verifies every case on every engine and prints a Markdown table.
pub(crate) fn run(root: &Utf8Path, engines: &[String], built: bool) -> Result<()> {
    let program = if built { onnx::program(root, true)? } else { program_with(root, &features(engines))? };
    let headings: Vec<&str> = COLUMNS.iter().map(|(h, _)| *h).collect();
    let mut lines = vec![
        format!("| case | engine | {} |", headings.join(" | ")),
        format!("|{}", "---|".repeat(COLUMNS.len() + 2)),
    ];
    let mut failed = false;
    for (i, (name, reference, checkpoint)) in CASES.into_iter().enumerate() {
        let bundle = format!("{OUT}/parity-{i}");
        let export: Vec<&str> = checkpoint.iter().copied().chain(["-o", &bundle, "--force"]).collect();
        crate::command(root, program.as_str(), &export)?;
        for engine in engines {
            let args = ["verify", &bundle, "--reference", reference, "--engine", engine, "--json"];
            let output = Command::new(&program).args(args).current_dir(root).output()?;
            let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
                format!("{name} on {engine}: {}", String::from_utf8_lossy(&output.stderr))
            })?;
            failed |= !output.status.success();
            let cells: Vec<String> = COLUMNS.iter().map(|(_, check)| cell(&report, check)).collect();
            let version = report["engine"]["version"].as_str().unwrap_or_default();
            lines.push(format!("| {name} | {engine} {version} | {} |", cells.join(" | ")));
        }
    }
    println!("\n{}", lines.join("\n"));
    if failed {
        bail!("a case failed");
    }
    Ok(())
}

/// What the build needs beyond a plain one for these engines.
fn features(engines: &[String]) -> Vec<&str> {
    engines.iter().map(String::as_str).filter(|e| ["candle", "tensorrt"].contains(e)).collect()
}

/// The largest difference, or the counts in the detail, of one check.
fn cell(report: &Value, check: &str) -> String {
    let checks = report["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(found) = checks.iter().find(|c| c["name"] == check) else { return "–".to_owned() };
    let mark = if found["status"] == "fail" { " **FAIL**" } else { "" };
    let detail = found["detail"].as_str().unwrap_or_default();
    let text = match (found["status"].as_str(), found["max_abs"].as_f64()) {
        (Some("not_run"), _) => "–".to_owned(),
        (_, Some(d)) if check == "images" => format!("{d:.0}"),
        (_, Some(d)) => format!("{d:.1e}"),
        _ => detail
            .split([',', ';'])
            .next()
            .unwrap_or_default()
            .replace(" images equal", " equal")
            .replace(" codes equal", " equal"),
    };
    if check == "mean steps" && text != "–" {
        let values = detail.trim_start_matches("reference ").replace(", found ", " = ");
        return values + mark;
    }
    text + mark
}
