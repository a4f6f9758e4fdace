//! Images of another size than the tokenizer makes: resized before they become bytes, by every command alike.

use dpar_export::arrays::ArrayFile;
use dpar_export::picture::{resize_nchw, to_u8_nhwc};
use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{Temp, export, fixture, on, quiet};
use crate::evaluate::Case;

#[test]
fn generate_decode_and_evaluate_resize_alike() {
    let case = Case::new(4);
    let (folder, images, decoded) =
        (case.temp.path("bundle"), case.temp.path("images"), case.temp.path("decoded"));
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &folder);
    let draw = ["--num", "4", "--cfg-scale", "2", "--seed", "5", "--batch", "2", "--resize", "24"];
    let b = folder.as_str();
    let made = run(&[&["generate", b, "--overlay", "-o", images.as_str()], &draw[..]].concat());
    assert_eq!(made.code, 0, "{}", made.stderr);
    let pixels = |folder: &camino::Utf8Path| {
        let file = ArrayFile::open(folder.join("samples.npz")).unwrap();
        file.u8("arr_0", &[Some(4), Some(24), Some(24), Some(3)]).unwrap()
    };
    let found = pixels(&images);

    let trace = ArrayFile::open(images.join("trace.npz")).unwrap();
    let ids: Vec<i64> = trace.i64("tokens", &[Some(4), Some(64)]).unwrap().iter().copied().collect();
    let floats = on(&bundle, "tract").images(&ids, 2, &mut quiet).unwrap();
    let wanted = to_u8_nhwc(&resize_nchw(&floats, 32, 24), 4, 24, 24);
    assert!(found.iter().eq(&wanted));

    let file = images.join("trace.npz");
    let out = decoded.as_str();
    let again = run(&["decode", b, "--tokens", file.as_str(), "--resize", "24", "--batch", "2", "-o", out]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(pixels(&decoded), found);

    let network = fixture("features/tiny.onnx");
    let evaluate = |out: &str, more: &[&str]| {
        let out = case.temp.path(out);
        let common = ["--reference", case.reference.as_str(), "--extractor", network.as_str()];
        let common = [&common[..], &["--input-size", "16", "--json"]].concat();
        run(&[&["evaluate", "-o", out.as_str()], &common[..], more].concat())
    };
    let drawn = evaluate("drawn", &[&["--bundle", b], &draw[..]].concat());
    let read = evaluate("read", &["--samples", images.as_str()]);
    assert_eq!((drawn.code, read.code), (0, 0), "{}{}", drawn.stderr, read.stderr);
    let (drawn, read) = (json(&drawn), json(&read));
    assert_eq!(drawn["protocol"]["image_size"], serde_json::json!([24, 24]));
    assert_eq!(drawn["samples"]["generated"]["resize"], 24);
    assert_eq!(drawn["samples"]["pixels_sha256"], read["samples"]["pixels_sha256"]);
    let stored = evaluate("stored", &["--samples", images.as_str(), "--resize", "24"]);
    assert!(stored.code == 2 && stored.stderr.contains("--resize"), "{}", stored.stderr);
}

#[test]
fn tokens_alone_have_no_size() {
    let temp = Temp::new();
    let (b, out) = (temp.path("b"), temp.path("out"));
    let refused =
        run(&["generate", b.as_str(), "--num", "1", "--no-images", "--resize", "24", "-o", out.as_str()]);
    assert!(refused.code == 2 && refused.stderr.contains("--resize"), "{}", refused.stderr);
}
