//! The tokenizer: levels, channels, groups, agreement with the main model.

use dpar_export_checkpoint::{CheckpointError, ErrorKind, Loaded};
use dpar_export_spec::Hinted;

use crate::support::{Model, System, assert_kind};

/// Channel widths of the three levels, finest first.
fn vq(channels: [usize; 3]) -> Model {
    let mut m = Model::default();
    let pair = |m: &mut Model, name: &str, w: &[usize]| {
        m.add(&format!("{name}.weight"), w);
        m.add(&format!("{name}.bias"), &w[..1]);
    };
    let conv = |m: &mut Model, name: &str, out, input, k| pair(m, name, &[out, input, k, k]);
    let residual = |m: &mut Model, name: &str, input, out| {
        pair(m, &format!("{name}.norm1"), &[input]);
        conv(m, &format!("{name}.conv1"), out, input, 3);
        pair(m, &format!("{name}.norm2"), &[out]);
        conv(m, &format!("{name}.conv2"), out, out, 3);
        if input != out {
            conv(m, &format!("{name}.nin_shortcut"), out, input, 1);
        }
    };
    let attention = |m: &mut Model, name: &str, c| {
        pair(m, &format!("{name}.norm"), &[c]);
        for p in ["q", "k", "v", "proj_out"] {
            conv(m, &format!("{name}.{p}"), c, c, 1);
        }
    };
    let [_, _, deep] = channels;
    let mut reversed = channels;
    reversed.reverse();
    for (stack, first, levels, resample) in
        [("encoder", channels[0], channels, "downsample"), ("decoder", deep, reversed, "upsample")]
    {
        let mut c = first;
        conv(&mut m, &format!("{stack}.conv_in"), first, if stack == "encoder" { 3 } else { 64 }, 3);
        for (i, out) in levels.into_iter().enumerate() {
            residual(&mut m, &format!("{stack}.conv_blocks.{i}.res.0"), c, out);
            if (stack == "encoder") == (i == 2) && (i == 2 || i == 0) {
                attention(&mut m, &format!("{stack}.conv_blocks.{i}.attn.0"), out);
            }
            if i < 2 {
                conv(&mut m, &format!("{stack}.conv_blocks.{i}.{resample}.conv"), out, out, 3);
            }
            c = out;
        }
        residual(&mut m, &format!("{stack}.mid.0"), deep, deep);
        attention(&mut m, &format!("{stack}.mid.1"), deep);
        residual(&mut m, &format!("{stack}.mid.2"), deep, deep);
        pair(&mut m, &format!("{stack}.norm_out"), &[c]);
        conv(&mut m, &format!("{stack}.conv_out"), if stack == "encoder" { 64 } else { 3 }, c, 3);
    }
    conv(&mut m, "quant_conv", 8, 64, 1);
    conv(&mut m, "post_quant_conv", 64, 8, 1);
    m.add("quantize.embedding.weight", &[12, 8]);
    m.add("quantize.codebook_used", &[65536]);
    m
}

fn load(m: &Model) -> Result<Loaded, CheckpointError> {
    load_in(&System::new(), m)
}

fn load_in(s: &System, m: &Model) -> Result<Loaded, CheckpointError> {
    s.write("vq.pt", m.pt(Some("model")));
    s.load_with(dpar_export_checkpoint::LoadOptions { vq: Some(s.path("vq.pt")), ..Default::default() })
}

#[test]
fn levels_and_channels_come_from_the_tensors() {
    let l = load(&vq([32, 32, 64])).unwrap();
    let v = l.system.vq().unwrap();
    assert_eq!((v.code_width, v.z_channels), (8, 64));
    let levels = |s: &dpar_export_spec::VqStack| {
        s.levels.iter().map(|l| (l.index, l.channels, l.attention, l.resample)).collect::<Vec<_>>()
    };
    assert_eq!(levels(&v.encoder), [(0, 32, false, true), (1, 32, false, true), (2, 64, true, false)]);
    assert_eq!(levels(&v.decoder), [(0, 64, true, true), (1, 32, false, true), (2, 32, false, false)]);
    assert_eq!((v.encoder.conv_in, v.decoder.conv_in), (32, 64));
}

#[test]
fn channels_that_do_not_fit_are_errors() {
    let e = assert_kind!(load(&vq([32, 48, 64])), ErrorKind::Sizes(_));
    assert!(e.to_string().contains("48 channels") && e.tensor().unwrap().contains("conv_blocks.1"), "{e}");
    let mut m = vq([32, 32, 64]);
    m.add("decoder.conv_blocks.1.res.0.norm1.weight", &[32]);
    let e = assert_kind!(load(&m), ErrorKind::Shape { .. });
    assert_eq!(e.tensor(), Some("decoder.conv_blocks.1.res.0.norm1.weight"));
    let mut m = vq([32, 32, 64]);
    m.add("encoder.conv_blocks.1.res.0.conv1.weight", &[32]);
    assert_kind!(load(&m), ErrorKind::Rank { rank: 4, .. });
}

#[test]
fn parts_that_are_missing_or_foreign_are_listed() {
    let mut m = vq([32, 32, 64]);
    m.0.remove("encoder.conv_blocks.2.res.0.nin_shortcut.bias");
    m.0.remove("decoder.conv_blocks.1.upsample.conv.weight");
    m.add("loss.discriminator.0.weight", &[1]);
    let e = assert_kind!(load(&m), ErrorKind::Names(_));
    let text = e.details().join("\n");
    for part in ["nin_shortcut.bias", "upsample.conv.weight", "unused `loss.discriminator.0.weight`"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_tokenizer_agrees_with_the_model() {
    let mut m = vq([32, 32, 64]);
    m.add("quantize.embedding.weight", &[13, 8]);
    let e = assert_kind!(load(&m), ErrorKind::Disagreement { .. });
    assert!(e.to_string().contains("13 rows"), "{e}");
    let s = System::new();
    s.edit("dpar/config.yaml", "codebook_embed_dim: 8", "codebook_embed_dim: 16");
    let e = assert_kind!(load_in(&s, &vq([32, 32, 64])), ErrorKind::Disagreement { .. });
    assert!(e.to_string().contains("model.codebook_embed_dim 16"), "{e}");
    let s = System::new();
    for config in ["dpar/config.yaml", "entropy/config.yaml"] {
        s.edit(config, "downsample_size: 4", "downsample_size: 8");
        s.edit(config, "image_size: 16", "image_size: 32");
    }
    let e = assert_kind!(load_in(&s, &vq([32, 32, 64])), ErrorKind::Disagreement { .. });
    assert!(e.to_string().contains("model.downsample_size 8"), "{e}");
}

#[test]
fn a_tokenizer_is_not_a_main_checkpoint() {
    let s = System::new();
    let e = assert_kind!(s.load_gpt("vq.pt", &vq([32, 32, 64]).pt(None)), ErrorKind::WrongComponent { .. });
    assert!(e.hint().unwrap().contains("--vq"));
    let mut m = Model::gpt(16, 12, 3);
    m.add("norm.weight", &[16]);
    assert_kind!(load(&m), ErrorKind::Names(_));
}
