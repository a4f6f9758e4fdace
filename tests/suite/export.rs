//! What the export writes: the same bytes everywhere, complete or nothing.

use std::collections::BTreeMap;

use camino::Utf8Path;
use dpar_export::bundle::{self, Bundle};
use dpar_export_checkpoint::{LoadOptions, load};
use dpar_export_spec::{ComponentKind, Precision, RuleChange};
use sha2::{Digest, Sha256};

use crate::common::{Temp, export, fixture};

/// SHA-256 of the manifest of fixtures/dpar-small. The manifest holds the digest of every file, so this pins
/// all bytes of the export on every machine. It changes with the tool's version and with any change of a graph:
/// then `cargo nextest run byte` prints the new value.
const DPAR_SMALL_MANIFEST: &str = "82c27dc4269162d1e0c0f84721f71344bc06c0afaea83032151e319bfff7b06f";

fn files(folder: &Utf8Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for sub in ["", "onnx"] {
        for entry in folder.join(sub).read_dir_utf8().unwrap() {
            let path = entry.unwrap().path().to_owned();
            if path.is_file() {
                let digest = hex::encode(Sha256::digest(fs_err::read(&path).unwrap()));
                found.insert(path.strip_prefix(folder).unwrap().to_string(), digest);
            }
        }
    }
    found
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    let temp = Temp::new();
    let first = export("dpar-small/dpar", &LoadOptions::default(), &temp.path("a"));
    export("dpar-small/dpar", &LoadOptions::default(), &temp.path("somewhere/else"));
    assert_eq!(files(&temp.path("a")), files(&temp.path("somewhere/else")));
    assert_eq!(first.manifest_sha256(), DPAR_SMALL_MANIFEST);
}

#[test]
fn every_axis_of_a_port_has_a_range_and_every_component_its_graphs() {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let manifest = bundle.manifest();
    for graph in &manifest.graphs {
        let ports = graph.spec.inputs.iter().chain(&graph.spec.outputs);
        for axis in ports.flat_map(|p| &p.dims).flat_map(|d| d.axes()) {
            let range = graph.spec.axis(axis).unwrap_or_else(|| panic!("{}: {axis}", graph.spec.name));
            assert!(range.min <= range.opt && range.opt <= range.max, "{range:?}");
        }
    }
    for (component, spec) in manifest.components.iter().zip(&bundle.system().components) {
        assert_eq!(component.kind, spec.kind());
        let graphs = dpar_export_onnx::graph_names(spec, Some(bundle.system())).unwrap();
        assert_eq!(component.graphs, graphs.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    let text = fs_err::read_to_string(temp.path("b/manifest.json")).unwrap();
    assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "no absolute path in the manifest");
}

#[test]
fn the_manifest_follows_its_schema() {
    let temp = Temp::new();
    export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let read = |path: &Utf8Path| -> serde_json::Value {
        serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
    };
    let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = jsonschema::validator_for(&read(&root.join("docs/manifest.schema.json"))).unwrap();
    let manifest = read(&temp.path("b/manifest.json"));
    let errors: Vec<String> =
        schema.iter_errors(&manifest).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    // One that was told another rule says both.
    let rule = RuleChange { threshold: Some(4.0), ..RuleChange::default() };
    export("emoji32/dpar", &LoadOptions { rule, ..LoadOptions::default() }, &temp.path("r"));
    let told = read(&temp.path("r/manifest.json"));
    assert!(
        schema.is_valid(&told) && told["configured_rule"]["threshold"] != told["patch_rule"]["threshold"]
    );
    // An extractor follows it too; a patch rule belongs to systems, and to them it must belong.
    let weights = crate::extractor::efficientnet_weights();
    crate::extractor::export(&weights, ComponentKind::EfficientnetLite0, &temp.path("e"));
    let extractor = read(&temp.path("e/manifest.json"));
    assert!(schema.is_valid(&extractor), "{extractor:#}");
    let mut without = manifest.clone();
    without.as_object_mut().unwrap().remove("patch_rule");
    assert!(!schema.is_valid(&without));
    let mut broken = manifest;
    broken["files"][0]["sha256"] = "no digest".into();
    assert!(!schema.is_valid(&broken), "the schema must be able to refuse");
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let temp = Temp::new();
    let loaded = load(&fixture("dpar-small/dpar"), &LoadOptions::default()).unwrap();
    let mut count = 0;
    let mut stop = |_: &str| {
        count += 1;
        count < 5
    };
    let result =
        bundle::write(&loaded, Precision::Fp32, &temp.path("out"), false, &mut stop, &mut |_, _| Ok(()));
    assert!(result.is_err() && count == 5);
    assert_eq!(temp.path("").read_dir_utf8().unwrap().count(), 0);
}

#[test]
fn an_existing_folder_is_never_overwritten_unasked() {
    let temp = Temp::new();
    let loaded = load(&fixture("dpar-small/dpar"), &LoadOptions::default()).unwrap();
    export("dpar-small/dpar", &LoadOptions::default(), &temp.path("b"));
    assert!(
        bundle::write(&loaded, Precision::Fp32, &temp.path("b"), false, &mut |_| true, &mut |_, _| Ok(()))
            .is_err()
    );
    bundle::write(&loaded, Precision::Fp32, &temp.path("b"), true, &mut |_| true, &mut |_, _| Ok(()))
        .unwrap();
    Bundle::open(&temp.path("b")).unwrap();
    fs_err::create_dir(temp.path("mine")).unwrap();
    fs_err::write(temp.path("mine/notes"), "x").unwrap();
    assert!(
        bundle::write(&loaded, Precision::Fp32, &temp.path("mine"), true, &mut |_| true, &mut |_, _| Ok(()))
            .is_err()
    );
    assert!(temp.path("mine/notes").is_file());
}
