//! First contact: the program without arguments, and its demonstration.

use crate::cli::{json, run};
use crate::common::Temp;

#[test]
fn without_arguments_it_says_what_one_does_first() {
    let out = run::<&str>(&[]);
    assert!(out.code == 2 && out.stdout.is_empty(), "{}: {}", out.code, out.stdout);
    for first in ["dpar-export demo ", "dpar-export doctor ", "dpar-export CHECKPOINT -o BUNDLE", "--help"] {
        assert!(out.stderr.contains(first), "{first}: {}", out.stderr);
    }
}

/// What a user sees, and that the commands that are shown do what they say.
#[test]
fn the_demonstration_needs_nothing_and_its_commands_run() {
    let temp = Temp::new();
    let folder = temp.path("first try");
    let out = run(&["demo", "-o", folder.as_str()]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    assert!(out.stderr.is_empty(), "{}", out.stderr);
    assert!(out.stdout.contains("verified: pass, "), "{}", out.stdout);
    let page = fs_err::read_to_string(folder.join("report.html")).unwrap();
    let places = page.matches(temp.path("").as_str()).count();
    assert!(page.contains("<html") && places == 0, "{places} paths of this machine");
    for file in ["samples/grid.png", "samples/samples.npz", "bundle/manifest.json", "README.md"] {
        assert!(folder.join(file).is_file(), "{file} in {}", out.stdout);
    }
    let typed: Vec<&str> = out.stdout.lines().filter_map(|l| l.strip_prefix("  dpar-export ")).collect();
    assert_eq!(typed.len(), 3, "{}", out.stdout);
    let quoted = format!("'{folder}/bundle'");
    assert!(typed[2].starts_with(&format!("verify {quoted} ")), "{}", typed[2]);

    let again = run(&["demo", "-o", folder.as_str()]);
    assert!(again.code == 2 && again.stderr.contains("already exists"), "{}", again.stderr);
    let out = run(&["demo", "-o", folder.as_str(), "--force", "--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let said = json(&out);
    assert_eq!((&said["verdict"], &said["images"]), (&"pass".into(), &24.into()), "{said}");
    let steps = said["mean_steps"].as_f64().unwrap();
    assert!((20.0..50.0).contains(&steps), "{steps} of 64 tokens");
    // As it stands in the document, the last command passes on what was written.
    let verify: Vec<&str> =
        said["commands"][2].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    let out = run(&verify);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
}
