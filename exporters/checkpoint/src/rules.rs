//! Rename rules: how a release with other tensor names is mapped to the names this project knows.
//!
//! The file is YAML (so JSON works too): a list of rules, tried in order; the first that fits a tensor renames it, and
//! a tensor is renamed at most once. Names that no rule fits stay as they are.
//!
//! ```yaml
//! # `{i}` stands for a number, `*` for any text; both are carried over.
//! - from: transformer.h.{i}.attn.qkv.weight
//!   to: layers.{i}.attention.wqkv.weight
//! # Only for one component: dpar, entropy, llamagen, vq, inception or efficientnet-lite0.
//! - from: enc.*
//!   to: local_encoder.*
//!   component: dpar
//! # Left out on purpose.
//! - from: ema.*
//!   drop: true
//! ```
//!
//! Rules see a file's names without what wrappers add (prefixes `module.` and `model.` that all names share, `_orig_mod.` and
//! the like inside names); where none fits, as they are in the file. Two tensors that would get one name are an error.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::ComponentKind;
use serde::Deserialize;

use crate::config::read_text;
use crate::{CheckpointError, ErrorKind};

/// Names longer than this are never matched.
const MAX_NAME: usize = 1024;

/// All rules of one file.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) path: Utf8PathBuf,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    component: Option<ComponentKind>,
    from: Vec<PatternPiece>,
    /// `None` leaves the tensor out.
    to: Option<Vec<PatternPiece>>,
}

#[derive(Debug, PartialEq, Eq)]
enum PatternPiece {
    Text(String),
    /// `{name}`: one or more decimal digits.
    Number(String),
    /// `*`
    Any,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    from: String,
    to: Option<String>,
    #[serde(default)]
    drop: bool,
    component: Option<ComponentKind>,
}

/// What the rules make of one name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Renamed {
    Same,
    To(String),
    Dropped,
}

impl Rules {
    /// Reads a rules file.
    pub(crate) fn read(path: &Utf8Path) -> Result<Self, CheckpointError> {
        Self::parse(&read_text(path, "the rename rules file")?, path)
    }

    /// Parses rules.
    pub(crate) fn parse(text: &str, path: &Utf8Path) -> Result<Self, CheckpointError> {
        let fail = |rule, problem: String| {
            CheckpointError::in_file(ErrorKind::Rule { rule, problem }, path)
                .with_hint("rules look like `- {from: \"enc.{i}.*\", to: \"local_encoder.layers.{i}.*\"}`")
        };
        let raw: Vec<RawRule> = serde_saphyr::from_str(text).map_err(|e| fail(None, e.to_string()))?;
        let rules = raw
            .into_iter()
            .enumerate()
            .map(|(i, r)| Rule::new(r).map_err(|problem| fail(Some(i + 1), problem)))
            .collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), rules })
    }

    /// The new name of a tensor in a file of that component.
    pub(crate) fn rename(&self, component: ComponentKind, name: &str) -> Renamed {
        if name.len() > MAX_NAME {
            return Renamed::Same;
        }
        for rule in self.rules.iter().filter(|r| r.component.is_none_or(|c| c == component)) {
            if let Some(captured) = fit(&rule.from, name) {
                return match &rule.to {
                    None => Renamed::Dropped,
                    Some(to) => Renamed::To(captured.fill(to)),
                };
            }
        }
        Renamed::Same
    }
}

impl Rule {
    fn new(raw: RawRule) -> Result<Self, String> {
        let from = pieces(&raw.from)?;
        if from.is_empty() {
            return Err("`from` is empty".to_owned());
        }
        if from.iter().filter(|p| **p == PatternPiece::Any).count() > 1 {
            return Err("`from` may hold one `*` only".to_owned());
        }
        for pair in from.windows(2) {
            let ambiguous = match pair {
                [PatternPiece::Number(_), PatternPiece::Text(t)] => {
                    t.starts_with(|c: char| c.is_ascii_digit())
                }
                [PatternPiece::Text(_), _] | [_, PatternPiece::Text(_)] => false,
                _ => true,
            };
            if ambiguous {
                return Err(
                    "`from` is ambiguous: put text that is not a digit between `{…}` and what follows"
                        .to_owned(),
                );
            }
        }
        let to = match (raw.to, raw.drop) {
            (Some(to), false) => Some(pieces(&to)?),
            (None, true) => None,
            (Some(_), true) => return Err("has both `to` and `drop`".to_owned()),
            (None, false) => return Err("needs `to: NAME` or `drop: true`".to_owned()),
        };
        for piece in to.iter().flatten() {
            match piece {
                PatternPiece::Any | PatternPiece::Number(_) if !from.contains(piece) => {
                    return Err("`to` uses a `{…}` or `*` that `from` does not have".to_owned());
                }
                _ => {}
            }
        }
        if to.as_ref().is_some_and(|t| t.is_empty()) {
            return Err("`to` is empty".to_owned());
        }
        Ok(Self { component: raw.component, from, to })
    }
}

fn pieces(pattern: &str) -> Result<Vec<PatternPiece>, String> {
    if pattern.len() > MAX_NAME {
        return Err(format!("a pattern has more than {MAX_NAME} bytes"));
    }
    let mut out = Vec::new();
    let mut rest = pattern;
    while let Some(at) = rest.find(['{', '*', '}']) {
        let (text, tail) = rest.split_at(at);
        if !text.is_empty() {
            out.push(PatternPiece::Text(text.to_owned()));
        }
        rest = if let Some(after) = tail.strip_prefix('*') {
            out.push(PatternPiece::Any);
            after
        } else {
            let inner = tail.strip_prefix('{').and_then(|t| t.split_once('}'));
            let named = inner
                .filter(|(n, _)| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
            let Some((name, after)) = named else {
                return Err(format!(
                    "`{pattern}`: a number is written `{{i}}`, with a name of letters and digits"
                ));
            };
            out.push(PatternPiece::Number(name.to_owned()));
            after
        };
    }
    if !rest.is_empty() {
        out.push(PatternPiece::Text(rest.to_owned()));
    }
    Ok(out)
}

#[derive(Debug, Default, Clone)]
struct Captured<'n> {
    numbers: BTreeMap<String, &'n str>,
    any: &'n str,
}

impl Captured<'_> {
    fn fill(&self, to: &[PatternPiece]) -> String {
        to.iter()
            .map(|p| match p {
                PatternPiece::Text(t) => t.as_str(),
                PatternPiece::Number(n) => self.numbers.get(n).copied().unwrap_or_default(),
                PatternPiece::Any => self.any,
            })
            .collect()
    }
}

/// Matches a whole name.
fn fit<'n>(from: &[PatternPiece], name: &'n str) -> Option<Captured<'n>> {
    // Most rules fit few names, and end in text.
    if let Some(PatternPiece::Text(t)) = from.last()
        && !name.ends_with(t.as_str())
    {
        return None;
    }
    let mut captured = Captured::default();
    let Some(star) = from.iter().position(|p| *p == PatternPiece::Any) else {
        return (eat(from, name, &mut captured)?.is_empty()).then_some(captured);
    };
    let rest = eat(&from[..star], name, &mut captured)?;
    let tail = &from[star + 1..];
    let attempt = |i: usize| {
        let mut attempt = captured.clone();
        attempt.any = &rest[..i];
        (eat(tail, &rest[i..], &mut attempt)?.is_empty()).then_some(attempt)
    };
    match tail {
        [] => attempt(rest.len()),
        // What follows the `*` has one place to begin.
        [PatternPiece::Text(t)] => {
            attempt(rest.len().checked_sub(t.len()).filter(|_| rest.ends_with(t.as_str()))?)
        }
        // A number before it could take its digits, so text follows. Where that is not, nothing fits.
        [PatternPiece::Text(t), ..] => {
            let mut from = 0;
            std::iter::from_fn(|| {
                let at = from + rest.get(from..)?.find(t.as_str())?;
                from = at + t.chars().next().map_or(1, char::len_utf8);
                Some(at)
            })
            .find_map(attempt)
        }
        _ => None,
    }
}

/// Consumes text and numbers from the left; what is left of the name.
fn eat<'n>(pieces: &[PatternPiece], mut name: &'n str, captured: &mut Captured<'n>) -> Option<&'n str> {
    for piece in pieces {
        match piece {
            PatternPiece::Text(t) => name = name.strip_prefix(t.as_str())?,
            PatternPiece::Number(n) => {
                let len = name.bytes().take_while(u8::is_ascii_digit).count();
                let (digits, rest) = name.split_at(len);
                if digits.is_empty()
                    || captured.numbers.insert(n.clone(), digits).is_some_and(|old| old != digits)
                {
                    return None;
                }
                name = rest;
            }
            PatternPiece::Any => return None,
        }
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use dpar_export_spec::Hinted;

    use super::*;

    fn rules(text: &str) -> Result<Rules, CheckpointError> {
        Rules::parse(text, Utf8Path::new("names.yaml"))
    }

    #[test]
    fn the_first_rule_that_fits_renames() {
        let r = rules(
            "- {from: 'h.{i}.attn.{j}.w', to: 'layers.{i}.x.{j}.weight'}\n\
             - {from: 'enc.*', to: 'local_encoder.*', component: dpar}\n\
             - {from: '*.gamma', to: '*.weight'}\n\
             - {from: 'ema.*', drop: true}\n\
             - {from: 'a.{i}.*.b.{i}', to: 'c.{i}.*'}\n\
             - {from: head, to: output.weight}\n",
        )
        .unwrap();
        let to = |s: &str| Renamed::To(s.to_owned());
        let dpar = |n| r.rename(ComponentKind::Dpar, n);
        assert_eq!(dpar("h.12.attn.3.w"), to("layers.12.x.3.weight"));
        assert_eq!(dpar("h.x.attn.3.w"), Renamed::Same);
        assert_eq!(dpar("enc.norm.gamma"), to("local_encoder.norm.gamma"));
        assert_eq!(r.rename(ComponentKind::Vq, "enc.norm.gamma"), to("enc.norm.weight"));
        assert_eq!(dpar("ema.step"), Renamed::Dropped);
        assert_eq!(dpar("a.4.é.b.4"), to("c.4.é"));
        assert_eq!(dpar("a.4.z.b.5"), Renamed::Same);
        assert_eq!(dpar("head"), to("output.weight"));
        assert_eq!(dpar("head2"), Renamed::Same);
    }

    #[test]
    fn what_follows_any_text_is_found_wherever_it_begins() {
        let r = rules(
            "- {from: '*aab.{i}', to: '*!{i}'}\n- {from: 'x*', to: 'y*'}\n- {from: '*é1é{i}é', to: '*{i}'}\n",
        )
        .unwrap();
        let to = |name: &str, new: &str| {
            assert_eq!(r.rename(ComponentKind::Vq, name), Renamed::To(new.to_owned()), "{name}");
        };
        to("aaab.7", "a!7");
        to("aab.1aab.2", "aab.1!2");
        to("aab.aab.3", "aab.!3");
        to("x", "y");
        to("xé", "yé");
        to("é1é1é2é", "é12");
        for name in ["aab.", "ab.7", "aab.7x", ""] {
            assert_eq!(r.rename(ComponentKind::Vq, name), Renamed::Same, "{name}");
        }
    }

    /// A megabyte of rules on the names of a large model: seconds even unoptimised.
    #[test]
    fn many_rules_are_applied_in_time() {
        let text: String =
            (0..24_000).map(|i| format!("- {{from: '*.{i}.{{i}}.weight', to: 'b*.{{i}}'}}\n")).collect();
        assert!(text.len() > 900_000);
        let started = std::time::Instant::now();
        let r = rules(&text).unwrap();
        for i in 0..500 {
            let name = format!("layers.{i}.attention.normalisation.of.the.keys.23999.{i}.weight");
            let new = format!("blayers.{i}.attention.normalisation.of.the.keys.{i}");
            assert_eq!(r.rename(ComponentKind::Dpar, &name), Renamed::To(new));
        }
        assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    }

    #[test]
    fn json_is_accepted() {
        let r = rules(r#"[{"from": "a", "to": "b"}]"#).unwrap();
        assert_eq!(r.rename(ComponentKind::Vq, "a"), Renamed::To("b".to_owned()));
    }

    #[test]
    fn unusable_rules_are_errors_that_name_the_rule() {
        for bad in [
            "- {from: 'a*b*', to: 'c'}",
            "- {from: '{i}{j}', to: 'c'}",
            "- {from: '{i}7', to: 'c'}",
            "- {from: '*{i}', to: 'c'}",
            "- {from: 'a{', to: 'c'}",
            "- {from: 'a{}', to: 'c'}",
            "- {from: 'a}', to: 'c'}",
            "- {from: '', to: 'c'}",
            "- {from: 'a', to: ''}",
            "- {from: 'a', to: 'b{i}'}",
            "- {from: 'a', to: 'b*'}",
            "- {from: 'a'}",
            "- {from: 'a', to: 'b', drop: true}",
        ] {
            let e = rules(bad).unwrap_err();
            assert!(matches!(e.kind(), ErrorKind::Rule { rule: Some(1), .. }), "{bad}: {e}");
            assert!(e.hint().is_some());
        }
        for bad in ["a: b", "- {from: a, to: b, typo: c}", "- {from: a, to: b, component: gpt}", "[", "7"] {
            let e = rules(bad).unwrap_err();
            assert!(matches!(e.kind(), ErrorKind::Rule { rule: None, .. }), "{bad}: {e}");
        }
    }
}
