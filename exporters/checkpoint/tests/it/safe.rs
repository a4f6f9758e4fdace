//! safetensors files: broken headers and cut-off files.

use camino::Utf8Path;
use dpar_export_checkpoint::{CheckpointError, ErrorKind, TensorFile, WeightDType, WeightFormat};
use dpar_export_spec::Hinted;

use crate::support::{Model, System, assert_kind};

fn open(bytes: Vec<u8>) -> Result<TensorFile, CheckpointError> {
    TensorFile::from_bytes(Utf8Path::new("x.safetensors"), bytes, WeightFormat::Safetensors)
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut b = (header.len() as u64).to_le_bytes().to_vec();
    b.extend_from_slice(header.as_bytes());
    b.resize(b.len() + data, 0);
    b
}

#[test]
fn tensors_are_read_in_place() {
    let f = open(with_header(
        r#"{"__metadata__":{"a":"b"},"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"h":{"dtype":"F16","shape":[2,1],"data_offsets":[8,12]}}"#,
        12,
    ))
    .unwrap();
    assert_eq!(f.names().collect::<Vec<_>>(), ["h", "i"]);
    assert_eq!(f.shape("h"), Some([2, 1].as_slice()));
    assert_eq!(f.get("i").unwrap().dtype, WeightDType::I64);
    assert!(matches!(f.get("h").unwrap().bytes, std::borrow::Cow::Borrowed(_)));
    assert!(f.get("j").is_none());
}

#[test]
fn broken_headers_are_errors() {
    for (what, bytes) in [
        ("not JSON", with_header("hello", 0)),
        ("offsets beyond", with_header(r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 8)),
        ("data left over", with_header(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 8)),
        ("reversed offsets", with_header(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4)),
        (
            "shape overflow",
            with_header(r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}}"#, 4),
        ),
        ("shape against size", with_header(r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}"#, 4)),
        ("unknown dtype", with_header(r#"{"w":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4)),
        ("deep nesting", with_header(&"[".repeat(100_000), 0)),
        ("huge length", vec![0xff; 16]),
    ] {
        let e = open(bytes).expect_err(what);
        assert!(
            matches!(e.kind(), ErrorKind::Malformed { .. } | ErrorKind::Truncated { .. }),
            "{what}: {e:?}"
        );
        assert_eq!(e.file(), Some(Utf8Path::new("x.safetensors")), "{what}");
    }
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let mut model = Model::default();
    model.add("a", &[2, 3]);
    model.add("b", &[1]);
    let whole = model.safetensors();
    for n in 0..whole.len() {
        let e = open(whole[..n].to_vec()).unwrap_err();
        assert!(matches!(e.kind(), ErrorKind::Truncated { .. }), "{n}: {e:?}");
        assert!(e.hint().is_some());
    }
}

#[test]
fn bytes_behind_the_end_are_counted_and_not_called_missing() {
    let mut model = Model::default();
    model.add("a", &[2, 3]);
    let mut whole = model.safetensors();
    let e = assert_kind!(open(whole[..whole.len() - 3].to_vec()), ErrorKind::Truncated { .. });
    let (cut, size) = (whole.len() - 3, whole.len());
    assert!(e.to_string().contains(&format!("it has {cut} bytes, its header describes {size}")), "{e}");
    whole.extend_from_slice(b"tail");
    let e = assert_kind!(open(whole), ErrorKind::Malformed { .. });
    assert!(e.to_string().contains("4 bytes follow its last tensor"), "{e}");
}

#[test]
fn a_cut_off_file_in_a_folder_is_named() {
    let s = System::new();
    let whole = Model::dpar().safetensors();
    s.write("dpar/checkpoints/final/model.safetensors", &whole[..whole.len() - 1]);
    let e = assert_kind!(s.load(), ErrorKind::Truncated { .. });
    assert!(e.file().unwrap().ends_with("dpar/checkpoints/final/model.safetensors"));
    s.write("dpar/checkpoints/final/model.safetensors", b"");
    assert_kind!(s.load(), ErrorKind::Truncated { .. });
}
