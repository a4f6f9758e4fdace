//! What lies beside weights in a `.pt`, and in their place: opaque objects, and every way a tensor is rebuilt.

use dpar_export_checkpoint::{ErrorKind, LoadOptions, TensorFile, WeightDType, load, pickle_tensor_names};
use dpar_export_spec::Hinted;

use crate::pt::with_extra;
use crate::support::{Model, Pickle, PtTensor, System, assert_kind, f32s, open_pt, pt};

fn global(module: &str, name: &str) -> Pickle {
    Pickle::default().global(module, name)
}

/// A call of `torch._utils.{function}` on a storage and what follows it.
fn rebuilt(function: &str, storage: (&str, &str), elements: i64, size: &[i64], rest: &[u8]) -> Pickle {
    global("torch._utils", function)
        .op(b"((")
        .str("storage")
        .global(storage.0, storage.1)
        .str("0")
        .str("cpu")
        .int(elements)
        .op(b"tQ")
        .int(0)
        .ints(size)
        .ints(&vec![1; size.len()])
        .op(rest)
        .op(b"tR")
}

/// `requires_grad` and no hooks.
fn plain() -> Pickle {
    Pickle::default().op(b"\x89").global("collections", "OrderedDict").op(b")R")
}

fn dtype(name: &str) -> Pickle {
    plain().global("torch", name)
}

/// The only tensor `w` of a file, on four floats.
fn only(tensor: &Pickle) -> Vec<u8> {
    let program = Pickle::new().op(b"}").str("w").op(&tensor.0).op(b"s").stop();
    pt(&program, &[("0", &f32s([1.0, -2.0, 3.0, 4.0]))])
}

/// Objects as PyTorch checkpoints hold them, with what they are called where a weight should be.
fn objects() -> Vec<(Pickle, &'static str)> {
    let float = PtTensor::f32("0", &[1]);
    let layout = global("torch.serialization", "_get_layout").str("torch.sparse_coo").op(b"\x85R");
    vec![
        (
            global("numpy.core.multiarray", "_reconstruct")
                .op(b"(")
                .global("numpy", "ndarray")
                .op(b"K\0\x85C\x01btR(K\x01K\x03\x85")
                .global("numpy", "dtype")
                .str("f4")
                .op(b"\x89\x88\x87R\x89C\x0c0123456789abtb"),
            "a numpy array",
        ),
        (global("numpy._core.multiarray", "scalar").op(b")R"), "a numpy scalar"),
        (global("__builtin__", "set").op(b"](K\x01K\x02e\x85R"), "`__builtin__.set`"),
        (global("builtins", "bytearray").op(b"C\x01x\x85R"), "`builtins.bytearray`"),
        (global("builtins", "complex").op(b"GG0123456G01234567\x86R"), "`builtins.complex`"),
        (layout.clone(), "`torch.serialization._get_layout`"),
        (global("datetime", "datetime").op(b"C\x0a0123456789\x85R"), "`datetime.datetime`"),
        (global("torch", "device").str("cuda").op(b"\x85R"), "`torch.device`"),
        (global("functools", "partial").op(b"N\x85R"), "`functools.partial`"),
        (global("collections", "deque").op(b")R(K\x01K\x02e"), "`collections.deque`"),
        (global("__main__", "Config").op(b")\x81}").str("lr").op(b"G01234567sb"), "`__main__.Config`"),
        (global("project.options", "Mode").op(b"K\x02\x85R"), "`project.options.Mode`"),
        (Pickle::default().op(b"(").op(b"iproject\nOld\n"), "`project.Old`"),
        (
            global("torch._utils", "_rebuild_sparse_tensor")
                .op(&layout.0)
                .op(b"(")
                .tensor(&float)
                .tensor(&float)
                .ints(&[4])
                .op(b"t\x86R"),
            "a sparse tensor",
        ),
        (global("torch._utils", "_rebuild_meta_tensor_no_storage").op(b")R"), "device `meta`"),
        (global("torch._utils", "_rebuild_qtensor").op(b")R"), "a quantised tensor"),
        (
            rebuilt("_rebuild_tensor_v2", ("torch", "ComplexFloatStorage"), 1, &[1], &plain().0),
            "torch.ComplexFloatStorage",
        ),
        (rebuilt("_rebuild_tensor_v2", ("torch", "QInt8Storage"), 8, &[8], &plain().0), "torch.QInt8Storage"),
        (
            rebuilt("_rebuild_tensor_v2", ("backend", "FooStorage"), 8, &[8], &plain().0),
            "`backend.FooStorage`",
        ),
        (
            rebuilt(
                "_rebuild_tensor_v3",
                ("torch.storage", "UntypedStorage"),
                16,
                &[4],
                &dtype("float8_e4m3fn").0,
            ),
            "torch.float8_e4m3fn",
        ),
        (
            rebuilt(
                "_rebuild_tensor_v2",
                ("torch", "LongStorage"),
                2,
                &[2],
                &plain().op(b"}").str("neg").op(b"\x88s").0,
            ),
            "the metadata `neg`",
        ),
        (
            rebuilt(
                "_rebuild_tensor_v2",
                ("torch", "FloatStorage"),
                4,
                &[4],
                &plain().op(b"}").str("zero").op(b"\x88s").0,
            ),
            "the metadata `zero`",
        ),
    ]
}

#[test]
fn objects_beside_the_weights_are_no_obstacle() {
    for (object, what) in objects() {
        let file = open_pt(with_extra(object)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(file.names().collect::<Vec<_>>(), ["w"], "{what}");
    }
    let counter = global("collections", "Counter").op(b"}(").str("a").int(1).op(b"u\x85R");
    open_pt(with_extra(counter)).unwrap();
}

#[test]
fn an_object_in_the_place_of_a_weight_is_called_by_its_name() {
    let s = System::new();
    let mut model = Model::gpt(16, 12, 3);
    model.0.remove("norm.weight");
    for (object, what) in objects() {
        let file = with_entry(&model, "norm.weight", &object);
        let e = assert_kind!(s.load_gpt("x.pt", &file), ErrorKind::UnreadTensor(_));
        assert_eq!(e.tensor(), Some("norm.weight"), "{what}");
        assert!(e.to_string().contains(what), "{what}: {e}");
        assert!(e.hint().is_some());
    }
    // A tensor of no use is one, readable or not; an object is none.
    let whole = Model::gpt(16, 12, 3);
    for (object, what) in objects() {
        let loaded = s.load_gpt("x.pt", &with_entry(&whole, "extra.state", &object));
        let tensor = ["torch.", "metadata"].iter().any(|w| what.contains(w)) && !what.starts_with("`torch.");
        if tensor || what.contains("FooStorage") {
            let e = assert_kind!(loaded, ErrorKind::Names(_));
            assert!(e.details().contains(&"unused `extra.state`".to_owned()), "{what}: {e}");
        } else {
            loaded.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

/// A `.pt` of a model with one more entry in its state dict.
fn with_entry(model: &Model, name: &str, value: &Pickle) -> Vec<u8> {
    let mut program = Pickle::new().op(b"}(");
    let mut storages = Vec::new();
    for (i, (name, (shape, values))) in model.0.iter().enumerate() {
        let size: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
        let key = format!("k{i}");
        program = program.str(name).tensor(&PtTensor::f32(&key, &size));
        storages.push((key, f32s(values.iter().copied())));
    }
    let program = program.str(name).op(&value.0).op(b"u").stop();
    let storages: Vec<(&str, &[u8])> = storages.iter().map(|(k, b)| (k.as_str(), b.as_slice())).collect();
    pt(&program, &storages)
}

#[test]
fn long_lists_and_large_byte_strings_are_walked() {
    let ints: Vec<u8> =
        (0..1_500_000_i32).flat_map(|i| [b"J".as_slice(), &i.to_le_bytes()].concat()).collect();
    open_pt(with_extra(Pickle::default().op(b"](").op(&ints).op(b"e"))).unwrap();
    let floats = b"G01234567".repeat(5_000_000);
    let program = Pickle::new().op(b"}(").str("w").tensor(&PtTensor::f32("0", &[1])).str("loss").op(b"]");
    let program = floats.chunks(9 * 1000).fold(program, |p, batch| p.op(b"(").op(batch).op(b"e"));
    assert_eq!(pickle_tensor_names(&program.op(b"u").stop()).unwrap(), ["w"]);
    let bytes = vec![0; 70 << 20];
    let program = Pickle::new().op(b"}(").str("w").tensor(&PtTensor::f32("0", &[1])).str("x").op(b"B");
    let program = program.op(&(bytes.len() as u32).to_le_bytes()).op(&bytes).op(b"u").stop();
    assert_eq!(pickle_tensor_names(&program).unwrap(), ["w"]);
    let endless = Pickle::new().op(&b"N0".repeat(33 << 20)).stop();
    assert_kind!(pickle_tensor_names(&endless), ErrorKind::Malformed { .. });
}

#[test]
fn a_dictionary_of_any_class_is_one() {
    // A root of a class of its own with items, as configuration libraries write it.
    let w = PtTensor::f32("0", &[1]);
    for class in [
        global("project", "Box").op(b")\x81"),
        global("collections", "defaultdict").global("builtins", "list").op(b"\x85R"),
    ] {
        let program = Pickle::new().op(&class.0).op(b"(").str("w").tensor(&w).op(b"u").stop();
        assert_eq!(pickle_tensor_names(&program).unwrap(), ["w"]);
    }
    let e = pickle_tensor_names(&Pickle::new().global("project", "Net").op(b")\x81}b").stop()).unwrap_err();
    assert!(e.to_string().contains("an object made by `project.Net`, not a dictionary"), "{e}");
    assert!(e.hint().unwrap().contains("state_dict()"));
}

#[test]
fn every_way_a_tensor_is_rebuilt_is_read() {
    let untyped = ("torch.storage", "UntypedStorage");
    let floats = ("torch", "FloatStorage");
    let v2 = rebuilt("_rebuild_tensor_v2", floats, 4, &[4], &plain().0);
    let from_type = |function: &str, inner: &Pickle| {
        global("torch._tensor", "_rebuild_from_type_v2")
            .op(b"(")
            .global("torch._utils", function)
            .global("torch.nn.parameter", "Parameter")
            .op(&inner.0)
            .op(b"}tR")
    };
    let arguments = Pickle::default().op(&v2.0[b"ctorch._utils\n_rebuild_tensor_v2\n".len()..v2.0.len() - 1]);
    let nested = Pickle::default()
        .op(b"(")
        .global("torch._utils", "_rebuild_tensor_v2")
        .op(b"N")
        .op(&arguments.0)
        .op(b"Nt");
    for (what, tensor) in [
        ("before 0.4", rebuilt("_rebuild_tensor", floats, 4, &[4], b"")),
        ("v2", v2.clone()),
        ("v2 with metadata", rebuilt("_rebuild_tensor_v2", floats, 4, &[4], &plain().op(b"}").0)),
        ("v3", rebuilt("_rebuild_tensor_v3", untyped, 16, &[4], &dtype("float32").0)),
        ("v3 with metadata", rebuilt("_rebuild_tensor_v3", untyped, 16, &[4], &dtype("float32").op(b"N").0)),
        ("from type", from_type("_rebuild_tensor_v2", &arguments)),
        (
            "from type of from type",
            global("torch._tensor", "_rebuild_from_type_v2")
                .op(b"(")
                .global("torch._tensor", "_rebuild_from_type_v2")
                .op(b"N")
                .op(&nested.0)
                .op(b"NtR"),
        ),
    ] {
        let file = open_pt(only(&tensor)).unwrap_or_else(|e| panic!("{what}: {e}"));
        let w = file.get("w").unwrap();
        assert_eq!(w.to_f32().unwrap().as_ref(), [1.0, -2.0, 3.0, 4.0], "{what}");
    }
    let short = rebuilt("_rebuild_tensor_v3", untyped, 16, &[8], &dtype("uint16").0);
    let file = open_pt(only(&short)).unwrap();
    assert_eq!((file.get("w").unwrap().dtype, file.shape("w").unwrap()), (WeightDType::U16, [8].as_slice()));
    // A view of four floats may not reach the ninth byte word of a storage of 16 bytes.
    let beyond = rebuilt("_rebuild_tensor_v3", untyped, 16, &[5], &dtype("float32").0);
    assert_kind!(open_pt(only(&beyond)), ErrorKind::MalformedTensor(_));
    let unknown = rebuilt("_rebuild_tensor_v3", untyped, 16, &[4], &plain().op(b"N").0);
    assert_kind!(open_pt(only(&unknown)), ErrorKind::Malformed { .. });
    let hostile = from_type("x", &arguments).0;
    let at = hostile.windows(15).position(|w| w == b"ctorch._utils\nx").unwrap();
    let hostile = [&hostile[..at], b"cposix\nsystem\n", &hostile[at + 16..]].concat();
    assert_kind!(open_pt(only(&Pickle::default().op(&hostile))), ErrorKind::HostilePickle { .. });
}

#[test]
fn lazily_negated_and_conjugated_views_have_their_values() {
    let view = |bits: &[(&str, bool)]| {
        let set =
            bits.iter().fold(plain().op(b"}("), |p, (k, v)| p.str(k).op(if *v { b"\x88" } else { b"\x89" }));
        let tensor = rebuilt("_rebuild_tensor_v2", ("torch", "FloatStorage"), 4, &[4], &set.op(b"u").0);
        let file = open_pt(only(&tensor)).unwrap();
        let w = file.get("w").unwrap();
        w.to_f32().unwrap().to_vec()
    };
    assert_eq!(view(&[("neg", true)]), [-1.0, 2.0, -3.0, -4.0]);
    assert_eq!(view(&[("neg", false), ("conj", true)]), [1.0, -2.0, 3.0, 4.0]);
    assert_eq!(view(&[("conj", true), ("neg", true)]), [-1.0, 2.0, -3.0, -4.0]);
    // Every other third element, negated, of two bytes each.
    let halves: Vec<u8> = [1.5_f32, 7.0, -2.5, 7.0].iter().flat_map(|v| half(*v)).collect();
    let metadata = plain().op(b"}").str("neg").op(b"\x88s");
    let tensor = global("torch._utils", "_rebuild_tensor_v2")
        .op(b"((")
        .str("storage")
        .global("torch", "BFloat16Storage");
    let tensor =
        tensor.str("0").str("cpu").int(4).op(b"tQ").int(0).ints(&[2]).ints(&[2]).op(&metadata.0).op(b"tR");
    let program = Pickle::new().op(b"}").str("w").op(&tensor.0).op(b"s").stop();
    let file = open_pt(pt(&program, &[("0", &halves)])).unwrap();
    assert_eq!(file.get("w").unwrap().to_f32().unwrap().as_ref(), [-1.5, 2.5]);
}

/// bfloat16 of a value that it holds exactly.
fn half(value: f32) -> [u8; 2] {
    let [_, _, low, high] = value.to_le_bytes();
    [low, high]
}

/// A `.pt` with models under keys.
fn several(models: &[(&str, &Model)]) -> Vec<u8> {
    let mut program = Pickle::new().op(b"}(");
    let mut storages = Vec::new();
    for (key, model) in models {
        let mut tensors = Vec::new();
        for (name, (shape, values)) in &model.0 {
            let size: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            let storage = storages.len().to_string();
            tensors.push((name.clone(), PtTensor::f32(&storage, &size)));
            storages.push((storage, f32s(values.iter().copied())));
        }
        let mut keys: Vec<&str> = key.split('.').collect();
        let last = keys.pop().unwrap();
        for outer in &keys {
            program = program.str(outer).op(b"}(");
        }
        program = program.str(last).state_dict(&tensors);
        program = keys.iter().fold(program, |p, _| p.op(b"u"));
    }
    let storages: Vec<(&str, &[u8])> = storages.iter().map(|(k, b)| (k.as_str(), b.as_slice())).collect();
    pt(&program.op(b"u").stop(), &storages)
}

#[test]
fn one_of_several_state_dicts_is_chosen_and_said() {
    let s = System::new();
    let model = Model::gpt(16, 12, 3);
    let mut averaged = model.clone();
    averaged.0.get_mut("norm.weight").unwrap().1[0] = 0.75;
    s.write("c2i.pt", several(&[("model", &model), ("ema", &averaged), ("deep.inner", &averaged)]));
    let with = |weights: Option<&str>| {
        let (config, weights) = (Some(s.path("gpt.yaml")), weights.map(str::to_owned));
        load(&s.path("c2i.pt"), &LoadOptions { config, weights, ..LoadOptions::default() })
    };
    let first = |l: &dpar_export_checkpoint::Loaded| {
        l.components[0].weights.require("norm.weight").unwrap().to_f32().unwrap()[0]
    };
    let l = with(None).unwrap();
    assert_eq!((first(&l), l.sources[0].weights.as_deref()), (-0.05, Some("model")));
    assert!(
        l.notes.len() == 1 && l.notes[0].contains("under `ema`, `deep.inner` too; `model` is read"),
        "{:?}",
        l.notes
    );
    for key in ["ema", "deep.inner"] {
        let l = with(Some(key)).unwrap();
        assert_eq!((first(&l), l.sources[0].weights.as_deref(), l.notes.len()), (0.75, Some(key), 0));
    }
    let e = assert_kind!(with(Some("shadow")), ErrorKind::Option { option: "--weights", .. });
    assert_eq!(e.hint().unwrap(), "there are tensors under `model`, `ema`, `deep.inner`");
    // Not where a state dict lies: the keys that are there.
    s.write("c2i.pt", several(&[("net", &model), ("averages.state_dict", &averaged)]));
    let e = assert_kind!(with(None), ErrorKind::NoStateDict { .. });
    assert!(e.to_string().contains("there are tensors under `net`, `averages.state_dict`"), "{e}");
    assert!(e.hint().unwrap().contains("--weights KEY"));
    assert_eq!(first(&with(Some("averages")).unwrap()), 0.75);
    // One state dict: nothing to say, nothing to choose.
    s.write("c2i.pt", model.pt(None));
    assert_eq!(with(None).unwrap().sources[0].weights, None);
    assert_kind!(with(Some("model")), ErrorKind::Option { option: "--weights", .. });
    s.write("c2i.safetensors", model.safetensors());
    let e = TensorFile::open_at(&s.path("c2i.safetensors"), Some("ema")).unwrap_err();
    assert!(matches!(e.kind(), ErrorKind::Option { option: "--weights", .. }), "{e}");
}
