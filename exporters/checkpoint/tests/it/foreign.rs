//! Files that are something else than their name says.

use camino::Utf8Path;
use dpar_export_checkpoint::{CheckpointError, ErrorKind, TensorFile, WeightFormat};
use dpar_export_spec::Hinted;

use crate::support::{Model, Pickle, PtTensor, archive, assert_kind, f32s, open_pt, pt};

fn open(bytes: &[u8], format: WeightFormat) -> Result<TensorFile, CheckpointError> {
    TensorFile::from_bytes(Utf8Path::new("model.x"), bytes.to_vec(), format)
}

#[test]
fn every_file_is_called_by_its_name() {
    let safetensors = Model::gpt(16, 12, 3).safetensors();
    let torch = Model::gpt(16, 12, 3).pt(None);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let page = b"\n<!DOCTYPE html>\n<html lang=\"en\"><head><title>Sign in</title></head></html>";
    for (bytes, what, hint) in [
        (pointer.as_slice(), "a Git LFS pointer", "git lfs pull"),
        (page.as_slice(), "an HTML page", "download"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "an XML document", "download"),
        (b"{\"error\": \"Invalid credentials\"}", "JSON text", "download"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abcdefgh", "packed with gzip", "unpack"),
        (b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0", "a GGUF file", "state dict"),
        (&[0; 64], "zeros at its start", "interrupted"),
    ] {
        for format in [WeightFormat::Torch, WeightFormat::Safetensors] {
            let e = assert_kind!(open(bytes, format), ErrorKind::OtherFormat { .. });
            assert!(e.to_string().contains(&format!("not a {format} file: it is {what}")), "{e}");
            assert!(e.hint().unwrap().contains(hint), "{e}");
            assert_eq!(e.file(), Some(Utf8Path::new("model.x")));
        }
    }
    let e = assert_kind!(open(&safetensors, WeightFormat::Torch), ErrorKind::OtherFormat { .. });
    assert_eq!(e.hint().unwrap(), "rename it to .safetensors");
    let e = assert_kind!(open(&torch, WeightFormat::Safetensors), ErrorKind::OtherFormat { .. });
    assert!(e.to_string().contains("a ZIP archive, as PyTorch writes it"), "{e}");
    assert_eq!(e.hint().unwrap(), "rename it to .pt");
    for (name, what) in [
        ("arr_0.npy", "a NumPy archive (.npz)"),
        ("model.weights.h5", "a Keras archive"),
        ("archive/models/model.json", "a program of torch.export"),
    ] {
        let e = assert_kind!(open_pt(archive(&[(name, b"x")])), ErrorKind::OtherFormat { .. });
        assert!(e.to_string().contains(what), "{e}");
    }
}

#[test]
fn bytes_behind_an_archive_are_counted_and_not_called_missing() {
    let program = Pickle::new().state_dict(&[("w".to_owned(), PtTensor::f32("0", &[1]))]).stop();
    let whole = pt(&program, &[("0", &f32s([1.0]))]);
    for tail in [b"\n".as_slice(), b"<!-- served by a cache -->", &[0; 70_000]] {
        let e = assert_kind!(open_pt([&whole, tail].concat()), ErrorKind::Malformed { .. });
        assert!(e.to_string().contains(&format!("{} bytes follow the archive's end", tail.len())), "{e}");
    }
}
