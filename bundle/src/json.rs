//! JSON of which every reader reads the same: no key twice in an object, and none that its type does not have.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use dpar_export_inputs::without_mark;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, Serialize};
use serde_json::Value;

/// Why a document is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or not of the expected layout.
    #[error("{0}")]
    Syntax(String),
    /// A key occurs twice in an object: of two values one reader takes the first, and another the last.
    #[error("{0}")]
    Repeated(String),
    /// A key that the layout does not have: what it says would be passed over in silence.
    #[error("{0}")]
    Unknown(String),
}

/// Checks that no object has a key twice, at any depth.
///
/// # Errors
/// [`JsonError::Repeated`] with key and place; [`JsonError::Syntax`].
pub fn unique_keys(bytes: &[u8]) -> Result<(), JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(without_mark(bytes));
    let repeated = Cell::new(false);
    let read = Keys { repeated: &repeated }.deserialize(&mut reader).and_then(|()| reader.end());
    read.map_err(|e| match repeated.get() {
        true => JsonError::Repeated(e.to_string()),
        false => JsonError::Syntax(e.to_string()),
    })
}

/// Reads a document that has exactly the keys that `T` is written with.
///
/// # Errors
/// What is wrong, with its place.
pub(crate) fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let bytes = without_mark(bytes);
    unique_keys(bytes)?;
    let syntax = |e: serde_json::Error| JsonError::Syntax(e.to_string());
    let read: T = serde_json::from_slice(bytes).map_err(syntax)?;
    // serde passes over what a type does not have, and the types leave it so: here it is found whatever they are.
    let given: Value = serde_json::from_slice(bytes).map_err(syntax)?;
    let known = serde_json::to_value(&read).map_err(syntax)?;
    match unknown(&given, &known) {
        None => Ok(read),
        Some(key) => Err(JsonError::Unknown(format!("unknown field `{key}`"))),
    }
}

/// The first key of `given` that `known` does not have, as a path.
fn unknown(given: &Value, known: &Value) -> Option<String> {
    let below = |key: String, deeper: String| match deeper.starts_with('[') {
        true => key + &deeper,
        false => format!("{key}.{deeper}"),
    };
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let Some(known) = known.get(key) else { return Some(key.clone()) };
            unknown(value, known).map(|deeper| below(key.clone(), deeper))
        }),
        (Value::Array(given), Value::Array(known)) => {
            let mut pairs = given.iter().zip(known).enumerate();
            pairs.find_map(|(i, (given, known))| {
                unknown(given, known).map(|deeper| below(format!("[{i}]"), deeper))
            })
        }
        _ => None,
    }
}

/// Reads any value and keeps nothing but the keys of the objects that are open.
#[derive(Clone, Copy)]
struct Keys<'a> {
    /// Set where a key was there before.
    repeated: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value_seed(self)?;
            if keys.contains(&key) {
                self.repeated.set(true);
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
            keys.insert(key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_key_twice_is_found_at_any_depth_and_however_it_is_written() {
        for good in [r#"{"a":{"b":1},"b":[{"a":1},{"a":null}]}"#, "[]", "1.5e3", "\"x\"", "true"] {
            unique_keys(good.as_bytes()).unwrap();
        }
        for (bad, key) in [
            (r#"{"a":1,"a":1}"#, "`a`"),
            (r#"{"a":1,"\u0061":2}"#, "`a`"),
            (r#"[1,{"x":[{"b":{"c":1,"d":2,"c":3}}]}]"#, "`c`"),
        ] {
            let e = unique_keys(bad.as_bytes()).unwrap_err();
            assert!(matches!(&e, JsonError::Repeated(text) if text.contains(key)), "{bad}: {e}");
        }
        for bad in ["", "{", "{} {}", "{\"a\" 1}", "nul"] {
            assert!(matches!(unique_keys(bad.as_bytes()), Err(JsonError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn a_key_that_the_type_does_not_have_is_named_with_its_path() {
        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        struct Inner {
            n: f32,
        }
        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        struct Outer {
            list: Vec<Inner>,
            #[serde(flatten)]
            inner: Inner,
        }
        read::<Outer>(br#"{"list":[{"n":7.8}],"n":0.1}"#).unwrap();
        read::<Outer>("\u{feff}{\"list\":[],\"n\":0.1}".as_bytes()).unwrap();
        for (text, path) in
            [(r#"{"list":[{"n":1},{"n":1,"m":2}],"n":1}"#, "list[1].m"), (r#"{"list":[],"n":1,"m":2}"#, "m")]
        {
            let e = read::<Outer>(text.as_bytes()).unwrap_err();
            assert_eq!(e, JsonError::Unknown(format!("unknown field `{path}`")));
        }
        // Keys of a map are data.
        let map: BTreeMap<String, f32> = read(br#"{"any":7.8}"#).unwrap();
        assert_eq!(map["any"], 7.8);
    }
}
