//! `metrics`: files that numpy wrote, against numbers that numpy computed; hostile files.

use std::io::Write;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{ArrayRef, write_npz};
use serde_json::Value;

use crate::cli::{Run, json, run};
use crate::common::{Temp, fixture};

fn numpy(name: &str) -> Utf8PathBuf {
    fixture("metrics/numpy").join(name)
}

fn metrics(samples: &Utf8Path, reference: &Utf8Path, more: &[&str]) -> Run {
    let mut args =
        vec!["metrics", "--activations", samples.as_str(), "--reference", reference.as_str(), "--json"];
    args.extend(more);
    run(&args)
}

fn value(report: &Value, metric: &str) -> f64 {
    report["metrics"][metric]["value"].as_f64().unwrap_or_else(|| panic!("{metric}: {report}"))
}

#[test]
fn numbers_are_those_of_numpy() {
    let text = fs_err::read_to_string(numpy("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let want = |key: &str| expected[key].as_f64().unwrap();
    let near = |found: f64, key: &str| {
        // Full rank, f64 on both sides.
        assert!((found - want(key)).abs() <= 1e-8 * want(key), "{key}: {found} want {}", want(key));
    };
    let options = ["--kid-subset-size", "20", "--threads", "2"];
    // Stored and deflated, row- and column-major; then stored statistics.
    let out = metrics(&numpy("saved.npz"), &numpy("compressed.npz"), &options);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let report = json(&out);
    for key in ["fid", "sfid", "inception_score", "kid"] {
        near(value(&report, key), key);
    }
    for key in ["precision", "recall"] {
        assert_eq!(report["metrics"][key]["details"]["count"], expected[format!("{key}_count")], "{key}");
    }
    let interval = &report["metrics"]["fid"]["interval_90"];
    assert!(interval[0].as_f64().unwrap() < want("fid") && interval[1].as_f64().unwrap() > want("fid"));
    assert!(report["metrics"]["kid_subsets"]["details"]["std_over_subsets"].as_f64().unwrap() > 0.0);
    assert_eq!(report["protocol"]["settings"]["variant"], "guided-diffusion");
    let same = metrics(
        &numpy("saved.npz"),
        &numpy("compressed.npz"),
        &["--kid-subset-size", "20", "--threads", "1"],
    );
    assert_eq!(same.stdout, out.stdout, "no number depends on the threads");

    let report = json(&metrics(&numpy("saved.npz"), &numpy("reference.npz"), &[]));
    near(value(&report, "fid"), "fid");
    near(value(&report, "sfid"), "sfid");
    for key in ["precision", "recall", "kid"] {
        let reason = report["not_computed"][key].as_str().unwrap();
        assert!(reason.contains("both sides") && reason.contains("evaluate --extractor"), "{report}");
    }
    let other =
        json(&metrics(&numpy("saved.npz"), &numpy("reference.npz"), &["--variant", "torch-fidelity"]));
    assert_eq!(other["metrics"]["fid"]["name"], "FID (torch-fidelity) on 16 features");
    assert_eq!(other["metrics"]["inception_score"]["details"]["splits"].as_array().unwrap().len(), 10);
}

#[test]
fn another_network_has_no_fid() {
    let named = numpy("named.npz");
    let out = metrics(&named, &named, &[]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let report = json(&out);
    assert_eq!(report["metrics"]["frechet_distance"]["name"], "Fréchet distance on Tiny network");
    assert!(report["metrics"]["fid"].is_null());
    assert_eq!(report["metrics"]["precision"]["value"], 1.0);
    assert!(!out.stdout.contains("FID"), "{}", out.stdout);
    let text = run(&["metrics", "--activations", named.as_str(), "--reference", named.as_str()]).stdout;
    assert!(text.contains("Fréchet distance on Tiny network") && !text.contains("FID"), "{text}");

    let mixed = metrics(&named, &numpy("saved.npz"), &[]);
    assert!(mixed.code == 2 && mixed.stderr.contains("Tiny network"), "{}", mixed.stderr);
}

/// A zip of stored members.
fn zip(path: &Utf8Path, members: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(fs_err::File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// An `.npy` with this header dictionary and body.
fn npy(header: &str, body: &[u8]) -> Vec<u8> {
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    let length = u16::try_from(header.len() + 1).unwrap();
    out.extend(length.to_le_bytes());
    out.extend(header.as_bytes());
    out.push(b'\n');
    out.extend(body);
    out
}

#[test]
fn hostile_files_are_refused_with_a_reason() {
    let temp = Temp::new();
    let path = temp.path("x.npz");
    let header = |descr: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")
    };
    let good = npy(&header("'<f4'", "(4, 2)"), &[0; 32]);
    let refused = |why: &str| {
        for (a, b) in [(&path, &numpy("saved.npz")), (&numpy("saved.npz"), &path)] {
            let out = metrics(a, b, &[]);
            assert_eq!(out.code, 2, "{why}: {}", out.stderr);
            assert!(out.stderr.contains(why) && out.stdout.is_empty(), "{why}: {}", out.stderr);
        }
    };
    zip(&path, &[("pool_3.npy", &npy(&header("'|O'", "(4,)"), b"\x80\x04N."))]);
    refused("pickled Python objects, never read");
    zip(&path, &[("pool_3.npy", &npy(&header("'<c8'", "(4, 2)"), &[0; 64]))]);
    refused("<c8");
    zip(&path, &[("pool_3.npy", &npy(&header("'<f4'", "(1099511627776, 2)"), &[0; 32]))]);
    refused("truncated");
    zip(&path, &[("pool_3.npy", &npy(&header("'<f4'", "(1099511627776, 1099511627776)"), &[0; 32]))]);
    refused("too large");
    zip(&path, &[("pool_3.npy", &[&b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"[..], &[b' '; 64]].concat())]);
    refused("header of 2147483647 bytes");
    zip(&path, &[("pool_3", &good), ("features.npy", &good)]);
    refused("neither `pool_3` nor `mu` and `sigma` (it has `features`)");
    zip(&path, &[("mu.npy", &npy(&header("'<f8'", "(2,)"), &[0; 16]))]);
    refused("`mu` without `sigma`");
    zip(&path, &[("pool_3.npy", &npy(&header("'<f4'", "(8,)"), &[0; 32]))]);
    refused("where one row an image is wanted");
    zip(&path, &[("pool_3.npy", &npy(&header("'<f4'", "(2, 1)"), &f32::NAN.to_le_bytes().repeat(2)))]);
    refused("image 0 holds NaN");
    zip(&path, &[("pool_3.npy", &good), ("logits.npy", &npy(&header("'<f4'", "(3, 2)"), &[0; 24]))]);
    refused("`pool_3` holds 4 images, `logits` 3");
    for (mu, sigma) in [("(2,)", "(3, 3)"), ("(2, 1)", "(2, 2)")] {
        let (mu, sigma) = (npy(&header("'<f8'", mu), &[0; 16]), npy(&header("'<f8'", sigma), &[0; 72]));
        zip(&path, &[("mu.npy", &mu), ("sigma.npy", &sigma)]);
        refused("is wanted");
    }
    // Not a covariance.
    let numbers = |v: &[f64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (mu, sigma) = (numbers(&[0.0, 0.0]), numbers(&[1.0, 5.0, -5.0, 1.0]));
    let members = [npy(&header("'<f8'", "(2,)"), &mu), npy(&header("'<f8'", "(2, 2)"), &sigma)];
    zip(&path, &[("mu.npy", &members[0]), ("sigma.npy", &members[1])]);
    refused("differ by more than rounding");
    fs_err::write(&path, b"PK\x03\x04 no archive").unwrap();
    refused("zip archive");
    // Every way to cut a file.
    let whole = fs_err::read(numpy("compressed.npz")).unwrap();
    for end in (0..whole.len() - 1).step_by(whole.len() / 6) {
        fs_err::write(&path, &whole[..end]).unwrap();
        refused("x.npz");
    }
    // A deflated member that promises more than deflate can hold.
    let mut bomb = zip::ZipWriter::new(fs_err::File::create(&path).unwrap());
    bomb.start_file("pool_3.npy", zip::write::SimpleFileOptions::default()).unwrap();
    bomb.write_all(&npy(&header("'<f4'", "(300000000, 2048)"), &[0; 4096])).unwrap();
    bomb.finish().unwrap();
    refused("truncated");
    let missing = temp.path("missing.npz");
    let out = metrics(&missing, &missing, &[]);
    assert!(out.code == 2 && out.stderr.contains("missing.npz"), "{}", out.stderr);
}

#[test]
fn unlike_sides_are_refused() {
    let temp = Temp::new();
    let narrow = temp.path("narrow.npz");
    let shape = [5, 3];
    write_npz(&narrow, &[("pool_3", ArrayRef::f32(&shape, &[0.5; 15]))]).unwrap();
    let out = metrics(&numpy("saved.npz"), &narrow, &[]);
    assert!(out.code == 2 && out.stderr.contains("has 16 features"), "{}", out.stderr);
    // Statistics cannot be samples.
    let out = metrics(&numpy("reference.npz"), &numpy("saved.npz"), &[]);
    assert!(out.code == 2 && out.stderr.contains("no `pool_3`"), "{}", out.stderr);
    let one = temp.path("one.npz");
    let shape = [1, 16];
    write_npz(&one, &[("pool_3", ArrayRef::f32(&shape, &[0.5; 16]))]).unwrap();
    let out = metrics(&one, &numpy("saved.npz"), &[]);
    assert!(out.code == 2 && out.stderr.contains("at least 2 are needed"), "{}", out.stderr);
}
