//! Resizes against numpy (TF 1's rule) and Pillow, bit for bit: `fixtures/metrics/resize.py`.

use crate::golden::compute;
use crate::synthetic::word;
use dpar_export_metrics::*;
use sha2::{Digest, Sha256};

fn sha(bytes: impl IntoIterator<Item = u8>) -> String {
    hex::encode(Sha256::digest(bytes.into_iter().collect::<Vec<u8>>()))
}

fn image(seed: u64, h: usize, w: usize) -> Vec<u8> {
    (0..h * w * 3).map(|i| word(seed, 0, i) as u8).collect()
}

#[test]
fn resizes_are_those_of_tf1_and_pillow() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/metrics/resize.json");
    let fixture: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        let size = |key: &str| {
            let v: Vec<usize> =
                case[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
            (v[0], v[1])
        };
        let (input, output) = (size("input"), size("output"));
        let image = image(case["seed"].as_u64().unwrap(), input.0, input.1);
        assert_eq!(sha(image.iter().copied()), case["image_sha256"].as_str().unwrap());
        let resize = |kind| Resizer::new(kind, input, output).unwrap().resize(&image).unwrap();
        for (kind, key) in
            [(Resize::Tf1Bilinear, "tf1_sha256_f32le"), (Resize::PilBicubic, "pil_bicubic_sha256_f32le")]
        {
            let found = sha(resize(kind).into_iter().flat_map(f32::to_le_bytes));
            assert_eq!(found, case[key].as_str().unwrap(), "{kind:?} {input:?} to {output:?}");
        }
        let half = resize(Resize::HalfPixelBilinear);
        for (point, want) in
            case["points_yxc"].as_array().unwrap().iter().zip(case["half_pixel"].as_array().unwrap())
        {
            let at = |i: usize| point[i].as_u64().unwrap() as usize;
            let found = half[(at(0) * output.1 + at(1)) * 3 + at(2)];
            let want = want.as_f64().unwrap();
            assert!((f64::from(found) - want).abs() < 1e-6, "{point} {found} {want}");
        }
        let mean = half.iter().map(|&v| f64::from(v)).sum::<f64>() / half.len() as f64;
        assert!((mean - case["half_pixel_mean"].as_f64().unwrap()).abs() < 1e-6);
    }
}

#[test]
fn batches_are_normalised_planes_whatever_the_threads() {
    let images: Vec<u8> = (0..3).flat_map(|s| image(s, 20, 30)).collect();
    for kind in [Resize::Tf1Bilinear, Resize::HalfPixelBilinear, Resize::PilBicubic] {
        let resizer = Resizer::new(kind, (20, 30), (29, 31)).unwrap();
        let mut out = vec![0.0; 3 * resizer.output_len()];
        resizer.run(&images, &mut out, compute()).unwrap();
        let mut again = out.clone();
        resizer.run(&images, &mut again, &Compute::new(1).unwrap()).unwrap();
        assert_eq!(out, again);
        assert!(out.iter().all(|v| (-1.0..=1.0).contains(v)));
        for (i, image) in images.chunks(20 * 30 * 3).enumerate() {
            let pixels = resizer.resize(image).unwrap();
            for (at, v) in pixels.iter().enumerate() {
                let (pixel, c) = (at / 3, at % 3);
                assert_eq!(out[(i * 3 + c) * 29 * 31 + pixel], kind.normalise(*v));
            }
        }
    }
}

#[test]
fn recorded_normalisation() {
    // Points and normalised points of `expected.json`.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/metrics/expected.json");
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let case = &expected["resize"]["256x256->299 seed31"];
    for (raw, want) in case["tf1"].as_array().unwrap().iter().zip(case["norm_points_tf1"].as_array().unwrap())
    {
        let found = Resize::Tf1Bilinear.normalise(raw.as_f64().unwrap() as f32);
        assert_eq!(found, want.as_f64().unwrap() as f32);
    }
}

#[test]
fn sizes_are_checked() {
    assert!(matches!(Resizer::new(Resize::Tf1Bilinear, (0, 3), (2, 2)), Err(MetricError::Parameter { .. })));
    assert!(Resizer::new(Resize::Tf1Bilinear, (3, 3), (2, usize::MAX)).is_err());
    let resizer = Resizer::inception(Resize::PilBicubic, (2, 2)).unwrap();
    assert!(matches!(resizer.resize(&[0; 11]), Err(MetricError::Shape { .. })));
    assert!(matches!(resizer.run(&[0; 12], &mut [0.0; 5], compute()), Err(MetricError::Shape { .. })));
    assert!(matches!(resizer.run(&[0; 13], &mut [], compute()), Err(MetricError::Shape { .. })));
    resizer.run(&[], &mut [], compute()).unwrap();
}
