//! Bundles that nobody exported and whose hashes are right all the same: the manifest was corrected to fit. Each is
//! refused with exit code 5 before anything runs.

use camino::Utf8Path;
use dpar_export::bundle::digest;
use dpar_export_checkpoint::LoadOptions;
use serde_json::{Value, json};

use crate::cli::run;
use crate::common::{Temp, export};

fn edit(path: &Utf8Path, change: &dyn Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    change(&mut value);
    fs_err::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

/// Makes the manifest fit what lies in the bundle.
pub(crate) fn correct(bundle: &Utf8Path) {
    edit(&bundle.join("manifest.json"), &|manifest| {
        for file in manifest["files"].as_array_mut().unwrap() {
            let (size, sha256) = digest(&bundle.join(file["path"].as_str().unwrap())).unwrap();
            (file["size"], file["sha256"]) = (size.into(), sha256.into());
        }
    });
}

/// What was changed, a word of the message, and the change.
type Forgery<'a> = (&'a str, &'a str, &'a dyn Fn(&Utf8Path));

fn refused(bundle: &Utf8Path, what: &str, word: &str) {
    let script = ["--target", "trt", bundle.as_str(), "--emit-trtexec"];
    for command in [&["inspect", bundle.as_str()][..], &script, &["doctor", bundle.as_str()]] {
        let out = run(command);
        assert_eq!(out.code, 5, "{what}: {command:?}: {}{}", out.stdout, out.stderr);
        assert!(out.stderr.contains(word), "{what}: {word} is not in {}", out.stderr);
    }
    assert!(!bundle.join("trt").exists(), "{what}");
}

#[test]
fn what_no_export_writes_is_refused_whatever_its_hashes_say() {
    let manifest = |b: &Utf8Path, change: &dyn Fn(&mut Value)| edit(&b.join("manifest.json"), change);
    let config = |b: &Utf8Path, change: &dyn Fn(&mut Value)| edit(&b.join("config.json"), change);
    let rename = |m: &mut Value, name: &str| {
        let old = m["graphs"][0]["name"].clone();
        m["graphs"][0]["name"] = name.into();
        let lists = m["components"].as_array_mut().unwrap().iter_mut();
        for graph in lists.flat_map(|c| c["graphs"].as_array_mut().unwrap()).filter(|g| **g == old) {
            *graph = name.into();
        }
    };
    let twice = |value: &mut Value, key: &str| {
        let first = value[key][0].clone();
        value[key].as_array_mut().unwrap().push(first);
    };
    let forgeries: &[Forgery<'_>] = &[
        ("a command as a name", "no name of a graph", &|b| manifest(b, &|m| rename(m, "x$(touch pwned)"))),
        ("an option as a name", "no name of a graph", &|b| manifest(b, &|m| rename(m, "-rf"))),
        ("a graph of no component", "is none of component", &|b| manifest(b, &|m| rename(m, "spare"))),
        ("a command as a port", "no name of a port", &|b| {
            manifest(b, &|m| m["graphs"][0]["inputs"][0]["name"] = "a;b".into());
        }),
        ("an axis of 2^60", "axis `", &|b| {
            manifest(b, &|m| m["graphs"][0]["axes"][0]["max"] = (1_u64 << 60).into());
        }),
        ("a dimension of 2^40", "dimension of 1099511627776", &|b| {
            manifest(b, &|m| m["graphs"][0]["outputs"][0]["dims"][0] = (1_u64 << 40).into());
        }),
        ("the lowest opset", "no opset -9223372036854775808", &|b| {
            manifest(b, &|m| m["opset"] = i64::MIN.into());
        }),
        ("another opset", "its opset is 17", &|b| manifest(b, &|m| m["opset"] = 18.into())),
        ("2^63 parameters", "parameters", &|b| {
            manifest(b, &|m| m["components"][0]["parameters"] = (1_u64 << 63).into());
        }),
        ("one graph file twice", "listed twice", &|b| {
            manifest(b, &|m| m["graphs"][0]["file"] = m["graphs"][1]["file"].clone());
        }),
        ("components twice in the manifest", "listed twice", &|b| manifest(b, &|m| twice(m, "components"))),
        ("components twice in the configuration", "two components", &|b| {
            config(b, &|c| twice(c, "components"))
        }),
        ("a width of 2^40", "`width` of", &|b| {
            config(b, &|c| c["components"][0]["width"] = (1_u64 << 40).into());
        }),
        ("layers without number", "layers` of", &|b| {
            config(b, &|c| c["components"][0]["global_layers"] = (1_u64 << 40).into());
        }),
        ("no grid", "`grid` is out of range", &|b| config(b, &|c| c["patch_rule"]["grid"] = 0.into())),
        ("patches that the graphs do not take", "takes patches of 3 tokens, the patch rule makes 4", &|b| {
            config(b, &|c| c["patch_rule"]["max_patch_length"] = 4.into());
            manifest(b, &|m| m["patch_rule"]["max_patch_length"] = 4.into());
        }),
        ("an unknown field", "unknown field", &|b| manifest(b, &|m| m["more"] = 1.into())),
        ("an unknown field of a graph", "unknown field `graphs[0].more`", &|b| {
            manifest(b, &|m| m["graphs"][0]["more"] = 1.into());
        }),
        ("an unknown field of a port", "unknown field `graphs[0].inputs[0].more`", &|b| {
            manifest(b, &|m| m["graphs"][0]["inputs"][0]["more"] = 1.into());
        }),
        ("an unknown field of the configuration", "unknown field `more`", &|b| {
            config(b, &|c| c["more"] = 1.into());
        }),
        ("an unknown field of a component", "unknown field `components[0].more`", &|b| {
            config(b, &|c| c["components"][0]["more"] = json!({ "width": 1 }));
        }),
        ("a key twice", "duplicate field `grid`", &|b| {
            let path = b.join("config.json");
            let text = fs_err::read_to_string(&path).unwrap();
            fs_err::write(&path, text.replacen("\"grid\"", "\"grid\": 4, \"grid\"", 1)).unwrap();
        }),
        ("no JSON", "config.json", &|b| fs_err::write(b.join("config.json"), "{").unwrap()),
        ("a function in a graph", "does not write", &|b| {
            let path = b.join("onnx/start.onnx");
            let longer = [fs_err::read(&path).unwrap(), vec![0xca, 0x01, 0x00]].concat();
            fs_err::write(&path, longer).unwrap();
        }),
    ];
    let temp = Temp::new();
    let bundle = temp.path("b");
    for (what, word, forge) in forgeries {
        let _ = fs_err::remove_dir_all(&bundle);
        export("variants/combined/dpar", &LoadOptions::default(), &bundle);
        forge(&bundle);
        correct(&bundle);
        refused(&bundle, what, word);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_whose_name_is_not_utf8_is_not_listed() {
    use std::os::unix::ffi::OsStrExt;
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let name = std::ffi::OsStr::from_bytes(b"x\xff.onnx");
    for folder in ["", "onnx"] {
        let path = bundle.join(folder).as_std_path().join(name);
        std::fs::write(&path, "x").unwrap();
        refused(&bundle, folder, "does not list");
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(run(&["inspect", bundle.as_str()]).code, 0);
}
