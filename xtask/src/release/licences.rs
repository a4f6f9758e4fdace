//! The licences of all that the program is built from: whether each is allowed, and their texts.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use crate::cargo;

/// The list of allowed licences stands in there, for cargo-deny too.
const DENY: &str = include_str!("../../../deny.toml");

/// Licences that may be in what is handed out.
fn listed() -> impl Iterator<Item = &'static str> {
    let list = DENY.lines().skip_while(|line| *line != "allow = [").skip(1).take_while(|line| *line != "]");
    list.map(|line| line.trim().trim_end_matches(',').trim_matches('"'))
}

/// A package that the program is built from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BuiltPackage {
    pub(super) name: String,
    pub(super) version: String,
    /// The SPDX expression.
    pub(super) license: String,
    /// Who is named as its authors.
    authors: String,
    /// Whether it is of this workspace.
    own: bool,
    folder: Utf8PathBuf,
}

/// Everything that the program with these features is built from, by name: no test or build dependencies.
pub(super) fn packages(root: &Utf8Path, features: &str) -> Result<Vec<BuiltPackage>> {
    let metadata = super::said(
        root,
        &cargo(),
        &["metadata", "--format-version", "1", "--locked", "--features", features],
    )?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let tree = super::said(
        root,
        &cargo(),
        &[
            "tree",
            "--locked",
            "-p",
            "dpar-export",
            "--features",
            features,
            "-e",
            "normal",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ],
    )?;
    // `NAME vVERSION (…)`
    let wanted: BTreeSet<(String, String)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
        })
        .collect();
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        if !wanted.contains(&(text("name"), text("version"))) {
            continue;
        }
        let manifest = Utf8PathBuf::from(text("manifest_path"));
        found.push(BuiltPackage {
            name: text("name"),
            version: text("version"),
            license: text("license"),
            authors: authors(package),
            own: package["source"].is_null(),
            folder: manifest.parent().map(Utf8Path::to_owned).unwrap_or_default(),
        });
    }
    found.sort();
    found.dedup();
    if found.len() != wanted.len() {
        bail!("{} packages are built, {} are known", wanted.len(), found.len());
    }
    Ok(found)
}

fn authors(package: &Value) -> String {
    let named: Vec<&str> =
        package["authors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match named.is_empty() {
        true => format!("the authors of {}", package["name"].as_str().unwrap_or_default()),
        false => named.join(", "),
    }
}

/// Fails where a package may not be handed out.
pub(super) fn check(packages: &[BuiltPackage]) -> Result<()> {
    let refused: Vec<String> = packages
        .iter()
        .filter(|p| !allowed(&p.license))
        .map(|p| format!("{} {}: `{}`", p.name, p.version, p.license))
        .collect();
    if !refused.is_empty() {
        bail!("licences that are not in the list of allowed ones:\n{}", refused.join("\n"));
    }
    Ok(())
}

/// Whether an SPDX expression can be met with the list.
fn allowed(expression: &str) -> bool {
    met(expression, &|one| listed().any(|listed| listed == one))
}

/// Whether an SPDX expression can be met with some licences: one side of an OR, both of an AND.
fn met(expression: &str, with: &dyn Fn(&str) -> bool) -> bool {
    let expression = expression.trim();
    // Without parentheses around the whole.
    let inner = expression.strip_prefix('(').and_then(|e| e.strip_suffix(')'));
    if let Some(inner) = inner.filter(|inner| balanced(inner)) {
        return met(inner, with);
    }
    let parts = |operator: &str| -> Vec<String> {
        let mut parts = vec![String::new()];
        let mut depth = 0_i32;
        for word in expression.replace('/', " OR ").split_whitespace() {
            if depth == 0 && word == operator {
                parts.push(String::new());
                continue;
            }
            depth += word.matches('(').count() as i32 - word.matches(')').count() as i32;
            if let Some(last) = parts.last_mut() {
                *last += if last.is_empty() { "" } else { " " };
                *last += word;
            }
        }
        parts
    };
    // AND binds closer than OR.
    let (either, both) = (parts("OR"), parts("AND"));
    match (either.len(), both.len()) {
        (1, 1) => with(expression),
        (1, _) => both.iter().all(|e| met(e, with)),
        _ => either.iter().any(|e| met(e, with)),
    }
}

/// Whether no parenthesis closes before it was opened.
fn balanced(text: &str) -> bool {
    let mut depth = 0_i32;
    text.chars().all(|c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        depth >= 0
    })
}

/// The terms of a package that comes without their text.
fn terms(root: &Utf8Path, package: &BuiltPackage) -> Result<String> {
    if met(&package.license, &|one| one == "Apache-2.0") {
        return Ok(fs_err::read_to_string(root.join("LICENSE-APACHE"))?);
    }
    if met(&package.license, &|one| one == "MIT") {
        // This workspace's text is the licence's own, but for who has the rights.
        let own = fs_err::read_to_string(root.join("LICENSE-MIT"))?;
        let (_, terms) = own.split_once("\n\nPermission ").context("LICENSE-MIT has another layout")?;
        return Ok(format!("MIT License\n\nCopyright (c) {}\n\nPermission {terms}", package.authors));
    }
    bail!("{} {} ({}) comes without the text of its licence", package.name, package.version, package.license)
}

/// The texts of all licences, each once, with the packages that are under it.
pub(super) fn texts(root: &Utf8Path, packages: &[BuiltPackage]) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut out = String::from("What dpar-export is built from, with its licences.\n\n");
    for package in packages.iter().filter(|p| !p.own) {
        out += &format!("{} {}: {}\n", package.name, package.version, package.license);
        let of = format!("{} {}", package.name, package.version);
        let mut add = |text: &str| {
            let all = texts.entry(text.trim().to_owned()).or_default();
            if !all.contains(&of) {
                all.push(of.clone());
            }
        };
        let mut found = false;
        for entry in package.folder.read_dir_utf8()? {
            let entry = entry?;
            let name = entry.file_name().to_ascii_uppercase();
            let is =
                ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"].iter().any(|w| name.starts_with(w));
            if is && entry.file_type()?.is_file() {
                add(&String::from_utf8_lossy(&fs_err::read(entry.path())?).replace('\r', ""));
                found = true;
            }
        }
        if !found {
            add(&terms(root, package)?);
        }
    }
    for (text, of) in texts {
        out += &format!("\n{}\n{}\n\n{text}\n", "=".repeat(78), of.join(", "));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_comes_with_the_text_of_its_licence() {
        let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let packages = packages(&root, &crate::all_engines()).unwrap();
        check(&packages).unwrap();
        let texts = texts(&root, &packages).unwrap();
        let (_, texts) = texts.split_once(&"=".repeat(78)).unwrap();
        for package in packages.iter().filter(|p| !p.own) {
            assert!(texts.contains(&format!("{} {}", package.name, package.version)), "{}", package.name);
        }
        let without = |license: &str| BuiltPackage {
            name: "p".into(),
            version: "1".into(),
            license: license.into(),
            authors: "A. Uthor".into(),
            own: false,
            folder: Utf8PathBuf::new(),
        };
        assert!(terms(&root, &without("MIT OR GPL-3.0")).unwrap().contains("Copyright (c) A. Uthor"));
        assert!(terms(&root, &without("Apache-2.0 OR MIT")).unwrap().contains("Apache License"));
        assert!(terms(&root, &without("ISC")).is_err());
    }

    #[test]
    fn an_expression_is_met_by_one_side_of_or_and_both_of_and() {
        for yes in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-2.0 OR (MIT AND ISC)",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "(MIT)",
        ] {
            assert!(allowed(yes), "{yes}");
        }
        for no in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "GPL-2.0 OR LGPL-2.1"] {
            assert!(!allowed(no), "{no}");
        }
    }
}
