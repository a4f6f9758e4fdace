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
use super::shell::{comment, literal, word};
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
    let engine = format!("{}{}.engine", super::shell::OUT, spec.name);
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

/// Options that begin a line of their own.
fn starts_line(word: &str) -> bool {
    word.starts_with("--profile=") || word.contains("Shapes=") || word.starts_with("--trt-")
}

fn line(words: &[String]) -> String {
    let mut text = String::from("    ");
    for (i, one) in words.iter().enumerate() {
        match i {
            0 => {}
            _ if starts_line(one) => text.push_str(" \\\n        "),
            _ => text.push(' '),
        }
        text += &word(one);
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
mkdir -p -- \"$OUT\"
OUT=$(CDPATH='' cd -- \"$OUT\" && pwd)
CDPATH='' cd -- \"$(dirname -- \"$0\")/..\"
tool=${{1:-tensorrt_rtx}}
case $tool in
  tensorrt_rtx|trtexec|polygraphy) ;;
  *) printf 'no tool %s\\n' \"$tool\" >&2; exit 2 ;;
esac
only=${{2:-}}
known=
",
        // Names come from a checkpoint's configuration.
        comment(&manifest.name),
        manifest.precisions(),
        comment(&names.join(", ")),
        tuning.patches,
        tuning.tokens,
    );
    for c in commands {
        let _ = write!(
            text,
            "\nif [ -z \"$only\" ] || [ \"$only\" = {graph} ]; then\n  known=1\n  printf '== %s\\n' {graph}\n  case $tool in\n",
            graph = literal(&c.graph)
        );
        for words in [&c.tensorrt_rtx, &c.trtexec, &c.polygraphy] {
            // The three tools' names are this program's own.
            let _ = writeln!(text, "  {})\n{} ;;", words[0], line(words));
        }
        text += "  esac\nfi\n";
    }
    text += "\nif [ -z \"$known\" ]; then printf 'no graph %s\\n' \"$only\" >&2; exit 2; fi\n";
    text
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use dpar_export_spec::{Precision, SystemKind};

    use super::*;
    use dpar_export_bundle::{SCHEMA_VERSION, ToolEntry};

    fn manifest(name: &str) -> Manifest {
        Manifest {
            schema_version: SCHEMA_VERSION,
            tool: ToolEntry::this(),
            system: SystemKind::Dpar,
            name: name.to_owned(),
            precision: Precision::Fp32,
            opset: 17,
            patch_rule: None,
            configured_rule: None,
            sources: Vec::new(),
            components: Vec::new(),
            graphs: Vec::new(),
            engines: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Runs the script with programs of the tools' names that write down how they were called.
    fn called(root: &Utf8Path, script: &str, tool: &str, graph: &str) -> Vec<Vec<String>> {
        let bundle = root.join("b c");
        fs_err::create_dir_all(bundle.join("trt")).unwrap();
        fs_err::create_dir_all(root.join("tools")).unwrap();
        fs_err::write(bundle.join(SCRIPT), script).unwrap();
        for tool in ["tensorrt_rtx", "trtexec", "polygraphy"] {
            let path = root.join("tools").join(tool);
            let text = "#!/bin/sh\n{ printf '%s\\0' \"$@\"; printf '\\1'; } >> \"$OUT/called\"\n";
            fs_err::write(&path, text).unwrap();
            fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let out = root.join("o u't");
        let _ = fs_err::remove_dir_all(&out);
        let path = format!("{}:{}", root.join("tools"), std::env::var("PATH").unwrap());
        let mut command = std::process::Command::new("sh");
        command.arg(bundle.join(SCRIPT)).args([tool, graph]).current_dir(root);
        let ran = command.env("PATH", path).env("OUT", "o u't").env("CDPATH", root).output().unwrap();
        assert!(ran.status.success(), "{}\n{script}", String::from_utf8_lossy(&ran.stderr));
        let checked = std::process::Command::new("sh").arg("-n").arg(bundle.join(SCRIPT)).output().unwrap();
        assert!(checked.status.success() && checked.stderr.is_empty(), "{script}");
        let text = fs_err::read_to_string(out.join("called")).unwrap_or_default();
        let calls = text.split_terminator('\u{1}');
        let mut found: Vec<Vec<String>> =
            calls.map(|c| c.split_terminator('\0').map(str::to_owned).collect()).collect();
        let absolute = format!("{}/", out.canonicalize_utf8().unwrap());
        found.iter_mut().flatten().for_each(|w| *w = w.replacen(&absolute, "$OUT/", 1));
        found
    }

    /// Names that mean something to a shell; no manifest is read that has one.
    fn name() -> impl proptest::strategy::Strategy<Value = String> {
        "[ \t\n'\"`$(){}\\[\\]\\\\;&|<>*?!#~=%^,:a-z-]{1,8}|\\$\\(touch pwned\\)|';touch pwned;'|[^\\x00\\x01/$]{1,8}"
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(24))]
        #[test]
        fn the_tools_are_called_with_the_words_that_were_meant(
            model in name(), profile in name(), graphs in proptest::collection::btree_set(name(), 1..4),
            words in proptest::collection::vec(name(), 0..4),
        ) {
            let guard = tempfile::tempdir().unwrap();
            let root = Utf8Path::from_path(guard.path()).unwrap();
            let graphs: Vec<String> = graphs.into_iter().collect();
            let of = |tool: &str, graph: &String| {
                let own = [format!("--saveEngine=$OUT/{graph}.engine"), format!("--optShapes={graph}:1x2")];
                [vec![tool.to_owned()], own.into(), words.clone()].concat()
            };
            let commands: Vec<Commands> = graphs
                .iter()
                .map(|graph| Commands {
                    graph: graph.clone(),
                    tensorrt_rtx: of("tensorrt_rtx", graph),
                    trtexec: of("trtexec", graph),
                    polygraphy: of("polygraphy", graph),
                })
                .collect();
            let tuning = Tuning {
                source: TuningSource::Rule,
                patches: 1.0,
                patch_length: 1.0,
                tokens: 1,
                images: None,
                trace_sha256: None,
            };
            let profiles = [vec![Profile { name: profile, axes: Default::default() }]];
            let script = script(&manifest(&model), &commands, &profiles, &tuning);
            for tool in ["tensorrt_rtx", "trtexec", "polygraphy"] {
                let all: Vec<Vec<String>> = graphs.iter().map(|g| of(tool, g)[1..].to_vec()).collect();
                proptest::prop_assert_eq!(&called(root, &script, tool, ""), &all);
                proptest::prop_assert_eq!(&called(root, &script, tool, &graphs[0]), &all[..1]);
            }
            proptest::prop_assert_eq!(root.read_dir_utf8().unwrap().count(), 3, "tools, bundle and output");
            proptest::prop_assert_eq!(root.join("b c").read_dir_utf8().unwrap().count(), 1);
        }
    }
}
