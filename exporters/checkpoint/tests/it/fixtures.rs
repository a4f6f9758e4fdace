//! The real checkpoints in `fixtures/`.

use camino::Utf8PathBuf;
use dpar_export_checkpoint::{LoadOptions, Loaded, TensorFile, load};
use dpar_export_spec::{
    ComponentKind, DecoderCross, DparSpec, GptSpec, PatchMode, PatchRope, PatchRule, SystemKind,
};

fn fixture(name: &str) -> Utf8PathBuf {
    dpar_export_fixtures::path(name).unwrap()
}

fn kinds(l: &Loaded) -> Vec<ComponentKind> {
    l.components.iter().map(|c| c.spec.kind()).collect()
}

#[test]
fn the_trained_dpar_system_resolves() {
    let l = load(&fixture("emoji32/dpar"), &LoadOptions::default()).unwrap();
    assert_eq!(kinds(&l), [ComponentKind::Dpar, ComponentKind::Entropy, ComponentKind::Vq]);
    let s = &l.system;
    assert_eq!((s.kind, s.name.as_str(), s.grid(), s.vocab), (SystemKind::Dpar, "emoji32", 8, 1024));
    assert_eq!((s.num_classes, s.image_size), (9, 32));
    assert_eq!((s.longest_patch(), s.fractional_size()), (4, None));
    assert_eq!(
        s.patch_rule,
        PatchRule {
            mode: PatchMode::EntropyRowBoundary,
            threshold: Some(4.35),
            max_patch_length: Some(4),
            grid: 8,
            patch_size: None,
            monotonicity: false,
            block_size: None,
        }
    );
    assert_eq!(
        *s.dpar().unwrap(),
        DparSpec {
            width: 192,
            heads: 3,
            ffn: 512,
            encoder_layers: 1,
            global_layers: 4,
            decoder_layers: 2,
            token_rows: 1024,
            null_class: true,
            patch_rope: PatchRope::Dynamic4d,
            encoder_block_causal: false,
            decoder_cross: DecoderCross::OutputOnly,
        }
    );
    let e = s.entropy().unwrap();
    assert_eq!((e.width, e.heads, e.layers), (128, 2, 4));
    let v = s.vq().unwrap();
    assert_eq!((v.code_width, v.z_channels), (8, 64));
    assert_eq!((l.system.downsample(), l.system.grid()), (4, 8));
    let channels = |levels: &[dpar_export_spec::VqLevel]| {
        levels.iter().map(|l| (l.channels, l.res_blocks, l.attention, l.resample)).collect::<Vec<_>>()
    };
    assert_eq!(v.encoder.conv_in, 32);
    assert_eq!(
        channels(&v.encoder.levels),
        [(32, 2, false, true), (32, 2, false, true), (64, 2, true, false)]
    );
    assert_eq!(v.decoder.conv_in, 64);
    assert_eq!(
        channels(&v.decoder.levels),
        [(64, 3, true, true), (32, 3, false, true), (32, 3, false, false)]
    );
    let roles: Vec<(&str, &str)> = l.sources.iter().map(|s| (s.role.as_str(), s.name.as_str())).collect();
    assert_eq!(
        roles,
        [
            ("dpar", "checkpoints/final/model.safetensors"),
            ("dpar-config", "config.yaml"),
            ("entropy", "checkpoints/final/model.safetensors"),
            ("entropy-config", "config.yaml"),
            ("vq", "vq.pt"),
        ]
    );
}

#[test]
fn weights_are_reachable_and_counted() {
    let l = load(&fixture("emoji32/dpar"), &LoadOptions::default()).unwrap();
    let dpar = &l.components[0].weights;
    assert!(dpar.file().ends_with("checkpoints/final/model.safetensors"));
    let w = dpar.require("layers.3.feed_forward.w2.weight").unwrap();
    assert_eq!((w.shape.as_slice(), w.elements()), ([192, 512].as_slice(), 192 * 512));
    assert_eq!(w.to_f32().unwrap().len(), 192 * 512);
    assert!(matches!(w.bytes, std::borrow::Cow::Borrowed(_)));
    assert!(dpar.get("layers.4.feed_forward.w2.weight").is_none());
    let sum: usize = dpar.names().map(|n| dpar.require(n).unwrap().elements()).sum();
    assert_eq!(sum as u64, dpar.parameters());
    assert_eq!(dpar.names().count(), 64);
    let vq = &l.components[2].weights;
    assert!(vq.names().all(|n| n != "quantize.codebook_used"));
}

#[test]
fn the_trained_baseline_resolves() {
    let options =
        LoadOptions { config: Some(fixture("emoji32/llamagen/config.yaml")), ..LoadOptions::default() };
    let l = load(&fixture("emoji32/llamagen/c2i_emoji32.pt"), &options).unwrap();
    assert_eq!(kinds(&l), [ComponentKind::Llamagen, ComponentKind::Vq]);
    assert_eq!(
        *l.system.llamagen().unwrap(),
        GptSpec { width: 192, heads: 3, ffn: 512, layers: 7, token_rows: 1024, null_class: true }
    );
    assert_eq!((l.system.vocab, l.system.num_classes), (1024, 9));
    assert_eq!(l.system.name, "GPT-emoji32");
    assert_eq!(l.system.patch_rule, PatchRule::per_token(8));
    let names: Vec<(&str, &str)> = l.sources.iter().map(|s| (s.role.as_str(), s.name.as_str())).collect();
    assert_eq!(names, [("llamagen", "c2i_emoji32.pt"), ("llamagen-config", "config.yaml"), ("vq", "vq.pt")]);
}

#[test]
fn the_small_golden_systems_resolve() {
    let l = load(&fixture("dpar-small/dpar"), &LoadOptions::default()).unwrap();
    assert_eq!(l.system.name, "DGPT-tiny");
    let d = l.system.dpar().unwrap();
    assert_eq!((d.width, d.heads, d.encoder_layers, d.global_layers, d.decoder_layers), (64, 4, 1, 2, 2));
    let v = l.system.vq().unwrap();
    assert_eq!((l.system.downsample(), v.encoder.levels.len(), v.z_channels), (8, 4, 32));
    let options =
        LoadOptions { config: Some(fixture("llamagen-small/config.yaml")), ..LoadOptions::default() };
    let l = load(&fixture("llamagen-small/c2i_tiny.pt"), &options).unwrap();
    assert_eq!(kinds(&l), [ComponentKind::Llamagen]);
    assert_eq!((l.system.vocab, l.system.num_classes, l.system.image_size), (256, 10, 64));
}

#[test]
fn paths_on_the_command_line_replace_those_of_the_configuration() {
    for entropy in ["emoji32/entropy", "emoji32/entropy/checkpoints/final/model.safetensors"] {
        let options = LoadOptions {
            entropy: Some(fixture(entropy)),
            vq: Some(fixture("emoji32/vq.pt")),
            ..LoadOptions::default()
        };
        let l = load(&fixture("emoji32/dpar"), &options).unwrap();
        assert_eq!(l.system.entropy().unwrap().heads, 2, "{entropy}");
    }
}

#[test]
fn a_real_archive_is_borrowed_from_the_mapping() {
    let f = TensorFile::open(&fixture("emoji32/vq.pt")).unwrap();
    assert_eq!(f.names().count(), 252);
    for name in f.names() {
        let t = f.get(name).unwrap();
        assert!(matches!(t.bytes, std::borrow::Cow::Borrowed(_)), "{name}");
        assert_eq!(t.bytes.len(), t.elements() * 4);
    }
}
