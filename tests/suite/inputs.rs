//! What a user gives to be read or compared: names, element types and texts as other programs write them.

use camino::Utf8Path;
use dpar_export::arrays::{Array, ArrayFile, ArrayRef, write_npz, write_safetensors};
use dpar_export::bundle::Bundle;
use serde_json::Value;

use crate::cli::{Run, json, run};
use crate::common::{Temp, export, fixture, llamagen};

fn small_bundle(path: &Utf8Path) -> Bundle {
    let (checkpoint, options) = llamagen("llamagen-small");
    export(checkpoint, &options, path)
}

/// The arrays of a fixture's file, in `to`, with other names; those that get none are left out.
fn renamed(from: &str, to: &Utf8Path, name: impl Fn(&str) -> Vec<&'static str>) {
    let file = ArrayFile::open(fixture(from)).unwrap();
    let all: Vec<(&str, Array)> = file
        .arrays()
        .iter()
        .flat_map(|a| name(&a.name).into_iter().map(|n| (n, file.get(&a.name).unwrap())))
        .collect();
    let refs: Vec<(&str, ArrayRef<'_>)> = all.iter().map(|(n, a)| (*n, a.into())).collect();
    write_safetensors(to, &refs).unwrap();
}

fn golden(temp: &Temp, folder: &str, name: impl Fn(&str) -> Vec<&'static str>) -> camino::Utf8PathBuf {
    let folder = temp.path(folder);
    fs_err::create_dir(&folder).unwrap();
    renamed("llamagen-small/golden.safetensors", &folder.join("golden.safetensors"), name);
    fs_err::copy(fixture("llamagen-small/golden.json"), folder.join("golden.json")).unwrap();
    folder
}

fn kept(name: &str) -> Vec<&'static str> {
    let known = ["tokens", "class_labels", "logits", "greedy_tokens"];
    known.into_iter().filter(|k| *k == name).collect()
}

/// `verify`, `parity` and `bisect` with a reference, all on the embedded engine.
fn gates(bundle: &Utf8Path, reference: &Utf8Path) -> [(&'static str, Run); 3] {
    let (b, r) = (bundle.as_str(), reference.as_str());
    [
        ("verify", run(&["verify", b, "--reference", r, "--no-probes", "--json"])),
        (
            "parity",
            run(&["parity", b, "--engines", "tract", "--reference", r, "--images", "1", "--no-probes"]),
        ),
        ("bisect", run(&["bisect", b, "--reference", r])),
    ]
}

#[test]
fn a_gate_that_compared_nothing_is_no_pass() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    small_bundle(&bundle);
    let nothing = golden(&temp, "nothing", |n| match n {
        "logits" => vec!["weights"],
        "tokens" => vec!["tokens"],
        _ => vec![],
    });
    let junit = temp.path("junit.xml");
    let out = run(&["verify", bundle.as_str(), "--reference", nothing.as_str(), "--junit", junit.as_str()]);
    assert_eq!((out.code, out.stdout.as_str()), (2, ""), "{}", out.stderr);
    assert!(
        out.stderr.contains("holds nothing to compare with: it has `tokens`, `weights`"),
        "{}",
        out.stderr
    );
    assert!(!junit.exists());
    // No images are nothing to compare either.
    let empty = temp.path("empty");
    fs_err::create_dir(&empty).unwrap();
    let none = |shape| ArrayRef::i64(shape, &[]);
    let arrays =
        [("tokens", none(&[0, 64])), ("class_labels", none(&[0])), ("greedy_tokens", none(&[0, 64]))];
    write_npz(&empty.join("golden.npz"), &arrays).unwrap();
    for (name, out) in gates(&bundle, &empty) {
        assert!(
            out.code == 2 && out.stderr.contains("shape [0, 64] has no elements"),
            "{name}: {}",
            out.stderr
        );
    }
}

#[test]
fn an_array_that_is_nearly_of_a_known_name_is_refused_and_others_are_named() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    small_bundle(&bundle);
    let misspelt =
        golden(&temp, "misspelt", |n| if n == "greedy_tokens" { vec!["greedy_token"] } else { kept(n) });
    for (name, out) in gates(&bundle, &misspelt) {
        assert_eq!(out.code, 2, "{name}: {}{}", out.stdout, out.stderr);
        assert!(
            out.stderr.contains("array `greedy_token`") && out.stderr.contains("is `greedy_tokens` meant?"),
            "{name}: {}",
            out.stderr
        );
    }
    let others = golden(&temp, "others", |n| if n == "logits" { vec!["logits", "hidden"] } else { kept(n) });
    for (name, out) in gates(&bundle, &others) {
        assert_eq!(out.code, 0, "{name}: {}{}", out.stdout, out.stderr);
        let told = if name == "verify" { &out.stdout } else { &out.stderr };
        assert!(told.contains("no array of these names is compared: hidden"), "{name}: {told}");
        if name == "verify" {
            let report = json(&out);
            let check = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "other arrays");
            assert_eq!(check.unwrap()["status"], "not_run", "{report}");
        }
    }
    // Streams: `verify --streams` and `reproduce`.
    let streams = temp.path("streams");
    fs_err::create_dir(&streams).unwrap();
    fs_err::copy(fixture("emoji32/reference.json"), streams.join("reference.json")).unwrap();
    let file = streams.join("streams_llamagen.safetensors");
    renamed("emoji32/streams_llamagen.safetensors", &file, |n| match n {
        "margin" => vec!["margins"],
        "tokens" => vec!["tokens"],
        _ => vec!["class_labels"],
    });
    for out in [
        run(&["verify", bundle.as_str(), "--streams", file.as_str(), "--no-probes"]),
        run(&["reproduce", bundle.as_str(), "--reference", streams.as_str()]),
    ] {
        assert_eq!(out.code, 2, "{}{}", out.stdout, out.stderr);
        assert!(
            out.stderr.contains("array `margins`") && out.stderr.contains("is `margin` meant?"),
            "{}",
            out.stderr
        );
    }
}

/// An `.npy` with int16 or uint16 elements.
fn npy16(descr: &str, shape: &str, values: impl Iterator<Item = u16>) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.bytes().chain(values.flat_map(u16::to_le_bytes)));
    out
}

#[test]
fn tokens_of_two_bytes_are_the_same_tokens() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    small_bundle(&bundle);
    let wide = temp.path("wide.npz");
    let ids: Vec<i64> = (0..128).map(|i| i * 89 % 256).collect();
    let arrays = [("tokens", ArrayRef::i64(&[2, 64], &ids)), ("class_labels", ArrayRef::i64(&[2], &[3, 1]))];
    write_npz(&wide, &arrays).unwrap();
    let narrow = temp.path("narrow.npz");
    let mut zip = zip::ZipWriter::new(fs_err::File::create(&narrow).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [
        ("tokens.npy", npy16("<u2", "(2, 64)", ids.iter().map(|i| *i as u16))),
        ("class_labels.npy", npy16("<i2", "(2,)", [3, 1].into_iter())),
    ] {
        zip.start_file(name, stored).unwrap();
        std::io::Write::write_all(&mut zip, &bytes).unwrap();
    }
    zip.finish().unwrap();
    let score = |input: &Utf8Path, name: &str| {
        let to = temp.path(name);
        let out = run(&["score", bundle.as_str(), "--inputs", input.as_str(), "-o", to.as_str()]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        fs_err::read(to).unwrap()
    };
    assert_eq!(score(&wide, "a.npz"), score(&narrow, "b.npz"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_json_file() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    small_bundle(&bundle);
    let mark = |path: &Utf8Path| {
        let text = fs_err::read_to_string(path).unwrap();
        fs_err::write(path, format!("\u{feff}{text}")).unwrap();
    };
    let reference = golden(&temp, "golden", kept);
    mark(&reference.join("golden.json"));
    // What another program left beside them, with a name that is no UTF-8.
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
        std::fs::write(reference.as_std_path().join(name), "x").unwrap();
    }
    let verify = || {
        let (b, r) = (bundle.as_str(), reference.as_str());
        let out = run(&["verify", b, "--reference", r, "--no-probes", "--json"]);
        assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
        let report: Value = json(&out);
        report["checks"].as_array().unwrap().iter().filter(|c| c["status"] == "pass").count()
    };
    // The guidance of the greedy images is in golden.json.
    assert_eq!(verify(), 2);
    mark(&bundle.join("manifest.json"));
    assert_eq!(verify(), 2);
    let names = temp.path("classes.json");
    fs_err::write(&names, "\u{feff}[\"a\", \"b\"]").unwrap();
    let out = run(&[
        "generate",
        bundle.as_str(),
        "--num",
        "1",
        "--class-names",
        names.as_str(),
        "-o",
        temp.path("out").as_str(),
    ]);
    assert!(out.code == 2 && !out.stderr.contains("neither a JSON list"), "{}", out.stderr);
}

/// An output folder that holds a file whose name is no UTF-8 is somebody's.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_with_a_name_that_is_no_utf_8_is_not_written_over() {
    use std::os::unix::ffi::OsStrExt;
    let temp = Temp::new();
    let bundle = temp.path("b");
    small_bundle(&bundle);
    let folder = temp.path("samples");
    fs_err::create_dir(&folder).unwrap();
    std::fs::write(folder.as_std_path().join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    let out =
        run(&["generate", bundle.as_str(), "--num", "1", "--no-images", "--force", "-o", folder.as_str()]);
    assert!(out.code == 2 && out.stderr.contains("which is of no earlier output"), "{}", out.stderr);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

/// However early a file cannot grow, the error is the only thing that is said, and nothing is left.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_once() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    small_bundle(&bundle);
    let out = temp.path("out");
    let binary = assert_cmd::cargo::cargo_bin("dpar-export");
    // A file larger than so many blocks of 1,024 bytes cannot be written, as where the disk is full.
    for blocks in [0, 1, 2, 3, 5, 9] {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(&binary);
        command.args(["generate", bundle.as_str(), "--num", "8", "--no-images", "-o", out.as_str()]);
        let done = command.env_remove("RUST_LOG").env("NO_COLOR", "1").output().unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.code() == Some(0) {
            assert!(blocks > 3, "{blocks}");
            fs_err::remove_dir_all(&out).unwrap();
            continue;
        }
        assert_eq!(done.status.code(), Some(2), "{blocks}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains("File too large"), "{blocks}: {stderr}");
        assert_eq!(stderr.matches("File too large").count(), 1, "{blocks}: {stderr}");
        assert!(!out.exists());
    }
}
