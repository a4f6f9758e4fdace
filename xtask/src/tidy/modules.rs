//! How the modules of a crate use each other: no circle among the modules of one folder, no crate too large to know.
//!
//! Paths are read as text: those that begin with `crate` or `super`, in `use` and elsewhere. A parent and its children
//! belong together; what counts is which of its children use which. Tests may look anywhere.

use std::collections::{BTreeMap, BTreeSet};

use super::Tracked;

/// Most lines in the sources of a crate; files of tests are not counted.
const CRATE_LINES: usize = 7_000;

/// The modules that use each other, by the module that holds them.
type ModuleUses = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The crate that a source file belongs to, and the modules that lead to it.
fn place(path: &str) -> Option<(&str, Vec<&str>)> {
    let (folder, file) = match path.strip_prefix("src/") {
        Some(file) => (".", file),
        None => path.split_once("/src/")?,
    };
    let mut modules: Vec<&str> = file.strip_suffix(".rs")?.split('/').collect();
    let last = modules.last().copied()?;
    if last == "mod" || (modules.len() == 1 && matches!(last, "lib" | "main")) {
        modules.pop();
    }
    Some((folder, modules))
}

/// The source without comments, and without the module of tests at its end.
fn code(text: &str) -> String {
    let text = text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(code, _)| code);
    text.lines().map(|l| l.split_once("//").map_or(l, |(code, _)| code)).collect::<Vec<_>>().join("\n")
}

/// The paths that begin with `crate` or `super`, as their parts.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let inside = code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            if !inside {
                tree(&code[at..], &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Reads a path, or a tree of `use` with braces; returns how many bytes it has.
fn tree(text: &str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let depth = before.len();
    let mut at = 0;
    loop {
        let name = text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if name.is_empty() {
            break;
        }
        at += name.len();
        before.push(name);
        match text[at..].strip_prefix("::") {
            Some(_) => at += 2,
            None => break,
        }
    }
    if text[at..].starts_with('{') {
        at += 1;
        while let Some(next) = text[at..].chars().next().filter(|c| *c != '}') {
            let word = next.is_alphanumeric() || next == '_';
            at += if word { tree(&text[at..], before, found).max(1) } else { next.len_utf8() };
        }
        at += 1;
    } else {
        found.push(before.clone());
    }
    before.truncate(depth);
    at
}

/// Adds what a file uses.
fn add(graph: &mut ModuleUses, folder: &str, modules: &[&str], known: &BTreeSet<Vec<String>>, text: &str) {
    for path in paths(&code(text)) {
        let up = path.iter().take_while(|p| *p == "super").count();
        let Some(keep) = modules.len().checked_sub(up) else { continue };
        let absolute = path.first().is_some_and(|p| p == "crate");
        let base = if absolute { &[][..] } else { &modules[..keep] };
        let names = if absolute { &path[1..] } else { &path[up..] };
        let target: Vec<String> = base.iter().map(|m| (*m).to_owned()).chain(names.iter().cloned()).collect();
        let same = target.iter().zip(modules).take_while(|(a, b)| a == b).count();
        let (Some(from), Some(to)) = (modules.get(same), target.get(same)) else { continue };
        if known.contains(&target[..=same]) {
            let parent = [&[folder][..], &modules[..same]].concat().join("/");
            let uses = graph.entry(parent).or_default();
            uses.entry((*from).to_owned()).or_default().insert(to.clone());
        }
    }
}

/// A way from `to` back to `from`.
fn way(uses: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> Option<Vec<String>> {
    let mut open = vec![vec![to.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = open.pop() {
        let last = way.last()?.clone();
        if last == from {
            return Some(way);
        }
        if seen.insert(last.clone()) {
            let next = uses.get(&last).into_iter().flatten();
            open.extend(next.map(|n| [&way[..], std::slice::from_ref(n)].concat()));
        }
    }
    None
}

pub(crate) fn check(tracked: &[Tracked]) -> Vec<String> {
    check_with(tracked, CRATE_LINES)
}

fn check_with(tracked: &[Tracked], most: usize) -> Vec<String> {
    let sources: Vec<_> = tracked
        .iter()
        .filter_map(|file| Some((place(file.path.as_str())?, file.text.as_deref()?)))
        .filter(|((folder, modules), _)| !folder.contains("/src") && modules.last() != Some(&"tests"))
        .collect();
    let (mut known, mut lines) = (BTreeMap::<&str, BTreeSet<Vec<String>>>::new(), BTreeMap::new());
    for ((folder, modules), text) in &sources {
        let names = known.entry(*folder).or_default();
        for n in 1..=modules.len() {
            names.insert(modules[..n].iter().map(|m| (*m).to_owned()).collect());
        }
        *lines.entry(*folder).or_insert(0) += text.lines().count();
    }
    let mut graph = ModuleUses::new();
    for ((folder, modules), text) in &sources {
        add(&mut graph, folder, modules, &known[folder], text);
    }
    let mut problems = Vec::new();
    for (folder, lines) in lines.into_iter().filter(|(_, n)| *n > most) {
        problems.push(format!("{folder}/src: {lines} lines, {most} are allowed in a crate: split it"));
    }
    for (parent, uses) in &graph {
        for (from, to) in uses.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
            // Each circle is told once: from its first name.
            let circle = (from <= to).then(|| way(uses, from, to)).flatten();
            if let Some(circle) = circle.filter(|c| c.iter().all(|n| from <= n)) {
                problems.push(format!("{parent}: modules in a circle: {from} -> {}", circle.join(" -> ")));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Vec<Tracked> {
        let file = |(path, text): &(&str, &str)| Tracked {
            path: (*path).into(),
            bytes: text.len() as u64,
            text: Some((*text).to_owned()),
        };
        files.iter().map(file).collect()
    }

    #[test]
    fn a_circle_of_modules_fires() {
        for (a, b) in [
            ("use crate::b::B;", "use crate::a::A;"),
            ("use crate::{\n    c,\n    b::{B, D},\n};", "fn f() -> super::a::A {}"),
            ("use super::b;", "use crate::{c::C, a};"),
        ] {
            let found = check(&tree(&[("x/src/lib.rs", ""), ("x/src/a.rs", a), ("x/src/b.rs", b)]));
            assert_eq!(found, ["x: modules in a circle: a -> b -> a"], "{a} {b}");
        }
        let deep = [
            ("src/m/mod.rs", "mod a; mod b; mod c;"),
            ("src/m/a.rs", "use super::b::B;"),
            ("src/m/b/mod.rs", "use super::c::C;"),
            ("src/m/c.rs", "use crate::m::a::A;"),
        ];
        assert_eq!(check(&tree(&deep)), ["./m: modules in a circle: a -> b -> c -> a"]);
        let below = [
            ("e/src/p.rs", ""),
            ("e/src/p/q.rs", "use super::super::r::R;"),
            ("e/src/r.rs", "use crate::p::P;"),
        ];
        assert_eq!(check(&tree(&below)), ["e: modules in a circle: p -> r -> p"]);
    }

    #[test]
    fn one_direction_parents_comments_and_tests_do_not_fire() {
        let files = [
            ("x/src/lib.rs", "mod a; use a::A;"),
            ("x/src/a/mod.rs", "mod deep; use crate::b::B; // use crate::c::C;"),
            ("x/src/a/deep.rs", "use super::A; use crate::b;"),
            ("x/src/b.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n"),
            ("x/src/c.rs", "use crate::a;"),
            ("x/src/c/tests.rs", "use crate::a;"),
            // Another crate's module of the same name.
            ("y/src/b.rs", "use crate::a;"),
            ("y/src/a.rs", ""),
        ];
        assert!(check(&tree(&files)).is_empty(), "{:?}", check(&tree(&files)));
    }

    #[test]
    fn a_large_crate_fires() {
        let files = tree(&[("x/src/lib.rs", "a\nb\n"), ("x/src/m.rs", "c\n"), ("y/src/lib.rs", "a\nb\n")]);
        assert_eq!(check_with(&files, 2), ["x/src: 3 lines, 2 are allowed in a crate: split it"]);
        assert!(check_with(&files, 3).is_empty());
    }
}
