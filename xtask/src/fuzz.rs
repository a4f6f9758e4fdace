//! `cargo xtask fuzz`: every fuzz target for some time, with its counts.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use camino::Utf8Path;

/// A target with the fixtures that its corpus begins with: files, or endings of files in a folder.
struct FuzzTarget {
    name: &'static str,
    seeds: &'static [&'static str],
}

const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "checkpoint_pickle", seeds: &[] },
    FuzzTarget {
        name: "checkpoint_torch",
        seeds: &["wrappings/float16.pt", "wrappings/bfloat16.pt", "wrappings/hostile.pt"],
    },
    FuzzTarget { name: "checkpoint_safetensors", seeds: &["variants/token/golden.safetensors"] },
    FuzzTarget { name: "manifest", seeds: &[] },
    FuzzTarget {
        name: "config",
        seeds: &["llamagen-small/config.yaml", "dpar-small/dpar/config.yaml", "emoji32/dpar/config.yaml"],
    },
    FuzzTarget { name: "rules", seeds: &[] },
    FuzzTarget {
        name: "npz",
        seeds: &[
            "metrics/numpy/compressed.npz",
            "metrics/numpy/half.npz",
            "metrics/numpy/named.npz",
            "metrics/numpy/wide.npz",
        ],
    },
    FuzzTarget { name: "png", seeds: &[] },
    FuzzTarget { name: "golden", seeds: &["variants/combined/golden.json", "llamagen-small/golden.json"] },
    FuzzTarget { name: "attestation", seeds: &[] },
];

/// Larger inputs find nothing that these do not.
const MOST_BYTES: u32 = 1 << 16;
/// An input that takes longer is a finding: readers do work in proportion to a file.
const SECONDS_AN_INPUT: u32 = 10;
/// Memory of a target: a reader that takes more from such inputs is a finding.
const MEGABYTES: u32 = 2048;

/// What a target did.
struct Ran {
    runs: String,
    coverage: String,
    crashes: usize,
    failed: bool,
}

/// Runs the targets one after another and fails if one found anything.
pub(crate) fn run(root: &Utf8Path, targets: &[String], seconds: u32) -> Result<()> {
    if let Some(unknown) = targets.iter().find(|t| TARGETS.iter().all(|own| own.name != **t)) {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        bail!("no fuzz target `{unknown}`: there are {}", names.join(", "));
    }
    let mut found = Vec::new();
    println!("{:<24} {:>12} {:>9} {:>8}", "target", "runs", "coverage", "crashes");
    for target in TARGETS.iter().filter(|t| targets.is_empty() || targets.iter().any(|n| n == t.name)) {
        let ran = one(root, target, seconds)?;
        println!("{:<24} {:>12} {:>9} {:>8}", target.name, ran.runs, ran.coverage, ran.crashes);
        if ran.failed || ran.crashes > 0 {
            found.push(target.name);
        }
    }
    if !found.is_empty() {
        bail!("findings in {}: inputs and logs are in out/fuzz", found.join(", "));
    }
    Ok(())
}

fn one(root: &Utf8Path, target: &FuzzTarget, seconds: u32) -> Result<Ran> {
    let folder = root.join("out/fuzz").join(target.name);
    let (corpus, crashes) = (folder.join("corpus"), folder.join("crashes"));
    fs_err::create_dir_all(&corpus)?;
    if crashes.exists() {
        fs_err::remove_dir_all(&crashes)?;
    }
    fs_err::create_dir_all(&crashes)?;
    seed(root, target, &corpus)?;
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let log = folder.join("log.txt");
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "fuzz", "run", target.name, corpus.as_str(), "--"]);
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={SECONDS_AN_INPUT}"),
        format!("-rss_limit_mb={MEGABYTES}"),
        format!("-max_len={MOST_BYTES}"),
        format!("-artifact_prefix={crashes}/"),
        "-print_final_stats=1".to_owned(),
    ]);
    // The toolchain that runs this program must not be the one that fuzzes.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command.env("TMPDIR", scratch.path()).current_dir(root.join("fuzz")).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(fs_err::File::create(&log)?.into_parts().0);
    let status = command.status().context("`rustup` cannot be started")?;
    let text = String::from_utf8_lossy(&fs_err::read(&log)?).into_owned();
    let statistic =
        |line: &str| Some(line.strip_prefix("stat::number_of_executed_units:")?.trim().to_owned());
    let covered = |line: &str| Some(line.split_once(" cov: ")?.1.split(' ').next()?.to_owned());
    let Some(runs) = text.lines().find_map(statistic) else {
        let tail: Vec<&str> = text.lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!(
            "`cargo fuzz run {}` did not run (install cargo-fuzz and a nightly toolchain):\n{}",
            target.name,
            tail.join("\n")
        );
    };
    Ok(Ran {
        runs,
        coverage: text.lines().rev().find_map(covered).unwrap_or_default(),
        crashes: crashes.read_dir_utf8()?.count(),
        failed: !status.success(),
    })
}

/// Puts the fixtures and a few small beginnings of the format into the corpus.
fn seed(root: &Utf8Path, target: &FuzzTarget, corpus: &Utf8Path) -> Result<()> {
    let put = |name: String, bytes: &[u8]| fs_err::write(corpus.join(name), bytes);
    for path in target.seeds {
        let bytes = fs_err::read(root.join("fixtures").join(path))?;
        put(format!("fixture-{}", path.replace('/', "-")), &bytes)?;
    }
    let written: Vec<(&str, Vec<u8>)> = match target.name {
        "checkpoint_pickle" => {
            vec![("dict.pkl", b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.".to_vec())]
        }
        "manifest" => vec![("manifest.json", manifest(root)?)],
        "rules" => vec![
            ("rule.yaml", b"- { from: \"layers.{i}.*\", to: \"blocks.{i}.*\" }\n".to_vec()),
            ("two.yaml", b"- { from: \"a\", to: \"b\" }\n- { from: \"*\", to: \"model.*\" }\n".to_vec()),
        ],
        "png" => vec![("grid.png", fs_err::read(root.join("docs/grid.png"))?), ("small.png", SMALL_PNG.to_vec())],
        "golden" => vec![("both", GOLDEN.to_vec())],
        "attestation" => vec![(
            "statement.json",
            br#"{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"report.json","digest":{"sha256":"0"}}],"predicateType":"urn:dpar-export:report:v1","predicate":{"size":1}}"#.to_vec(),
        )],
        _ => Vec::new(),
    };
    for (name, bytes) in written {
        put(format!("written-{name}"), &bytes)?;
    }
    Ok(())
}

/// One black pixel.
const SMALL_PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde\0\0\0\x0cIDATx\x9cc```\0\0\0\x04\0\x01\xf6\x178U\0\0\0\0IEND\xaeB`\x82";

/// Settings, a 0, arrays: as the target reads them.
const GOLDEN: &[u8] = b"{\"cfg_scale\": 2.0, \"steps_teacher\": [3]}\0\x3f\0\0\0\0\0\0\0\
    {\"tokens\":{\"dtype\":\"I64\",\"shape\":[1,1],\"data_offsets\":[0,8]}}  \0\0\0\0\0\0\0\0";

/// The manifest of a small bundle.
fn manifest(root: &Utf8Path) -> Result<Vec<u8>> {
    let scratch = tempfile::tempdir().context("a temporary folder")?;
    let bundle = Utf8Path::from_path(scratch.path()).context("the temporary folder is not UTF-8")?.join("b");
    let program = crate::onnx::program(root, true)?;
    let line = ["--quiet", "fixtures/variants/token/dpar", "-o", bundle.as_str()];
    let status = Command::new(program).args(line).current_dir(root).stdout(Stdio::null()).status()?;
    if !status.success() {
        bail!("a bundle for the corpus could not be exported");
    }
    Ok(fs_err::read(bundle.join("manifest.json"))?)
}
