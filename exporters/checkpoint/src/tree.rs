//! A configuration as the research code reads it: YAML through OmegaConf, numbers and truth values as pydantic takes them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Interpolations that lead to each other.
const MAX_HOPS: usize = 16;
/// Longest text that interpolation makes.
const MAX_TEXT: usize = 1 << 16;

/// A value of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ConfigNode {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    List(Vec<ConfigNode>),
    Map(Vec<(String, ConfigNode)>),
}

impl ConfigNode {
    /// The value at the end of a path of keys and list indices; `None` where there is none, or null.
    ///
    /// `${a.b}` stands for the value at `a.b` (`${.c}`, `${..c}`: from the node's own section); inside other text for its
    /// text. Resolvers (`${oc.env:HOME}`) have no value here.
    pub(crate) fn at(&self, key: &str) -> Result<Option<Cow<'_, Self>>, String> {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let found = self.walk(&path, 0)?;
        match found.as_deref() {
            Some(Self::Null) => Ok(None),
            Some(Self::Str(text)) if text == "???" => Err("is `???`, a value that must be given".to_owned()),
            _ => Ok(found),
        }
    }

    fn walk(&self, path: &[String], hops: usize) -> Result<Option<Cow<'_, Self>>, String> {
        let mut here = Cow::Borrowed(self);
        for (depth, key) in path.iter().enumerate() {
            let next = match here {
                Cow::Borrowed(node) => node.child(key)?.map(Cow::Borrowed),
                Cow::Owned(node) => node.child(key)?.cloned().map(Cow::Owned),
            };
            let Some(next) = next else { return Ok(None) };
            here = match next.as_ref() {
                Self::Str(text) if text.contains("${") => {
                    let text = text.clone();
                    match self.interpolate(&text, &path[..depth], hops)? {
                        Some(value) => value,
                        None => return Ok(None),
                    }
                }
                _ => next,
            };
        }
        Ok(Some(here))
    }

    fn child(&self, key: &str) -> Result<Option<&Self>, String> {
        match self {
            Self::Map(pairs) => Ok(pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v)),
            Self::List(items) => Ok(key.parse::<usize>().ok().and_then(|i| items.get(i))),
            Self::Null => Ok(None),
            other => Err(format!("is looked for in {other}, which holds no keys")),
        }
    }

    /// The value of a text with `${…}` in it; `section` is the path of the section it stands in.
    fn interpolate(
        &self,
        text: &str,
        section: &[String],
        hops: usize,
    ) -> Result<Option<Cow<'_, Self>>, String> {
        if hops >= MAX_HOPS {
            return Err(format!("`{}` leads to itself", text.escape_debug()));
        }
        if let Some(inner) = whole(text) {
            return self.reference(inner, section, hops);
        }
        let (mut out, mut rest) = (String::new(), text);
        while let Some(at) = rest.find("${") {
            let before = &rest[..at];
            if let Some(escaped) = before.strip_suffix('\\') {
                out += escaped;
                out += "${";
                rest = &rest[at + 2..];
                continue;
            }
            out += before;
            let end = closing(&rest[at..])
                .ok_or_else(|| format!("`{}` has no closing brace", text.escape_debug()))?;
            match self.reference(&rest[at + 2..at + end], section, hops)?.as_deref() {
                Some(Self::List(_) | Self::Map(_)) => {
                    return Err(format!("`{}` puts a section into text", text.escape_debug()));
                }
                Some(value) => out += &value.text(),
                None => out += &Self::Null.text(),
            }
            if out.len() > MAX_TEXT {
                return Err("interpolates to a very long text".to_owned());
            }
            rest = &rest[at + end + 1..];
        }
        out += rest;
        Ok(Some(Cow::Owned(Self::Str(out))))
    }

    /// What the inside of `${…}` refers to.
    fn reference(
        &self,
        inner: &str,
        section: &[String],
        hops: usize,
    ) -> Result<Option<Cow<'_, Self>>, String> {
        let expanded;
        let mut name = inner.trim();
        if name.contains("${") {
            expanded = self.interpolate(name, section, hops + 1)?.map(|n| n.text()).unwrap_or_default();
            name = expanded.trim();
        }
        let shown = name.escape_debug().to_string();
        if let Some((resolver, _)) = name.split_once(':') {
            let resolver = resolver.escape_debug();
            return Err(format!(
                "`${{{shown}}}` asks for the resolver `{resolver}`, which has no value here; write the value"
            ));
        }
        let dots = name.chars().take_while(|c| *c == '.').count();
        let mut path: Vec<String> = match dots {
            0 => Vec::new(),
            n => {
                let kept = (section.len() + 1).checked_sub(n);
                let kept = kept.ok_or_else(|| format!("`${{{shown}}}` leads out of the configuration"))?;
                section[..kept].to_vec()
            }
        };
        let keys = name[dots..].replace('[', ".").replace(']', "");
        path.extend(keys.split('.').map(str::to_owned));
        self.walk(&path, hops + 1)?
            .map(Some)
            .ok_or_else(|| format!("`${{{shown}}}` names no key of the configuration"))
    }

    /// As Python writes it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Null => "None".to_owned(),
            Self::Bool(true) => "True".to_owned(),
            Self::Bool(false) => "False".to_owned(),
            Self::Int(v) => v.to_string(),
            Self::Float(v) => format!("{v:?}"),
            Self::Str(s) => s.clone(),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a section".to_owned(),
        }
    }

    /// An integer as pydantic takes it: also a number without a fraction, a truth value, and such numbers as text.
    pub(crate) fn integer(&self) -> Option<i128> {
        match self {
            Self::Int(v) => Some(*v),
            Self::Bool(v) => Some(i128::from(*v)),
            // Beyond 2^53 a float names no single integer.
            Self::Float(v) if v.fract() == 0.0 && v.abs() < 9.0e15 => Some(*v as i128),
            Self::Str(s) => {
                let digits = plain(s)?;
                let whole = digits.split_once('.').map_or(Some(digits.as_str()), |(whole, fraction)| {
                    (!fraction.is_empty() && fraction.bytes().all(|b| b == b'0')).then_some(whole)
                })?;
                whole.parse().ok()
            }
            _ => None,
        }
    }

    /// A number as pydantic takes it: also a truth value, and numbers as text.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Float(v) => Some(*v),
            Self::Int(v) => Some(*v as f64),
            Self::Bool(v) => Some(f64::from(u8::from(*v))),
            Self::Str(s) => plain(s)?.parse().ok(),
            _ => None,
        }
    }

    /// A truth value as pydantic takes it: also 0 and 1, and the words and digits for it.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match self {
            Self::Bool(v) => Some(*v),
            Self::Int(0) => Some(false),
            Self::Int(1) => Some(true),
            Self::Float(v) if *v == 0.0 => Some(false),
            Self::Float(v) if *v == 1.0 => Some(true),
            Self::Str(s) => match s.to_ascii_lowercase().as_str() {
                "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
                "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// What Python's `if` makes of it.
    pub(crate) fn truth(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(v) => *v,
            Self::Int(v) => *v != 0,
            Self::Float(v) => *v != 0.0,
            Self::Str(s) => !s.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(pairs) => !pairs.is_empty(),
        }
    }
}

/// Text of a number without blanks around it and without underscores between its digits.
fn plain(text: &str) -> Option<String> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let separates = |(i, b): (usize, &u8)| *b != b'_' || (digit(i.checked_sub(1)) && digit(Some(i + 1)));
    bytes.iter().enumerate().all(separates).then(|| text.replace('_', ""))
}

/// The inside of a text that is one `${…}` and nothing else.
fn whole(text: &str) -> Option<&str> {
    let end = closing(text.strip_prefix("${").map(|_| text)?)?;
    (end + 1 == text.len()).then(|| &text[2..end])
}

/// Where the brace that opens a text at its start is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

impl fmt::Display for ConfigNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(s) => write!(f, "\"{}\"", s.chars().take(100).collect::<String>().escape_debug()),
            Self::Null => f.write_str("null"),
            Self::Bool(v) => write!(f, "{v}"),
            other => f.write_str(&other.text()),
        }
    }
}

impl<'de> Deserialize<'de> for ConfigNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build)
    }
}

struct Build;

impl<'de> Visitor<'de> for Build {
    type Value = ConfigNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<ConfigNode, E> {
        Ok(ConfigNode::Null)
    }
    fn visit_none<E>(self) -> Result<ConfigNode, E> {
        Ok(ConfigNode::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<ConfigNode, D::Error> {
        ConfigNode::deserialize(deserializer)
    }
    fn visit_bool<E>(self, v: bool) -> Result<ConfigNode, E> {
        Ok(ConfigNode::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<ConfigNode, E> {
        Ok(ConfigNode::Int(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<ConfigNode, E> {
        Ok(ConfigNode::Int(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<ConfigNode, E> {
        Ok(ConfigNode::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<ConfigNode, E> {
        Ok(ConfigNode::Str(v.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ConfigNode, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(ConfigNode::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ConfigNode, A::Error> {
        let mut pairs = Vec::new();
        while let Some((key, value)) = map.next_entry::<ConfigNode, ConfigNode>()? {
            pairs.push((key.text(), value));
        }
        Ok(ConfigNode::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> ConfigNode {
        serde_saphyr::from_str(text).unwrap()
    }

    fn value(text: &str, key: &str) -> Option<ConfigNode> {
        tree(text).at(key).unwrap().map(Cow::into_owned)
    }

    /// The right column is what pydantic 2 gives for a field of that type, `None` where it refuses.
    #[test]
    fn numbers_and_truth_values_are_taken_as_pydantic_takes_them() {
        for (text, integer, number, boolean) in [
            ("4", Some(4), Some(4.0), None),
            ("4.0", Some(4), Some(4.0), None),
            ("4.5", None, Some(4.5), None),
            ("'4'", Some(4), Some(4.0), None),
            ("'4.0'", Some(4), Some(4.0), None),
            ("' 4 '", Some(4), Some(4.0), None),
            ("'1_000'", Some(1000), Some(1000.0), None),
            ("'_1'", None, None, None),
            ("'4.5'", None, Some(4.5), None),
            ("'7.8'", None, Some(7.8), None),
            ("'7.8e0'", None, Some(7.8), None),
            ("1e3", Some(1000), Some(1000.0), None),
            ("-3", Some(-3), Some(-3.0), None),
            ("'many'", None, None, None),
            ("''", None, None, None),
            ("true", Some(1), Some(1.0), Some(true)),
            ("no", Some(0), Some(0.0), Some(false)),
            ("1", Some(1), Some(1.0), Some(true)),
            ("0.0", Some(0), Some(0.0), Some(false)),
            ("'true'", None, None, Some(true)),
            ("'Off'", None, None, Some(false)),
            ("'1'", Some(1), Some(1.0), Some(true)),
            ("2", Some(2), Some(2.0), None),
            ("[1]", None, None, None),
            ("{a: 1}", None, None, None),
        ] {
            let node = tree(text);
            assert_eq!((node.integer(), node.number(), node.boolean()), (integer, number, boolean), "{text}");
        }
        // As Python's `if`: a word is true whatever it says.
        for (text, truth) in
            [("'false'", true), ("''", false), ("0", false), ("0.5", true), ("[]", false), ("no", false)]
        {
            assert_eq!(tree(text).truth(), truth, "{text}");
        }
    }

    #[test]
    fn interpolation_gives_what_omegaconf_gives() {
        const TEXT: &str = "\
dataset: {image_size: 16, names: [a, b]}
model:
  same: ${dataset.image_size}
  text: px${dataset.image_size}-${.flag}
  flag: true
  sibling: ${.flag}
  up: ${..dataset.names[1]}
  index: ${dataset.names.0}
  which: image_size
  nested: ${dataset.${.which}}
  twice: ${model.same}
  escaped: '\\${x}'
  nothing: null
  null_text: a${.nothing}
  null_whole: ${.nothing}
alias: ${model}
";
        let str = |s: &str| Some(ConfigNode::Str(s.to_owned()));
        for (key, expected) in [
            ("model.same", Some(ConfigNode::Int(16))),
            ("model.text", str("px16-True")),
            ("model.sibling", Some(ConfigNode::Bool(true))),
            ("model.up", str("b")),
            ("model.index", str("a")),
            ("model.nested", Some(ConfigNode::Int(16))),
            ("model.twice", Some(ConfigNode::Int(16))),
            ("model.escaped", str("${x}")),
            ("model.null_text", str("aNone")),
            ("model.null_whole", None),
            ("alias.same", Some(ConfigNode::Int(16))),
            ("model.absent", None),
            ("absent.key", None),
        ] {
            assert_eq!(value(TEXT, key), expected, "{key}");
        }
    }

    #[test]
    fn what_has_no_value_is_an_error_with_the_reason() {
        for (text, why) in [
            ("a: ${b}\nb: ${a}", "leads to itself"),
            ("a: ${a}", "leads to itself"),
            ("a: ${b.c}", "names no key"),
            ("a: ${oc.env:HOME}", "resolver `oc.env`"),
            ("a: x${b\nb: 1", "closing brace"),
            ("a: x${b}\nb: {c: 1}", "section into text"),
            ("a: ${...b}", "leads out"),
            ("a: ???", "must be given"),
        ] {
            let e = tree(text).at("a").unwrap_err();
            assert!(e.contains(why), "{text}: {e}");
        }
        assert!(tree("a: 7").at("a.b").unwrap_err().contains("holds no keys"));
        // 2^16 copies of a text.
        let bomb: String = (0..16).map(|i| format!("k{i}: ${{k{}}}${{k{}}}\n", i + 1, i + 1)).collect();
        assert!(tree(&format!("{bomb}k16: abcdefgh")).at("k0").is_err());
    }
}
