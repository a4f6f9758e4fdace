use dpar_export_spec::{DType, Dim, Port};

use super::*;

#[test]
fn only_plain_relative_paths_are_inside() {
    for good in ["config.json", "onnx/a.onnx", "onnx/b..c.onnx_data"] {
        assert!(is_inside(good), "{good}");
    }
    let outside =
        ["", "/etc/passwd", "../x", "onnx/../../x", "./x", "a//b", "a/", "c:\\x", "a\\..\\b", "a\0b"];
    // Names that are another file, or none to see, on some file system or in some listing.
    let tricks = [
        ".hidden",
        "onnx/.x",
        "a.",
        "a b",
        "a ",
        "-rf",
        "onnx/-x",
        "\u{ff41}.onnx",
        "a\u{200b}",
        "cafe\u{301}",
        "%2e%2e/x",
        "~",
    ];
    for bad in outside.into_iter().chain(tricks) {
        assert!(!is_inside(bad), "{bad:?}");
    }
}

/// A manifest as the exporter writes it, small.
fn sample() -> Vec<u8> {
    let file = |path: &str| FileEntry { path: path.to_owned(), size: 1, sha256: "0".repeat(64) };
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        tool: ToolEntry { name: "t".into(), version: "1".into() },
        system: SystemKind::Dpar,
        name: "n".into(),
        precision: Precision::Fp32,
        opset: 17,
        patch_rule: Some(PatchRule::per_token(4)),
        configured_rule: None,
        sources: vec![],
        components: vec![ComponentEntry {
            arithmetic: None,
            kind: ComponentKind::Dpar,
            parameters: 1,
            weights: "onnx/dpar.onnx_data".into(),
            graphs: vec!["score".into()],
            quantized: None,
        }],
        graphs: vec![GraphEntry {
            file: "onnx/score.onnx".into(),
            dialects: vec![],
            spec: GraphSpec {
                name: "score".into(),
                component: "dpar".into(),
                inputs: vec![Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::Fixed(4)])],
                outputs: vec![],
                axes: vec![AxisRange { name: "batch".into(), min: 1, opt: 2, max: 8 }],
            },
        }],
        engines: vec![],
        files: ["config.json", "onnx/dpar.onnx_data", "onnx/score.onnx"].map(file).into(),
    };
    manifest.to_bytes().unwrap()
}

/// 60,000 files, graphs and engines are checked in n log n: seconds even unoptimised, where pairs would take minutes.
#[test]
fn wide_manifests_are_checked_in_time() {
    let mut manifest = Manifest::parse(&sample()).unwrap();
    let entry = |i: usize| FileEntry { path: format!("onnx/{i}.onnx"), size: 1, sha256: i.to_string() };
    manifest.files.extend((0..60_000).map(entry));
    let spec = |i: usize| GraphSpec {
        name: format!("g{i}"),
        component: "dpar".into(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        axes: Vec::new(),
    };
    manifest.graphs = (0..60_000)
        .map(|i| GraphEntry { file: format!("onnx/{i}.onnx"), dialects: vec![], spec: spec(i) })
        .collect();
    manifest.engines = (0..60_000)
        .map(|i| EngineEntry {
            graph: format!("g{i}"),
            file: format!("onnx/{i}.onnx"),
            graph_sha256: i.to_string(),
            weights_sha256: "0".repeat(64),
            ..EngineEntry::default()
        })
        .collect();
    let started = std::time::Instant::now();
    manifest.check().unwrap();
    manifest.engines[59_999].graph_sha256.clear();
    assert!(matches!(manifest.check(), Err(ManifestError::StaleEngine(_))));
    manifest.files.push(entry(7));
    assert!(matches!(manifest.check(), Err(ManifestError::Duplicate(_))));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn what_is_written_is_read() {
    let bytes = sample();
    assert_eq!(Manifest::parse(&bytes).unwrap().to_bytes().unwrap(), bytes);
}

#[test]
fn entries_that_no_export_has_are_tampering() {
    for (from, to, message) in [
        ("\"name\": \"score\"", "\"name\": \"x$(cmd)\"", "no name of a graph"),
        ("\"name\": \"x\"", "\"name\": \"x:1\"", "no name of a port"),
        ("\"max\": 8", "\"max\": 1099511627776", "axis `batch`"),
        ("\"opset\": 17", "\"opset\": -9223372036854775808", "opset -9223372036854775808"),
        ("\"parameters\": 1", "\"parameters\": 18446744073709551615", "18446744073709551615 parameters"),
        ("\"component\": \"dpar\"", "\"component\": \"vq\"", "no graph of a component"),
        ("\"component\": \"dpar\"", "\"component\": \"x\"", "no graph of a component"),
        ("\"score\"\n", "\"score\", \"start\"\n", "graphs of component `dpar`"),
        ("\"kind\": \"dpar\"", "\"kind\": \"inception\"", "no graph of a component"),
    ] {
        let text = String::from_utf8(sample()).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        let e = Manifest::parse(text.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert!(matches!(e, ManifestError::Entry(_)) && e.is_tampering(), "{to}: {e}");
        assert!(e.to_string().contains(message), "{message}: {e}");
    }
}

#[test]
fn unlisted_and_repeated_entries_are_refused() {
    let change = |from: &str, to: &str| {
        let text = String::from_utf8(sample()).unwrap();
        Manifest::parse(text.replacen(from, to, 1).as_bytes())
    };
    let e = change("onnx/dpar.onnx_data", "onnx/other").unwrap_err();
    assert!(matches!(e, ManifestError::Unlisted { .. }), "{e}");
    let text = String::from_utf8(sample()).unwrap();
    let twice = text.replace("\"onnx/dpar.onnx_data\"", "\"config.json\"");
    let e = Manifest::parse(twice.as_bytes()).unwrap_err();
    assert!(matches!(e, ManifestError::Duplicate(_)), "{e}");
    let cased = text.replace("\"onnx/dpar.onnx_data\"", "\"Config.json\"");
    let e = Manifest::parse(cased.as_bytes()).unwrap_err();
    assert!(matches!(e, ManifestError::Duplicate(_)) && e.is_tampering(), "{e}");
    let e = change("\"config.json\"", "\"MANIFEST.json\"").unwrap_err();
    assert!(matches!(e, ManifestError::Path(_)) && e.is_tampering(), "{e}");
    let e = change("\"grid\": 4", "\"grid\": 0").unwrap_err();
    assert!(matches!(e, ManifestError::PatchRule(_)), "{e}");
    let e = change("\"dpar\"", "\"extractor\"").unwrap_err();
    assert!(matches!(e, ManifestError::PatchRulePresence), "{e}");
}

#[test]
fn a_field_that_occurs_twice_or_that_no_manifest_has_is_tampering() {
    let change = |from: &str, to: &str| {
        let text = String::from_utf8(sample()).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        Manifest::parse(text.replacen(from, to, 1).as_bytes()).unwrap_err()
    };
    for (from, to) in [
        ("\"opset\": 17", "\"opset\": 17, \"opset\": 17"),
        ("\"schema_version\": 2", "\"schema_version\": 2, \"schema_version\": 2"),
        ("\"path\": \"config.json\"", "\"path\": \"config.json\", \"path\": \"config.json\""),
    ] {
        let e = change(from, to);
        assert!(matches!(e, ManifestError::RepeatedField(_)) && e.is_tampering(), "{to}: {e}");
    }
    // Of another schema version it is a field that this version does not know.
    let other = change("\"schema_version\": 2", "\"schema_version\": 3, \"more\": 1");
    assert!(matches!(other, ManifestError::SchemaVersion(3)) && !other.is_tampering(), "{other}");
    for (from, to) in [
        ("\"opset\": 17", "\"opset\": 17, \"more\": 1"),
        ("\"component\": \"dpar\"", "\"component\": \"dpar\", \"more\": 1"),
        ("\"max\": 8", "\"max\": 8, \"more\": 1"),
        ("\"grid\": 4", "\"grid\": 4, \"more\": 1"),
    ] {
        let e = change(from, to);
        assert!(matches!(&e, ManifestError::UnknownField(text) if text.contains("more")), "{to}: {e}");
        assert!(e.is_tampering());
    }
}

#[test]
fn a_field_of_a_later_version_is_none_of_an_earlier_one() {
    let plain = Manifest::parse(&sample()).unwrap();
    let (mut quantized, mut dialects) = (plain.clone(), plain.clone());
    quantized.components[0].quantized = Some(Quantized {
        weights: dpar_export_spec::WeightBits::Int8,
        block: 32,
        opset: 21,
        accuracy_level: dpar_export_spec::AccuracyLevel::Int8,
        matrices: BTreeMap::from([(32, 1)]),
        kept: vec![],
        bytes_before: 4,
        bytes_after: 1,
    });
    let file = "onnx/score.packed.onnx".to_owned();
    dialects.files.push(FileEntry { path: file.clone(), size: 1, sha256: "0".repeat(64) });
    dialects.graphs[0].dialects.push(DialectEntry { dialect: Dialect::Packed, file });
    let of = |schema_version, manifest: &Manifest| {
        Manifest::parse(&Manifest { schema_version, ..manifest.clone() }.to_bytes().unwrap())
    };
    of(1, &plain).unwrap();
    for (manifest, field) in [(quantized, "quantized"), (dialects, "dialects")] {
        of(2, &manifest).unwrap();
        let e = of(1, &manifest).unwrap_err();
        assert!(e.to_string().contains(&format!("`{field}` in schema version 1")) && e.is_tampering(), "{e}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = Manifest::parse(&bytes);
    }

    #[test]
    fn a_damaged_manifest_never_panics_and_never_leads_outside(at in 0_usize..2000, byte in proptest::num::u8::ANY) {
        let mut bytes = sample();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(manifest) = Manifest::parse(&bytes) {
            proptest::prop_assert!(manifest.files.iter().all(|f| is_inside(&f.path)));
        }
    }
}
