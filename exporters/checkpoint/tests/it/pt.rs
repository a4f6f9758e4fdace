//! PyTorch files: every wrapping, every view, every hostile pickle and every broken archive.

use dpar_export_spec::Hinted;
use std::borrow::Cow;

use camino::Utf8Path;
use dpar_export_checkpoint::{ErrorKind, TensorFile, WeightDType, WeightFormat, pickle_tensor_names};

use crate::support::{Model, Pickle, PtTensor, System, archive, assert_kind, f32s, open_pt, pt};

fn one(tensor: PtTensor, storage: &[u8]) -> Vec<u8> {
    let key = tensor.key.clone();
    let program = Pickle::new().op(b"}").str("model").state_dict(&[("w".to_owned(), tensor)]).op(b"s").stop();
    pt(&program, &[(&key, storage)])
}

/// A program that leaves `inner` on the stack under the key "x" of a dictionary with a good state dict.
pub(crate) fn with_extra(inner: Pickle) -> Vec<u8> {
    let w = PtTensor::f32("0", &[1]);
    let program = Pickle::new()
        .op(b"}(")
        .str("model")
        .state_dict(&[("w".to_owned(), w)])
        .str("x")
        .op(&inner.0)
        .op(b"u");
    pt(&program.stop(), &[("0", &f32s([1.0]))])
}

#[test]
fn the_state_dict_is_found_in_every_wrapping() {
    let s = System::new();
    let model = Model::gpt(16, 12, 3);
    for wrapper in [Some("model"), Some("module"), Some("state_dict"), None] {
        let loaded = s.load_gpt("c2i.pt", &model.pt(wrapper)).unwrap();
        assert_eq!(loaded.system.llamagen().unwrap().layers, 2, "{wrapper:?}");
    }
    for prefix in ["module.", "_orig_mod.", "module._orig_mod."] {
        let wrapped = model.rename_all(|n| format!("{prefix}{n}"));
        s.load_gpt("c2i.pt", &wrapped.pt(Some("model"))).unwrap();
        s.load_gpt("c2i.safetensors", &wrapped.safetensors()).unwrap();
    }
}

#[test]
fn an_experiment_folder_may_hold_a_pt() {
    let s = System::new();
    s.remove("dpar/checkpoints/final/model.safetensors");
    s.write("dpar/checkpoints/final/model.pt", Model::dpar().pt(Some("model")));
    assert_eq!(s.load().unwrap().sources[0].name, "checkpoints/final/model.pt");
}

#[test]
fn views_are_gathered_and_contiguous_slices_borrowed() {
    let storage = f32s((0..12).map(|i| i as f32));
    let view = |offset, size: &[i64], stride: &[i64]| PtTensor {
        elements: 12,
        offset,
        size: size.to_vec(),
        stride: stride.to_vec(),
        ..PtTensor::f32("0", &[12])
    };
    let cases: [(PtTensor, &[f32], bool); 6] = [
        (view(2, &[2, 3], &[3, 1]), &[2., 3., 4., 5., 6., 7.], true),
        (view(0, &[3, 4], &[1, 3]), &[0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.], false),
        (view(1, &[2, 2], &[6, 2]), &[1., 3., 7., 9.], false),
        (view(5, &[3, 1], &[0, 99]), &[5., 5., 5.], false),
        (view(11, &[], &[]), &[11.], true),
        (view(0, &[0, 4], &[4, 1]), &[], true),
    ];
    for (tensor, expected, borrowed) in cases {
        let f = open_pt(one(tensor, &storage)).unwrap();
        let w = f.get("w").unwrap();
        assert_eq!(w.to_f32().unwrap().as_ref(), expected);
        assert_eq!(matches!(w.bytes, Cow::Borrowed(_)), borrowed, "{expected:?}");
    }
}

#[test]
fn every_storage_class_is_read() {
    for (class, dtype, size) in [
        ("HalfStorage", WeightDType::F16, 2),
        ("BFloat16Storage", WeightDType::BF16, 2),
        ("DoubleStorage", WeightDType::F64, 8),
        ("LongStorage", WeightDType::I64, 8),
        ("IntStorage", WeightDType::I32, 4),
        ("ShortStorage", WeightDType::I16, 2),
        ("CharStorage", WeightDType::I8, 1),
        ("ByteStorage", WeightDType::U8, 1),
        ("BoolStorage", WeightDType::Bool, 1),
    ] {
        let f = open_pt(one(PtTensor { class, ..PtTensor::f32("0", &[3]) }, &vec![0; 3 * size])).unwrap();
        assert_eq!(f.get("w").unwrap().dtype, dtype);
    }
    let e = assert_kind!(
        open_pt(one(PtTensor { class: "ComplexFloatStorage", ..PtTensor::f32("0", &[1]) }, &[0; 8])),
        ErrorKind::Malformed { .. }
    );
    assert!(e.to_string().contains("torch.ComplexFloatStorage"), "{e}");
}

#[test]
fn views_beyond_their_storage_are_errors() {
    let base = PtTensor::f32("0", &[2, 2]);
    for (what, bad) in [
        ("negative offset", PtTensor { offset: -1, ..base.clone() }),
        ("offset beyond", PtTensor { offset: 1, ..base.clone() }),
        ("huge offset", PtTensor { offset: i64::MAX, ..base.clone() }),
        ("negative stride", PtTensor { stride: vec![-2, 1], ..base.clone() }),
        ("huge stride", PtTensor { stride: vec![i64::MAX, i64::MAX], ..base.clone() }),
        ("negative size", PtTensor { size: vec![-2, 2], ..base.clone() }),
        ("huge size", PtTensor { size: vec![i64::MAX, i64::MAX], ..base.clone() }),
        ("huge size hidden by a zero", PtTensor { size: vec![0, i64::MAX], ..base.clone() }),
        ("expanded", PtTensor { size: vec![1 << 20, 1 << 20], stride: vec![0, 0], ..base.clone() }),
        ("ranks differ", PtTensor { stride: vec![1], ..base.clone() }),
        ("short storage", PtTensor { elements: 5, ..base.clone() }),
        ("negative storage", PtTensor { elements: -4, ..base.clone() }),
        ("huge storage", PtTensor { elements: i64::MAX, ..base.clone() }),
    ] {
        let e = assert_kind!(open_pt(one(bad, &[0; 16])), ErrorKind::MalformedTensor(_));
        assert_eq!((e.file(), e.tensor()), (Some(Utf8Path::new("x.pt")), Some("w")), "{what}");
    }
    let program = Pickle::new().state_dict(&[("w".to_owned(), PtTensor::f32("7", &[1]))]).stop();
    let e = assert_kind!(open_pt(pt(&program, &[])), ErrorKind::MalformedTensor(_));
    assert!(e.to_string().contains("data/7"), "{e}");
}

#[test]
fn hostile_pickles_are_refused_and_named() {
    let system = |p: Pickle| p.global("posix", "system");
    for (what, inner, global) in [
        ("reduce", system(Pickle::default()).str("id").op(b"\x85R"), "posix.system"),
        ("reduce without a tuple", system(Pickle::default()).str("id").op(b"R"), "posix.system"),
        ("newobj", system(Pickle::default()).op(b")\x81"), "posix.system"),
        ("newobj_ex", system(Pickle::default()).op(b")}\x92"), "posix.system"),
        ("build", system(Pickle::default()).op(b"}b"), "posix.system"),
        ("inst", Pickle::default().op(b"(").str("id").op(b"iposix\nsystem\n"), "posix.system"),
        ("obj", system(Pickle::default().op(b"(")).str("id").op(b"o"), "posix.system"),
        (
            "stack_global",
            Pickle::default().str("builtins").str("eval").op(b"\x93").str("1").op(b"\x85R"),
            "builtins.eval",
        ),
        (
            "lookalike",
            Pickle::default().global("torch._utils ", "_rebuild_tensor_v2").op(b")R"),
            "torch._utils ._rebuild_tensor_v2",
        ),
        (
            "inside an allowed call",
            system(Pickle::default().global("argparse", "Namespace")).op(b")R\x85R"),
            "posix.system",
        ),
    ] {
        let e =
            assert_kind!(open_pt(with_extra(inner)), ErrorKind::HostilePickle { global: g } if g == global);
        assert!(
            e.to_string().contains("x.pt") && e.to_string().contains("nothing was executed"),
            "{what}: {e}"
        );
        assert!(e.hint().is_some());
    }
}

#[test]
fn names_that_are_not_called_and_training_metadata_are_harmless() {
    for inner in [
        Pickle::default().global("torch", "float32"),
        Pickle::default().global("posix", "system"),
        Pickle::default().global("argparse", "Namespace").op(b")\x81}").str("a").int(1).op(b"sb"),
        Pickle::default().global("pathlib", "PosixPath").op(b"(").str("/").str("tmp").op(b"tR"),
        Pickle::default()
            .global("collections", "OrderedDict")
            .op(b"](")
            .op(b"]")
            .str("a")
            .op(b"a")
            .int(3)
            .op(b"ae\x85R"),
        Pickle::default().global("torch", "Size").ints(&[1, 2]).op(b"\x85R"),
        Pickle::default().op(b"\x8f(").int(1).op(b"\x90"),
        Pickle::default().op(b"(").int(1).op(b"\x91"),
        Pickle::default().op(b"N\x88\x89K\x01M\x01\x02J\x01\x02\x03\x04((1000000"),
        Pickle::default().op(b"\x8a\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"),
        Pickle::default().op(b"C\x01\xffB\x01\0\0\0\xff00]"),
        Pickle::default().op(b"U\x01\xff"),
    ] {
        open_pt(with_extra(inner)).unwrap();
    }
}

#[test]
fn parameters_are_unwrapped() {
    for (name, state) in [("_rebuild_parameter", ""), ("_rebuild_parameter_with_state", "}")] {
        let w = PtTensor::f32("0", &[2]);
        let program = Pickle::new()
            .op(b"}")
            .str("w")
            .global("torch._utils", name)
            .op(b"(")
            .tensor(&w)
            .op(b"\x88}")
            .op(state.as_bytes())
            .op(b"tRs")
            .stop();
        let f = open_pt(pt(&program, &[("0", &f32s([1.0, 2.0]))])).unwrap();
        assert_eq!(f.get("w").unwrap().to_f32().unwrap().as_ref(), [1.0, 2.0]);
    }
}

#[test]
fn deep_and_cyclic_structures_neither_hang_nor_overflow() {
    let deep = vec![b']'; 500_000];
    let closes = vec![b'a'; 499_999];
    open_pt(with_extra(Pickle::default().op(&deep).op(&closes))).unwrap();
    // A list that holds itself, a dictionary that is its own value, a tuple through a list.
    open_pt(with_extra(Pickle::default().op(b"]q\x05h\x05a"))).unwrap();
    open_pt(with_extra(Pickle::default().op(b"}q\x05").str("model").op(b"h\x05s"))).unwrap();
    let cyclic = Pickle::new().op(b"}q\x01").str("model").op(b"h\x01s").stop();
    assert_kind!(open_pt(pt(&cyclic, &[])), ErrorKind::Malformed { .. });
    // 3 bytes a round that would double a copied container every time.
    let bomb = Pickle::default().op(b"(").op(&b"N2".repeat(1000)).op(b"t").op(&b"2\x86".repeat(100_000));
    open_pt(with_extra(bomb)).unwrap();
}

#[test]
fn memory_is_bounded() {
    // Five bytes a round, each asking for a copy of a thousand pairs.
    let pair = b"](".to_vec();
    let inner = Pickle::default()
        .op(&pair)
        .op(&b"NN\x86".repeat(1000))
        .op(b"eq\x01\x85q\x02")
        .global("collections", "OrderedDict")
        .op(b"q\x03")
        .op(&b"h\x03h\x02R0".repeat(50_000));
    let e = assert_kind!(open_pt(with_extra(inner)), ErrorKind::Malformed { .. });
    assert!(e.to_string().contains("more copies"), "{e}");
    let many = Pickle::default().op(&b"N0".repeat(5_000_000)).op(b"N");
    let e = assert_kind!(open_pt(with_extra(many)), ErrorKind::Malformed { .. });
    assert!(e.to_string().contains("more values"), "{e}");
    let rank = PtTensor { size: vec![1; 9], stride: vec![1; 9], ..PtTensor::f32("0", &[1]) };
    let e = assert_kind!(open_pt(one(rank, &[0; 4])), ErrorKind::Malformed { .. });
    assert!(e.to_string().contains("9 dimensions"), "{e}");
}

#[test]
fn broken_programs_are_errors() {
    for (what, program) in [
        ("unknown opcode", b"\x80\x02\xff.".to_vec()),
        ("protocol 9", b"\x80\x09}.".to_vec()),
        ("pop of nothing", b"0.".to_vec()),
        ("stop on nothing", b".".to_vec()),
        ("tuple without a mark", b"t.".to_vec()),
        ("below the mark", b"N(R.".to_vec()),
        ("memo before write", b"h\x07.".to_vec()),
        ("put on nothing", b"q\x07.".to_vec()),
        ("odd items", b"}(NNNu.".to_vec()),
        ("items on a tuple", b")(NNu.".to_vec()),
        ("append to a dict", b"}Na.".to_vec()),
        ("call of a number", b"K\x01)R.".to_vec()),
        ("persid of a number", b"K\x01Q.".to_vec()),
        ("persid of another kind", b"(NNNNNtQ.".to_vec()),
        ("persid too short", b")Q.".to_vec()),
        ("extension registry", b"\x82\x01.".to_vec()),
        ("text opcode", b"I1\n.".to_vec()),
        ("stack_global of numbers", b"K\x01K\x01\x93.".to_vec()),
        ("not a dictionary", b"K\x01.".to_vec()),
        ("no tensors", b"}.".to_vec()),
        ("global that is not UTF-8", b"c\xff\nx\n.".to_vec()),
        ("size without contents", b"ctorch\nSize\n)R.".to_vec()),
        ("storage by call", b"ctorch\nFloatStorage\n)R.".to_vec()),
        ("tensor without arguments", b"ctorch._utils\n_rebuild_tensor_v2\n)R.".to_vec()),
        ("tensor without a storage", b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.".to_vec()),
        ("obj of data", b"(No.".to_vec()),
    ] {
        let e = pickle_tensor_names(&program).expect_err(what);
        assert!(matches!(e.kind(), ErrorKind::Malformed { .. }), "{what}: {e:?}");
    }
    for program in [
        &b""[..],
        b"\x80",
        b"X\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"}",
        b"cposix",
        b"\x8b\xff\xff\xff\xff",
    ] {
        assert_kind!(pickle_tensor_names(program), ErrorKind::Truncated { .. });
    }
}

#[test]
fn a_tensor_that_is_there_twice_is_an_error() {
    let w = ("w".to_owned(), PtTensor::f32("0", &[1]));
    let program = Pickle::new().state_dict(&[w.clone(), w]).stop();
    assert_kind!(open_pt(pt(&program, &[("0", &[0; 4])])), ErrorKind::Malformed { .. });
}

#[test]
fn formats_older_than_the_readers_say_to_save_again() {
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for old in [b"\x80\x02}.".to_vec(), tar] {
        let e = assert_kind!(open_pt(old), ErrorKind::LegacyTorch);
        assert!(e.hint().unwrap().contains("torch.save"));
    }
    assert_kind!(open_pt(b"hello".to_vec()), ErrorKind::Malformed { .. });
    assert_kind!(open_pt(Vec::new()), ErrorKind::Truncated { .. });
}

fn good() -> Vec<u8> {
    one(PtTensor::f32("0", &[2, 2]), &f32s([1.0, 2.0, 3.0, 4.0]))
}

fn position(haystack: &[u8], needle: &[u8], nth: usize) -> usize {
    haystack.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle).nth(nth).unwrap().0
}

#[test]
fn archives_with_other_features_are_refused() {
    let program = Pickle::new().state_dict(&[("w".to_owned(), PtTensor::f32("0", &[1]))]).stop();
    let big = archive(&[("m/data.pkl", &program), ("m/byteorder", b"big"), ("m/data/0", &[0; 4])]);
    let e = assert_kind!(open_pt(big), ErrorKind::UnsupportedFile(_));
    assert!(e.to_string().contains("`big`"), "{e}");
    let script = archive(&[("m/data.pkl", &program), ("m/constants.pkl", b"."), ("m/data/0", &[0; 4])]);
    assert_kind!(open_pt(script), ErrorKind::UnsupportedFile(_));
    let without = archive(&[("m/data.pkl", &program), ("m/data/0", &[0; 4])]);
    open_pt(without).unwrap();
    let bare = archive(&[("data.pkl", &program), ("data/0", &[0; 4])]);
    open_pt(bare).unwrap();
    let two = archive(&[("a/data.pkl", &program), ("b/data.pkl", &program)]);
    assert_kind!(open_pt(two), ErrorKind::Malformed { .. });
    assert_kind!(open_pt(archive(&[("m/other", b"")])), ErrorKind::Malformed { .. });

    // The central directory's fields: flags at 8, method at 10, sizes at 20 and 24, local offset at 42.
    let central = |nth| position(&good(), b"PK\x01\x02", nth);
    let patched = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut b = good();
        edit(&mut b);
        open_pt(b)
    };
    let e = assert_kind!(patched(&|b| b[central(2) + 10] = 8), ErrorKind::UnsupportedFile(_));
    assert!(e.to_string().contains("compressed"), "{e}");
    let e = assert_kind!(patched(&|b| b[central(2) + 8] |= 1), ErrorKind::UnsupportedFile(_));
    assert!(e.to_string().contains("encrypted"), "{e}");
    assert_kind!(patched(&|b| b[central(2) + 24] ^= 1), ErrorKind::Malformed { .. });
    // Two directory entries for one range, and one name for two ranges.
    assert_kind!(
        patched(&|b| {
            let first: [u8; 4] = b[central(0) + 42..][..4].try_into().unwrap();
            b[central(2) + 42..][..4].copy_from_slice(&first);
        }),
        ErrorKind::Malformed { .. }
    );
    // A record that swallows the next one.
    let e = assert_kind!(
        patched(&|b| {
            for at in [central(0) + 20, central(0) + 24] {
                let size = u32::from_le_bytes(b[at..at + 4].try_into().unwrap()) + 40;
                b[at..at + 4].copy_from_slice(&size.to_le_bytes());
            }
        }),
        ErrorKind::Malformed { .. }
    );
    assert!(e.to_string().contains("overlap"), "{e}");
    // A header that contradicts the directory.
    assert_kind!(patched(&|b| b[position(&good(), b"PK\x03\x04", 1) + 8] = 8), ErrorKind::Malformed { .. });
    // The end record: one entry too few, one too many, several disks.
    let end = position(&good(), b"PK\x05\x06", 0);
    assert_kind!(patched(&|b| b[end + 10] -= 1), ErrorKind::Malformed { .. });
    assert_kind!(patched(&|b| b[end + 10] += 1), ErrorKind::Malformed { .. });
    assert_kind!(patched(&|b| b[end + 4] = 1), ErrorKind::UnsupportedFile(_));
    assert_kind!(patched(&|b| b[end + 12] = 255), ErrorKind::Truncated { .. });
}

#[test]
fn two_records_of_one_name_are_refused() {
    let program = Pickle::new().state_dict(&[("w".to_owned(), PtTensor::f32("0", &[1]))]).stop();
    let mut b = archive(&[("m/data.pkl", &program), ("m/data/0", &[0; 4]), ("m/data/1", &[1; 4])]);
    for _ in 0..2 {
        let at = position(&b, b"m/data/1", 0);
        b[at + 7] = b'0';
    }
    let e = assert_kind!(open_pt(b), ErrorKind::Malformed { .. });
    assert!(e.to_string().contains("two records"), "{e}");
}

#[test]
fn sixty_four_bit_archives_are_read() {
    // Rewritten by hand with a 64-bit end record, its locator, and a 64-bit offset in the last entry's extra field.
    let b = good();
    let end = position(&b, b"PK\x05\x06", 0);
    let field = |at: usize| u64::from(u32::from_le_bytes(b[at..at + 4].try_into().unwrap()));
    let (size, start, count) = (field(end + 12), field(end + 16), u64::from(b[end + 10]));
    let mut wide = b[..end].to_vec();
    let last = position(&b, b"PK\x01\x02", count as usize - 1);
    let name_len = usize::from(b[last + 28]);
    let offset = field(last + 42);
    wide[last + 42..last + 46].fill(0xff);
    wide[last + 30] = 12;
    wide.truncate(last + 46 + name_len);
    wide.extend_from_slice(&[1, 0, 8, 0]);
    wide.extend_from_slice(&offset.to_le_bytes());
    let size = size.max((wide.len() as u64) - start);
    let at64 = wide.len() as u64;
    wide.extend_from_slice(b"PK\x06\x06");
    wide.extend_from_slice(&44_u64.to_le_bytes());
    wide.extend_from_slice(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for v in [count, count, size, start] {
        wide.extend_from_slice(&v.to_le_bytes());
    }
    wide.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    wide.extend_from_slice(&at64.to_le_bytes());
    wide.extend_from_slice(&1_u32.to_le_bytes());
    wide.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    wide.extend_from_slice(&[0xff; 12]);
    wide.extend_from_slice(&[0, 0]);
    let f = open_pt(wide).unwrap();
    assert_eq!(f.get("w").unwrap().to_f32().unwrap().as_ref(), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let whole = good();
    for n in 0..whole.len() {
        let e = open_pt(whole[..n].to_vec()).unwrap_err();
        if n >= 4 {
            assert!(matches!(e.kind(), ErrorKind::Truncated { .. }), "{n}: {e:?}");
        }
    }
}

#[test]
fn names_without_a_weight_ending_are_refused() {
    assert_kind!(TensorFile::open(Utf8Path::new("weights.onnx")), ErrorKind::UnsupportedFile(_));
    assert_kind!(TensorFile::open(Utf8Path::new("nowhere/x.pt")), ErrorKind::NotFound { .. });
    assert_eq!(WeightFormat::from_path(Utf8Path::new("a/X.PTH")), Some(WeightFormat::Torch));
}
