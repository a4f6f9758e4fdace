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

/// Columns: heading and the id of the check that fills it.
const COLUMNS: [(&str, &str); 7] = [
    ("logits", "logits"),
    ("entropy", "entropy"),
    ("patch lengths", "patch_lengths"),
    ("mean steps", "mean_steps"),
    ("greedy tokens", "greedy_tokens"),
    ("images (LSB)", IMAGES),
    ("codes", "codes"),
];

/// The check whose differences are whole numbers.
const IMAGES: &str = "images";

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
    let plain = |name: &str| dpar_engine_table::find(name).is_none_or(|e| e.plain);
    engines.iter().map(String::as_str).filter(|e| !plain(e)).collect()
}

/// The figures of one check.
fn cell(report: &Value, id: &str) -> String {
    let checks = report["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(found) = checks.iter().find(|c| c["id"] == id && c["status"] != "not_run") else {
        return "–".to_owned();
    };
    let text = match (&found["max_abs"], &found["equal"], &found["means"]) {
        (Value::Number(d), ..) if id == IMAGES => format!("{:.0}", d.as_f64().unwrap_or(f64::NAN)),
        (Value::Number(d), ..) => format!("{:.1e}", d.as_f64().unwrap_or(f64::NAN)),
        (_, Value::Array(counts), _) if counts.len() == 2 => format!("{} of {} equal", counts[0], counts[1]),
        (.., Value::Array(means)) if means.len() == 2 => {
            let [reference, found] = [0, 1].map(|i| means[i].as_f64().unwrap_or(f64::NAN));
            let sign = if reference == found { "=" } else { "≠" };
            format!("{reference:.4} {sign} {found:.4}")
        }
        _ => "?".to_owned(),
    };
    if found["status"] == "fail" { text + " **FAIL**" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_the_figures_of_its_check() {
        let check = |id: &str, status: &str, figure: &str, value: Value| serde_json::json!({ "id": id, "status": status, figure: value });
        let report = serde_json::json!({ "checks": [
            check("logits", "fail", "max_abs", 1.21e-5.into()),
            check("images", "pass", "max_abs", 1.0.into()),
            check("codes", "pass", "equal", serde_json::json!([383, 384])),
            check("mean_steps", "pass", "means", serde_json::json!([32.5, 32.5])),
            check("entropy", "not_run", "max_abs", Value::Null),
        ]});
        let cells = ["logits", "images", "codes", "mean_steps", "entropy", "greedy_tokens"];
        let cells = cells.map(|id| cell(&report, id));
        assert_eq!(cells, ["1.2e-5 **FAIL**", "1", "383 of 384 equal", "32.5000 = 32.5000", "–", "–"]);
    }
}
