//! PyTorch's format before 1.6.

use std::borrow::Cow;

use camino::Utf8Path;
use dpar_export_checkpoint::ErrorKind;

use crate::support::{Pickle, PtTensor, assert_kind, f32s, open_pt};

const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// A file of these parts; `keys` and `storages` stand in the order of the file.
fn legacy(version: i64, little: bool, object: &[u8], keys: &[&str], storages: &[(i64, &[u8])]) -> Vec<u8> {
    let machine = Pickle::new().op(b"}(").str("protocol_version").int(version).str("little_endian");
    let machine = machine.op(if little { b"\x88" } else { b"\x89" }).op(b"u").stop();
    let list = keys.iter().fold(Pickle::new().op(b"]("), |p, k| p.str(k)).op(b"e").stop();
    let mut file = [MAGIC, &Pickle::new().int(version).stop(), &machine, object, &list].concat();
    for (count, bytes) in storages {
        file.extend(count.to_le_bytes());
        file.extend_from_slice(bytes);
    }
    file
}

/// Two tensors whose storages lie in the other order.
fn object() -> Vec<u8> {
    let second = PtTensor { size: vec![1], elements: 3, offset: 1, ..PtTensor::f32("b", &[1]) };
    Pickle::new().state_dict(&[("x".to_owned(), PtTensor::f32("a", &[2])), ("y".to_owned(), second)]).stop()
}

fn good() -> Vec<u8> {
    let (a, b) = (f32s([1.0, 2.0]), f32s([3.0, 4.0, 5.0]));
    legacy(1001, true, &object(), &["b", "a"], &[(3, &b), (2, &a)])
}

#[test]
fn tensors_are_found_behind_the_pickles() {
    let file = open_pt(good()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(file.get("x").unwrap().to_f32().unwrap().as_ref(), [1.0, 2.0]);
    let y = file.get("y").unwrap();
    assert_eq!(y.to_f32().unwrap().as_ref(), [4.0]);
    assert!(matches!(y.bytes, Cow::Borrowed(_)));
}

#[test]
fn a_storage_reference_of_six_parts_is_read_and_a_view_of_another_storage_refused() {
    let object = |last: &[u8]| {
        Pickle::new()
            .op(b"}(")
            .str("w")
            .global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .str("storage")
            .global("torch", "FloatStorage")
            .str("a")
            .str("cpu")
            .int(1)
            .op(last)
            .op(b"tQ")
            .int(0)
            .ints(&[1])
            .ints(&[1])
            .op(b"\x89tRu")
            .stop()
    };
    let one = f32s([7.0]);
    let file = open_pt(legacy(1001, true, &object(b"N"), &["a"], &[(1, &one)])).unwrap();
    assert_eq!(file.get("w").unwrap().to_f32().unwrap().as_ref(), [7.0]);
    let e = assert_kind!(
        open_pt(legacy(1001, true, &object(b")"), &["a"], &[(1, &one)])),
        ErrorKind::Malformed { .. }
    );
    assert!(e.to_string().contains("view of another"), "{e}");
}

#[test]
fn what_does_not_fit_is_refused_and_named() {
    let (a, b) = (f32s([1.0, 2.0]), f32s([3.0, 4.0, 5.0]));
    assert_kind!(open_pt(legacy(1002, true, &object(), &[], &[])), ErrorKind::Malformed { .. });
    assert_kind!(open_pt(legacy(1001, false, &object(), &[], &[])), ErrorKind::UnsupportedFile(_));
    let missing = legacy(1001, true, &object(), &["b"], &[(3, &b)]);
    let e = assert_kind!(open_pt(missing), ErrorKind::MalformedTensor(_));
    assert_eq!((e.file(), e.tensor()), (Some(Utf8Path::new("x.pt")), Some("x")));
    let other = legacy(1001, true, &object(), &["b", "c"], &[(3, &b), (2, &a)]);
    assert!(assert_kind!(open_pt(other), ErrorKind::Malformed { .. }).to_string().contains("`c`"));
    for count in [-1, i64::MAX, 4] {
        let long = legacy(1001, true, &object(), &["b", "a"], &[(3, &b), (count, &a)]);
        assert_kind!(open_pt(long), ErrorKind::Truncated { .. });
    }
    let e = assert_kind!(open_pt([good(), b"tail".to_vec()].concat()), ErrorKind::Malformed { .. });
    assert!(e.to_string().contains("4 bytes follow its last storage"), "{e}");
    let short = legacy(1001, true, &object(), &["b", "a"], &[(3, &b), (1, &a)]);
    assert_kind!(open_pt(short), ErrorKind::MalformedTensor(_));
    let hostile = Pickle::new().global("posix", "system").str("id").op(b"\x85R").stop();
    let e = assert_kind!(open_pt(legacy(1001, true, &hostile, &[], &[])), ErrorKind::HostilePickle { .. });
    assert!(e.to_string().contains("posix.system"), "{e}");
}

#[test]
fn cut_anywhere_it_is_an_error_and_no_panic() {
    let whole = good();
    for length in 0..whole.len() {
        assert!(open_pt(whole[..length].to_vec()).is_err(), "{length}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        if let Ok(file) = open_pt(bytes) {
            file.names().for_each(|n| drop(file.get(n).map(|t| t.to_f32().map(|f| f.len()))));
        }
    }
}
