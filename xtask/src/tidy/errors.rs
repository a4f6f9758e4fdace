//! An error has a type: what went wrong is more than a text, to its caller and to the table of exit codes.

use super::{Tracked, product};

/// Files whose helpers read a text, and say in words what is wrong with it: what they are part of makes an error of that.
const PARSING: &[(&str, &str)] = &[
    ("engines/api/src/device.rs", "a device on the command line"),
    ("engines/kv/src/cache.rs", "what an operator is called with, to the engine that called it"),
    ("exporters/checkpoint/src/file/pickle/rebuild.rs", "a tensor in a pickle"),
    ("exporters/checkpoint/src/file/torch.rs", "a tensor in an archive"),
    ("exporters/checkpoint/src/rules.rs", "rules for names of tensors"),
    ("exporters/checkpoint/src/tree.rs", "interpolations in a configuration"),
    ("exporters/inputs/src/memory.rs", "an amount of memory"),
    ("exporters/spec/src/per_component.rs", "what is asked for each component on the command line"),
    ("exporters/spec/src/precision.rs", "precisions on the command line"),
    ("exporters/spec/src/quantize.rs", "kinds of weights on the command line"),
    ("harness/args/src/args/component.rs", "a way to resize"),
    ("harness/args/src/args/rule.rs", "a number on the command line"),
    ("harness/args/src/args/sampling.rs", "numbers on the command line"),
    ("src/commands/bench.rs", "a case on the command line"),
    ("src/commands/evaluate/args.rs", "a shard on the command line"),
];

/// Results whose error is a text, outside of the list.
pub(crate) fn check(file: &Tracked) -> Vec<String> {
    let (path, Some(text)) = (file.path.as_str(), &file.text) else { return Vec::new() };
    let test = path.split('/').any(|part| ["tests", "benches", "tests.rs", "fuzz"].contains(&part));
    if file.path.extension() != Some("rs") || test || PARSING.iter().any(|(p, _)| *p == path) {
        return Vec::new();
    }
    let code = product(text);
    let commented = |at: usize| code[..at].rsplit('\n').next().is_some_and(|line| line.contains("//"));
    code.match_indices(concat!("Res", "ult<"))
        .filter(|(at, word)| !commented(*at) && error(&code[at + word.len()..]) == Some("String"))
        .map(|(at, _)| {
            let line = code[..at].matches('\n').count() + 1;
            format!("{path}:{line}: an error that is a `String`: give it a type (helpers that parse are listed in \
                     xtask/src/tidy/errors.rs)")
        })
        .collect()
}

/// The second of the types behind `<`.
fn error(types: &str) -> Option<&str> {
    let (mut depth, mut from) = (0, None);
    let mut before = ' ';
    for (at, c) in types.char_indices() {
        match c {
            '<' | '(' | '[' => depth += 1,
            ',' if depth == 0 && from.is_none() => from = Some(at + 1),
            '>' if before == '-' => {}
            '>' | ')' | ']' if depth == 0 => {
                return from.map(|from| types[from..at].trim().trim_end_matches(',').trim_end());
            }
            '>' | ')' | ']' => depth -= 1,
            _ => {}
        }
        before = c;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(&Tracked { path: path.into(), bytes: 0, text: Some(text.to_owned()) }).len()
    }

    #[test]
    fn an_error_that_is_a_text_fires_outside_of_parsing() {
        let of = |types: &str| format!("fn f() -> {}<{types}> {{", concat!("Res", "ult"));
        for types in [
            "(), String",
            "Vec<(usize, u8)>, String",
            "\n    [u8; 2],\n    String,\n",
            "fn(u8) -> u8, String",
        ] {
            for path in ["engines/x/src/lib.rs", "src/commands/verify.rs", "xtask/src/main.rs"] {
                assert_eq!(found(path, &of(types)), 1, "{types}");
            }
            for quiet in [PARSING[0].0, "tests/suite/x.rs", "harness/x/src/a/tests.rs", "docs/a.md"] {
                assert_eq!(found(quiet, &of(types)), 0, "{quiet}");
            }
            assert_eq!(found("src/a.rs", &format!("#[cfg(test)]\nmod tests {{ {}", of(types))), 0);
        }
        for types in ["String", "BTreeMap<u8, String>", "(u8, String), Failure", "String, fmt::Error"] {
            assert_eq!(found("src/a.rs", &of(types)), 0, "{types}");
        }
        assert_eq!(found("src/a.rs", &format!("// {}", of("(), String"))), 0);
    }
}
