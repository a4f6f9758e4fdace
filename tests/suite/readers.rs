//! What the readers find in checkpoints, as the command line says it.

use crate::cli::{json, run};
use crate::common::{Temp, fixture};

#[test]
fn guidance_without_a_null_class_is_refused_and_the_rest_runs() {
    let temp = Temp::new();
    let text = fs_err::read_to_string(fixture("variants/token/dpar/config.yaml")).unwrap();
    let config = temp.path("config.yaml");
    let without: String =
        text.lines().filter(|l| !l.contains("num_classes")).map(|l| format!("{l}\n")).collect();
    assert!(without.contains("image_size") && without != text);
    fs_err::write(&config, without).unwrap();
    let (bundle, checkpoint) = (temp.path("b"), fixture("variants/token/dpar"));
    let out = run(&[checkpoint.as_str(), "--config", config.as_str(), "-o", bundle.as_str()]);
    assert!(out.code == 0 && out.stderr.contains("no null class is known"), "{}", out.stderr);
    let generate = |scale: &str, name: &str| {
        let samples = temp.path(name);
        let args =
            ["generate", bundle.as_str(), "--classes", "3,0", "--no-images", "--cfg-scale", scale, "-o"];
        run(&[&args[..], &[samples.as_str()]].concat())
    };
    let guided = generate("2", "guided");
    assert!(guided.code == 2 && guided.stderr.contains("guidance needs a null class"), "{}", guided.stderr);
    assert!(!temp.path("guided").exists());
    let plain = generate("1", "plain");
    assert_eq!(plain.code, 0, "{}", plain.stderr);
    // A reference of it, and the probes of its graphs: no label beyond the table.
    let golden = temp.path("golden");
    let recorded =
        run(&["reference", bundle.as_str(), "--num", "2", "--cfg-scale", "1", "-o", golden.as_str()]);
    assert_eq!(recorded.code, 0, "{}", recorded.stderr);
    let probed = run(&["verify", bundle.as_str(), "--reference", golden.as_str(), "--engine", "tract"]);
    assert_eq!(probed.code, 0, "{}{}", probed.stdout, probed.stderr);
}

#[test]
fn the_state_dict_that_was_asked_for_is_in_the_manifest() {
    let temp = Temp::new();
    let (file, config) = (fixture("wrappings/training.pt"), fixture("wrappings/config.yaml"));
    let export = |key: &str, out: &str| {
        let out = temp.path(out);
        run(&[file.as_str(), "--config", config.as_str(), "--weights", key, "--json", "-o", out.as_str()])
    };
    let out = export("model", "b");
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(json(&out)["manifest"]["sources"][0]["weights"], "model");
    let out = export("ema", "c");
    assert!(out.code == 2 && out.stderr.contains("there are tensors under `model`"), "{}", out.stderr);
    assert!(!temp.path("c").exists());
}
