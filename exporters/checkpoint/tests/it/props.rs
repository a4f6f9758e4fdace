//! Properties: no bytes make the readers panic, and nothing that is cut off is accepted.

use dpar_export_spec::Hinted;
use std::sync::LazyLock;

use camino::Utf8Path;
use dpar_export_checkpoint::{LoadOptions, TensorFile, WeightFormat, load, pickle_tensor_names};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{Model, Pickle, PtTensor, System, pt};

static PT: LazyLock<Vec<u8>> = LazyLock::new(|| Model::gpt(16, 12, 3).pt(Some("model")));
static SAFE: LazyLock<Vec<u8>> = LazyLock::new(|| Model::gpt(16, 12, 3).safetensors());

/// Opens and touches everything.
fn touch(bytes: Vec<u8>, format: WeightFormat) -> bool {
    match TensorFile::from_bytes(Utf8Path::new("x"), bytes, format) {
        Ok(f) => {
            for name in f.names() {
                let t = f.get(name).unwrap();
                assert_eq!(t.bytes.len(), t.elements() * t.dtype.size().unwrap_or(0).max(1));
                let _ = (t.to_f32(), t.first_non_finite());
            }
            true
        }
        Err(e) => {
            let _ = (e.to_string(), e.hint());
            false
        }
    }
}

/// Opcodes that PyTorch writes, so that random programs get somewhere.
fn program() -> impl Strategy<Value = Vec<u8>> {
    let op = prop_oneof![
        5 => Just(b"}".to_vec()),
        5 => Just(b"(".to_vec()),
        5 => Just(b")".to_vec()),
        5 => Just(b"]".to_vec()),
        5 => Just(b"u".to_vec()),
        5 => Just(b"s".to_vec()),
        5 => Just(b"t".to_vec()),
        5 => Just(b"R".to_vec()),
        3 => Just(b"Q".to_vec()),
        3 => Just(b"b".to_vec()),
        3 => Just(b"a".to_vec()),
        3 => Just(b"e".to_vec()),
        3 => Just(b"0".to_vec()),
        3 => Just(b"\x85".to_vec()),
        3 => Just(b"\x93".to_vec()),
        3 => Just(b"\x94".to_vec()),
        5 => (0_u8..6).prop_map(|k| vec![b'q', k]),
        8 => (0_u8..6).prop_map(|k| vec![b'h', k]),
        5 => any::<u8>().prop_map(|v| vec![b'K', v]),
        5 => Just(Pickle::default().str("model").0),
        5 => Just(Pickle::default().global("collections", "OrderedDict").0),
        5 => Just(Pickle::default().global("torch._utils", "_rebuild_tensor_v2").0),
        2 => Just(Pickle::default().global("os", "system").0),
        5 => Just(Pickle::default().tensor(&PtTensor::f32("0", &[2, 2])).0),
        2 => vec(any::<u8>(), 1..4),
    ];
    (vec(op, 0..60), any::<bool>()).prop_map(|(ops, stop)| {
        let mut p = ops.concat();
        if stop {
            p.push(b'.');
        }
        p
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000)) {
        touch(bytes.clone(), WeightFormat::Torch);
        touch(bytes.clone(), WeightFormat::Safetensors);
        let _ = pickle_tensor_names(&bytes);
        let zip = [b"PK\x03\x04".as_slice(), &bytes].concat();
        touch(zip, WeightFormat::Torch);
    }

    #[test]
    fn arbitrary_pickles_never_panic(program in program()) {
        let _ = pickle_tensor_names(&program);
        touch(pt(&program, &[("0", &[0; 16])]), WeightFormat::Torch);
    }

    #[test]
    fn damaged_files_never_panic(
        edits in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        tail in any::<bool>(),
    ) {
        for (file, format) in [(&*PT, WeightFormat::Torch), (&*SAFE, WeightFormat::Safetensors)] {
            let mut bytes = file.clone();
            for (at, value) in &edits {
                // The tables lie at the end of a zip and at the start of a safetensors file.
                let window = bytes.len().min(6000);
                let from = if tail { bytes.len() - window } else { 0 };
                bytes[from + at.index(window)] = *value;
            }
            touch(bytes, format);
        }
    }

    #[test]
    fn a_cut_off_file_is_never_accepted(cut in any::<proptest::sample::Index>()) {
        prop_assert!(!touch(PT[..cut.index(PT.len())].to_vec(), WeightFormat::Torch));
        prop_assert!(!touch(SAFE[..cut.index(SAFE.len())].to_vec(), WeightFormat::Safetensors));
    }

}

proptest! {
    // These write files.
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_configurations_and_rules_never_panic(
        bytes in vec(any::<u8>(), 0..300),
        text in "[ \\[\\]{}:,a-z0-9&*!|>'\"#%\n-]{0,120}",
        key in "(model|dataset|patcher|training|exp_name)",
    ) {
        let s = System::new();
        let with_map = LoadOptions { map: Some(s.path("map.yaml")), ..LoadOptions::default() };
        for content in [bytes, text.clone().into_bytes(), format!("{key}: {text}").into_bytes()] {
            s.write("map.yaml", &content);
            let _ = load(&s.path("dpar"), &with_map);
            s.write("dpar/config.yaml", &content);
            let _ = load(&s.path("dpar"), &LoadOptions::default());
        }
    }

    #[test]
    fn arbitrary_numbers_in_a_configuration_never_panic(
        numbers in vec(prop_oneof![any::<i64>().prop_map(|v| v.to_string()), any::<f64>().prop_map(|v| v.to_string()), Just("null".to_owned())], 12),
    ) {
        let s = System::new();
        let n = |i: usize| &numbers[i];
        s.write("dpar/config.yaml", format!(
            "model: {{codebook_size: {}, codebook_embed_dim: {}, downsample_size: {}, n_head: {}, cls_token_num: {}}}\n\
             dataset: {{image_size: {}, num_classes: {}}}\n\
             patcher: {{patching_mode: static, threshold: {}, max_patch_length: {}, block_size: {}, patch_size: {}}}\n",
            n(0), n(1), n(2), n(3), n(4), n(5), n(6), n(7), n(8), n(9), n(10),
        ));
        let _ = s.load();
    }
}
