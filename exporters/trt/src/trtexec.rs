//! The plan as command lines of NVIDIA's own tools, which load the same ONNX files: `tensorrt_rtx`, `trtexec` and
//! Polygraphy. Nothing of TensorRT is needed to write them.

use std::fmt::Write;

use camino::Utf8Path;
use dpar_export_bundle::{Bundle, BundleError, FileEntry, GraphEntry, Manifest, TRT, TargetError};
use dpar_export_files::arrays::write_atomic;
use dpar_export_spec::{GraphSpec, Point, Profile, Tuning, TuningSource, WeightMode};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::plan::{TrtPlan, TuneFor};
use super::tuning::{Calibrate, measured, of_trace};

/// The script in a bundle.
pub const SCRIPT: &str = "trt/trtexec.sh";

/// How one graph is built with each tool; the first word is the program. Paths are relative to the bundle, engines go
/// to `$OUT`, outside of it: the manifest knows every file inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Commands {
    /// Graph name.
    pub graph: String,
    /// TensorRT-RTX's tool.
    pub tensorrt_rtx: Vec<String>,
    /// TensorRT's tool.
    pub trtexec: Vec<String>,
    /// Polygraphy, for either library.
    pub polygraphy: Vec<String>,
}

/// What the opt points follow from, and the profiles of every graph in the manifest's order.
///
/// # Errors
/// When a profile is refused, or what is to be measured cannot be.
pub fn resolve(
    folder: &Utf8Path,
    manifest: &Manifest,
    plan: &TrtPlan,
    calibrate: Calibrate<'_>,
) -> Result<(Tuning, Vec<Vec<Profile>>), BundleError> {
    let bundle = Bundle::unwritten(folder, manifest)?;
    let table = Tuning::of_system(bundle.system());
    // Names and shapes are checked before images are generated.
    let profiles = plan.profiles(manifest, &table)?;
    let tuning = match &plan.tune_for {
        TuneFor::Table => return Ok((table, profiles)),
        TuneFor::Trace(path) => of_trace(path, bundle.system())?,
        TuneFor::Images(n) => {
            measured(TuningSource::Calibration, &calibrate(&bundle, *n)?, bundle.system().tokens())?
        }
    };
    let profiles = plan.profiles(manifest, &tuning)?;
    Ok((tuning, profiles))
}

/// Writes [`SCRIPT`] into the folder of a bundle and lists it in the manifest.
///
/// # Errors
/// When a profile or device is refused, or writing fails.
pub fn add_script(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    plan: &TrtPlan,
    profiles: &[Vec<Profile>],
    tuning: &Tuning,
) -> Result<Vec<Commands>, BundleError> {
    let commands = commands(manifest, plan, profiles)?;
    let trt = folder.join(TRT);
    fs_err::create_dir_all(&trt).map_err(|e| BundleError::Io { path: trt.clone(), source: e })?;
    put(folder, manifest, SCRIPT, script(manifest, &commands, profiles, tuning).as_bytes())?;
    Ok(commands)
}

/// Writes a file of a bundle and lists it. A linked file of the bundle that is being replaced keeps its bytes.
pub(super) fn put(
    folder: &Utf8Path,
    manifest: &mut Manifest,
    file: &str,
    bytes: &[u8],
) -> Result<(), BundleError> {
    let path = folder.join(file);
    write_atomic(&path, bytes).map_err(|e| BundleError::Io { path: path.clone(), source: e })?;
    manifest.files.retain(|f| f.path != file);
    let sha256 = hex::encode(Sha256::digest(bytes));
    manifest.files.push(FileEntry { path: file.to_owned(), size: bytes.len() as u64, sha256 });
    Ok(())
}

/// The command lines of every graph.
///
/// # Errors
/// When no engine can be built for a device, or a profile does not fit its graph.
pub fn commands(
    manifest: &Manifest,
    plan: &TrtPlan,
    profiles: &[Vec<Profile>],
) -> Result<Vec<Commands>, TargetError> {
    manifest.graphs.iter().zip(profiles).map(|(graph, profiles)| of_graph(graph, plan, profiles)).collect()
}

/// The shapes of all inputs at one point, each written by `one`.
fn shapes(
    spec: &GraphSpec,
    profile: &Profile,
    point: Point,
    one: &dyn Fn(&str, &[usize]) -> String,
) -> Result<Vec<String>, TargetError> {
    spec.inputs.iter().map(|port| Ok(one(&port.name, &profile.shape(spec, port, point)?))).collect()
}

fn of_graph(graph: &GraphEntry, plan: &TrtPlan, profiles: &[Profile]) -> Result<Commands, TargetError> {
    let spec = &graph.spec;
    let engine = format!("$OUT/{}.engine", spec.name);
    let mut native = vec![format!("--onnx={}", graph.file), format!("--saveEngine={engine}")];
    let mut polygraphy: Vec<String> =
        ["polygraphy", "convert", &graph.file, "--convert-to", "trt", "--strongly-typed", "-o", &engine]
            .map(str::to_owned)
            .into();
    // Without a dynamic axis there is nothing that a profile could say.
    let profiles = if spec.axes.is_empty() { &[] } else { profiles };
    for (i, profile) in profiles.iter().enumerate() {
        if profiles.len() > 1 {
            native.push(format!("--profile={i}"));
        }
        for point in Point::ALL {
            let by_x = |name: &str, sizes: &[usize]| {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                format!("{name}:{}", sizes.join("x"))
            };
            let by_list = |name: &str, sizes: &[usize]| format!("{name}:{sizes:?}").replace(' ', "");
            native.push(format!("--{point}Shapes={}", shapes(spec, profile, point, &by_x)?.join(",")));
            polygraphy.push(format!("--trt-{point}-shapes"));
            polygraphy.extend(shapes(spec, profile, point, &by_list)?);
        }
    }
    if let Some(level) = plan.optimization_level {
        native.push(format!("--builderOptimizationLevel={level}"));
        polygraphy.extend(["--builder-optimization-level".to_owned(), level.to_string()]);
    }
    if let Some(bytes) = plan.workspace {
        let mib = bytes >> 20;
        native.push(format!("--memPoolSize=workspace:{mib}M"));
        polygraphy.extend(["--pool-limit".to_owned(), format!("workspace:{mib}M")]);
    }
    match plan.weights {
        WeightMode::Embedded => {}
        WeightMode::Refittable => {
            native.push("--refit".to_owned());
            polygraphy.push("--refittable".to_owned());
        }
        WeightMode::Stripped => {
            native.push("--stripWeights".to_owned());
            polygraphy.push("--strip-plan".to_owned());
        }
    }
    if plan.detailed {
        native.push("--profilingVerbosity=detailed".to_owned());
        polygraphy.extend(["--profiling-verbosity", "detailed"].map(str::to_owned));
    }
    // fp32 is fp32: the builder's own default rounds the inputs of matrix products to 10 bits.
    native.extend(["--noTF32", "--skipInference"].map(str::to_owned));
    let program = |name: &str, rest: &[String]| [&[name.to_owned()], rest].concat();
    let mut rtx = program("tensorrt_rtx", &native);
    let capabilities = plan.capabilities()?;
    if !capabilities.is_empty() {
        let list: Vec<String> = capabilities.iter().map(|c| c.to_string().replace('.', "")).collect();
        rtx.push(format!("--computeCapabilities={}", list.join(",")));
    }
    // TensorRT-RTX and TensorRT 11 know strong typing only; TensorRT 10 has to be told.
    let trtexec = [program("trtexec", &native), vec!["--stronglyTyped".to_owned()]].concat();
    Ok(Commands { graph: spec.name.clone(), tensorrt_rtx: rtx, trtexec, polygraphy })
}

/// A word as the shell takes it; `$OUT` stays a variable.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./".contains(c);
    match word.find("$OUT") {
        Some(at) if word.chars().all(|c| plain(c) || c == '$') => {
            format!("{}\"{}\"", &word[..at], &word[at..])
        }
        _ if word.chars().all(plain) => word.to_owned(),
        _ => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Options that begin a line of their own.
fn starts_line(word: &str) -> bool {
    word.starts_with("--profile=") || word.contains("Shapes=") || word.starts_with("--trt-")
}

fn line(words: &[String]) -> String {
    let mut text = String::from("    ");
    for (i, word) in words.iter().enumerate() {
        match i {
            0 => {}
            _ if starts_line(word) => text.push_str(" \\\n        "),
            _ => text.push(' '),
        }
        text += &quoted(word);
    }
    text
}

/// `trtexec.sh`: builds every graph, or the one that is named, with the tool that is named.
pub fn script(
    manifest: &Manifest,
    commands: &[Commands],
    profiles: &[Vec<Profile>],
    tuning: &Tuning,
) -> String {
    let names = profiles.iter().max_by_key(|p| p.len()).map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = names.iter().map(|p| p.name.as_str()).collect();
    let mut text = format!(
        "#!/bin/sh
# Builds the engines of `{}` ({}) from the ONNX files of this bundle with NVIDIA's own tools.
#
#     sh trt/trtexec.sh [tensorrt_rtx|trtexec|polygraphy] [GRAPH]
#
# Engines go to $OUT, by default ./engines: files inside the bundle are bound to its manifest.
# Profiles: {}. Tuned for {:.2} patches of {} tokens in an image.
# With TensorRT-RTX, Polygraphy wants POLYGRAPHY_USE_TENSORRT_RTX=1.
set -eu
OUT=${{OUT:-$PWD/engines}}
mkdir -p \"$OUT\"
OUT=$(cd \"$OUT\" && pwd)
cd \"$(dirname \"$0\")/..\"
tool=${{1:-tensorrt_rtx}}
case $tool in tensorrt_rtx|trtexec|polygraphy) ;; *) echo \"no tool $tool\" >&2; exit 2 ;; esac
only=${{2:-}}
known=
",
        // Names come from a checkpoint's configuration: nothing of them may end the comment.
        manifest.name.replace(char::is_control, " "),
        manifest.precision,
        names.join(", "),
        tuning.patches,
        tuning.tokens,
    );
    for c in commands {
        let _ = write!(
            text,
            "\nif [ -z \"$only\" ] || [ \"$only\" = {graph} ]; then\n  known=1\n  echo \"== {graph}\"\n  case $tool in\n",
            graph = quoted(&c.graph)
        );
        for words in [&c.tensorrt_rtx, &c.trtexec, &c.polygraphy] {
            let _ = writeln!(text, "  {})\n{} ;;", words[0], line(words));
        }
        text += "  esac\nfi\n";
    }
    text += "\nif [ -z \"$known\" ]; then echo \"no graph $only\" >&2; exit 2; fi\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        for (word, text) in [
            ("--onnx=onnx/a.onnx", "--onnx=onnx/a.onnx"),
            ("--saveEngine=$OUT/a.engine", "--saveEngine=\"$OUT/a.engine\""),
            ("tokens:[1,1]", "'tokens:[1,1]'"),
            ("a'b $(rm)", "'a'\\''b $(rm)'"),
            ("$OUT/`x`", "'$OUT/`x`'"),
        ] {
            assert_eq!(quoted(word), text);
        }
    }
}
