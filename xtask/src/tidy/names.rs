//! One meaning for each name of a type: it is defined once in the sources of the workspace. What a function defines for
//! itself, what a trait asks for and what only tests have is not counted.

use std::collections::{BTreeMap, BTreeSet};

use super::{Tracked, product};

/// Names that are defined more than once, with the reason.
const SHARED: &[(&str, &str)] = &[
    ("CachedAttention", "the operator of engines/kv, as the interface of each engine that runs it has it"),
    ("Plan", "what each command makes of its arguments"),
];

/// How messages of ONNX are called; every room reads the fields that it needs.
const MESSAGE: &str = "Proto";

/// Words in front of what a type is defined with.
const BEFORE: &[&str] = &["pub", "pub(crate)", "pub(super)", concat!("uns", "afe")];

/// What defines a type.
const DEFINES: &[&str] = &["struct", "enum", "union", "trait", "type"];

pub(crate) fn check(files: &[Tracked]) -> Vec<String> {
    check_with(files, SHARED)
}

fn check_with(files: &[Tracked], shared: &[(&str, &str)]) -> Vec<String> {
    let mut places: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let (path, Some(text)) = (file.path.as_str(), &file.text) else { continue };
        let test = path.split('/').any(|part| ["tests", "benches", "tests.rs", "fuzz"].contains(&part));
        if file.path.extension() != Some("rs") || test {
            continue;
        }
        for (i, line) in product(text).lines().enumerate() {
            if let Some(name) = defined(line) {
                places.entry(name).or_default().insert(format!("{path}:{}", i + 1));
            }
        }
    }
    let listed = |name: &str| shared.iter().any(|(n, _)| *n == name);
    let several = places.iter().filter(|(_, at)| at.len() > 1);
    let mut problems: Vec<String> = several
        .clone()
        .filter(|(name, _)| !listed(name) && !name.ends_with(MESSAGE))
        .map(|(name, at)| {
            let at = at.iter().cloned().collect::<Vec<_>>().join(", ");
            format!("`{name}` is defined at {at}: a name has one meaning")
        })
        .collect();
    let needless = shared.iter().filter(|(name, _)| !several.clone().any(|(n, _)| n == name));
    problems.extend(needless.map(|(name, _)| format!("`{name}` is defined once: take it off the list")));
    problems
}

/// The type that a line which is not indented defines.
fn defined(line: &str) -> Option<&str> {
    if line.starts_with(char::is_whitespace) {
        return None;
    }
    let mut words = line.split_whitespace().skip_while(|word| BEFORE.contains(word));
    words.next().filter(|word| DEFINES.contains(word))?;
    let rest = words.next()?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)], shared: &[(&str, &str)]) -> Vec<String> {
        let tracked = |(path, text): &(&str, &str)| Tracked {
            path: (*path).into(),
            bytes: 0,
            text: Some((*text).to_owned()),
        };
        check_with(&files.iter().map(tracked).collect::<Vec<_>>(), shared)
    }

    #[test]
    fn a_name_that_is_defined_twice_fires() {
        let defines = ["struct Verdict {", "pub enum Verdict<'a> {", "pub(crate) trait Verdict: Send {"];
        for other in defines.iter().chain(&["pub type Verdict = u8;", "pub(super) struct Verdict(u8);"]) {
            for path in ["engines/x/src/lib.rs", "metrics/src/lib.rs", "xtask/src/main.rs"] {
                let problems =
                    found(&[("src/a.rs", defines[0]), (path, &format!("use a;\n\n{other}\n"))], &[]);
                let [problem] = &problems[..] else { panic!("{problems:?}") };
                let second = format!("{path}:3");
                for part in ["`Verdict` is defined at ", "src/a.rs:1", &second, ": a name has one meaning"] {
                    assert!(problem.contains(part), "{problem}");
                }
            }
        }
        assert_eq!(found(&[("src/a.rs", "struct A;\nenum A {}\n")], &[]).len(), 1, "in one file");
    }

    #[test]
    fn what_is_local_shared_or_of_tests_is_quiet() {
        let own = ("src/a.rs", "struct Plan;\n");
        for other in
            ["    struct Plan;", "    type Plan = u8;", "// struct Plan", "struct Plans;", "impl Plan {"]
        {
            assert!(found(&[own, ("src/b.rs", other)], &[]).is_empty(), "{other}");
        }
        let tests = "#[cfg(test)]\nmod tests {\nstruct Plan;\n}";
        assert!(found(&[own, ("src/b.rs", tests), ("tests/suite/x.rs", own.1)], &[]).is_empty());
        let twice = [own, ("src/b.rs", own.1)];
        assert!(found(&twice, &[("Plan", "each has one")]).is_empty());
        assert_eq!(
            found(&[own], &[("Plan", "each has one")]),
            ["`Plan` is defined once: take it off the list"]
        );
        let message = "pub struct NodeProto {";
        assert!(found(&[("src/a.rs", message), ("src/b.rs", message)], &[]).is_empty());
    }
}
