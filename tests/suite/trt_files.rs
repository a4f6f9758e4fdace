//! What changes a bundle's files on purpose, and reads its manifest.

use camino::Utf8Path;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// `manifest.json`.
pub(crate) fn manifest(bundle: &Utf8Path) -> Value {
    serde_json::from_slice(&fs_err::read(bundle.join("manifest.json")).unwrap()).unwrap()
}

/// Changes a file of a bundle and corrects size and digests in the manifest, as a forger would.
pub(crate) fn forge(bundle: &Utf8Path, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let path = bundle.join(file);
    let old = fs_err::read(&path).unwrap();
    let before = hex::encode(Sha256::digest(&old));
    let new = change(old);
    let after = hex::encode(Sha256::digest(&new));
    fs_err::write(&path, &new).unwrap();
    let mut manifest = manifest(bundle);
    for entry in manifest["files"].as_array_mut().unwrap() {
        if entry["path"] == file {
            entry["size"] = new.len().into();
        }
    }
    // The digest also stands where an engine names its graph.
    let text = serde_json::to_string(&manifest).unwrap().replace(&before, &after);
    fs_err::write(bundle.join("manifest.json"), text).unwrap();
}

/// Every problem that the published schema has with a bundle's manifest.
pub(crate) fn schema_errors(bundle: &Utf8Path) -> Vec<String> {
    let schema = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/manifest.schema.json");
    let schema: Value = serde_json::from_slice(&fs_err::read(schema).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(&manifest(bundle)).map(|e| format!("{}: {e}", e.instance_path())).collect()
}

/// Names in a folder, hidden ones too.
pub(crate) fn names(folder: &Utf8Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    names.sort();
    names
}
