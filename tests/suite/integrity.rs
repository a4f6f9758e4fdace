//! A bundle that was tampered with is refused by every command with exit code 5, and nothing is written.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{ArrayRef, write_npz};
use dpar_export_checkpoint::LoadOptions;

use crate::cli::run;
use crate::common::{Temp, export, fixture};

/// How a subcommand reads a bundle.
enum Reads {
    /// Command lines that read the bundle and end with exit code 0 on an untouched one.
    Bundle(Vec<Vec<String>>),
    /// The same, but on the untouched test bundle they end otherwise, and why.
    Another(Vec<Vec<String>>, &'static str),
    /// It reads none, and why.
    Nothing(&'static str),
}

/// The folder that the command lines write to.
const OUT: &str = "out";

/// Every subcommand. A new one gets a line here: `every_command_is_in_the_table` compares it with the help.
fn table(bundle: &Utf8Path, temp: &Temp) -> Vec<(&'static str, Reads)> {
    let (b, golden) = (bundle.as_str(), fixture("variants/combined"));
    fs_err::create_dir_all(temp.path(OUT)).unwrap();
    let out = |name: &str| temp.path(OUT).join(name).into_string();
    let inputs = golden.join("golden.safetensors").into_string();
    let pixels = temp.path("images.npz").into_string();
    write_npz((&*pixels).into(), &[("arr_0", ArrayRef::u8(&[1, 8, 8, 3], &[0; 8 * 8 * 3]))]).unwrap();
    let tokens = temp.path("tokens.npz").into_string();
    write_npz((&*tokens).into(), &[("tokens", ArrayRef::i64(&[1, 16], &[0; 16]))]).unwrap();
    let key = crate::attest::private_key(temp).into_string();
    let public = crate::attest::key("test-only-public.pem").into_string();
    let (attestation, golden) = (temp.path("kept.intoto.jsonl").into_string(), golden.into_string());
    if !Utf8Path::new(&attestation).exists() {
        assert_eq!(run(&["attest", b, "--key", &key, "-o", &attestation]).code, 0);
    }
    let (images, network) = (temp.path("reference.npz"), fixture("features/tiny.onnx"));
    crate::evaluate::images(&images, 150, 2, 100);
    let owned = |lines: &[&[&str]]| -> Vec<Vec<String>> {
        lines.iter().map(|l| l.iter().map(|a| (*a).to_owned()).collect()).collect()
    };
    let reads = |lines: &[&[&str]]| Reads::Bundle(owned(lines));
    let streams = fixture("emoji32").into_string();
    let names = temp.path("names.json").into_string();
    fs_err::write(&names, "[]").unwrap();
    vec![
        ("inspect", reads(&[&["inspect", b]])),
        ("score", reads(&[&["score", b, "--inputs", &inputs, "-o", &out("s.npz")]])),
        ("generate", reads(&[&["generate", b, "--num", "1", "-o", &out("g")]])),
        ("decode", reads(&[&["decode", b, "--tokens", &tokens, "-o", &out("d")]])),
        ("encode", reads(&[&["encode", b, "--images", &pixels, "-o", &out("e.npz")]])),
        (
            "verify",
            reads(&[
                &["verify", b, "--reference", &golden],
                &["verify", b, "--key", &public, "--attestation", &attestation],
            ]),
        ),
        ("parity", reads(&[&["parity", b, "--engines", "tract,ort", "--images", "1", "--no-probes"]])),
        ("bisect", reads(&[&["bisect", b, "--engines", "tract,ort", "--images", "1"]])),
        ("reference", reads(&[&["reference", b, "--num", "1", "-o", &out("r")]])),
        ("attest", reads(&[&["attest", b, "--key", &key, "-o", &out("a.jsonl")]])),
        (
            "evaluate",
            reads(&[&[
                "evaluate",
                "--bundle",
                b,
                "--num",
                "6",
                "--reference",
                images.as_str(),
                "--extractor",
                network.as_str(),
                "--input-size",
                "16",
                "-o",
                &out("v"),
            ]]),
        ),
        (
            "reproduce",
            Reads::Another(
                owned(&[&["reproduce", b, "--reference", &streams]]),
                "the only recorded streams are of another system",
            ),
        ),
        (
            "serve",
            Reads::Another(
                owned(&[&["serve", b, "--class-names", &names, "--listen", "127.0.0.1:0"]]),
                "it would not end: the names are too few",
            ),
        ),
        ("doctor", reads(&[&["doctor", b]])),
        ("bench", reads(&[&["bench", b, "--rounds", "1", "--warmup", "0", "--threads", "1"]])),
        ("synth", Reads::Nothing("it makes a checkpoint of nothing")),
        ("metrics", Reads::Nothing("it computes from activations, which come from any program")),
        ("deploy", reads(&[&["deploy", "systemd", b, "-o", &out("deploy")]])),
        ("card", reads(&[&["card", b, "-o", &out("card")]])),
        ("package", reads(&[&["package", b, "--oci", "-o", &out("layout")]])),
        ("unpack", Reads::Nothing("its input is a layout, whose digests `oci::` changes")),
        ("demo", Reads::Nothing("it brings what it reads")),
        ("manual", Reads::Nothing("it prints a manual page")),
        ("completions", Reads::Nothing("it prints a script of the shell")),
    ]
}

/// The command lines of the table, and the main job where it reads a bundle; each with whether it ends with exit code
/// 0 on an untouched bundle.
fn commands(bundle: &Utf8Path, temp: &Temp) -> Vec<(Vec<String>, bool)> {
    let main = |target| ["--target", target, bundle.as_str(), "--dry-run"].map(str::to_owned).to_vec();
    let lines = table(bundle, temp).into_iter().flat_map(|(_, reads)| match reads {
        Reads::Bundle(lines) => lines.into_iter().map(|l| (l, true)).collect(),
        Reads::Another(lines, _) => lines.into_iter().map(|l| (l, false)).collect(),
        Reads::Nothing(_) => Vec::new(),
    });
    lines.chain([(main("trt"), true), (main("triton"), true)]).collect()
}

fn files(folder: &Utf8Path) -> Vec<String> {
    folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect()
}

#[test]
fn every_command_is_in_the_table() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let table = table(&bundle, &temp);
    let own = |lines: &[Vec<String>], name: &str| !lines.is_empty() && lines.iter().all(|l| l[0] == name);
    for name in dpar_export::commands::subcommands() {
        let row = table.iter().find(|(n, _)| *n == name);
        let Some((_, reads)) = row else {
            panic!("`{name}` is not in the table of {}: say there how it reads a bundle", file!());
        };
        match reads {
            Reads::Bundle(lines) => assert!(own(lines, &name), "{name}"),
            Reads::Another(lines, why) => assert!(own(lines, &name) && !why.is_empty(), "{name}"),
            Reads::Nothing(why) => assert!(!why.is_empty(), "{name}"),
        }
    }
}

/// A way to tamper with a bundle, and a word of the message.
type Tampering = (&'static str, &'static str, Box<dyn Fn(&Utf8Path)>);

fn flip(path: Utf8PathBuf) {
    let mut bytes = fs_err::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_err::write(&path, bytes).unwrap();
}

fn edit(bundle: &Utf8Path, from: &str, to: &str) {
    let path = bundle.join("manifest.json");
    let text = fs_err::read_to_string(&path).unwrap();
    let changed = text.replacen(from, to, 1);
    assert_ne!(text, changed, "{from}");
    fs_err::write(&path, changed).unwrap();
}

/// The manifest's entry of a file, for an editor of the manifest.
fn entry(bundle: &Utf8Path, name: &str) -> String {
    let bytes = fs_err::read(bundle.join(name)).unwrap();
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    format!("\"size\": {},\n      \"sha256\": \"{sha256}\"", bytes.len())
}

fn tamperings() -> Vec<Tampering> {
    let change =
        |name: &'static str| -> Tampering { ("SHA-256", name, Box::new(move |b| flip(b.join(name)))) };
    let manifest = |word: &'static str, from: &'static str, to: &'static str| -> Tampering {
        (word, "manifest.json", Box::new(move |b| edit(b, from, to)))
    };
    let mut all: Vec<Tampering> = vec![
        change("onnx/dpar.onnx_data"),
        change("onnx/vq.onnx_data"),
        change("onnx/global_step.onnx"),
        change("config.json"),
        ("missing", "onnx/start.onnx", Box::new(|b| fs_err::remove_file(b.join("onnx/start.onnx")).unwrap())),
        (
            "bytes, listed are",
            "onnx/entropy.onnx_data",
            Box::new(|b| {
                let path = b.join("onnx/entropy.onnx_data");
                let longer = [fs_err::read(&path).unwrap(), vec![0]].concat();
                fs_err::write(path, longer).unwrap();
            }),
        ),
        (
            "does not match",
            "onnx/",
            Box::new(|b| {
                let (one, two) = (b.join("onnx/encoder_step.onnx"), b.join("onnx/decoder_step.onnx"));
                let bytes = fs_err::read(&one).unwrap();
                fs_err::rename(&two, &one).unwrap();
                fs_err::write(&two, bytes).unwrap();
            }),
        ),
        (
            "does not list",
            "onnx/extra.onnx",
            Box::new(|b| fs_err::write(b.join("onnx/extra.onnx"), "x").unwrap()),
        ),
        ("does not list", ".hidden", Box::new(|b| fs_err::write(b.join(".hidden"), "x").unwrap())),
        ("does not list", "more", Box::new(|b| fs_err::create_dir(b.join("more")).unwrap())),
        manifest(
            "not a path inside",
            "\"path\": \"onnx/entropy.onnx_data\"",
            "\"path\": \"../entropy.onnx_data\"",
        ),
        manifest("not a path inside", "\"path\": \"config.json\"", "\"path\": \"/etc/hostname\""),
        manifest(
            "not a path inside",
            "\"path\": \"onnx/vq.onnx_data\"",
            "\"path\": \"onnx\\\\vq.onnx_data\"",
        ),
        manifest(
            "not a path inside",
            "\"path\": \"onnx/vq.onnx_data\"",
            "\"path\": \"onnx/vq\u{200b}.onnx_data\"",
        ),
        manifest("listed twice", "\"path\": \"onnx/vq.onnx_data\"", "\"path\": \"onnx/dpar.onnx_data\""),
        manifest("listed twice", "\"path\": \"onnx/vq.onnx_data\"", "\"path\": \"onnx/DPAR.onnx_data\""),
        (
            // The seeded fault "mislabelled precision"; tests/suite/precision.rs has every pair of types.
            "is not fp16 as the manifest says",
            "graph `",
            Box::new(|b| edit(b, "\"precision\": \"fp32\"", "\"precision\": \"fp16\"")),
        ),
        manifest("duplicate field `opset`", "\"opset\": 17", "\"opset\": 17,\n  \"opset\": 17"),
        (
            // With a manifest that was corrected to fit its digest, but not its patch rule.
            "its system or patch rule is not the one in manifest.json",
            "config.json",
            Box::new(|b| {
                let path = b.join("config.json");
                let old = entry(b, "config.json");
                let text = fs_err::read_to_string(&path).unwrap();
                let changed = text.replacen("\"threshold\": 2.75", "\"threshold\": 2.5", 1);
                assert_ne!(text, changed);
                fs_err::write(path, changed).unwrap();
                edit(b, &old, &entry(b, "config.json"));
            }),
        ),
        manifest(
            "not in `files`",
            "\"weights\": \"onnx/dpar.onnx_data\"",
            "\"weights\": \"onnx/none.onnx_data\"",
        ),
        (
            // With a manifest that was corrected to fit.
            "takes weights from `../a.onnx_data`",
            "onnx/score.onnx",
            Box::new(|b| {
                let path = b.join("onnx/score.onnx");
                let old = entry(b, "onnx/score.onnx");
                let mut bytes = fs_err::read(&path).unwrap();
                let name = b"dpar.onnx_data";
                let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
                bytes[at..at + name.len()].copy_from_slice(b"../a.onnx_data");
                fs_err::write(&path, bytes).unwrap();
                edit(b, &old, &entry(b, "onnx/score.onnx"));
            }),
        ),
    ];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        let away = |b: &Utf8Path, name: &str| {
            let outside = b.parent().unwrap().join("elsewhere");
            fs_err::rename(b.join(name), &outside).unwrap();
            symlink(outside, b.join(name)).unwrap();
        };
        all.push(("symbolic link", "onnx/vq_decode.onnx", Box::new(move |b| away(b, "onnx/vq_decode.onnx"))));
        all.push(("symbolic link", "onnx", Box::new(move |b| away(b, "onnx"))));
        all.push(("symbolic link", "manifest.json", Box::new(move |b| away(b, "manifest.json"))));
        all.push((
            "does not list",
            "onnx/link",
            Box::new(|b| symlink("../config.json", b.join("onnx/link")).unwrap()),
        ));
        all.push((
            "not a regular file",
            "config.json",
            Box::new(|b| {
                fs_err::remove_file(b.join("config.json")).unwrap();
                let made = std::process::Command::new("mkfifo").arg(b.join("config.json")).status();
                assert!(made.unwrap().success());
            }),
        ));
    }
    all
}

#[test]
fn tampering_stops_every_command() {
    let temp = Temp::new();
    let bundle = temp.path("bundle/b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let commands = commands(&bundle, &temp);
    // Untouched, they all work: so it is the tampering that stops them below.
    for (command, _) in commands.iter().filter(|(_, passes)| *passes) {
        let out = run(command);
        assert_eq!(out.code, 0, "{command:?}: {}", out.stderr);
    }
    fs_err::remove_dir_all(temp.path(OUT)).unwrap();
    fs_err::create_dir(temp.path(OUT)).unwrap();
    for (word, name, tamper) in tamperings() {
        fs_err::remove_dir_all(temp.path("bundle")).unwrap();
        export("variants/combined/dpar", &LoadOptions::default(), &bundle);
        tamper(&bundle);
        for (command, _) in &commands {
            let out = run(command);
            assert_eq!(out.code, 5, "{command:?} with {name} ({word}): {}{}", out.stdout, out.stderr);
            assert!(out.stderr.contains(word) && out.stderr.contains(name), "{command:?}: {}", out.stderr);
            assert!(out.stdout.is_empty(), "{command:?}: {}", out.stdout);
        }
    }
    assert!(
        files(&temp.path(OUT)).is_empty(),
        "a refused command writes nothing: {:?}",
        files(&temp.path(OUT))
    );
}

#[test]
fn what_is_no_manifest_of_this_version_is_bad_input() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let manifest = bundle.join("manifest.json");
    let text = fs_err::read_to_string(&manifest).unwrap();
    for (from, to, message) in [
        ("\"schema_version\": 2", "\"schema_version\": 9", "schema version 9"),
        ("\"opset\": 17,", "", "missing field `opset`"),
        ("{", "", "not a manifest"),
    ] {
        assert!(text.contains(from), "{from}");
        fs_err::write(&manifest, text.replacen(from, to, 2)).unwrap();
        let out = run(&["inspect", bundle.as_str()]);
        assert!(out.code == 2 && out.stderr.contains(message), "{message}: {}", out.stderr);
    }
}

#[test]
fn inspect_shows_the_chain_from_checkpoint_to_graph() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let value = crate::cli::json(&run(&["inspect", bundle.as_str(), "--json"]));
    let components = value["provenance"]["components"].as_array().unwrap();
    assert_eq!(components.len(), 3);
    for component in components {
        assert!(!component["sources"].as_array().unwrap().is_empty(), "{component}");
        assert!(!component["graphs"].as_array().unwrap().is_empty(), "{component}");
        let links = component["graphs"].as_array().unwrap().iter().chain([&component["weights"]]);
        for link in links {
            let listed = value["manifest"]["files"].as_array().unwrap().iter();
            let listed = listed.into_iter().find(|f| f["path"] == link["file"]).unwrap();
            assert_eq!(listed["sha256"], link["sha256"]);
        }
    }
    let text = run(&["inspect", bundle.as_str()]).stdout;
    for word in ["provenance", "checkpoint", "→ weights", "→ graph", "model.safetensors (dpar)"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}
