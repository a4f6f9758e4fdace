//! `cargo xtask samplers`: how many images part between two engines, with each way to draw a token.

use std::io::Read;

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_checkpoint::{Synth, SynthSize};
use dpar_export_spec::SystemKind;

use crate::{command, onnx};

/// Below the workspace's folder, ignored by git.
const OUT: &str = "out/samplers";
/// Tokens of an image of 256 pixels.
const TOKENS: usize = 256;

/// Images of a call.
const BATCH: usize = 64;

/// Steps of the published DPAR-B.
pub(crate) const STEPS: f64 = 142.0;

/// How deep a system is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layers {
    /// Of encoder, global transformer and decoder.
    pub(crate) dpar: [usize; 3],
    pub(crate) entropy: usize,
}

/// Draws the same images on both engines and prints a Markdown table.
pub(crate) fn run(
    root: &Utf8Path,
    engines: &[String],
    images: u16,
    scales: &[String],
    layers: Layers,
    built: bool,
) -> Result<()> {
    let [first, second] = engines else { bail!("name two engines") };
    let program = onnx::program(root, built)?;
    let out = root.join(OUT);
    fs_err::create_dir_all(&out)?;
    let full = Synth::published(SystemKind::Dpar, "B", 256, STEPS)?;
    let made = Synth {
        transformer: SynthSize { layers: layers.dpar.to_vec(), ..full.transformer.clone() },
        entropy: SynthSize { layers: vec![layers.entropy], ..full.entropy.clone() },
        vq: false,
        ..full
    }
    .write(&out.join("checkpoint"), &mut |_| true)?;
    let parts: Vec<String> =
        made.parameters.iter().map(|(name, n)| format!("{name} {:.0}M", *n as f64 / 1e6)).collect();
    let bundle = out.join("bundle");
    command(
        root,
        program.as_str(),
        &[made.checkpoint.as_str(), "-o", bundle.as_str(), "--force", "--quiet"],
    )?;
    println!(
        "DPAR with seeded weights, {:?} + {} layers ({} parameters), V = 16384, {images} images\n",
        layers.dpar,
        layers.entropy,
        parts.join(", "),
    );
    println!(
        "| guidance | sampler | images that part | draws compared | s a slot: {first}, {second} |\n|---|---|---|---|---|"
    );
    for scale in scales {
        for sampler in ["cdf", "gumbel"] {
            let draw = |engine: &str| -> Result<(Vec<i64>, f64)> {
                let to = out.join(engine);
                let n = images.to_string();
                let args = [
                    "generate",
                    bundle.as_str(),
                    "--num",
                    &n,
                    "--cfg-scale",
                    scale,
                    "--sampler",
                    sampler,
                    "--engine",
                    engine,
                    "--batch",
                    &BATCH.to_string(),
                    "--no-images",
                    "--force",
                    "--quiet",
                    "--json",
                    "-o",
                    to.as_str(),
                ];
                // The command's own report is not of interest here.
                let done = std::process::Command::new(&program).args(args).current_dir(root).output()?;
                if !done.status.success() {
                    bail!("{engine}: {}", String::from_utf8_lossy(&done.stderr));
                }
                let report: serde_json::Value = serde_json::from_slice(&done.stdout)?;
                let seconds = report["seconds"].as_f64().context("no seconds")?;
                let slots = TOKENS * usize::from(images).div_ceil(BATCH);
                Ok((tokens(&to.join("trace.npz"))?, seconds / slots as f64))
            };
            let [(a, at), (b, bt)] = [draw(first)?, draw(second)?];
            let (parted, draws) = apart(&a, &b);
            println!("| {scale} | {sampler} | {parted} | {draws} | {at:.2}, {bt:.2} |");
        }
    }
    Ok(())
}

/// Images whose tokens differ, and the draws up to the first difference of each, that one included.
fn apart(a: &[i64], b: &[i64]) -> (usize, usize) {
    let firsts =
        a.chunks(TOKENS).zip(b.chunks(TOKENS)).map(|(a, b)| a.iter().zip(b).position(|(a, b)| a != b));
    firsts.fold((0, 0), |(parted, draws), first| match first {
        Some(slot) => (parted + 1, draws + slot + 1),
        None => (parted, draws + TOKENS),
    })
}

/// The `tokens` of a trace.
fn tokens(path: &Utf8PathBuf) -> Result<Vec<i64>> {
    let mut archive = zip::ZipArchive::new(fs_err::File::open(path)?)?;
    let mut bytes = Vec::new();
    archive.by_name("tokens.npy")?.read_to_end(&mut bytes)?;
    // Version 1: magic, version, length of the header.
    let header = bytes.get(8..10).context("no .npy header")?;
    let start = 10 + usize::from(u16::from_le_bytes([header[0], header[1]]));
    let elements = bytes.get(start..).context("no elements")?.as_chunks::<8>().0;
    Ok(elements.iter().map(|b| i64::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_part_once_and_draws_count_up_to_there() {
        let a = vec![7; 3 * TOKENS];
        let mut b = a.clone();
        assert_eq!(apart(&a, &b), (0, 3 * TOKENS));
        b[TOKENS + 9] = 8;
        b[TOKENS + 100] = 8;
        assert_eq!(apart(&a, &b), (1, 2 * TOKENS + 10));
    }
}
