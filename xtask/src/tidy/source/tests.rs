use super::*;

fn found(path: &str, text: &str) -> Vec<String> {
    check(&Tracked { path: path.into(), bytes: text.len() as u64, text: Some(text.to_owned()) })
}

#[test]
fn long_rust_files_fire() {
    let long = "x\n".repeat(LINES + 1);
    assert_eq!(found("a/b.rs", &long), ["a/b.rs: 601 lines, 600 are allowed: split it"]);
    assert!(found("a/b.rs", &long[2..]).is_empty() && found("a/b.md", &long).is_empty());
    let file = Tracked { path: "a/b.rs".into(), bytes: 0, text: Some(long) };
    assert!(check_with(&file, &[("a/b.rs", "generated")], &[]).is_empty());
}

#[test]
fn leftovers_fire_in_code() {
    for word in LEFTOVERS {
        let line = format!("fn f() {{ {word}");
        let problems = found("engines/x/src/lib.rs", &line);
        assert!(problems.len() == 1 && problems[0].contains(":1: "), "{problems:?}");
        assert!(found("a.rs", &format!("// {word}")).is_empty());
        assert!(found("a.md", &line).is_empty());
    }
    let listed = |line: &str| {
        let file = Tracked { path: "a.rs".into(), bytes: 0, text: Some(line.to_owned()) };
        check_with(&file, &[], &[("a.rs", "slow")]).len()
    };
    assert_eq!((listed(IGNORE), listed(LEFTOVERS[0])), (0, 1));
    assert!(found("a.rs", concat!("my_to", "do!()")).is_empty());
}

#[test]
fn printing_and_exiting_fire_outside_the_commands() {
    for word in PRINTING {
        let line = format!("    std::{word}(1);");
        assert_eq!(found("src/metrics/fid.rs", &line).len(), 1, "{word}");
        for allowed in ["src/main.rs", "src/commands/verify.rs", "src/commands.rs", "xtask/src/main.rs"] {
            assert!(found(allowed, &line).is_empty(), "{allowed}");
        }
        assert_eq!(found("harness/decode/src/loaded.rs", &line).len(), 1, "{word}");
    }
}

#[test]
fn unsafe_fires_outside_its_places() {
    let word = UNSAFE_WORDS[0];
    for line in [format!("{word} {{ f() }}"), format!("#![allow({word}_code)]"), format!("{word} fn f();")] {
        for path in ["src/lib.rs", "harness/decode/src/loaded.rs", "engines/tract/src/lib.rs", "tests/a.rs"] {
            let problems = found(path, &line);
            assert!(problems.len() == 1 && problems[0].contains("it has its places"), "{path}: {problems:?}");
        }
        for path in ["engines/ort/src/library.rs", "harness/files/src/arrays/mapped.rs"] {
            assert!(found(path, &line).is_empty(), "{path}");
        }
    }
    assert!(found("src/lib.rs", &format!("// {word}\nlet {word}ly = 1;")).is_empty());
}

#[test]
fn paths_of_one_machine_fire_everywhere() {
    for home in HOMES {
        assert_eq!(found("docs/a.md", &format!("see {home}me/x")).len(), 1);
        assert_eq!(found("a.json", &format!("\"{home}me\"")).len(), 1);
        assert!(found("a.md", &format!("example.org{home}x and $X{{y}}{home}")).is_empty());
    }
}

#[test]
fn binary_files_are_not_read() {
    assert!(check(&Tracked { path: "a.rs".into(), bytes: 9, text: None }).is_empty());
}
