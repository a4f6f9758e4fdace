//! `cargo xtask full-size`: systems of the published table at their full size, with seeded weights: made, exported, inspected, decoded,
//! held against PyTorch, built for TensorRT.

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use crate::metered::{self, MeteredRun, gigabytes};
use crate::trt_bench::BuildCost;
use crate::{all_engines, cargo, command, graph_engines, onnx, setup};

/// Below the workspace's folder, ignored by git.
const OUT: &str = "out/full-size";
/// The published table.
const TABLE: &str = include_str!("../../harness/evaluate/src/reproduce/paper.json");
/// Bundles of each system: name, and the arguments that make it.
const BUNDLES: [(&str, &[&str]); 3] =
    [("fp32", &[]), ("bf16", &["--precision", "bf16"]), ("int8", &["--quantize", "int8"])];
/// Engines are built of these.
const BUILT: [&str; 2] = ["fp32", "bf16"];
/// The exit code of an engine that cannot run a bundle.
const UNAVAILABLE: i32 = 3;
/// Slots whose logits are compared: the first, one in the middle, the last.
const SLOTS: &str = "first,middle,last";

/// Runs each named system, or all fourteen, and prints Markdown tables. What a system needed is removed before the next one.
pub(crate) fn run(root: &Utf8Path, systems: &[String], built: bool) -> Result<()> {
    let published = published()?;
    if let Some(unknown) = systems.iter().find(|s| !published.contains(s)) {
        bail!("no system `{unknown}` in the published table: there are {}", published.join(", "));
    }
    let python = setup::torch(root);
    if !python.is_file() {
        bail!("{python} is missing: run `cargo xtask setup --torch`");
    }
    let program = match built {
        true => onnx::program(root, true)?,
        false => {
            // With every engine, which a plain release build does not have.
            command(root, &cargo(), &["build", "--release", "--features", &all_engines()])?;
            onnx::target(root)?.join("release").join(format!("dpar-export{}", std::env::consts::EXE_SUFFIX))
        }
    };
    let (mut bundles, mut images, mut engines) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = Vec::new();
    for system in published.iter().filter(|s| systems.is_empty() || systems.contains(s)) {
        let out = root.join(OUT).join(system);
        if out.exists() {
            fs_err::remove_dir_all(&out)?;
        }
        fs_err::create_dir_all(&out)?;
        let case = PublishedSystem { root, program: &program, out: &out, system };
        println!("== {system}");
        if let Err(e) = case.run(&python, &mut bundles, &mut images, &mut engines) {
            println!("== {system}: FAILED: {e:#}");
            failed.push(system.as_str());
        }
        fs_err::remove_dir_all(&out)?;
    }
    let table = |title: &str, header: &str, lines: &[String]| {
        let columns = header.matches('|').count() - 1;
        println!("\n{title}\n\n{header}\n|{}\n{}", "---|".repeat(columns), lines.join("\n"));
    };
    let cores = std::thread::available_parallelism()?;
    println!("\nSeeded weights, {cores} cores.");
    table("Export", "| system | weights | MB | export s | anonymous GB | inspect |", &bundles);
    table(
        "One image",
        "| system | weights | engine | steps | s | anonymous GB | first slot that differs from the first engine | logits from PyTorch's |",
        &images,
    );
    table(
        "TensorRT-RTX engines, built without a GPU",
        "| system | weights | engines | MB | build s | peak GB |",
        &engines,
    );
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Names of the systems in the published table.
fn published() -> Result<Vec<String>> {
    let table: Value = serde_json::from_str(TABLE)?;
    let rows = table["rows"].as_array().context("the published table has no rows")?;
    Ok(rows.iter().filter_map(|row| row["name"].as_str().map(str::to_owned)).collect())
}

/// One system.
struct PublishedSystem<'a> {
    root: &'a Utf8Path,
    program: &'a Utf8Path,
    out: &'a Utf8Path,
    system: &'a str,
}

impl PublishedSystem<'_> {
    fn metered(&self, args: &[&str]) -> Result<MeteredRun> {
        println!("   {}", args.join(" "));
        metered::run(self.root, self.program, args)
    }

    fn run(
        &self,
        python: &Utf8Path,
        bundles: &mut Vec<String>,
        images: &mut Vec<String>,
        engines: &mut Vec<String>,
    ) -> Result<()> {
        let checkpoint = self.out.join("checkpoint");
        self.metered(&["synth", self.system, "-o", checkpoint.as_str()])?;
        let experiment = checkpoint.join(if self.system.starts_with("DPAR") { "dpar" } else { "llamagen" });
        let mut first: Option<Utf8PathBuf> = None;
        let mut failed = Vec::new();
        for (name, how) in BUNDLES {
            let bundle = self.out.join(name);
            let export = self.metered(&[&[experiment.as_str(), "-o", bundle.as_str()], how].concat())?;
            let inspected = match self.metered(&["inspect", bundle.as_str()]) {
                Ok(_) => "passed",
                Err(e) => {
                    failed.push(format!("{e:#}"));
                    "FAILED"
                }
            };
            bundles.push(format!(
                "| {} | {name} | {:.0} | {:.1} | {} | {inspected} |",
                self.system,
                size(&bundle)? as f64 / 1e6,
                export.seconds,
                gigabytes(export.anonymous)
            ));
            for engine in graph_engines(false) {
                let found = match self.image(python, &experiment, &bundle, name, &engine, &mut first) {
                    Ok(found) => found,
                    Err(e) => {
                        failed.push(format!("{name} on {engine}: {e:#}"));
                        "FAILED |".to_owned()
                    }
                };
                images.push(format!("| {} | {name} | {engine} | {found}", self.system));
            }
            if BUILT.contains(&name) {
                let target = self.out.join("trt");
                let args = [&[experiment.as_str(), "--target", "trt", "-o", target.as_str()], how].concat();
                let row = BuildCost::new(&self.metered(&args)?)?;
                engines.push(format!(
                    "| {} | {name} | {} | {:.0} | {:.1} | {} |",
                    self.system,
                    row.engines,
                    row.bytes as f64 / 1e6,
                    row.build,
                    gigabytes(row.peak)
                ));
                fs_err::remove_dir_all(&target)?;
            }
            fs_err::remove_dir_all(&bundle)?;
        }
        match failed.is_empty() {
            true => Ok(()),
            false => bail!("{}", failed.join("; ")),
        }
    }

    /// Draws an image on an engine, compares its tokens with those of `first`, and its logits at three slots with PyTorch's: the
    /// rest of the line in the table.
    fn image(
        &self,
        python: &Utf8Path,
        experiment: &Utf8Path,
        bundle: &Utf8Path,
        weights: &str,
        engine: &str,
        first: &mut Option<Utf8PathBuf>,
    ) -> Result<String> {
        let samples = self.out.join(format!("{weights}-{engine}"));
        let words = [
            "generate",
            bundle.as_str(),
            "--num",
            "1",
            "--cfg-scale",
            "2",
            "--engine",
            engine,
            "-o",
            samples.as_str(),
        ];
        println!("   {}", words.join(" "));
        let drawn = match metered::attempt(self.root, self.program, &words)? {
            Ok(drawn) => drawn,
            // It says why on stderr.
            Err(status) if status.code() == Some(UNAVAILABLE) => return Ok("refused |".to_owned()),
            Err(status) => bail!("`{}` failed: {status}", words.join(" ")),
        };
        let trace = samples.join("trace.npz");
        let scores = self.out.join("scores.npz");
        self.metered(&[
            "score",
            bundle.as_str(),
            "--inputs",
            trace.as_str(),
            "--engine",
            engine,
            "--force",
            "-o",
            scores.as_str(),
        ])?;
        let script = self.root.join("benches/side_by_side/reference.py");
        let first = first.get_or_insert_with(|| trace.clone());
        let mut words = vec![
            script.as_str(),
            experiment.as_str(),
            trace.as_str(),
            scores.as_str(),
            "--slots",
            SLOTS,
            "--against",
            first.as_str(),
        ];
        // Only graphs in the checkpoint's own precision are the same function.
        if weights == "fp32" {
            words.push("--near");
        }
        let output = std::process::Command::new(python).args(words).current_dir(self.root).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default());
        }
        let found: Value = serde_json::from_slice(&output.stdout).context("reference.py wrote no JSON")?;
        let parts = found["parts_at"].as_u64().map_or("none".to_owned(), |slot| slot.to_string());
        Ok(format!(
            "{} | {:.1} | {} | {parts} | {:.1e} |",
            drawn.result["mean_steps"],
            drawn.result["seconds"].as_f64().unwrap_or_default(),
            gigabytes(drawn.anonymous),
            found["logits"].as_f64().context("reference.py compared no logits")?,
        ))
    }
}

/// Bytes of the files in a folder.
fn size(folder: &Utf8Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        let data = entry.metadata()?;
        bytes += if data.is_dir() { size(entry.path())? } else { data.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_table_has_fourteen_systems() {
        let names = published().unwrap();
        assert_eq!((names.len(), names.contains(&"DPAR-384-XXL".to_owned())), (14, true));
    }
}
