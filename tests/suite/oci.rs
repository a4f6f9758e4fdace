//! Bundles as OCI image layouts: the same bytes twice, the same bundle back, and nothing that was changed on the way.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_checkpoint::LoadOptions;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cli::{json, run};
use crate::common::{Temp, export};

fn read(path: &Utf8Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

/// Every file below a folder with its bytes, by its path.
fn tree(folder: &Utf8Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in at.read_dir_utf8().unwrap() {
            let path = entry.unwrap().into_path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    found.push((path.strip_prefix(folder).unwrap().to_string(), fs_err::read(&path).unwrap()))
                }
            }
        }
    }
    found.sort();
    found
}

/// The manifest blob of a layout's only model.
fn image(layout: &Utf8Path) -> (Utf8PathBuf, Value) {
    let digest = read(&layout.join("index.json"))["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let path = layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    (path.clone(), read(&path))
}

#[test]
fn a_bundle_goes_into_a_layout_and_comes_back_the_same() {
    let temp = Temp::new();
    let at = |name: &str| temp.path(name).into_string();
    export("variants/combined/dpar", &LoadOptions::default(), &temp.path("b"));
    let pack = |to: &str| run(&["package", &at("b"), "--oci", "--tag", "v1", "-o", &at(to), "--json"]);
    let out = pack("layout");
    assert_eq!(out.code, 0, "{}", out.stderr);
    let packed = json(&out);
    assert_eq!(pack("again").code, 0);
    assert_eq!(tree(&temp.path("layout")), tree(&temp.path("again")));
    let out = pack("layout");
    assert!(out.code == 2 && out.stderr.contains("--force"), "{}", out.stderr);

    let (_, manifest) = image(&temp.path("layout"));
    assert_eq!(manifest["artifactType"], "application/vnd.cncf.model.manifest.v1+json");
    let layers = manifest["layers"].as_array().unwrap();
    let files = tree(&temp.path("b"));
    assert_eq!((layers.len(), &packed["files"]), (files.len(), &Value::from(files.len())));
    for (path, bytes) in &files {
        let of_file = |l: &&Value| l["annotations"]["org.cncf.model.filepath"] == path.as_str();
        let layer = layers.iter().find(of_file).unwrap();
        assert_eq!(layer["digest"], format!("sha256:{}", hex::encode(Sha256::digest(bytes))), "{path}");
        assert_eq!(layer["size"], bytes.len());
    }

    let out = run(&["unpack", &at("layout"), "-o", &at("back"), "--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(json(&out)["digest"], packed["digest"]);
    assert_eq!(tree(&temp.path("back")), files);
    let out = run(&["unpack", &at("layout"), "--tag", "v2", "-o", &at("other")]);
    assert!(out.code == 2 && out.stderr.contains("it has v1"), "{}", out.stderr);
    let out = run(&["package", &at("b"), "--oci", "--tag", "a/b", "-o", &at("other")]);
    assert!(out.code == 2 && out.stderr.contains("is no tag"), "{}", out.stderr);
    assert!(!temp.path("other").exists());
}

#[test]
fn a_layout_that_was_changed_is_refused_and_leaves_nothing() {
    let temp = Temp::new();
    let at = |name: &str| temp.path(name).into_string();
    export("variants/combined/dpar", &LoadOptions::default(), &temp.path("b"));
    let refused = |change: &dyn Fn(&Utf8Path), code: i32, word: &str| {
        let layout = temp.path("layout");
        assert_eq!(run(&["package", &at("b"), "--oci", "-o", layout.as_str(), "--force"]).code, 0);
        change(&layout);
        let out = run(&["unpack", layout.as_str(), "-o", &at("back")]);
        assert!(out.code == code && out.stderr.contains(word), "{} of {word}: {}", out.code, out.stderr);
        assert!(!temp.path("back").exists());
    };
    // The first layer's blob: another byte, one byte less, none.
    let blob = |layout: &Utf8Path| {
        let digest = image(layout).1["layers"][0]["digest"].as_str().unwrap().to_owned();
        layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    };
    let flip = |layout: &Utf8Path| {
        let mut bytes = fs_err::read(blob(layout)).unwrap();
        bytes[7] ^= 1;
        fs_err::write(blob(layout), bytes).unwrap();
    };
    refused(&flip, 5, "its SHA-256 is");
    let cut = |layout: &Utf8Path| {
        let bytes = fs_err::read(blob(layout)).unwrap();
        fs_err::write(blob(layout), &bytes[..bytes.len() - 1]).unwrap();
    };
    refused(&cut, 5, "is not what its descriptor says");
    refused(&|layout| fs_err::remove_file(blob(layout)).unwrap(), 2, "No such file");
    refused(&|layout| fs_err::write(layout.join("index.json"), "{").unwrap(), 2, "index.json");
    refused(
        &|layout| fs_err::write(layout.join("index.json"), r#"{"manifests":[]}"#).unwrap(),
        2,
        "it has none",
    );

    // Documents of somebody who also made the digests fit.
    let rewritten = |layout: &Utf8Path, change: &dyn Fn(&mut Value)| {
        let (_, mut manifest) = image(layout);
        change(&mut manifest);
        let bytes = manifest.to_string().into_bytes();
        let sha256 = hex::encode(Sha256::digest(&bytes));
        fs_err::write(layout.join("blobs/sha256").join(&sha256), &bytes).unwrap();
        let mut index = read(&layout.join("index.json"));
        index["manifests"][0]["digest"] = Value::from(format!("sha256:{sha256}"));
        index["manifests"][0]["size"] = Value::from(bytes.len());
        fs_err::write(layout.join("index.json"), index.to_string()).unwrap();
    };
    let path = "org.cncf.model.filepath";
    for outside in ["../outside", "/outside", "onnx/../../outside", ""] {
        let change = |m: &mut Value| m["layers"][1]["annotations"][path] = Value::from(outside);
        refused(&|layout| rewritten(layout, &change), 2, "not one of a bundle");
    }
    assert!(!temp.path("outside").exists());
    let twice =
        |m: &mut Value| m["layers"][1]["annotations"][path] = m["layers"][0]["annotations"][path].clone();
    refused(&|layout| rewritten(layout, &twice), 2, "two layers for");
    let kind = |m: &mut Value| m["artifactType"] = Value::from("application/vnd.other");
    refused(&|layout| rewritten(layout, &kind), 2, "its artifactType is application/vnd.other");
    let digest = |m: &mut Value| m["layers"][1]["digest"] = Value::from("sha256:../../../b/manifest.json");
    refused(&|layout| rewritten(layout, &digest), 2, "is no SHA-256");
    let fewer = |m: &mut Value| drop(m["layers"].as_array_mut().unwrap().pop());
    refused(&|layout| rewritten(layout, &fewer), 5, "");
}
