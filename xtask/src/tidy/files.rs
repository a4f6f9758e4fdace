//! Which files must be there, and how large they may be.

use std::collections::BTreeSet;

use super::Tracked;

/// Documents that the project promises.
const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];

/// Largest tracked file.
const LARGEST: u64 = 20_000_000;

pub(crate) fn check(tracked: &[Tracked]) -> Vec<String> {
    let paths: BTreeSet<&str> = tracked.iter().map(|t| t.path.as_str()).collect();
    let mut problems: Vec<String> =
        DOCUMENTS.iter().filter(|d| !paths.contains(**d)).map(|d| format!("{d} is missing")).collect();
    let fixtures: BTreeSet<&str> = paths
        .iter()
        .filter_map(|p| p.strip_prefix("fixtures/")?.split_once('/'))
        .map(|(name, _)| name)
        .collect();
    for name in fixtures {
        let readme = format!("fixtures/{name}/README.md");
        if !paths.contains(readme.as_str()) {
            problems.push(format!("{readme} is missing: a fixture says what it is and how it was made"));
        }
    }
    for file in tracked.iter().filter(|t| t.bytes > LARGEST) {
        problems.push(format!("{} has {} bytes, {LARGEST} are allowed", file.path, file.bytes));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> Vec<Tracked> {
        paths.iter().map(|p| Tracked { path: (*p).into(), bytes: 1, text: None }).collect()
    }

    const ALL: &[&str] =
        &["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "fixtures/a/README.md", "fixtures/a/b/c"];

    #[test]
    fn a_missing_document_fires() {
        assert!(check(&tree(ALL)).is_empty());
        for missing in DOCUMENTS {
            let rest: Vec<&str> = ALL.iter().copied().filter(|p| p != missing).collect();
            assert_eq!(check(&tree(&rest)), [format!("{missing} is missing")]);
        }
    }

    #[test]
    fn a_fixture_without_a_readme_fires() {
        let mut files = tree(ALL);
        files.extend(tree(&["fixtures/new/x.bin"]));
        let found = check(&files);
        assert!(found.len() == 1 && found[0].starts_with("fixtures/new/README.md is missing"), "{found:?}");
    }

    #[test]
    fn a_large_file_fires() {
        let mut files = tree(ALL);
        files[4].bytes = LARGEST + 1;
        assert!(check(&files)[0].contains("fixtures/a/b/c has 20000001 bytes"));
    }
}
