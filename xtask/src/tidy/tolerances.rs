//! Numbers that decide whether two results agree stand in one table.

use super::{Tracked, product};

/// The table.
const TABLE: &str = "engines/conformance/src/tolerance.rs";

/// Where results are compared.
const ROOMS: &[&str] = &["engines/conformance/src/", "harness/compare/src/", "harness/evaluate/src/"];

/// Files with other numbers, and what those are.
const OTHER: &[(&str, &str)] = &[
    ("engines/conformance/src/inputs.rs", "what a mask adds"),
    ("harness/compare/src/report/sections.rs", "how figures are shown"),
    ("harness/compare/src/stats.rs", "edges of a histogram"),
];

/// Fires on a float that is a constant, has an exponent, or stands beside a comparison and is neither 0 nor 1.
pub(crate) fn check(file: &Tracked) -> Vec<String> {
    let (path, Some(text)) = (file.path.as_str(), &file.text) else { return Vec::new() };
    let compares = ROOMS.iter().any(|room| path.starts_with(room)) && path.ends_with(".rs");
    let other = path == TABLE || path.ends_with("/tests.rs") || OTHER.iter().any(|(p, _)| *p == path);
    if !compares || other {
        return Vec::new();
    }
    let tokens = tokens(product(text));
    let mut problems = Vec::new();
    let (mut constant, mut depth) = (false, 0_i32);
    for (i, (line, token)) in tokens.iter().enumerate() {
        match token.as_str() {
            "const" => constant = true,
            "fn" => constant = false,
            ";" if depth == 0 => constant = false,
            "[" => depth += 1,
            "]" => depth -= 1,
            _ => {}
        }
        if !is_float(token) {
            continue;
        }
        let beside = [i.checked_sub(1), Some(i + 1)];
        let compared = beside
            .iter()
            .flatten()
            .filter_map(|i| tokens.get(*i))
            .any(|(_, t)| ["<", "<=", ">", ">="].contains(&t.as_str()));
        let trivial = ["0.0", "1.0"].contains(&token.trim_end_matches("_f32").trim_end_matches("_f64"));
        if has_exponent(token) || ((constant || compared) && !trivial) {
            problems
                .push(format!("{path}:{line}: `{token}`: a tolerance stands in {TABLE}, with its reason"));
        }
    }
    problems
}

fn is_float(token: &str) -> bool {
    let number = token.starts_with(|c: char| c.is_ascii_digit()) && !token.starts_with("0x");
    number && (token.contains('.') || has_exponent(token) || token.ends_with("f32") || token.ends_with("f64"))
}

/// Whether a number goes on behind an `e`: a word of its type has letters before.
fn has_exponent(number: &str) -> bool {
    number.find(['e', 'E']).is_some_and(|at| number[..at].ends_with(|c: char| c.is_ascii_digit()))
}

/// The tokens of Rust code with their lines: words, numbers and operators; no comments, texts and characters.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = code.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\n');
    let (mut found, mut line, mut i) = (Vec::new(), 1, 0);
    while i < chars.len() {
        let start = i;
        let c = chars[i];
        i += 1;
        if c == '/' && at(i) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '"' {
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && (at(i) == '\\' || at(i + 1) == '\'') {
            i += if at(i) == '\\' { 2 } else { 1 };
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else if c.is_alphanumeric() || c == '_' {
            let number = c.is_ascii_digit();
            loop {
                let next = at(i);
                // `1..2` and `1.max(2)` are no floats; `1e-4` is one.
                let point = number && next == '.' && at(i + 1).is_ascii_digit();
                let sign = number && next == '-' && ['e', 'E'].contains(&chars[i - 1]);
                if !(next.is_alphanumeric() || next == '_' || point || sign) {
                    break;
                }
                i += 1;
            }
            found.push((line, chars[start..i].iter().collect()));
        } else if ["<=", ">=", "->", "=>", "<<", ">>"].contains(&format!("{c}{}", at(i)).as_str()) {
            i += 1;
            found.push((line, chars[start..i].iter().collect()));
        } else if !c.is_whitespace() {
            found.push((line, c.to_string()));
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Tracked { path: path.into(), bytes: text.len() as u64, text: Some(text.to_owned()) })
    }

    #[test]
    fn a_tolerance_outside_the_table_fires() {
        for line in [
            "const LOGITS_TOLERANCE: f64 = 0.5;",
            "pub const TIES: [f32; 2] = [0.25, 2.0];",
            "let limit = 2e-4;",
            "check(\"x\", a, b, 2.5e-2_f32)",
            "if worst <= 0.02 {",
            "0.5 > worst",
            "let pass = mean < 1.5_f64;",
        ] {
            for path in ["harness/compare/src/verify/golden.rs", "harness/evaluate/src/reproduce/gates.rs"] {
                let problems = found(path, &format!("\n{line}"));
                assert!(problems.len() <= 2 && !problems.is_empty(), "{line}: {problems:?}");
                assert!(problems[0].starts_with(&format!("{path}:2: `")), "{problems:?}");
            }
            for path in [TABLE, "metrics/src/stats.rs", "harness/compare/src/stats.rs", "docs/a.md"] {
                assert!(found(path, line).is_empty(), "{path}: {line}");
            }
        }
    }

    #[test]
    fn other_numbers_do_not_fire() {
        for line in [
            "// 2e-4 is usual",
            "format!(\"{:.1e} of 1e-4 <= 0.5\")",
            "if limit > 0.0 && length < 1.0 {",
            "let half = 0.5 * (a + b);",
            "const SEED: u64 = 0x009D_0BE5 + 0_usize;",
            "for i in 1..2 { f::<f32>(1.max(2)) }",
            "const fn f() -> f64 { 0.5 }",
            "let c = ['\"', '\\''][0]; let s: &'static str = \"1e-4\";",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    const A: f32 = 1e-4;",
        ] {
            assert!(
                found("harness/compare/src/check.rs", line).is_empty(),
                "{line}: {:?}",
                found("harness/compare/src/check.rs", line)
            );
        }
    }
}
