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
mod tests;
