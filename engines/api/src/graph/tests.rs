use super::proto::StringStringEntryProto;
use super::*;

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { name: Some(name.into()), ints: values.to_vec(), ..AttributeProto::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), i: Some(value), ..AttributeProto::default() }
}

fn node(op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|i| (*i).to_owned()).collect(),
        output: vec!["o".into()],
        name: Some("n".into()),
        op_type: Some(op.into()),
        attribute,
        domain: None,
    }
}

fn tensor(name: &str, values: &[i64]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(INT64),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    }
}

fn floats(name: &str, values: &[f32]) -> TensorProto {
    let (dims, float_data) = (vec![values.len() as i64], values.to_vec());
    TensorProto {
        name: Some(name.into()),
        dims,
        data_type: Some(FLOAT),
        float_data,
        ..TensorProto::default()
    }
}

fn check(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Result<(), GraphFault> {
    let graph = GraphProto { node: nodes, initializer, ..GraphProto::default() };
    // Through the bytes, as a file is read.
    let model = ModelProto { graph: Some(graph), functions: Vec::new() };
    let read = ModelProto::decode(Bytes::from(model.encode_to_vec())).map_err(|e| e.to_string())?;
    read.graph.iter().try_for_each(|g| body(g, None))
}

#[test]
fn numbers_that_cannot_be_are_refused_by_node() {
    let large = i64::MAX / 2;
    let with =
        |op: &str, values: &[i64]| (node(op, &["x", "c", "c", "c"], vec![]), vec![tensor("c", values)]);
    let first = |op: &str, values: &[i64]| (node(op, &["c"], vec![]), vec![tensor("c", values)]);
    let own = |op: &str, attribute| (node(op, &["x"], vec![attribute]), vec![]);
    let scale = |op: &str, values: &[f32]| (node(op, &["x", "s", "s"], vec![]), vec![floats("s", values)]);
    let range = |values: [i64; 3]| {
        let names = ["a", "b", "d"];
        (node("Range", &names, vec![]), names.iter().zip(values).map(|(n, v)| tensor(n, &[v])).collect())
    };
    for ((node, tensors), why) in [
        (own("Transpose", ints("perm", &[0, 0, 1])), "perm [0, 0, 1] is no permutation"),
        (own("Transpose", ints("perm", &[0, 2])), "no permutation"),
        (own("Transpose", ints("perm", &[-1, 0])), "no permutation"),
        (own("Transpose", ints("perm", &[1 << 40])), "no permutation"),
        (own("Softmax", int("axis", 1 << 40)), "axes: 1099511627776 is not in -64 to 63"),
        (own("Concat", int("axis", i64::MIN)), "is not in -64 to 63"),
        (own("ReduceMean", ints("axes", &[1, 1])), "axis 1 is given twice"),
        (with("ReduceSum", &[64]), "64 is not in -64 to 63"),
        (with("Unsqueeze", &[2, 2]), "axis 2 is given twice"),
        (with("Slice", &[large]), "is not in -64 to 63"),
        (own("Conv", ints("kernel_shape", &[3, large])), "kernel_shape: 4611686018427387903 is not in 1 to"),
        (own("Conv", ints("strides", &[0, 1])), "strides: 0 is not in 1 to"),
        (own("MaxPool", ints("pads", &[-1, 0, 0, 0])), "pads: -1 is not in 0 to"),
        (own("Pad", ints("pads", &[large])), "pads: 4611686018427387903 is not in -65536 to"),
        (with("Pad", &[0, large]), "is not in -65536 to"),
        (own("DepthToSpace", int("blocksize", 0)), "blocksize: 0 is not in 1 to"),
        (own("Split", int("num_outputs", large)), "num_outputs"),
        (with("Split", &[-4]), "split: -4 is not in 0 to"),
        (first("ConstantOfShape", &[1 << 20, 1 << 20]), "asks for 1099511627776 elements, at most 268435456"),
        (first("ConstantOfShape", &[1 << 40, 1 << 40]), "cannot be"),
        (first("ConstantOfShape", &[-1]), "the shape [-1] cannot be"),
        (with("Expand", &[1 << 30]), "asks for 1073741824 elements"),
        (with("Reshape", &[-1, -1]), "leaves more than one size open"),
        (with("Reshape", &[-2]), "shape: -2 is not in -1 to"),
        (with("Reshape", &[large, large]), "cannot be"),
        (with("Tile", &[1 << 30]), "asks for 1073741824 copies"),
        (with("Resize", &[1, 1, 1 << 20, 1 << 20]), "asks for 1099511627776 elements"),
        (scale("Resize", &[1.0, 1.0, 1e9, 1e9]), "the scales"),
        (scale("Upsample", &[0.0]), "the scales [0.0] cannot be"),
        (scale("Resize", &[f32::NAN]), "the scales"),
        (range([0, 1 << 40, 1]), "asks for 1099511627776 elements"),
        (range([0, 1, 0]), "has no end"),
        (with("OneHot", &[large]), "depth"),
        (own("RandomNormal", ints("shape", &[1 << 40])), "asks for"),
    ] {
        let e = check(vec![node.clone()], tensors).unwrap_err();
        let op = node.op_type.clone().unwrap_or_default();
        assert!(
            e.to_string().starts_with(&format!("node `n` ({op}): ")) && e.to_string().contains(why),
            "{e}"
        );
    }
}

#[test]
fn what_graphs_hold_is_accepted() {
    let nodes = vec![
        node("Transpose", &["x"], vec![ints("perm", &[2, 0, 1])]),
        node("Transpose", &["x"], vec![]),
        node("Conv", &["x"], vec![ints("pads", &[1, 1, 1, 1]), ints("kernel_shape", &[3, 3])]),
        node("Pad", &["x", "crop"], vec![]),
        node("Reshape", &["x", "shape"], vec![]),
        node("Softmax", &["x"], vec![int("axis", -1)]),
        node("Resize", &["x", "", "twice"], vec![]),
        node("ConstantOfShape", &["computed"], vec![]),
        NodeProto { domain: Some("other".into()), ..node("Transpose", &["x"], vec![ints("perm", &[9])]) },
    ];
    let constants = vec![
        tensor("crop", &[0, -1, 0, 1]),
        tensor("shape", &[0, -1, 8, 64]),
        floats("twice", &[1.0, 1.0, 2.0, 2.0]),
    ];
    assert_eq!(check(nodes, constants), Ok(()));
}

#[test]
fn a_tensor_holds_what_it_promises() {
    let external = |length: &str| TensorProto {
        name: Some("w".into()),
        dims: vec![4, 4],
        data_type: Some(FLOAT),
        data_location: Some(1),
        external_data: vec![StringStringEntryProto {
            key: Some("length".into()),
            value: Some(length.into()),
        }],
        ..TensorProto::default()
    };
    assert_eq!(check(vec![], vec![external("64"), tensor("a", &[1, 2]), floats("b", &[])]), Ok(()));
    let longer = |dims: &[i64]| TensorProto { dims: dims.to_vec(), ..tensor("w", &[1]) };
    for (tensor, why) in [
        (longer(&[1 << 40]), "promises 1099511627776 elements, 8 bytes are there"),
        (longer(&[i64::MAX, i64::MAX]), "cannot be"),
        (longer(&[-1]), "cannot be"),
        (longer(&[1; 65]), "65 axes"),
        (TensorProto { dims: vec![1 << 33], ..floats("w", &[1.0]) }, "1 values are there"),
        (external("65"), "65 bytes of the data file"),
        (external("-1"), "no number"),
    ] {
        let e = check(vec![], vec![tensor]).unwrap_err();
        assert!(e.to_string().starts_with("tensor `w`: ") && e.to_string().contains(why), "{e}");
    }
}

#[test]
fn nothing_hides_in_a_branch_a_function_or_a_constant() {
    let bad = node("Transpose", &["x"], vec![ints("perm", &[1])]);
    let inner = GraphProto { node: vec![bad.clone()], ..GraphProto::default() };
    let branch =
        AttributeProto { name: Some("then_branch".into()), g: Some(inner), ..AttributeProto::default() };
    assert!(
        check(vec![node("If", &["x"], vec![branch])], vec![])
            .unwrap_err()
            .to_string()
            .contains("no permutation")
    );
    let value = |t| AttributeProto { name: Some("value".into()), t: Some(t), ..AttributeProto::default() };
    let made = node("Constant", &[], vec![value(tensor("", &[1 << 40]))]);
    let e = check(vec![made, node("ConstantOfShape", &["o"], vec![])], vec![]).unwrap_err();
    assert!(e.to_string().contains("1099511627776 elements"), "{e}");
    let huge = TensorProto { dims: vec![1 << 40], ..tensor("", &[1]) };
    assert!(
        check(vec![node("Constant", &[], vec![value(huge)])], vec![])
            .unwrap_err()
            .to_string()
            .contains("promises")
    );
    assert!(nodes(&[bad], Constants::default()).is_err());
    let sparse = SparseTensorProto { dims: vec![1 << 40], ..SparseTensorProto::default() };
    assert!(sparse_fits(&sparse).unwrap_err().to_string().contains("asks for"));
}

/// A file with one external weight `w` of four bytes at offset 4 of `data`, which is also an input, as old files have it.
fn file(folder: &Utf8Path, location: &str) -> camino::Utf8PathBuf {
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    let weight = TensorProto {
        name: Some("w".into()),
        dims: vec![1],
        data_type: Some(FLOAT),
        external_data: vec![entry("location", location), entry("offset", "4"), entry("length", "4")],
        data_location: Some(1),
        ..TensorProto::default()
    };
    let port = |name: &str, elem_type, dims: &[Option<i64>]| {
        let dim = dims.iter().map(|n| proto::DimensionProto { dim_value: *n }).collect();
        let shape = Some(proto::TensorShapeProto { dim });
        let tensor_type = Some(proto::TensorTypeProto { elem_type: Some(elem_type), shape });
        ValueInfoProto { name: Some(name.into()), r#type: Some(proto::TypeProto { tensor_type }) }
    };
    let graph = GraphProto {
        initializer: vec![weight],
        input: vec![port("x", FLOAT, &[None, Some(2)]), port("w", FLOAT, &[Some(1)])],
        output: vec![port("y", INT64, &[None])],
        ..GraphProto::default()
    };
    let path = folder.join("g.onnx");
    let model = ModelProto { graph: Some(graph), functions: Vec::new() };
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

#[test]
fn ports_and_weights_are_there_before_an_engine_sees_the_file() {
    use dpar_export_spec::{AxisRange, Dim, GraphSpec, Port};
    let dir = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(dir.path()).unwrap();
    let mut spec = GraphSpec {
        name: "g".into(),
        component: "c".into(),
        inputs: vec![Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::Fixed(2)])],
        outputs: vec![Port::new("y", DType::I64, vec![Dim::axis("batch")])],
        axes: vec![AxisRange { name: "batch".into(), min: 1, opt: 1, max: 2 }],
    };
    let said = |spec: &GraphSpec, location: &str| {
        let path = file(folder, location);
        check_graph("e", GraphFile::new(spec, &path)).map_err(|e| (e.to_string(), e.hint.unwrap_or_default()))
    };
    let (missing, hint) = said(&spec, "data").unwrap_err();
    assert!(missing.contains("tensor `w`") && missing.contains("data`"), "{missing}");
    assert_eq!(hint, DATA_HINT);
    std::fs::write(folder.join("data"), [0; 7]).unwrap();
    let (short, hint) = said(&spec, "data").unwrap_err();
    assert!(short.contains("ends at byte 8 of `data`, which has 7") && hint == DATA_HINT, "{short}");
    std::fs::write(folder.join("data"), [0; 8]).unwrap();
    said(&spec, "data").unwrap();
    said(&spec, "./data").unwrap();
    for outside in ["../data", "/data", ""] {
        let (e, hint) = said(&spec, outside).unwrap_err();
        assert!(e.contains("not a path inside") || e.contains("no location"), "{e}");
        assert!(hint.is_empty(), "{hint}");
    }
    spec.outputs[0].dtype = DType::F32;
    let (e, _) = said(&spec, "data").unwrap_err();
    assert!(e.contains("output `y` is i64[?] in the file, f32[batch] in the spec"), "{e}");
}

/// A product with packed weights, and its tensors of so many elements each.
fn packed(attributes: &[(&str, i64)], codes: i64, scales: i64) -> Result<(), String> {
    let attributes = attributes.iter().map(|(name, value)| int(name, *value)).collect();
    let product = NodeProto {
        domain: Some("com.microsoft".into()),
        ..node("MatMulNBits", &["x", "codes", "scales"], attributes)
    };
    let bytes = TensorProto {
        name: Some("codes".into()),
        dims: vec![codes],
        data_type: Some(2),
        raw_data: Some(vec![0; codes as usize].into()),
        ..TensorProto::default()
    };
    let tensors = vec![bytes, floats("scales", &vec![1.0; scales as usize])];
    check(vec![product], tensors).map_err(|e| e.to_string())
}

#[test]
fn packed_products_have_the_weights_that_their_attributes_say() {
    // 6 x 64 weights: two blocks of 32 a row.
    let good = [("N", 6), ("K", 64), ("bits", 4), ("block_size", 32)];
    assert_eq!(packed(&good, 6 * 32, 6 * 2), Ok(()));
    // 4 bits where none are said; a block that ends behind the row.
    assert_eq!(packed(&[("N", 6), ("K", 64), ("block_size", 32)], 6 * 32, 6 * 2), Ok(()));
    assert_eq!(packed(&[("N", 6), ("K", 40), ("block_size", 32)], 6 * 32, 6 * 2), Ok(()));
    let with = |key: &str, value| good.map(|(k, v)| (k, if k == key { value } else { v }));
    for (attributes, why) in [
        (with("N", 7), "192 codes are no 7 x 64 weights of 4 bits in blocks of 32"),
        (with("K", 4096), "192 codes are no 6 x 4096"),
        (with("bits", 8), "no 6 x 64 weights of 8 bits"),
        (with("block_size", 64), "12 scales are no"),
        (with("block_size", 0), "its block_size is 0"),
        (with("block_size", 33), "no weights of 4 bits in blocks of 33"),
        (with("bits", 9), "no weights of 9 bits"),
        (with("N", i64::MAX), "its N is"),
        (with("K", -64), "its K is -64"),
    ] {
        let e = packed(&attributes, 6 * 32, 6 * 2).unwrap_err();
        assert!(e.starts_with("node `n` (MatMulNBits): ") && e.contains(why), "{e}");
    }
    assert!(packed(&good[..1], 0, 0).unwrap_err().contains("it has no K"));
}

#[test]
fn numbers_of_four_bits_are_two_in_a_byte() {
    let of = |dims: Vec<i64>, bytes: usize| {
        let raw_data = Some(vec![0; bytes].into());
        let tensor = TensorProto { dims, data_type: Some(UINT4), raw_data, ..TensorProto::default() };
        tensor_fits(&tensor).map_err(|e| e.to_string())
    };
    assert_eq!((of(vec![3, 5], 8), of(vec![0], 0)), (Ok(()), Ok(())));
    for (dims, bytes) in [(vec![3, 5], 7), (vec![3, 5], 15), (vec![1 << 40], 4)] {
        assert!(of(dims, bytes).unwrap_err().contains("promises"));
    }
}
