//! Names that training wrappers change, weights in shards, and checkpoints in parts.

use dpar_export_checkpoint::{ErrorKind, LoadOptions, Loaded, load};
use dpar_export_spec::Hinted;

use crate::support::{Model, System, assert_kind};

const FOLDER: &str = "dpar/checkpoints/final";

#[test]
fn what_wrappers_add_to_names_is_taken_off_and_said() {
    let s = System::new();
    let block = |n: &str, part: &str| {
        n.split_once("layers.0.").map_or(n.to_owned(), |(a, b)| format!("{a}layers.0.{part}.{b}"))
    };
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let cases: [(Rename<'_>, &str); 7] = [
        (&|n| format!("model.{n}"), "`model.`"),
        (&|n| format!("module.{n}"), "`module.`"),
        (&|n| format!("_orig_mod.{n}"), "`_orig_mod.`"),
        (&|n| format!("model._orig_mod.{n}"), "`model.` and `_orig_mod.`"),
        (&|n| block(n, "_checkpoint_wrapped_module"), "`_checkpoint_wrapped_module.`"),
        (
            &|n| format!("_fsdp_wrapped_module.{}", block(n, "_fsdp_wrapped_module")),
            "`_fsdp_wrapped_module.`",
        ),
        (
            &|n| format!("module.model.{}", block(n, "_fsdp_wrapped_module._checkpoint_wrapped_module")),
            "`module.` and `model.` and `_checkpoint_wrapped_module.` and `_fsdp_wrapped_module.`",
        ),
    ];
    for (rename, said) in cases {
        let wrapped = Model::dpar().rename_all(rename);
        s.weights(&wrapped);
        let l = s.load().unwrap_or_else(|e| panic!("{said}: {e}"));
        assert_eq!(l.notes, [format!("model.safetensors: {said} taken off the tensor names")]);
        assert_eq!(l.components[0].weights.names().count(), Model::dpar().0.len());
    }
    // An AveragedModel counts its models.
    let mut averaged = Model::dpar().rename_all(|n| format!("module.{n}"));
    averaged.add("n_averaged", &[1]);
    s.weights(&averaged);
    s.load().unwrap();
    // Not a prefix of all names: nothing is taken off, and what does not fit is listed.
    let mut partly = Model::dpar().rename_all(|n| format!("model.{n}"));
    partly.add("loss.weight", &[1]);
    s.weights(&partly);
    assert_kind!(s.load(), ErrorKind::Names(_) | ErrorKind::UnknownModel { .. });
    // Rules see the bare name first, then the name in the file.
    s.write("map.yaml", "- {from: 'loss.*', drop: true}\n- {from: 'model.*', to: '*'}\n");
    s.load_with(LoadOptions { map: Some(s.path("map.yaml")), ..LoadOptions::default() }).unwrap();
    s.weights(&Model::dpar().rename_all(|n| format!("model.{n}")));
    s.load_with(LoadOptions { map: Some(s.path("map.yaml")), ..LoadOptions::default() }).unwrap();
    // Two names that are one without their wrappers.
    let mut twice = Model::dpar();
    twice.add("_orig_mod.norm.weight", &[16]);
    s.weights(&twice);
    assert_kind!(s.load(), ErrorKind::RuleCollision { target, .. } if target == "norm.weight");
}

/// Writes a model as two shards and their index.
fn shards(s: &System, stem: &str, ending: &str, write: impl Fn(&Model) -> Vec<u8>) {
    let (mut one, mut two, mut map) = (Model::default(), Model::default(), Vec::new());
    for (i, (name, tensor)) in Model::dpar().0.into_iter().enumerate() {
        let half = if i % 2 == 0 { &mut one } else { &mut two };
        half.0.insert(name.clone(), tensor);
        map.push(format!("\"{name}\": \"{stem}-0000{}-of-00002.{ending}\"", 1 + i % 2));
    }
    s.write(&format!("{FOLDER}/{stem}-00001-of-00002.{ending}"), write(&one));
    s.write(&format!("{FOLDER}/{stem}-00002-of-00002.{ending}"), write(&two));
    let index =
        format!("\u{feff}{{\"metadata\": {{\"total_size\": 1}}, \"weight_map\": {{{}}}}}", map.join(","));
    s.write(&format!("{FOLDER}/{stem}.{ending}.index.json"), index);
}

fn roles(l: &Loaded) -> Vec<(&str, &str)> {
    l.sources.iter().map(|s| (s.role.as_str(), s.name.as_str())).take(4).collect()
}

#[test]
fn shards_are_read_as_one_checkpoint() {
    let s = System::new();
    s.remove(&format!("{FOLDER}/model.safetensors"));
    shards(&s, "model", "safetensors", Model::safetensors);
    let l = s.load().unwrap();
    assert_eq!(
        roles(&l),
        [
            ("dpar", "checkpoints/final/model.safetensors.index.json"),
            ("dpar-shard", "checkpoints/final/model-00001-of-00002.safetensors"),
            ("dpar-shard", "checkpoints/final/model-00002-of-00002.safetensors"),
            ("dpar-config", "config.yaml"),
        ]
    );
    let (name, (_, values)) = Model::dpar().0.into_iter().nth(7).unwrap();
    let read = l.components[0].weights.require(&name).unwrap();
    assert_eq!(read.to_f32().unwrap().as_ref(), values);
    // The index itself may be named.
    load(&s.path(&format!("{FOLDER}/model.safetensors.index.json")), &LoadOptions::default()).unwrap();

    let index = format!("{FOLDER}/model.safetensors.index.json");
    let text = std::fs::read_to_string(s.path(&index)).unwrap();
    for (from, to, tensor) in [
        ("\"norm.weight\"", "\"other.weight\"", "norm.weight"),
        (
            "\"weight_map\": {",
            "\"weight_map\": {\"more.weight\": \"model-00001-of-00002.safetensors\",",
            "more.weight",
        ),
    ] {
        s.write(&index, text.replacen(from, to, 1));
        let e = assert_kind!(s.load(), ErrorKind::MalformedTensor(_));
        assert_eq!(e.tensor(), Some(tensor), "{e}");
    }
    for (text, why) in [
        ("{}", "names no tensors"),
        ("[", "not what it should be"),
        ("{\"weight_map\": {\"a\": \"../../other.safetensors\"}}", "names `../../other.safetensors`"),
        ("{\"weight_map\": {\"a\": \"/etc/x.safetensors\"}}", "names `/etc/x.safetensors`"),
    ] {
        s.write(&index, text);
        let e = assert_kind!(s.load(), ErrorKind::UnsupportedFile(_));
        assert!(e.to_string().contains(why), "{e}");
    }
    s.write(&index, text);
    s.remove(&format!("{FOLDER}/model-00002-of-00002.safetensors"));
    let e = assert_kind!(s.load(), ErrorKind::NotFound { .. });
    assert!(e.to_string().contains("model-00002-of-00002.safetensors"), "{e}");
}

#[test]
fn pytorch_model_bin_is_read_whole_and_in_shards() {
    let s = System::new();
    s.remove(&format!("{FOLDER}/model.safetensors"));
    s.write(&format!("{FOLDER}/pytorch_model.bin"), Model::dpar().pt(None));
    assert_eq!(roles(&s.load().unwrap())[0].1, "checkpoints/final/pytorch_model.bin");
    s.remove(&format!("{FOLDER}/pytorch_model.bin"));
    shards(&s, "pytorch_model", "bin", |m| m.pt(None));
    assert_eq!(roles(&s.load().unwrap())[1].1, "checkpoints/final/pytorch_model-00001-of-00002.bin");
}

#[test]
fn checkpoints_in_parts_of_processes_are_refused_by_name() {
    let s = System::new();
    s.remove(&format!("{FOLDER}/model.safetensors"));
    s.write(&format!("{FOLDER}/.metadata"), b"x");
    s.write(&format!("{FOLDER}/__0_0.distcp"), b"x");
    for path in ["dpar", FOLDER, "dpar/checkpoints/final/__0_0.distcp"] {
        let e = assert_kind!(load(&s.path(path), &LoadOptions::default()), ErrorKind::UnsupportedFile(_));
        assert!(e.to_string().contains("distributed checkpoint of PyTorch (DCP)"), "{e}");
        assert!(e.hint().unwrap().contains("dcp_to_torch"));
    }
    s.remove(FOLDER);
    s.write(&format!("{FOLDER}/pytorch_model_fsdp_0/.metadata"), b"x");
    s.write(&format!("{FOLDER}/pytorch_model_fsdp_0/__0_0.distcp"), b"x");
    let e = assert_kind!(s.load(), ErrorKind::UnsupportedFile(_));
    assert!(e.file().unwrap().ends_with("pytorch_model_fsdp_0"), "{e}");
    s.remove(FOLDER);
    s.write(&format!("{FOLDER}/latest"), b"global_step1");
    s.write(&format!("{FOLDER}/zero_to_fp32.py"), b"");
    let e = assert_kind!(s.load(), ErrorKind::UnsupportedFile(_));
    assert!(e.hint().unwrap().contains("zero_to_fp32.py"), "{e}");
}

#[cfg(unix)]
#[test]
fn an_unrelated_name_that_is_not_utf8_is_passed_over() {
    use std::os::unix::ffi::OsStrExt;
    let s = System::new();
    s.remove(FOLDER);
    s.write("dpar/checkpoints/epoch_00000003/model.safetensors", Model::dpar().safetensors());
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    std::fs::write(s.path("dpar/checkpoints").as_std_path().join(name), b"").unwrap();
    assert_eq!(s.load().unwrap().sources[0].name, "checkpoints/epoch_00000003/model.safetensors");
}
