//! What may stand in a file.

use super::Tracked;

/// Most lines of a Rust file.
const LINES: usize = 600;

/// Longer Rust files, with the reason.
const LONG: &[(&str, &str)] = &[];

/// Left over from development. Spelled in halves so that this file passes itself.
const LEFTOVERS: &[&str] =
    &[concat!("to", "do!"), concat!("db", "g!"), concat!("unimpl", "emented!"), IGNORE];

/// A test that no check runs.
const IGNORE: &str = concat!("#[ig", "nore");

/// Tests that are run by hand, with the reason.
const BY_HAND: &[(&str, &str)] = &[];

/// Where `unsafe` may stand. `unsafe_code` is denied in the workspace; what allows it is looked for as well.
const UNSAFE: &[&str] = &[
    "engines/api/src/library/",
    "engines/candle/src/weights.rs",
    "engines/kv/src/ahead.rs",
    "engines/ort/src/",
    "engines/tensorrt/",
    "exporters/checkpoint/src/file/mapped.rs",
    "harness/files/src/arrays/mapped.rs",
    "src/commands/bus.rs",
];

/// The word, and the lint that would let it pass.
const UNSAFE_WORDS: &[&str] = &[concat!("uns", "afe"), concat!("uns", "afe_code")];

/// Only the commands print and exit.
const PRINTING: &[&str] = &["println!", "eprintln!", "print!", "eprint!", "process::exit"];

/// Folders of a developer's machine.
const HOMES: &[&str] = &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

pub(crate) fn check(file: &Tracked) -> Vec<String> {
    check_with(file, LONG, BY_HAND)
}

fn check_with(file: &Tracked, long: &[(&str, &str)], by_hand: &[(&str, &str)]) -> Vec<String> {
    let Some(text) = &file.text else { return Vec::new() };
    let path = file.path.as_str();
    let mut problems = Vec::new();
    let rust = file.path.extension() == Some("rs");
    let lines = text.lines().count();
    if rust && lines > LINES && long.iter().all(|(p, _)| *p != path) {
        problems.push(format!("{path}: {lines} lines, {LINES} are allowed: split it"));
    }
    let library = path.starts_with("src/") || path.contains("/src/") && !path.starts_with("xtask/");
    let quiet = rust
        && library
        && !path.starts_with("src/commands/")
        && !["src/commands.rs", "src/main.rs"].contains(&path);
    let safe = !UNSAFE.iter().any(|place| path.starts_with(place));
    for (i, line) in text.lines().enumerate() {
        let mut problem = |what: &str, why: &str| problems.push(format!("{path}:{}: `{what}`: {why}", i + 1));
        if let Some(home) = HOMES.iter().find(|h| has_path(line, h)) {
            problem(home, "a path of one machine");
        }
        if !rust {
            continue;
        }
        let code = line.split_once("//").map_or(line, |(code, _)| code);
        let listed = |word: &str| word == IGNORE && by_hand.iter().any(|(p, _)| *p == path);
        if let Some(word) = LEFTOVERS.iter().find(|w| has_word(code, w) && !listed(w)) {
            problem(word, "finish it or take it out");
        }
        if let Some(word) = UNSAFE_WORDS.iter().find(|w| safe && is_word(code, w)) {
            problem(word, "it has its places, listed in xtask/src/tidy/source.rs");
        }
        if let Some(word) = PRINTING.iter().find(|w| quiet && has_word(code, w)) {
            problem(word, "only src/commands and src/main.rs print or exit");
        }
    }
    problems
}

/// Whether `word` stands in `line` and is not the end of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Whether `word` stands in `line` by itself.
fn is_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || "_-".contains(c);
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// Whether `line` has an absolute path that begins with `start`, and not a path or address that contains it.
fn has_path(line: &str, start: &str) -> bool {
    line.match_indices(start)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~/}".contains(c)))
}

#[cfg(test)]
mod tests {
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
        for line in
            [format!("{word} {{ f() }}"), format!("#![allow({word}_code)]"), format!("{word} fn f();")]
        {
            for path in
                ["src/lib.rs", "harness/decode/src/loaded.rs", "engines/tract/src/lib.rs", "tests/a.rs"]
            {
                let problems = found(path, &line);
                assert!(
                    problems.len() == 1 && problems[0].contains("it has its places"),
                    "{path}: {problems:?}"
                );
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
}
