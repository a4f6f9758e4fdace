//! Inputs: bombs under a memory limit, tables so wide that quadratic work shows, what is no file, words for a shell.

use std::time::Duration;

use anyhow::Result;
use camino::Utf8PathBuf;

use super::PromiseOutcome;
use super::files;
use super::ground::{Ground, Running, copy, names};

/// Address space of a run with a bomb: an honest run here takes less than half.
const MEMORY_KIB: &str = "6000000";

/// Small files that ask for much: exit 2, without a panic, within the limit.
pub(super) fn bombs(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let place = ground.place("bombs")?;
    let (b, token) = (ground.models[0].bundle.as_str(), ground.models[1].bundle.as_str());
    let npz = |name: &str, members: &[(&str, Vec<u8>, u64)]| -> Result<String> {
        let path = place.join(name);
        files::npz(&path, members, true)?;
        Ok(path.into_string())
    };
    let t = 16_u64;
    // A few megabytes of deflated zeros; and heads that promise what is not there.
    let tokens = npz(
        "tokens.npz",
        &[
            ("tokens", files::npy_head("<i8", &[2_000_000, t]), 2_000_000 * t * 8),
            ("class_labels", files::npy_head("<i8", &[2_000_000]), 2_000_000 * 8),
        ],
    )?;
    let promised = npz("promised.npz", &[("tokens", files::npy_head("<i8", &[1 << 40, t]), 64)])?;
    let overflow = npz("overflow.npz", &[("tokens", files::npy_head("<i8", &[1 << 62, 1 << 62]), 64)])?;
    let pool = npz("pool.npz", &[("pool_3", files::npy_head("<f4", &[1 << 20, 2048]), 1 << 24)])?;
    let images = npz("images.npz", &[("arr_0", files::npy_head("|u1", &[1 << 34, 8, 8, 3]), 1 << 22)])?;
    let pictures = place.join("pictures");
    fs_err::create_dir(&pictures)?;
    fs_err::write(pictures.join("000000.png"), files::png(200_000, 200_000))?;
    let onnx = |name: &str, op: &str, attribute: &str, values: &[u64]| -> Result<String> {
        let path = place.join(name);
        fs_err::write(&path, files::onnx(op, attribute, values))?;
        Ok(path.into_string())
    };
    let transpose = onnx("transpose.onnx", "Transpose", "perm", &[0, 0, 0, 1 << 40])?;
    let repeated = onnx("repeated.onnx", "Transpose", "perm", &[0, 1, 2, 2])?;
    let header = place.join("header.safetensors");
    fs_err::write(&header, [&u64::MAX.to_le_bytes()[..], b"{}"].concat())?;
    let deep = place.join("deep.json");
    fs_err::write(&deep, "[".repeat(1 << 20))?;
    let yaml = place.join("config.yaml");
    let aliases: Vec<String> = (1..24).map(|i| format!("a{i}: &a{i} [*a{}, *a{}]", i - 1, i - 1)).collect();
    fs_err::write(&yaml, format!("a0: &a0 [x, x]\n{}\n", aliases.join("\n")))?;
    let weights = ground.root.join("fixtures/llamagen-small/c2i_tiny.pt");
    let out = place.join("out.npz");
    let folder = place.join("out");
    let features =
        |file: &str| ["--component", "features", file, "-o", folder.as_str()].map(str::to_owned).to_vec();
    let owned = |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
    let (out, folder) = (out.as_str(), folder.as_str());
    let reference = ground.reference.as_str();
    let lines: Vec<(&str, Vec<String>)> = vec![
        ("an npz for score", owned(&["score", token, "--inputs", &tokens, "-o", out])),
        ("an npz for decode", owned(&["decode", b, "--tokens", &promised, "-o", folder])),
        ("an npz whose size overflows", owned(&["decode", b, "--tokens", &overflow, "-o", folder])),
        ("an npz for encode", owned(&["encode", b, "--images", &images, "-o", out])),
        ("an npz for metrics", owned(&["metrics", "--activations", &pool, "--reference", &pool])),
        (
            "a PNG of 40 gigapixels",
            owned(&[
                "evaluate",
                "--samples",
                pictures.as_str(),
                "--reference",
                reference,
                "--extractor",
                ground.network.as_str(),
                "--input-size",
                "16",
                "-o",
                folder,
            ]),
        ),
        ("an ONNX Transpose of axis 2^40", features(&transpose)),
        ("an ONNX Transpose that is no permutation", features(&repeated)),
        (
            "a safetensors header of 2^64 bytes",
            owned(&["inspect", header.as_str(), "--config", yaml.as_str()]),
        ),
        ("deep JSON", owned(&["generate", b, "--num", "1", "-o", folder, "--class-names", deep.as_str()])),
        ("YAML aliases", owned(&["inspect", weights.as_str(), "--config", yaml.as_str()])),
    ];
    for (what, line) in lines {
        outcome.count("bombs");
        let script = format!("ulimit -v {MEMORY_KIB}; exec \"$@\"");
        let ended = Running::start(ground.shell(&script, "sh", &line))?.end(Duration::from_secs(60))?;
        // A graph may also be refused by the engine that first runs it.
        let mut wrong = ended.not(2);
        if ended.code == Some(0) && line[0] == "--component" {
            let run = [
                "evaluate",
                "--samples",
                reference,
                "--reference",
                reference,
                "--extractor",
                folder,
                "-o",
                &format!("{folder}-ev"),
            ];
            wrong = Running::start(ground.shell(&script, "sh", &run))?.end(Duration::from_secs(60))?.not(2);
        }
        outcome.extend(what, wrong);
        for left in [folder.to_owned(), out.to_owned(), format!("{folder}-ev")] {
            let _ = fs_err::remove_dir_all(&left);
            let _ = fs_err::remove_file(&left);
        }
    }
    Ok(outcome)
}

/// Wide tables are read in time that grows with them, not with their square.
pub(super) fn wide(ground: &Ground) -> Result<PromiseOutcome> {
    /// Generous: a build without optimisation on a busy machine reads each of them in a few seconds.
    const LIMIT: Duration = Duration::from_secs(15);
    let mut outcome = PromiseOutcome::default();
    let place = ground.place("wide")?;
    let b = place.join("b");
    copy(&ground.models[0].bundle, &b)?;
    let path = b.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(&path)?)?;
    let digest = "0".repeat(64);
    if let Some(files) = manifest["files"].as_array_mut() {
        files.extend(
            (0..60_000).map(|i| serde_json::json!({ "path": format!("f{i}"), "size": 0, "sha256": digest })),
        );
    }
    fs_err::write(&path, serde_json::to_vec(&manifest)?)?;
    let members: Vec<(String, Vec<u8>, u64)> = (0..if ground.short { 60_000 } else { 150_000 })
        .map(|i| (format!("m{i}"), files::npy_head("|u1", &[0]), 0))
        .collect();
    let members: Vec<(&str, Vec<u8>, u64)> =
        members.iter().map(|(n, h, z)| (n.as_str(), h.clone(), *z)).collect();
    let npz = place.join("wide.npz");
    files::npz(&npz, &members, false)?;
    let rules = place.join("rules.yaml");
    let text: Vec<String> =
        (0..20_000).map(|i| format!("- {{ from: \"a{i}.{{i}}.*\", to: \"b{i}.{{i}}.*\" }}")).collect();
    fs_err::write(&rules, text.join("\n"))?;
    let tensors = place.join("wide.safetensors");
    let entries: Vec<String> = (0..100_000)
        .map(|i| format!("\"t{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"))
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    fs_err::write(&tensors, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat())?;
    let yaml = place.join("wide.yaml");
    let keys: Vec<String> = (0..50_000).map(|i| format!("k{i}: {i}")).collect();
    fs_err::write(&yaml, keys.join("\n"))?;
    let config = ground.root.join("fixtures/llamagen-small/config.yaml");
    let checkpoint = ground.models[0].checkpoint.as_str();
    let lines: [(&str, i32, Vec<&str>); 5] = [
        ("a manifest with 60,000 files", 5, vec!["inspect", b.as_str()]),
        (
            "an npz with many members",
            2,
            vec!["encode", ground.models[0].bundle.as_str(), "--images", npz.as_str(), "-o", "none.npz"],
        ),
        ("20,000 rename rules", 2, vec![checkpoint, "--map", rules.as_str(), "--dry-run"]),
        ("100,000 tensors", 2, vec!["inspect", tensors.as_str(), "--config", config.as_str()]),
        ("a configuration of 50,000 keys", 2, vec!["inspect", tensors.as_str(), "--config", yaml.as_str()]),
    ];
    for (what, code, line) in lines {
        outcome.count("wide tables");
        let ended = Running::start(ground.command(&line))?.end(LIMIT)?;
        outcome.extend(
            what,
            ended.not(code).filter(|_| what != "20,000 rename rules").or_else(|| ended.wrong()),
        );
    }
    Ok(outcome)
}

/// What is no regular file is refused at once, for every input.
pub(super) fn odd(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let place = ground.place("odd")?;
    let b = ground.models[0].bundle.as_str();
    let made = |ending: &str| -> Result<Vec<Utf8PathBuf>> {
        let (fifo, zero, folder) = (
            place.join(format!("fifo{ending}")),
            place.join(format!("zero{ending}")),
            place.join(format!("folder{ending}")),
        );
        if !fifo.exists() {
            std::process::Command::new("mkfifo").arg(&fifo).status()?;
        }
        #[cfg(unix)]
        let _ = std::os::unix::fs::symlink("/dev/zero", &zero);
        fs_err::create_dir_all(&folder)?;
        Ok(vec![fifo, zero, folder])
    };
    let checkpoint = ground.models[0].checkpoint.as_str();
    let network = ground.network.as_str();
    type Line<'a> = (&'a str, Vec<&'a str>);
    // `?` is the input.
    let lines: Vec<Line<'_>> = vec![
        (".npz", vec!["score", b, "--inputs", "?", "-o", "none.npz"]),
        (".npz", vec!["decode", b, "--tokens", "?", "-o", "none"]),
        (".npz", vec!["encode", b, "--images", "?", "-o", "none.npz"]),
        (".npz", vec!["metrics", "--activations", "?", "--reference", "?"]),
        (
            ".npz",
            vec![
                "evaluate",
                "--samples",
                ground.samples[0].as_str(),
                "--reference",
                "?",
                "--extractor",
                network,
                "--input-size",
                "16",
                "-o",
                "none",
            ],
        ),
        (".npz", vec!["--target", "trt", b, "--dry-run", "--calibrate-from", "?"]),
        (".safetensors", vec!["verify", b, "--streams", "?"]),
        (".safetensors", vec!["inspect", "?", "--config", "?"]),
        (".onnx", vec!["--component", "features", "?", "--input-size", "16", "--dry-run"]),
        (".pth", vec!["--component", "inception", "?", "--dry-run"]),
        (".yaml", vec![checkpoint, "--map", "?", "--dry-run"]),
        (".json", vec!["generate", b, "--num", "1", "-o", "none", "--class-names", "?"]),
        (".json", vec!["reproduce", "--paper", "DPAR-B", "--runs", "?"]),
        (".pem", vec!["attest", b, "--key", "?", "-o", "none.jsonl"]),
        (
            ".jsonl",
            vec!["verify", b, "--key", "fixtures/attest-keys/test-only-public.pem", "--attestation", "?"],
        ),
    ];
    for (ending, line) in lines {
        for input in made(ending)? {
            outcome.count("inputs that are no files");
            let line: Vec<&str> = line.iter().map(|w| if *w == "?" { input.as_str() } else { *w }).collect();
            // A limit, so that /dev/zero that is read to its end costs this run only.
            let script = format!("ulimit -v {MEMORY_KIB}; exec \"$@\"");
            let ended = Running::start(ground.shell(&script, "sh", &line))?.end(Duration::from_secs(10))?;
            outcome.extend(&line.join(" ").replace(place.as_str(), ""), ended.not(2));
        }
    }
    Ok(outcome)
}

/// No word of a bundle or a command line is run by the shell that runs an emitted script.
pub(super) fn shell(ground: &Ground) -> Result<PromiseOutcome> {
    let mut outcome = PromiseOutcome::default();
    let tools = ground.place("tools")?;
    for tool in ["tensorrt_rtx", "trtexec", "polygraphy"] {
        let path = tools.join(tool);
        fs_err::write(&path, "#!/bin/sh\nexit 0\n")?;
        #[cfg(unix)]
        fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let words = [
        "x$(touch pwned)",
        "x`touch pwned`",
        "x'; touch pwned; '",
        "x\"; touch pwned; \"",
        "x\ntouch pwned\n",
        "-x",
        "$PATH",
    ];
    for word in words {
        outcome.count("words for a shell");
        let place = ground.place("shell")?;
        // In a name of the manifest: no graph of a component has such a name.
        let forged = place.join("forged");
        copy(&ground.models[0].bundle, &forged)?;
        let path = forged.join("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(&path)?)?;
        manifest["graphs"][0]["name"] = word.into();
        fs_err::write(&path, serde_json::to_vec(&manifest)?)?;
        let ended = ground.run(&[
            "--target",
            "trt",
            forged.as_str(),
            "--emit-trtexec",
            "-o",
            place.join("f").as_str(),
        ])?;
        outcome.extend(&format!("a graph named {word:?}"), ended.not(5));
        // In the name of the output: a file name may hold anything.
        let out = place.join(word);
        ground.good(&[
            "--target",
            "trt",
            ground.models[0].bundle.as_str(),
            "--emit-trtexec",
            "-o",
            out.as_str(),
        ])?;
        let mut command = std::process::Command::new("sh");
        command.arg("./trt/trtexec.sh").current_dir(&out);
        command.env("PATH", format!("{tools}:{}", std::env::var("PATH").unwrap_or_default()));
        let ended = Running::start(command)?.end(Duration::from_secs(30))?;
        if ended.hung || ended.stderr.contains("yntax error") {
            outcome.problem(&format!("an output named {word:?}"), ended.stderr);
        }
        for folder in [&place, &out, &ground.root] {
            if names(folder)?.iter().any(|n| n == "pwned") {
                outcome.problem(&format!("{word:?}"), "the shell ran it");
            }
        }
    }
    Ok(outcome)
}
