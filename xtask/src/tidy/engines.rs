//! Where the name of an engine may stand: what is true of one engine stands in its crate, and everybody else goes through
//! the table.

use dpar_engine_table as engines;

use super::{Tracked, product};

/// Files that name engines, with the reason.
const NAMED: &[(&str, &str)] = &[
    ("engines/table/src/lib.rs", "the table"),
    ("engines/conformance/src/lib.rs", "the suite's exceptions, each with its reason"),
    ("engines/api/src/device.rs", "a way to a device, as `--device` has it"),
    ("xtask/src/gpu.rs", "what only certain engines do on a GPU"),
    ("xtask/src/report.rs", "a report whose engine has a library"),
];

/// Engine names as texts in product code, outside of the engine's own crate.
pub(crate) fn check(file: &Tracked) -> Vec<String> {
    let (Some(text), path) = (&file.text, file.path.as_str()) else { return Vec::new() };
    let test = path.split('/').any(|part| ["tests", "benches", "tests.rs", "fuzz"].contains(&part));
    if file.path.extension() != Some("rs") || test || NAMED.iter().any(|(p, _)| *p == path) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (i, line) in product(text).lines().enumerate() {
        let code = line.split_once("//").map_or(line, |(code, _)| code);
        for name in engines::names().filter(|name| !path.starts_with(&format!("engines/{name}/"))) {
            // A feature decides what is compiled; it is not asked of an engine.
            let other = code.replace(&format!("feature = \"{name}\""), "");
            if words(&other).any(|word| word == name) {
                problems.push(format!(
                    "{path}:{}: `{name}`: take what is true of an engine from its descriptor (engines/table)",
                    i + 1
                ));
            }
        }
    }
    problems
}

/// The texts of a line, divided where a list of names is. A sentence is for people.
fn words(code: &str) -> impl Iterator<Item = &str> {
    let texts = code.split('"').skip(1).step_by(2).filter(|text| !text.contains(' '));
    texts.flat_map(|text| text.split(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(&Tracked { path: path.into(), bytes: 0, text: Some(text.to_owned()) }).len()
    }

    #[test]
    fn the_name_of_an_engine_fires_outside_its_crate_and_the_table() {
        for name in engines::names() {
            let line = format!("    if engine == \"{name}\" {{");
            for path in
                ["src/commands/parity.rs", "harness/decode/src/loaded.rs", "engines/api/src/panics.rs"]
            {
                assert_eq!(found(path, &line), 1, "{path}");
            }
            assert_eq!(found("engines/other/src/lib.rs", &line), 1);
            assert_eq!(found("xtask/src/main.rs", &format!("[\"x\", \"a,{name}\"]")), 1, "in a list");
            for allowed in [
                &format!("engines/{name}/src/lib.rs"),
                "engines/table/src/lib.rs",
                "tests/suite/cli.rs",
                "harness/compare/src/report/tests.rs",
                "docs/engines.md",
            ] {
                assert_eq!(found(allowed, &line), 0, "{allowed}");
            }
            let quiet = format!("#[cfg(feature = \"{name}\")]\n// \"{name}\"\n\"say {name},{name}\"\n");
            assert_eq!(found("src/a.rs", &quiet), 0);
            assert_eq!(found("src/a.rs", &format!("#[cfg(test)]\nmod tests {{ {line}")), 0);
            for before in ["#[cfg(test)]\nmod tests;\n", "#[cfg(test)]\nfn only_tests() {}\n"] {
                assert_eq!(found("src/a.rs", &format!("{before}{line}")), 1, "product code behind {before}");
            }
        }
    }
}
