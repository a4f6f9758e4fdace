//! Missing, unused, renamed, mis-shaped and unusable tensors.

use dpar_export_checkpoint::{ErrorKind, LoadOptions, WeightDType};
use dpar_export_spec::{ComponentKind, DecoderCross, Hinted};
use safetensors::tensor::TensorView;

use crate::support::{Model, System, assert_kind, f32s};

#[test]
fn all_missing_and_unused_names_are_listed_with_the_nearest() {
    let s = System::new();
    let mut m = Model::dpar();
    m.rename("layers.0.attention.wqkv.weight", "layers.0.attn.wqkv.weight");
    m.rename("layers.1.attention.wqkv.weight", "layers.1.attn.wqkv.weight");
    m.0.remove("norm.weight");
    m.add("zzz.something.else.entirely", &[1]);
    s.weights(&m);
    let e = assert_kind!(s.load(), ErrorKind::Names(_));
    let ErrorKind::Names(n) = e.kind() else { unreachable!() };
    assert_eq!(n.component, ComponentKind::Dpar);
    let pairs = |v: &[dpar_export_checkpoint::Unmatched]| {
        v.iter().map(|u| (u.name.clone(), u.nearest.clone())).collect::<Vec<_>>()
    };
    let s = |s: &str| s.to_owned();
    assert_eq!(
        pairs(&n.missing),
        [
            (s("layers.0.attention.wqkv.weight"), Some(s("layers.0.attn.wqkv.weight"))),
            (s("layers.1.attention.wqkv.weight"), Some(s("layers.1.attn.wqkv.weight"))),
            (s("norm.weight"), None),
        ]
    );
    assert_eq!(pairs(&n.unused)[2], (s("zzz.something.else.entirely"), None));
    let text = format!("{e}\n{}", e.details().join("\n"));
    assert!(
        text.contains(
            "missing `layers.0.attention.wqkv.weight`; unused `layers.0.attn.wqkv.weight` is the nearest"
        ),
        "{text}"
    );
    assert!(text.contains("3 missing, 3 unused") && text.contains("model.safetensors"), "{text}");
    assert!(e.hint().unwrap().contains("--map"));
}

#[test]
fn a_gap_in_the_layers_is_missing_tensors() {
    let s = System::new();
    s.weights(&Model::dpar().rename_all(|n| match n.strip_prefix("layers.1.") {
        Some(rest) => format!("layers.3.{rest}"),
        None => n.to_owned(),
    }));
    let e = assert_kind!(s.load(), ErrorKind::Names(_));
    let ErrorKind::Names(n) = e.kind() else { unreachable!() };
    assert_eq!((n.missing.len(), n.unused.len()), (14, 0));
    let text = e.details().join("\n");
    assert!(text.contains("layers.1.ffn_norm.weight") && text.contains("layers.2.ffn_norm.weight"), "{text}");
}

#[test]
fn an_absurd_layer_index_is_an_unused_tensor() {
    let s = System::new();
    let mut m = Model::dpar();
    m.add("layers.4000000000.norm.weight", &[1]);
    s.weights(&m);
    let e = assert_kind!(s.load(), ErrorKind::Names(_));
    let ErrorKind::Names(n) = e.kind() else { unreachable!() };
    assert_eq!((n.missing.len(), n.unused.len()), (0, 1));
}

#[test]
fn buffers_are_ignored() {
    let s = System::new();
    let mut m = Model::dpar();
    m.add("freqs_cis", &[3]);
    m.add("layers.0.attention.rotary_emb.inv_freq", &[3]);
    s.weights(&m);
    let l = s.load().unwrap();
    assert!(l.components[0].weights.get("freqs_cis").is_none());
}

#[test]
fn both_decoder_variants_are_read_and_a_mixture_is_incomplete() {
    let s = System::new();
    assert_eq!(s.load().unwrap().system.dpar().unwrap().decoder_cross, DecoderCross::OutputOnly);
    let mut m = Model::dpar();
    for w in ["wq", "wk", "wv"] {
        m.add(&format!("local_decoder.cross_attn_layers.0.{w}.weight"), &[16, 16]);
    }
    s.weights(&m);
    let e = assert_kind!(s.load(), ErrorKind::Names(_));
    assert!(
        e.details()
            .join("\n")
            .contains("missing `local_decoder.cross_attn_layers.0.cross_attn_norm_q.weight`"),
        "{e}"
    );
    m.add("local_decoder.cross_attn_layers.0.cross_attn_norm_q.weight", &[16]);
    s.weights(&m);
    assert_eq!(s.load().unwrap().system.dpar().unwrap().decoder_cross, DecoderCross::Full);
}

#[test]
fn shapes_must_fit_each_other() {
    for (name, shape) in [
        ("layers.1.attention.wo.weight", vec![16, 15]),
        ("layers.0.attention.wqkv.weight", vec![32, 16]),
        ("output.weight", vec![11, 16]),
        ("norm.weight", vec![16, 1]),
        ("decoder_start_embedding.weight", vec![2, 16]),
        ("local_encoder.cross_attn_layers.0.wk.weight", vec![8, 16]),
    ] {
        let s = System::new();
        let mut m = Model::dpar();
        m.add(name, &shape);
        s.weights(&m);
        let e = assert_kind!(s.load(), ErrorKind::Shape { .. });
        assert_eq!(e.tensor(), Some(name));
        assert!(e.to_string().contains(&format!("{shape:?}")), "{e}");
    }
    for shape in [vec![12], vec![12, 16, 1], vec![0, 16], vec![12, 0]] {
        let s = System::new();
        let mut m = Model::dpar();
        m.add("tok_embeddings.weight", &shape);
        s.weights(&m);
        let e = assert_kind!(s.load(), ErrorKind::Rank { rank: 2, .. });
        assert_eq!(e.tensor(), Some("tok_embeddings.weight"));
    }
}

#[test]
fn weights_must_be_finite_floats() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let s = System::new();
        let mut m = Model::dpar();
        m.0.get_mut("layers.1.feed_forward.w2.weight").unwrap().1[7] = bad;
        s.weights(&m);
        let e = assert_kind!(s.load(), ErrorKind::NonFinite { index: 7, .. });
        assert_eq!(e.tensor(), Some("layers.1.feed_forward.w2.weight"));
    }
    let s = System::new();
    let m = Model::dpar();
    let bytes: Vec<_> = m.0.iter().map(|(n, (sh, v))| (n, sh, f32s(v.iter().copied()))).collect();
    let ints = bytes.iter().map(|(n, sh, b)| {
        let dtype = if *n == "norm.weight" { safetensors::Dtype::I32 } else { safetensors::Dtype::F32 };
        (n.as_str(), TensorView::new(dtype, (*sh).clone(), b).unwrap())
    });
    s.write("dpar/checkpoints/final/model.safetensors", safetensors::serialize(ints, None).unwrap());
    let e = assert_kind!(s.load(), ErrorKind::NotFloat(WeightDType::I32));
    assert_eq!(e.tensor(), Some("norm.weight"));
    // Packed weights have another shape because they have another type: the type is to blame, also where sizes are read.
    for name in ["layers.1.attention.wo.weight", "tok_embeddings.weight"] {
        let packed = bytes.iter().map(|(n, sh, b)| {
            let view = if *n == name {
                TensorView::new(safetensors::Dtype::U8, vec![b.len()], b)
            } else {
                TensorView::new(safetensors::Dtype::F32, (*sh).clone(), b)
            };
            (n.as_str(), view.unwrap())
        });
        s.write("dpar/checkpoints/final/model.safetensors", safetensors::serialize(packed, None).unwrap());
        let e = assert_kind!(s.load(), ErrorKind::NotFloat(WeightDType::U8));
        assert_eq!(e.tensor(), Some(name));
    }
}

#[test]
fn half_precision_weights_are_accepted() {
    let s = System::new();
    let bytes: Vec<_> =
        Model::dpar().0.into_iter().map(|(n, (sh, v))| (n, sh, vec![0_u8; v.len() * 2])).collect();
    let views = bytes
        .iter()
        .map(|(n, sh, b)| (n.as_str(), TensorView::new(safetensors::Dtype::BF16, sh.clone(), b).unwrap()));
    s.write("dpar/checkpoints/final/model.safetensors", safetensors::serialize(views, None).unwrap());
    let l = s.load().unwrap();
    assert_eq!(l.components[0].weights.require("norm.weight").unwrap().dtype, WeightDType::BF16);
}

fn released() -> Model {
    Model::dpar().rename_all(|n| {
        n.replace("local_encoder.", "enc.")
            .replace("attention.wqkv.weight", "attn.qkv")
            .replace("layers.", "h.")
    })
}

const RULES: &str = "\
- {from: 'enc.cross_attn_h.{i}.*', to: 'local_encoder.cross_attn_layers.{i}.*', component: dpar}
- {from: 'enc.h.{i}.attn.qkv', to: 'local_encoder.layers.{i}.attention.wqkv.weight', component: dpar}
- {from: 'enc.h.{i}.*', to: 'local_encoder.layers.{i}.*', component: dpar}
- {from: 'local_decoder.cross_attn_h.{i}.*', to: 'local_decoder.cross_attn_layers.{i}.*'}
- {from: 'local_decoder.h.{i}.attn.qkv', to: 'local_decoder.layers.{i}.attention.wqkv.weight'}
- {from: 'local_decoder.h.{i}.*', to: 'local_decoder.layers.{i}.*'}
- {from: 'h.{i}.attn.qkv', to: 'layers.{i}.attention.wqkv.weight'}
- {from: 'h.{i}.*', to: 'layers.{i}.*'}
- {from: 'ema.*', drop: true}
";

#[test]
fn rename_rules_map_a_release_with_other_names() {
    let s = System::new();
    let mut m = released();
    m.add("ema.step", &[1]);
    s.weights(&m);
    let e = assert_kind!(s.load(), ErrorKind::Names(_));
    assert!(e.details().contains(&"unused `enc.h.0.attn.qkv`".to_owned()), "{e}");
    s.write("names.yaml", RULES);
    let with =
        |s: &System| s.load_with(LoadOptions { map: Some(s.path("names.yaml")), ..LoadOptions::default() });
    let l = with(&s).unwrap();
    let w = &l.components[0].weights;
    assert_eq!(w.require("local_encoder.layers.0.attention.wqkv.weight").unwrap().shape, [48, 16]);
    let map = l.sources.last().unwrap();
    assert_eq!((map.role.as_str(), map.name.as_str()), ("map", "names.yaml"));

    s.write("names.yaml", format!("{RULES}- {{from: 'norm.weight', to: 'output.weight'}}\n"));
    let e = assert_kind!(with(&s), ErrorKind::RuleCollision { target, .. } if target == "output.weight");
    assert!(e.to_string().contains("`norm.weight`"), "{e}");
    s.write("names.yaml", "- {from: 'a', to: 'b', compnent: dpar}");
    assert_kind!(with(&s), ErrorKind::Rule { .. });
    s.remove("names.yaml");
    assert_kind!(with(&s), ErrorKind::NotFound { .. });
}

#[test]
fn unknown_tensors_are_named() {
    let s = System::new();
    let mut m = Model::default();
    m.add("conv1.weight", &[1]);
    let e = assert_kind!(s.load_gpt("x.pt", &m.pt(None)), ErrorKind::UnknownModel { .. });
    assert!(e.to_string().contains("conv1.weight"), "{e}");
}
