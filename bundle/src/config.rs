//! `config.json`: the system as an export resolved it.

use std::borrow::Cow;

use dpar_export_inputs::without_mark;
use dpar_export_spec::{ComponentKind, SystemSpec};
use serde_json::{Map, Value, json};

use super::Misfit;
use super::json::{read as read_json, unique_keys};

/// Reads the configuration of a bundle whose manifest is of that schema version, and checks that its parts fit.
///
/// # Errors
/// What is wrong.
pub(crate) fn read(bytes: &[u8], schema_version: u32) -> Result<SystemSpec, Misfit> {
    let (bytes, copies) = match schema_version {
        1 => {
            let (bytes, copies) = without_copies(bytes)?;
            (Cow::Owned(bytes), copies)
        }
        _ => (Cow::Borrowed(bytes), Vec::new()),
    };
    let system: SystemSpec = read_json(&bytes).map_err(|e| e.to_string())?;
    system.validate().map_err(|e| e.to_string())?;
    copies.iter().try_for_each(|copy| copy.check(&system))?;
    Ok(system)
}

/// A fact of the system that version 1 stored once more.
struct Copy {
    /// The component that had it; `None`: the system itself.
    of: Option<ComponentKind>,
    key: &'static str,
    found: Option<Value>,
}

/// What each kind of component stored once more.
const COPIES: [(ComponentKind, &[&str]); 4] = [
    (ComponentKind::Dpar, &["vocab", "num_classes", "grid", "longest_patch", "fractional_size"]),
    (ComponentKind::Entropy, &["vocab", "num_classes", "grid"]),
    (ComponentKind::Llamagen, &["vocab", "num_classes", "grid"]),
    (ComponentKind::Vq, &["codebook", "grid", "downsample"]),
];

/// A document of version 1 as this version writes it, and what was taken out of it.
fn without_copies(bytes: &[u8]) -> Result<(Vec<u8>, Vec<Copy>), Misfit> {
    let bytes = without_mark(bytes);
    unique_keys(bytes).map_err(|e| e.to_string())?;
    let mut config: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let mut copies = vec![Copy { of: None, key: "grid", found: config.remove("grid") }];
    let components = config.get_mut("components").and_then(Value::as_array_mut);
    for component in components.into_iter().flatten().filter_map(Value::as_object_mut) {
        let kind = component.get("kind").and_then(Value::as_str);
        let known = COPIES.iter().find(|(of, _)| Some(of.name()) == kind);
        for (of, key) in known.into_iter().flat_map(|(of, keys)| keys.iter().map(move |key| (*of, *key))) {
            copies.push(Copy { of: Some(of), key, found: component.remove(key) });
        }
    }
    Ok((serde_json::to_vec(&config).map_err(|e| e.to_string())?, copies))
}

impl Copy {
    /// Holds it against the fact.
    fn check(&self, system: &SystemSpec) -> Result<(), Misfit> {
        let fact = match (self.key, self.of) {
            ("vocab" | "codebook", _) => Some(json!(system.vocab)),
            // The entropy model knows no classes.
            ("num_classes", Some(ComponentKind::Entropy)) => Some(Value::Null),
            ("num_classes", _) => Some(json!(system.num_classes)),
            ("grid", _) => Some(json!(system.grid())),
            ("longest_patch", _) => Some(json!(system.longest_patch())),
            ("downsample", _) => Some(json!(system.downsample())),
            _ => system.fractional_size().map(|size| json!(size)),
        };
        if self.found == fact {
            return Ok(());
        }
        let of = self.of.map_or("the system", ComponentKind::name);
        Err(format!("`{}` of `{of}` is not that of the system", self.key).into())
    }
}

#[cfg(test)]
mod tests {
    use dpar_export_spec::SystemKind;

    use super::*;

    /// Written by the version before.
    const OLD: [&str; 3] = [
        include_str!("../fixtures/config.1.dpar.json"),
        include_str!("../fixtures/config.1.llamagen.json"),
        include_str!("../fixtures/config.1.fractional.json"),
    ];

    #[test]
    fn version_1_is_read_to_the_same_system() {
        for text in OLD {
            let system = read(text.as_bytes(), 1).unwrap();
            let new = serde_json::to_vec(&system).unwrap();
            assert_eq!(read(&new, 2).unwrap(), system);
            assert!(new.len() < text.len());
            // Each version has its own keys.
            assert!(read(text.as_bytes(), 2).unwrap_err().to_string().contains("unknown field"));
            assert!(read(&new, 1).unwrap_err().to_string().contains("is not that of the system"));
        }
        let [dpar, llamagen, fractional] = OLD.map(|text| read(text.as_bytes(), 1).unwrap());
        assert_eq!((dpar.kind, dpar.grid(), dpar.vocab, dpar.downsample()), (SystemKind::Dpar, 4, 32, 2));
        assert_eq!((dpar.longest_patch(), dpar.fractional_size()), (3, None));
        assert_eq!((llamagen.num_classes, llamagen.tokens(), llamagen.longest_patch()), (10, 64, 1));
        assert_eq!(fractional.fractional_size(), Some(2.25));
    }

    #[test]
    fn a_copy_that_says_something_else_is_refused() {
        let mut changed = 0;
        for text in OLD {
            let document: Value = serde_json::from_str(text).unwrap();
            let refused = |document: &Value, what: &str| {
                let bytes = serde_json::to_vec(document).unwrap();
                let message = read(&bytes, 1).unwrap_err();
                assert!(message.to_string().contains("is not that of the system"), "{what}: {message}");
            };
            let mut other = document.clone();
            other["grid"] = json!(5);
            refused(&other, "grid");
            for (i, component) in document["components"].as_array().unwrap().iter().enumerate() {
                let (_, keys) = COPIES.iter().find(|(of, _)| of.name() == component["kind"]).unwrap();
                for key in *keys {
                    for value in [json!(7), json!(null), json!("4")] {
                        let mut other = document.clone();
                        other["components"][i][key] = value;
                        if other != document {
                            refused(&other, key);
                            changed += 1;
                        }
                    }
                }
            }
        }
        assert!(changed > 40, "{changed}");
    }
}
