use super::*;
use crate::{LoadOptions, load};

fn parameters(table: &[Expected]) -> usize {
    table.iter().map(|t| t.shape.iter().product::<usize>()).sum()
}

#[test]
fn sizes_are_the_papers() {
    // Printed: 120M, 352M, 789M (789.455M by the public code), 1.4B; LlamaGen 111M, 343M, 775M, 1.4B.
    for (kind, size, least, most) in [
        (SystemKind::Dpar, "B", 120_200_000, 120_400_000),
        (SystemKind::Dpar, "L", 351_300_000, 352_500_000),
        (SystemKind::Dpar, "XL", 789_450_000, 789_460_000),
        (SystemKind::Dpar, "XXL", 1_350_000_000, 1_450_000_000),
        (SystemKind::Llamagen, "B", 110_500_000, 111_500_000),
        (SystemKind::Llamagen, "L", 342_500_000, 343_500_000),
        (SystemKind::Llamagen, "XL", 774_500_000, 775_500_000),
        (SystemKind::Llamagen, "XXL", 1_350_000_000, 1_450_000_000),
    ] {
        let synth = Synth::published(kind, size, 256, 142.0).unwrap();
        let found = parameters(&synth.main_table().unwrap());
        assert!((least..=most).contains(&found), "{kind} {size}: {found}");
    }
    // LlamaGen's VQ-16 has 72 million with its codebook.
    let synth = Synth::published(SystemKind::Dpar, "B", 256, 142.0).unwrap();
    let found = parameters(&expect::vq::table(&synth.tokenizer()));
    assert!((70_000_000..73_000_000).contains(&found), "{found}");
}

#[test]
fn what_cannot_be_made_is_refused() {
    let published = |size: &str, pixels, steps| Synth::published(SystemKind::Dpar, size, pixels, steps);
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let refused = |synth: Synth| synth.write(folder, &mut |_| true).unwrap_err().to_string();
    assert!(published("M", 256, 142.0).unwrap_err().to_string().contains("no published size `DGPT-M`"));
    assert!(published("B", 300, 142.0).unwrap_err().to_string().contains("300 px"));
    let few = refused(published("B", 256, 65.0).unwrap());
    assert!(few.contains("65 to 256 patches"), "{few}");
    assert!(refused(published("B", 256, f64::NAN).unwrap()).contains("NaN steps"));
    let small = Synth { vocab: 1024, ..published("B", 256, 142.0).unwrap() };
    assert!(refused(small).contains("7.8"));
    assert_eq!(folder.read_dir_utf8().unwrap().count(), 0);
}

/// Small, with the widths' ratio of the real ones.
fn small(layers: &[usize]) -> Synth {
    Synth {
        transformer: SynthSize { width: 64, heads: 4, layers: layers.to_vec() },
        entropy: SynthSize { width: 64, heads: 4, layers: vec![2] },
        vocab: 4096,
        classes: 10,
        image_size: 128,
        threshold: 6.5,
        vq: false,
        ..Synth::published(SystemKind::Dpar, "B", 256, 36.0).unwrap()
    }
}

#[test]
fn what_is_written_is_what_is_read() {
    for (layers, kinds) in [(&[1, 2, 1][..], &["dpar", "entropy"][..]), (&[2], &["llamagen"])] {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let synth = small(layers);
        let mut seen = Vec::new();
        let made = synth.write(folder, &mut |name| {
            seen.push(name.to_owned());
            true
        });
        let made = made.unwrap();
        // Asked before each tensor.
        assert!(seen.len() > 10, "{seen:?}");
        seen.dedup();
        assert_eq!(seen, kinds);
        let loaded = load(&made.checkpoint, &LoadOptions::default()).unwrap();
        let found: Vec<(&str, u64)> =
            loaded.components.iter().map(|c| (c.spec.kind().name(), c.weights.parameters())).collect();
        assert_eq!(found, made.parameters);
        if let Some(dpar) = loaded.system.dpar() {
            assert_eq!(loaded.system.patch_rule, synth.rule());
            assert_eq!((dpar.width, dpar.heads, dpar.decoder_cross), (64, 4, DecoderCross::Full));
        }
    }
}

#[test]
fn published_names_stand_in_the_configuration() {
    let synth = Synth::published(SystemKind::Dpar, "XXL", 384, 280.0).unwrap();
    let config = synth.config();
    for line in
        ["gpt_model: DGPT-XXL\n", "block_size: 24\n", "threshold: 7.9\n", "embedding_type: dynamic_4d\n"]
    {
        assert!(config.contains(line), "{config}");
    }
    assert!(synth.entropy_config().contains("gpt_model: GPT-B\n"));
    let llamagen = Synth::published(SystemKind::Llamagen, "L", 256, 256.0).unwrap().config();
    assert!(llamagen.contains("gpt_model: GPT-L\n") && !llamagen.contains("patcher"), "{llamagen}");
    assert!(small(&[1, 2, 1]).config().contains("gpt_model: DGPT-seeded\n  n_head: 4\n"));
}

#[test]
fn it_stops_before_the_next_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let mut asked = 0;
    let e = small(&[1, 2, 1]).write(folder, &mut |_| {
        asked += 1;
        asked < 3
    });
    assert!(matches!(e.unwrap_err().kind(), ErrorKind::Interrupted));
    assert_eq!(asked, 3);
}

#[test]
fn no_two_seeds_make_the_same_weights() {
    let weights = |seed: u64| {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        Synth { seed, ..small(&[1]) }.write(folder, &mut |_| true).unwrap();
        fs_err::read(folder.join("llamagen/checkpoints/final/model.safetensors")).unwrap()
    };
    let first = weights(0);
    for seed in [1, 1 << 30, 1 << 32, 1 << 62, 1 << 63] {
        assert!(weights(seed) != first, "{seed}");
    }
}

#[cfg(unix)]
#[test]
fn its_files_have_the_mode_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    small(&[1]).write(folder, &mut |_| true).unwrap();
    fs_err::write(folder.join("new"), "").unwrap();
    let mode = |name: &str| fs_err::metadata(folder.join(name)).unwrap().permissions().mode();
    assert_eq!(mode("llamagen/checkpoints/final/model.safetensors"), mode("new"));
}
