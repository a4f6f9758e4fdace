//! A bundle whose files were changed is refused by every command, with exit code 5 and the file's name.

use camino::Utf8Path;
use dpar_export::arrays::{ArrayRef, write_npz};
use dpar_export_checkpoint::LoadOptions;

use crate::cli::run;
use crate::common::{Temp, export, fixture};

/// The command lines that read a bundle.
fn commands(bundle: &Utf8Path, temp: &Temp) -> Vec<Vec<String>> {
    let (b, golden) = (bundle.to_string(), fixture("dpar-small").to_string());
    let out = |name: &str| temp.path(name).to_string();
    let inputs = fixture("dpar-small/golden.safetensors").to_string();
    let pixels = temp.path("images.npz");
    write_npz(&pixels, &[("arr_0", ArrayRef::u8(&[1, 64, 64, 3], &vec![0; 64 * 64 * 3]))]).unwrap();
    let tokens = temp.path("tokens.npz");
    write_npz(&tokens, &[("tokens", ArrayRef::i64(&[1, 64], &[0; 64]))]).unwrap();
    [
        vec!["inspect", &b],
        vec!["score", &b, "--inputs", &inputs, "-o", &out("s.npz")],
        vec!["generate", &b, "--num", "1", "-o", &out("g")],
        vec!["decode", &b, "--tokens", tokens.as_str(), "-o", &out("d")],
        vec!["encode", &b, "--images", pixels.as_str(), "-o", &out("e.npz")],
        vec!["verify", &b, "--reference", &golden],
    ]
    .into_iter()
    .map(|c| c.into_iter().map(str::to_owned).collect())
    .collect()
}

#[test]
fn one_changed_byte_of_any_file_stops_every_command() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let commands = commands(&bundle, &temp);
    // Unchanged, they all work: so it is the byte that stops them below.
    for command in &commands {
        let out = run(command);
        assert_eq!(out.code, 0, "{command:?}: {}", out.stderr);
        let written = command.iter().skip_while(|a| *a != "-o").nth(1);
        if let Some(path) = written.map(Utf8Path::new) {
            let gone = if path.is_dir() { fs_err::remove_dir_all(path) } else { fs_err::remove_file(path) };
            gone.unwrap();
        }
    }
    for name in ["onnx/dpar.onnx_data", "onnx/vq.onnx_data", "onnx/global_step.onnx", "config.json"] {
        let path = bundle.join(name);
        let good = fs_err::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs_err::write(&path, &bad).unwrap();
        for command in &commands {
            let out = run(command);
            assert_eq!(out.code, 5, "{command:?} with {name} changed: {}", out.stderr);
            assert!(out.stderr.contains(name), "{command:?}: {}", out.stderr);
        }
        fs_err::write(&path, &good).unwrap();
    }
    let leftovers: Vec<String> =
        temp.path("").read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    assert_eq!(leftovers.len(), 3, "a refused command writes nothing: {leftovers:?}");
}

#[test]
fn missing_longer_linked_and_outside_files_are_refused() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("dpar-small/dpar", &LoadOptions::default(), &bundle);
    let inspect = || run(&["inspect", bundle.as_str()]);
    let data = bundle.join("onnx/entropy.onnx_data");
    let good = fs_err::read(&data).unwrap();

    fs_err::write(&data, [good.as_slice(), &[0]].concat()).unwrap();
    let out = inspect();
    assert!(out.code == 5 && out.stderr.contains("bytes, listed are"), "{}", out.stderr);

    fs_err::remove_file(&data).unwrap();
    let out = inspect();
    assert!(out.code == 5 && out.stderr.contains("missing"), "{}", out.stderr);

    fs_err::write(temp.path("elsewhere"), &good).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(temp.path("elsewhere"), &data).unwrap();
        let out = inspect();
        assert!(out.code == 5 && out.stderr.contains("symbolic link"), "{}", out.stderr);
        fs_err::remove_file(&data).unwrap();
    }
    fs_err::write(&data, &good).unwrap();
    assert_eq!(inspect().code, 0);

    let manifest = bundle.join("manifest.json");
    let text = fs_err::read_to_string(&manifest).unwrap();
    for (from, to, code, message) in [
        ("\"onnx/entropy.onnx_data\"", "\"../elsewhere\"", 5, "not a path inside"),
        ("\"schema_version\": 1", "\"schema_version\": 9", 2, "schema version 9"),
        ("\"tool\"", "\"fool\"", 2, "not a manifest"),
        ("{", "", 2, "not a manifest"),
    ] {
        fs_err::write(&manifest, text.replacen(from, to, 2)).unwrap();
        let out = inspect();
        assert!(out.code == code && out.stderr.contains(message), "{message}: {}", out.stderr);
    }
}
