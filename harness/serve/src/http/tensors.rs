//! Tensors of the KServe v2 protocol.

use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;

/// Types of elements that are taken or given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum NumberType {
    Int32,
    Int64,
    Uint8,
    Uint32,
    Uint64,
    Fp32,
    Fp64,
}

impl NumberType {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Uint8 => "UINT8",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
        }
    }

    fn size(self) -> usize {
        match self {
            Self::Uint8 => 1,
            Self::Int32 | Self::Uint32 | Self::Fp32 => 4,
            Self::Int64 | Self::Uint64 | Self::Fp64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::Fp32 | Self::Fp64)
    }

    /// A little-endian element of [`size`](Self::size) bytes.
    fn element(self, bytes: &[u8]) -> Option<Element> {
        Some(match self {
            Self::Uint8 => Element::Whole(i128::from(*bytes.first()?)),
            Self::Int32 => Element::Whole(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::Uint32 => Element::Whole(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::Int64 => Element::Whole(i64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::Uint64 => Element::Whole(u64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::Fp32 => Element::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::Fp64 => Element::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        })
    }
}

/// An element of an input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Element {
    Whole(i128),
    Float(f64),
}

impl Element {
    /// As a whole number, where it is one.
    pub(crate) fn whole(self) -> Option<i64> {
        match self {
            Self::Whole(v) => i64::try_from(v).ok(),
            Self::Float(_) => None,
        }
    }

    /// As a number.
    pub(crate) fn number(self) -> f64 {
        match self {
            Self::Whole(v) => v as f64,
            Self::Float(v) => v,
        }
    }
}

/// A tensor that a request brings.
#[derive(Debug, Deserialize)]
pub(crate) struct InputTensor {
    name: String,
    shape: Vec<usize>,
    datatype: NumberType,
    #[serde(default)]
    parameters: InputParameters,
    /// Elements, perhaps nested as the shape says.
    data: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct InputParameters {
    /// Bytes of it behind the JSON.
    binary_data_size: Option<usize>,
}

impl InputTensor {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its elements, which must be whole where those of `wanted` are. Binary ones are taken from the front of `binary`.
    pub(crate) fn values(&self, wanted: NumberType, binary: &mut &[u8]) -> Result<Vec<Element>, Problem> {
        let name = &self.name;
        let refused = |what: String| Problem::refused(format!("input `{name}`: {what}"));
        if self.datatype.is_float() && !wanted.is_float() {
            return Err(refused(format!(
                "its type is {}, {} is wanted",
                self.datatype.word(),
                wanted.word()
            )));
        }
        let values = match (self.parameters.binary_data_size, &self.data) {
            (Some(size), None) => {
                let bytes = binary.split_at_checked(size).map(|(own, rest)| {
                    *binary = rest;
                    own
                });
                let bytes = bytes.ok_or_else(|| refused("the body ends before it".to_owned()))?;
                if !size.is_multiple_of(self.datatype.size()) {
                    return Err(refused(format!("{size} bytes are no multiple of its type")));
                }
                bytes.chunks_exact(self.datatype.size()).filter_map(|b| self.datatype.element(b)).collect()
            }
            (None, Some(data)) => {
                let mut values = Vec::new();
                flatten(data, &mut values).ok_or_else(|| refused("it holds what is no number".to_owned()))?;
                values
            }
            _ => return Err(refused("it has data in JSON, or bytes behind it: one of them".to_owned())),
        };
        let shape = self.shape.iter().try_fold(1_usize, |n, side| n.checked_mul(*side));
        match shape == Some(values.len()) {
            true => Ok(values),
            false => {
                Err(refused(format!("{} elements do not make the shape {:?}", values.len(), self.shape)))
            }
        }
    }
}

/// Numbers of nested lists, one after another.
fn flatten(data: &Value, values: &mut Vec<Element>) -> Option<()> {
    match data {
        Value::Array(all) => all.iter().try_for_each(|one| flatten(one, values)),
        Value::Number(n) => {
            let whole = n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from));
            values.push(whole.map_or(Element::Float(n.as_f64()?), Element::Whole));
            Some(())
        }
        _ => None,
    }
}

/// A tensor that is answered.
pub(crate) struct OutputTensor {
    shape: Vec<usize>,
    elements: OutputElements,
}

enum OutputElements {
    Bytes(Vec<u8>),
    Whole(Vec<i64>),
}

impl OutputTensor {
    pub(crate) fn bytes(shape: Vec<usize>, elements: Vec<u8>) -> Self {
        Self { shape, elements: OutputElements::Bytes(elements) }
    }

    pub(crate) fn whole(shape: Vec<usize>, elements: Vec<i64>) -> Self {
        Self { shape, elements: OutputElements::Whole(elements) }
    }

    /// Its JSON; where `behind` is given, its elements are appended there instead.
    pub(crate) fn document(self, name: &str, behind: Option<&mut Vec<u8>>) -> Value {
        let datatype = match self.elements {
            OutputElements::Bytes(_) => NumberType::Uint8,
            OutputElements::Whole(_) => NumberType::Int64,
        };
        let mut document = json!({ "name": name, "datatype": datatype.word(), "shape": self.shape });
        match (behind, self.elements) {
            (None, OutputElements::Bytes(all)) => document["data"] = all.into(),
            (None, OutputElements::Whole(all)) => document["data"] = all.into(),
            (Some(behind), elements) => {
                let bytes = match elements {
                    OutputElements::Bytes(all) => all,
                    OutputElements::Whole(all) => all.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                document["parameters"] = json!({ "binary_data_size": bytes.len() });
                behind.extend(bytes);
            }
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(text: &str) -> InputTensor {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn elements_come_in_json_or_behind_it() {
        let nested = tensor(r#"{"name": "class", "shape": [2, 1], "datatype": "INT64", "data": [[3], [4]]}"#);
        let three_four = vec![Element::Whole(3), Element::Whole(4)];
        assert_eq!(nested.values(NumberType::Int64, &mut &[][..]).unwrap(), three_four);
        let binary =
            r#"{"name": "class", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}}"#;
        let bytes = [3, 0, 0, 0, 4, 0, 0, 0, 9];
        let mut left = &bytes[..];
        assert_eq!(tensor(binary).values(NumberType::Int64, &mut left).unwrap(), three_four);
        assert_eq!(left, [9]);
        assert!(tensor(binary).values(NumberType::Int64, &mut &bytes[..7]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in [
            r#"{"name": "class", "shape": [3], "datatype": "INT64", "data": [1, 2]}"#,
            r#"{"name": "class", "shape": [1], "datatype": "FP32", "data": [1]}"#,
            r#"{"name": "class", "shape": [1], "datatype": "INT64", "data": ["1"]}"#,
            r#"{"name": "class", "shape": [1], "datatype": "INT64"}"#,
            r#"{"name": "class", "shape": [18446744073709551615, 2], "datatype": "INT64", "data": []}"#,
        ] {
            assert!(tensor(text).values(NumberType::Int64, &mut &[][..]).is_err(), "{text}");
        }
        let float = tensor(r#"{"name": "seed", "shape": [1], "datatype": "INT64", "data": [1.5]}"#);
        assert_eq!(float.values(NumberType::Int64, &mut &[][..]).unwrap()[0].whole(), None);
    }
}
