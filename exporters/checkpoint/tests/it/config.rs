//! Configurations: disagreement with tensors, unsupported values, the patch rule.

use dpar_export_checkpoint::{ErrorKind, LoadOptions};
use dpar_export_spec::{PatchMode, PatchRope, PatchRuleError};

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
    let d = s.load().unwrap();
    let d = d.system.dpar().unwrap();
    assert_eq!((d.vocab, d.token_rows), (12, 13));

    for (name, from, to, text) in [
        (DPAR, "num_classes: 3", "num_classes: 4", "dataset.num_classes 4"),
        (
            DPAR,
            "DGPT-tiny",
            "DGPT-B",
            "model.gpt_model DGPT-B (width 768, layers E1 G8 D3), the tensors in model.safetensors have width 16, layers E1 G2 D1",
        ),
        (DPAR, "DGPT-tiny", "GPT-XL", "36 layers"),
        (DPAR, "block_size: 4", "block_size: 8", "patcher.block_size 8"),
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
    for (from, to) in [
        ("codebook_size: 12", "codebook_size: many"),
        ("codebook_size: 12", "codebook_size: -1"),
        ("model:", "model: [1]\nother:"),
        ("threshold: 2.5", "threshold: {a: 1}"),
        ("exp_name: tiny", "exp_name: tiny\nexp_name: twice"),
        ("exp_name: tiny", "exp_name: ["),
    ] {
        let e = assert_kind!(edited(DPAR, from, to), ErrorKind::Config { key: None, .. });
        assert!(e.file().unwrap().ends_with(DPAR), "{e}");
    }
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
    assert_eq!(l.system.dpar().unwrap().longest_patch, 16);
    s.edit(DPAR, "patching_mode: entropy", "patch_size: 2.5\n  patching_mode: static");
    let l = s.load().unwrap();
    assert_eq!((l.components.len(), l.system.dpar().unwrap().longest_patch), (1, 3));
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
