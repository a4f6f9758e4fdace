//! Folders, epochs, single files, and where the other components are found.

use dpar_export_checkpoint::{ErrorKind, LoadOptions, load};
use dpar_export_spec::Hinted;

use crate::support::{GPT_CONFIG, Model, System, assert_kind};

const WEIGHTS: &str = "dpar/checkpoints/final/model.safetensors";

fn options() -> LoadOptions {
    LoadOptions::default()
}

#[test]
fn final_comes_before_the_newest_epoch_and_an_epoch_can_be_named() {
    let s = System::new();
    for n in [2, 10, 9] {
        s.write(&format!("dpar/checkpoints/epoch_{n:08}/model.safetensors"), Model::dpar().safetensors());
    }
    s.write("dpar/checkpoints/epoch_x/model.safetensors", b"");
    s.write("dpar/checkpoints/epoch_99999999", b"a file");
    let name = |o| s.load_with(o).unwrap().sources[0].name.clone();
    assert_eq!(name(options()), "checkpoints/final/model.safetensors");
    assert_eq!(
        name(LoadOptions { epoch: Some(9), ..options() }),
        "checkpoints/epoch_00000009/model.safetensors"
    );
    let e = assert_kind!(
        s.load_with(LoadOptions { epoch: Some(3), ..options() }),
        ErrorKind::Option { option: "--epoch", .. }
    );
    assert_eq!(e.hint().unwrap(), "epochs in this folder: 2, 9, 10");
    s.remove("dpar/checkpoints/final");
    assert_eq!(name(options()), "checkpoints/epoch_00000010/model.safetensors");
}

#[test]
fn incomplete_folders_say_what_is_missing() {
    let s = System::new();
    s.remove(WEIGHTS);
    let e = assert_kind!(s.load(), ErrorKind::Layout(_));
    assert!(e.to_string().contains("model.safetensors"), "{e}");
    s.write("dpar/checkpoints/final/model.safetensors.index.json", b"{}");
    let e = assert_kind!(s.load(), ErrorKind::UnsupportedFile(_));
    assert!(e.to_string().contains("sharded"), "{e}");
    s.remove("dpar/checkpoints/final");
    assert_kind!(s.load(), ErrorKind::Layout(_));
    s.remove("dpar/checkpoints");
    let e = assert_kind!(s.load(), ErrorKind::Layout(_));
    assert!(e.hint().is_some());
    s.remove("dpar");
    assert_kind!(s.load(), ErrorKind::NotFound { .. });

    let s = System::new();
    s.remove("dpar/config.yaml");
    let e = assert_kind!(s.load(), ErrorKind::MissingComponent { component: "configuration", .. });
    assert!(e.hint().unwrap().contains("--config"));
    assert_kind!(load(&s.path("gpt.yaml"), &options()), ErrorKind::Layout(_));
    assert_kind!(
        load(&s.path(WEIGHTS), &LoadOptions { epoch: Some(1), ..options() }),
        ErrorKind::Option { option: "--epoch", .. }
    );
}

#[test]
fn a_weight_file_in_an_experiment_folder_finds_its_configuration() {
    let s = System::new();
    let l = load(&s.path(WEIGHTS), &options()).unwrap();
    assert_eq!(l.system.name, "tiny");
    assert_eq!(l.sources[1].name, "config.yaml");
    let l = load(&s.path("dpar/checkpoints/final"), &options()).unwrap();
    assert_eq!(l.sources[0].name, "checkpoints/final/model.safetensors");
}

#[test]
fn portable_names_are_relative_and_without_the_folder_of_the_user() {
    let s = System::new();
    s.write("elsewhere/c.yaml", std::fs::read(s.path("dpar/config.yaml")).unwrap());
    s.write("entropy.pt", Model::gpt(16, 12, 0).pt(None));
    let o = LoadOptions {
        config: Some(s.path("elsewhere/c.yaml")),
        entropy: Some(s.path("entropy.pt")),
        ..options()
    };
    let l = s.load_with(o).unwrap();
    let names: Vec<(&str, &str)> = l.sources.iter().map(|s| (s.role.as_str(), s.name.as_str())).collect();
    assert_eq!(
        names,
        [
            ("dpar", "checkpoints/final/model.safetensors"),
            ("dpar-config", "c.yaml"),
            ("entropy", "entropy.pt"),
            // Named by the main configuration.
            ("entropy-config", "config.yaml"),
        ]
    );
    assert!(l.sources.iter().all(|s| s.path.is_file()));
}

#[test]
fn the_entropy_model_is_found_or_asked_for() {
    let s = System::new();
    // Only the configuration is named: the experiment folder it lies in.
    s.edit(
        "dpar/config.yaml",
        "  entropy_model_checkpoint: ../entropy/checkpoints/final/model.safetensors\n",
        "",
    );
    assert_eq!(s.load().unwrap().components.len(), 2);
    // An absolute path, and a folder.
    let folder = s.path("entropy");
    s.edit(
        "dpar/config.yaml",
        "entropy_model_checkpoint_config: ../entropy/config.yaml",
        &format!("entropy_model_checkpoint: {folder}"),
    );
    assert_eq!(s.load().unwrap().components.len(), 2);
    s.remove("entropy");
    let e = assert_kind!(s.load(), ErrorKind::MissingComponent { component: "entropy model", .. });
    assert!(e.hint().unwrap().contains("--entropy DIR"));
    assert!(e.to_string().contains("does not exist"), "{e}");
    let e = assert_kind!(
        s.load_with(LoadOptions { entropy: Some(s.path("nowhere")), ..options() }),
        ErrorKind::NotFound { .. }
    );
    assert!(e.hint().unwrap().contains("--entropy"));
    s.edit("dpar/config.yaml", &format!("  entropy_model_checkpoint: {folder}\n"), "");
    let e = assert_kind!(s.load(), ErrorKind::MissingComponent { wanted: None, .. });
    assert!(e.hint().is_some());
    let s = System::new();
    s.remove("entropy/config.yaml");
    assert_kind!(s.load(), ErrorKind::MissingComponent { component: "entropy model's configuration", .. });
}

#[test]
fn components_in_the_wrong_place_are_recognised() {
    let s = System::new();
    let e = assert_kind!(load(&s.path("entropy"), &options()), ErrorKind::WrongComponent { .. });
    assert!(e.to_string().contains("entropy model"), "{e}");
    assert!(e.hint().unwrap().contains("--entropy"));
    s.write("c2i.pt", Model::gpt(16, 12, 3).pt(None));
    for (path, what) in [("c2i.pt", "class-conditional"), ("dpar", "DPAR")] {
        let e = assert_kind!(
            s.load_with(LoadOptions { entropy: Some(s.path(path)), ..options() }),
            ErrorKind::WrongComponent { .. }
        );
        assert!(e.to_string().contains(what), "{e}");
    }
    assert_kind!(
        load(&s.path("c2i.pt"), &LoadOptions { entropy: Some(s.path("entropy")), ..options() }),
        ErrorKind::Option { option: "--entropy", .. }
    );
}

#[test]
fn a_llamagen_file_needs_a_configuration_unless_it_is_a_published_one() {
    let s = System::new();
    s.write("c2i.pt", Model::gpt(64, 12, 3).pt(Some("model")));
    s.write("config.yaml", GPT_CONFIG);
    let e = assert_kind!(
        load(&s.path("c2i.pt"), &options()),
        ErrorKind::MissingComponent { component: "configuration", .. }
    );
    assert!(e.hint().unwrap().contains("--config"));
    let published = Model::gpt(64, 16384, 3).safetensors();
    for (name, ok) in
        [("c2i_L_256.safetensors", true), ("c2i_L_384.safetensors", false), ("0300000.safetensors", false)]
    {
        s.write(name, &published);
        match load(&s.path(name), &options()) {
            Ok(l) => {
                assert!(ok);
                assert_eq!(
                    (l.system.grid(), l.system.image_size, l.system.name.as_str()),
                    (16, 256, "c2i_L_256")
                );
            }
            Err(e) => assert!(!ok && e.hint().unwrap().contains("--config"), "{e}"),
        }
    }
}

#[test]
fn a_tokenizer_that_is_named_must_exist() {
    let s = System::new();
    assert!(s.load().unwrap().system.vq().is_none());
    s.edit("dpar/config.yaml", "  n_head: 1", "  n_head: 1\n  vq_ckpt: ../vq.pt");
    let e = assert_kind!(s.load(), ErrorKind::MissingComponent { component: "VQ tokenizer", .. });
    assert!(e.hint().unwrap().contains("--vq FILE"));
    assert_kind!(
        s.load_with(LoadOptions { vq: Some(s.path("other.pt")), ..options() }),
        ErrorKind::NotFound { .. }
    );
}
