//! `cargo xtask reproduce`: both trained systems against their reference runs, with the feature extractor that setup fetches.

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

use crate::demo::{OUT, SYSTEMS, program, shown};
use crate::setup::EXTRACTOR;

/// Every image of the reference, or the first `num`, on every engine.
pub(crate) fn run(
    root: &Utf8Path,
    engines: &[String],
    num: Option<usize>,
    quantize: Option<&str>,
) -> Result<()> {
    if !root.join(EXTRACTOR).is_file() {
        bail!("{EXTRACTOR} is missing: run `cargo xtask setup`");
    }
    let program = program(root)?;
    let [dpar, baseline, extractor] =
        ["dpar", "llamagen", "extractor"].map(|name| format!("{OUT}/reproduce-{name}"));
    for ((_, checkpoint), bundle) in SYSTEMS.iter().zip([&dpar, &baseline]) {
        let mut export: Vec<&str> = checkpoint.iter().copied().chain(["-o", bundle, "--force"]).collect();
        export.extend(quantize.into_iter().flat_map(|kind| ["--quantize", kind]));
        shown(root, &program, &export)?;
    }
    let lite0 = ["--component", "efficientnet-lite0", EXTRACTOR, "-o", &extractor, "--force"];
    shown(root, &program, &lite0)?;
    for engine in engines {
        let mut args = vec!["reproduce", &dpar, "--baseline", &baseline, "--reference", "fixtures/emoji32"];
        args.extend(["--extractor", &extractor, "--extractor-engine", engine, "--engine", engine]);
        args.extend(["--batch", "32"]);
        let num = num.map(|n| n.to_string());
        if let Some(num) = &num {
            args.extend(["--num", num]);
        }
        shown(root, &program, &args).with_context(|| format!("on {engine}"))?;
    }
    Ok(())
}
