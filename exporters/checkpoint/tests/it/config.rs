//! Configurations: disagreement with tensors, unsupported values, the patch rule.

use dpar_export_checkpoint::{ErrorKind, LoadOptions};
use dpar_export_spec::{Hinted, PatchMode, PatchRope, PatchRuleError};

use crate::support::{Model, System, assert_kind};

const DPAR: &str = "dpar/config.yaml";
const ENTROPY: &str = "entropy/config.yaml";

/// Loads after one edit of a configuration.
fn edited(
    name: &str,
    from: &str,
    to: &str,
) -> Result<dpar_export_checkpoint::Loaded, dpar_export_checkpoint::CheckpointError> {
    let s = System::new();
    s.edit(name, from, to);
    s.load()
}

#[test]
fn a_configuration_that_disagrees_names_both() {
    let s = System::new();
    let mut m = Model::dpar();
    m.add("tok_embeddings.weight", &[13, 16]);
    m.add("output.weight", &[13, 16]);
    s.weights(&m);
    let e = assert_kind!(s.load(), ErrorKind::Disagreement { .. });
    assert!(
        e.to_string().contains(
            "config.yaml says model.codebook_size 12, tensor tok_embeddings.weight in model.safetensors has 13 rows \
             (predict_eoi_token is false)"
        ),
        "{e}"
    );
    assert_eq!(e.tensor(), Some("tok_embeddings.weight"));

    // With an end-of-image token the same tensors are right.
    s.edit(DPAR, "  n_head: 1", "  n_head: 1\n  predict_eoi_token: true");
    let system = s.load().unwrap().system;
    assert_eq!((system.vocab, system.dpar().unwrap().token_rows), (12, 13));

    for (name, from, to, text) in [
        (DPAR, "num_classes: 3", "num_classes: 4", "dataset.num_classes 4"),
        (
            DPAR,
            "DGPT-tiny",
            "DGPT-B",
            "model.gpt_model DGPT-B (width 768, layers E1 G8 D3), the tensors in model.safetensors have width 16, layers E1 G2 D1",
        ),
        (DPAR, "DGPT-tiny", "GPT-XL", "36 layers"),
        (ENTROPY, "codebook_size: 12", "codebook_size: 11", "model.codebook_size 11"),
        (ENTROPY, "image_size: 16", "image_size: 32", "8 tokens per row"),
    ] {
        let e = assert_kind!(edited(name, from, to), ErrorKind::Disagreement { .. });
        assert!(e.to_string().contains(text), "{e}");
        assert!(e.file().unwrap().ends_with(name), "{e}");
    }
}

#[test]
fn the_entropy_model_has_the_same_codebook() {
    let s = System::new();
    s.write("entropy/checkpoints/final/model.safetensors", Model::gpt(16, 20, 0).safetensors());
    s.edit(ENTROPY, "codebook_size: 12, ", "");
    let e = assert_kind!(s.load(), ErrorKind::Disagreement { .. });
    assert!(e.to_string().contains("codebook of 20") && e.to_string().contains("one of 12"), "{e}");
}

#[test]
fn unsupported_values_list_the_supported_ones() {
    for (from, to, known) in [
        ("gpt_type: c2i", "gpt_type: t2i", "c2i"),
        ("gpt_type: c2i", "gpt_type: ucond", "c2i"),
        ("dynamic_4d", "dynamic_5d", "dynamic_4d, dynamic_3d"),
        ("entropy_row_boundary", "space", "entropy_row_boundary, entropy, static, token"),
        ("dataset:", "training: {use_ca_rope: true}\ndataset:", "false"),
    ] {
        let e = assert_kind!(edited(DPAR, from, to), ErrorKind::UnsupportedConfig { .. });
        assert!(e.to_string().contains(known), "{e}");
    }
    assert_kind!(edited(ENTROPY, "ucond", "c2i"), ErrorKind::UnsupportedConfig { .. });
}

#[test]
fn missing_and_bad_keys_are_named() {
    for (name, from, to, key) in [
        (DPAR, "cls_token_num: 1", "cls_token_num: 2", "model.cls_token_num"),
        (ENTROPY, "cls_token_num: 0", "cls_token_num: 1", "model.cls_token_num"),
        (DPAR, "image_size: 16, ", "", "dataset.image_size"),
        (DPAR, "  downsample_size: 4\n", "", "model.downsample_size"),
        (DPAR, "image_size: 16", "image_size: 17", "dataset.image_size"),
        (DPAR, "image_size: 16", "image_size: 0", "dataset.image_size"),
        (DPAR, "image_size: 16", "image_size: 1000000000000", "dataset.image_size"),
        (DPAR, "downsample_size: 4", "downsample_size: 0", "dataset.image_size"),
        (DPAR, "  patching_mode: entropy_row_boundary\n", "", "patcher.patching_mode"),
    ] {
        let e = assert_kind!(edited(name, from, to), ErrorKind::Config { key: Some(k), .. } if k == key);
        assert!(e.to_string().contains("config.yaml") && e.to_string().contains(key), "{e}");
    }
    for (from, to, blamed) in [
        ("codebook_size: 12", "codebook_size: many", Some("model.codebook_size")),
        ("codebook_size: 12", "codebook_size: -1", Some("model.codebook_size")),
        ("gpt_type: c2i", "gpt_type: [1]", Some("model.gpt_type")),
        ("threshold: 2.5", "threshold: {a: 1}", Some("patcher.threshold")),
        ("exp_name: tiny", "exp_name: tiny\nexp_name: twice", None),
        ("exp_name: tiny", "exp_name: [", None),
    ] {
        let e =
            assert_kind!(edited(DPAR, from, to), ErrorKind::Config { key, .. } if key.as_deref() == blamed);
        assert!(e.file().unwrap().ends_with(DPAR), "{e}");
    }
    let e = assert_kind!(edited(DPAR, "model:", "model: 7\nother:"), ErrorKind::Config { key: Some(_), .. });
    assert!(e.to_string().contains("is looked for in 7, which holds no keys"), "{e}");
}

#[test]
fn heads_must_fit_the_width_and_the_rotary_embedding() {
    for (rope, heads, ok) in [
        ("dynamic_4d", "1", true),
        ("dynamic_4d", "2", false),
        ("dynamic_3d", "2", true),
        ("dynamic_3d", "4", false),
        ("null", "4", true),
        ("null", "8", false),
        ("null", "3", false),
        ("null", "0", false),
    ] {
        let s = System::new();
        s.edit(DPAR, "dynamic_4d", rope);
        s.edit(DPAR, "n_head: 1", &format!("n_head: {heads}"));
        match s.load() {
            Ok(l) => assert!(ok && l.system.dpar().unwrap().heads.to_string() == heads, "{rope} {heads}"),
            Err(e) => assert!(!ok && matches!(e.kind(), ErrorKind::Sizes(_)), "{rope} {heads}: {e}"),
        }
    }
    // Without n_head: one per 64, which a width of 16 is not.
    let e = assert_kind!(edited(DPAR, "  n_head: 1\n", ""), ErrorKind::Sizes(_));
    assert!(e.hint().unwrap().contains("n_head"));
    let s = System::new();
    let m = Model::gpt(128, 12, 3);
    s.edit("gpt.yaml", ", n_head: 1", "");
    assert_eq!(s.load_gpt("x.pt", &m.pt(None)).unwrap().system.llamagen().unwrap().heads, 2);
}

#[test]
fn patcher_keys_become_the_rule() {
    let s = System::new();
    let r = s.load().unwrap().system.patch_rule;
    assert_eq!(
        (r.mode, r.threshold, r.max_patch_length),
        (PatchMode::EntropyRowBoundary, Some(2.5), Some(3))
    );
    s.edit(DPAR, "entropy_row_boundary", "entropy");
    s.edit(DPAR, "  max_patch_length: 3\n", "  monotonicity: true\n");
    let l = s.load().unwrap();
    assert_eq!(l.system.patch_rule.mode, PatchMode::Entropy);
    assert!(l.system.patch_rule.monotonicity);
    assert_eq!(l.system.longest_patch(), 16);
    s.edit(DPAR, "patching_mode: entropy", "patch_size: 2.5\n  patching_mode: static");
    let l = s.load().unwrap();
    assert_eq!((l.components.len(), l.system.longest_patch()), (1, 3));
    s.edit(DPAR, "patching_mode: static", "patching_mode: token");
    assert_eq!(s.load().unwrap().system.patch_rule.mode, PatchMode::Token);
    let e = assert_kind!(
        s.load_with(LoadOptions { entropy: Some(s.path("entropy")), ..LoadOptions::default() }),
        ErrorKind::Option { option: "--entropy", .. }
    );
    assert!(e.hint().is_some());
}

#[test]
fn unusable_patch_rules_are_refused() {
    let rule = |from, to| {
        let e = assert_kind!(edited(DPAR, from, to), ErrorKind::PatchRule(_));
        match e.kind() {
            ErrorKind::PatchRule(e) => e.clone(),
            _ => unreachable!(),
        }
    };
    assert_eq!(rule("  threshold: 2.5\n", ""), PatchRuleError::NoThreshold);
    assert_eq!(rule("threshold: 2.5", "threshold: .inf"), PatchRuleError::BadThreshold(f32::INFINITY));
    assert_eq!(rule("max_patch_length: 3", "max_patch_length: 0"), PatchRuleError::BadMaxLength);
    assert_eq!(rule("entropy_row_boundary", "static"), PatchRuleError::BadPatchSize(None));
}

#[test]
fn absent_keys_have_their_defaults_and_unknown_keys_are_ignored() {
    let s = System::new();
    s.edit(DPAR, "  embedding_type: dynamic_4d\n", "  surprise: [1, {a: 2}]\n  vq_ckpt: null\n");
    s.edit(DPAR, "exp_name: tiny", "training:\nlogging: !custom {x: 1}");
    s.edit(DPAR, "threshold: 2.5", "threshold: 3");
    let l = s.load().unwrap();
    let d = l.system.dpar().unwrap();
    assert_eq!((d.patch_rope, d.encoder_block_causal), (PatchRope::Index, false));
    assert_eq!(l.system.patch_rule.threshold, Some(3.0));
    assert_eq!(l.system.name, "DGPT-tiny");
    s.edit(DPAR, "n_head: 1", "n_head: 1\n  encoder_block_causal: yes");
    assert!(s.load().unwrap().system.dpar().unwrap().encoder_block_causal);
}

/// What the research code makes of values that are not written as the type they are read as.
#[test]
fn values_are_taken_as_the_research_code_takes_them() {
    type Check = fn(&dpar_export_checkpoint::Loaded) -> bool;
    let cases: [(&str, &str, Check); 14] = [
        ("image_size: 16", "image_size: 16.0", |l| l.system.image_size == 16),
        ("image_size: 16", "image_size: '${model.side}'", |l| l.system.image_size == 16),
        ("codebook_size: 12", "codebook_size: ${..twelve}", |l| l.system.vocab == 12),
        ("num_classes: 3", "num_classes: '3'", |l| l.system.num_classes == 3),
        ("threshold: 2.5", "threshold: '2.5'", |l| l.system.patch_rule.threshold == Some(2.5)),
        ("max_patch_length: 3", "max_patch_length: 3.0", |l| l.system.patch_rule.max_patch_length == Some(3)),
        ("max_patch_length: 3", "monotonicity: 1", |l| l.system.patch_rule.monotonicity),
        ("max_patch_length: 3", "monotonicity: 'off'", |l| !l.system.patch_rule.monotonicity),
        ("n_head: 1", "encoder_block_causal: 1\n  n_head: 1.0", |l| {
            l.system.dpar().unwrap().encoder_block_causal
        }),
        ("n_head: 1", "encoder_block_causal: 'true'\n  n_head: 1", |l| {
            l.system.dpar().unwrap().encoder_block_causal
        }),
        ("n_head: 1", "encoder_block_causal: null\n  n_head: 1", |l| {
            !l.system.dpar().unwrap().encoder_block_causal
        }),
        ("exp_name: tiny", "exp_name: run-${dataset.num_classes}", |l| l.system.name == "run-3"),
        ("exp_name: tiny", "exp_name: ${now:%Y}", |l| l.system.name == "DGPT-tiny" && l.notes.len() == 1),
        ("exp_name: tiny", "training:\nexp_name: 7", |l| l.system.name == "7"),
    ];
    for (from, to, check) in cases {
        let s = System::new();
        s.edit(DPAR, "model:", "twelve: 12\nmodel:\n  side: 16");
        s.edit(DPAR, from, to);
        let loaded = s.load().unwrap_or_else(|e| panic!("{to}: {e}"));
        assert!(check(&loaded), "{to}: {:?}", loaded.system);
    }
    for (from, to, why) in [
        (
            "n_head: 1",
            "n_head: 1\n  encoder_block_causal: 'false'",
            "says false, and the research code takes it for true",
        ),
        (
            "n_head: 1",
            "n_head: 1\n  encoder_block_causal: 'No'",
            "says false, and the research code takes it for true",
        ),
        (
            "n_head: 1",
            "n_head: 1\n  encoder_block_causal: maybe",
            "says no truth value, and the research code takes it for true",
        ),
        (
            "n_head: 1",
            "n_head: 1\n  predict_eoi_token: 'false'",
            "says false, and the research code takes it for true",
        ),
        (
            "dataset:",
            "training: {use_ca_rope: 'off'}\ndataset:",
            "says false, and the research code takes it for true",
        ),
        ("n_head: 1", "n_head: 1\n  encoder_block_causal: 2", "must be true or false, not 2"),
        ("num_classes: 3", "num_classes: 3.5", "must be a whole number from 0 on, not 3.5"),
        ("threshold: 2.5", "threshold: high", "must be a number, not \"high\""),
        ("max_patch_length: 3", "monotonicity: 3", "must be true or false, not 3"),
        ("image_size: 16", "image_size: '${dataset.side}'", "`${dataset.side}` names no key"),
        ("image_size: 16", "image_size: ???", "must be given"),
        ("gpt_type: c2i", "gpt_type: ${oc.env:TYPE}", "asks for the resolver `oc.env`"),
    ] {
        let e = assert_kind!(edited(DPAR, from, to), ErrorKind::Config { key: Some(_), .. });
        assert!(e.to_string().contains(why), "{to}: {e}");
    }
}

#[test]
fn keys_count_where_they_are_read_and_nowhere_else() {
    // Only the patch model has the row and the rotary embedding that these name.
    let s = System::new();
    s.edit(ENTROPY, "n_head: 1", "n_head: 1, predict_eoi_token: true");
    s.edit(ENTROPY, "dataset:", "training: {use_ca_rope: true}\npatcher: 7\ndataset:");
    s.load().unwrap();
    s.edit("gpt.yaml", "n_head: 1", "n_head: 1, predict_eoi_token: true");
    s.edit("gpt.yaml", "dataset:", "training: {use_ca_rope: 'off'}\ndataset:");
    assert_eq!(s.load_gpt("x.pt", &Model::gpt(16, 12, 3).pt(None)).unwrap().system.vocab, 12);
    // The row length: in one mode.
    s.edit(DPAR, "block_size: 4", "block_size: 6");
    let rule = s.load().unwrap().system.patch_rule;
    assert_eq!((rule.block_size, rule.row(), rule.grid), (Some(6), 6, 4));
    s.edit(DPAR, "block_size: 6", "block_size: 0");
    assert_kind!(s.load(), ErrorKind::PatchRule(PatchRuleError::BadBlockSize));
    s.edit(DPAR, "entropy_row_boundary", "entropy");
    assert_eq!(s.load().unwrap().system.patch_rule.block_size, None);
    s.edit(DPAR, "block_size: 0", "block_size: wide");
    s.load().unwrap();
    // Paths that the command line gives.
    s.edit(DPAR, "../entropy/config.yaml", "${oc.env:CONFIG}");
    assert_kind!(s.load(), ErrorKind::Config { key: Some(_), .. });
    s.load_with(LoadOptions { entropy: Some(s.path("entropy")), ..LoadOptions::default() }).unwrap();
}

#[test]
fn a_patch_model_without_patch_encoder_is_no_llamagen() {
    let s = System::new();
    let file = Model::gpt(16, 12, 3).pt(None);
    s.edit("gpt.yaml", "gpt_type: c2i", "gpt_type: c2i, gpt_model: DGPT-flat, embedding_type: dynamic_4d");
    let e = assert_kind!(
        s.load_gpt("x.pt", &file),
        ErrorKind::UnsupportedConfig { key: "model.embedding_type", .. }
    );
    assert!(e.hint().unwrap().contains("turns its slots as patches"), "{e}");
    s.edit("gpt.yaml", "embedding_type: dynamic_4d", "embedding_type: null");
    s.load_gpt("x.pt", &file).unwrap();
    s.edit("gpt.yaml", "embedding_type: null", "predict_eoi_token: true");
    assert_kind!(s.load_gpt("x.pt", &file), ErrorKind::Disagreement { .. });
}

#[test]
fn the_null_class_is_known_or_guidance_is_refused() {
    // Table of 4 rows. With 3 classes named, the last is the null class.
    let null = |s: &System| {
        let l = s.load().unwrap();
        (l.system.num_classes, l.system.null_class(), l.notes.len())
    };
    let s = System::new();
    assert_eq!(null(&s), (3, Some(3), 0));
    // How many there are is not said: whether the last is one cannot be known.
    s.edit(DPAR, ", num_classes: 3", "");
    assert_eq!(null(&s), (4, None, 1));
    s.edit(DPAR, "n_head: 1", "n_head: 1\n  class_dropout_prob: 0.0");
    assert_eq!(null(&s), (4, None, 1));
    s.edit(DPAR, "image_size: 16", "image_size: 16, num_classes: 4");
    assert_eq!(null(&s), (4, None, 1));
    s.edit(DPAR, "num_classes: 4", "num_classes: 3");
    let e = assert_kind!(s.load(), ErrorKind::Disagreement { .. });
    assert!(e.to_string().contains("one per class; class dropout is 0"), "{e}");
    // ImageNet's table is known by its size.
    let s = System::new();
    let mut m = Model::dpar();
    m.add("cls_embedding.embedding_table.weight", &[1001, 16]);
    s.weights(&m);
    s.edit(DPAR, ", num_classes: 3", "");
    assert_eq!(null(&s), (1000, Some(1000), 0));
}

#[test]
fn fractional_sizes_turn_patches_by_fractions_or_are_refused() {
    let s = System::new();
    s.edit(DPAR, "entropy_row_boundary", "static\n  patch_size: 2.5");
    let e = assert_kind!(s.load(), ErrorKind::PatchRule(PatchRuleError::FractionalWithLimit(_)));
    assert!(e.to_string().contains("2.5 is fractional"), "{e}");
    s.edit(DPAR, "  max_patch_length: 3\n", "");
    let l = s.load().unwrap();
    assert_eq!(l.system.fractional_size(), Some(2.5));
    assert!(l.notes.is_empty(), "{:?}", l.notes);
    s.edit(DPAR, "patch_size: 2.5", "patch_size: 1.2");
    let notes = s.load().unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("whether token 6 opens a patch"), "{notes:?}");
    // One-dimensional rotary embedding knows the index only; whole sizes their tokens.
    s.edit(DPAR, "dynamic_4d", "null");
    assert_eq!(s.load().unwrap().system.fractional_size(), None);
    s.edit(DPAR, "embedding_type: null", "embedding_type: dynamic_3d");
    s.edit(DPAR, "patch_size: 1.2", "patch_size: 2.0");
    assert_eq!(s.load().unwrap().system.fractional_size(), None);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_configuration() {
    let s = System::new();
    let text = std::fs::read_to_string(s.path(DPAR)).unwrap();
    s.write(DPAR, format!("\u{feff}{text}"));
    s.load().unwrap();
    s.write("names.json", "\u{feff}[{\"from\": \"a\", \"to\": \"b\"}]");
    s.load_with(LoadOptions { map: Some(s.path("names.json")), ..LoadOptions::default() }).unwrap();
    let wide: Vec<u8> =
        [0xfeff_u16].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    s.write(DPAR, wide);
    let e = assert_kind!(s.load(), ErrorKind::Config { key: None, .. });
    assert!(e.to_string().contains("UTF-16"), "{e}");
}
