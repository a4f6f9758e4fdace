//! What a written graph says of itself, and which files it refers to.

use std::collections::BTreeSet;

use crate::builder::MICROSOFT_OPSET;
use crate::derive::{DeriveError, read_model};
use crate::error::FileFault;
use crate::proto::{MICROSOFT, TensorProto};

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;
/// What the exporter says of external data.
const KEYS: [&str; 3] = ["location", "offset", "length"];

/// What a graph of this exporter says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Opset of its operators.
    pub opset: i64,
    /// The external-data files that it refers to, as it names them.
    pub external: BTreeSet<String>,
    /// Names of its initializers, with their rows (the first dimension).
    pub tables: Vec<(String, Option<i64>)>,
}

/// Reads a graph that this exporter wrote, byte for byte as it writes graphs: nothing else is in the file for an engine
/// to find.
///
/// # Errors
/// When the bytes are no ONNX model, or hold anything that this exporter does not write: a reference could hide
/// there (in a constant, a subgraph, a function, a sparse tensor).
pub fn read_own(model: &[u8]) -> Result<Own, FileFault> {
    let parsed = read_model(model).map_err(|e| match e {
        DeriveError::Unreadable(e) => format!("it is no ONNX model: {e}"),
        DeriveError::Foreign => "it holds fields that this exporter does not write".to_owned(),
    })?;
    let imports: Vec<_> =
        parsed.opset_import.iter().map(|o| (o.domain.as_deref().unwrap_or_default(), o.version)).collect();
    let opset = match imports.as_slice() {
        [("", own)] | [("", own), (MICROSOFT, Some(MICROSOFT_OPSET))] => *own,
        _ => None,
    };
    let opset = opset.ok_or("it does not name the opsets that this exporter writes")?;
    let mut external = BTreeSet::new();
    for tensor in parsed.graph.iter().flat_map(|g| &g.initializer) {
        // Of two locations one reader takes the first, and another the last.
        let mut keys = BTreeSet::new();
        for entry in &tensor.external_data {
            let key = entry.key.as_deref().unwrap_or_default();
            if !KEYS.contains(&key) {
                return Err(format!("a weight says `{key}` of its external data").into());
            }
            if !keys.insert(key) {
                return Err(format!("a weight says `{key}` of its external data twice").into());
            }
        }
        let location = tensor.external_data.iter().find(|e| e.key.as_deref() == Some("location"));
        match location.and_then(|e| e.value.clone()) {
            Some(file) => {
                external.insert(file);
            }
            None if tensor.data_location == Some(EXTERNAL) || !tensor.external_data.is_empty() => {
                return Err("a weight is external and names no file".into());
            }
            None => {}
        }
    }
    let rows = |t: &TensorProto| (t.name.clone().unwrap_or_default(), t.dims.first().copied());
    let tables = parsed.graph.iter().flat_map(|g| &g.initializer).map(rows).collect();
    Ok(Own { opset, external, tables })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
        TensorProto,
    };

    fn tensor(entries: &[(&str, &str)], location: Option<i32>) -> TensorProto {
        let entry = |(k, v): &(&str, &str)| StringStringEntryProto {
            key: Some((*k).to_owned()),
            value: Some((*v).to_owned()),
        };
        TensorProto {
            external_data: entries.iter().map(entry).collect(),
            data_location: location,
            ..TensorProto::default()
        }
    }

    fn model_of(graph: GraphProto) -> Vec<u8> {
        let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(17) };
        ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() }.encode_to_vec()
    }

    fn model(entries: &[(&str, &str)], location: Option<i32>) -> Vec<u8> {
        model_of(GraphProto { initializer: vec![tensor(entries, location)], ..GraphProto::default() })
    }

    #[test]
    fn references_are_found_and_hiding_places_refused() {
        let found = read_own(&model(&[("location", "../x"), ("offset", "0")], Some(EXTERNAL))).unwrap();
        let (external, tables) = (BTreeSet::from(["../x".to_owned()]), vec![(String::new(), None)]);
        assert_eq!(found, Own { opset: 17, external, tables });
        assert!(read_own(&model(&[], None)).unwrap().external.is_empty());
        let refused = |entries: &[(&str, &str)], location| read_own(&model(entries, location)).unwrap_err();
        assert!(refused(&[], Some(EXTERNAL)).to_string().contains("names no file"));
        assert!(refused(&[("offset", "0")], None).to_string().contains("names no file"));
        assert!(refused(&[("location", "x"), ("basepath", "/")], None).to_string().contains("`basepath`"));
        for key in ["location", "offset"] {
            let e = refused(&[("location", "x"), ("offset", "0"), (key, "../x")], Some(EXTERNAL));
            assert!(e.to_string().contains(&format!("`{key}`")) && e.to_string().contains("twice"), "{e}");
        }
        // Field 25 of a model: functions, which this exporter does not write.
        let hidden = [model(&[], None), vec![0xca, 0x01, 0x00]].concat();
        assert!(read_own(&hidden).unwrap_err().to_string().contains("does not write"));
        assert!(read_own(&[0xff; 9]).unwrap_err().to_string().contains("no ONNX model"));
        let none = ModelProto::default().encode_to_vec();
        assert!(read_own(&none).unwrap_err().to_string().contains("opset"));
    }

    /// A field with a length: its number, and what it holds.
    fn field(number: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        [bytes, content.to_vec()].concat()
    }

    #[test]
    fn a_constant_with_external_weights_does_not_fit_into_room_that_packing_makes() {
        // The same model with its attribute's integers packed, as other writers do, is 9 bytes shorter ...
        let ints = AttributeProto { name: Some("v".into()), ints: vec![1; 12], ..AttributeProto::default() };
        let node = NodeProto { attribute: vec![ints.clone()], ..NodeProto::default() };
        let plain = model_of(GraphProto { node: vec![node], ..GraphProto::default() });
        read_own(&plain).unwrap();
        let named = AttributeProto { ints: vec![], ..ints }.encode_to_vec();
        let packed = field(8, &[1; 12]);
        // ... and the attribute `t` of a `Constant` takes the room: field 5, a tensor with external data (field 13).
        let room = 12 * 2 - packed.len();
        let hidden = field(5, &field(13, &vec![0; room - 4]));
        assert_eq!(packed.len() + hidden.len(), 12 * 2, "as long as what is written again");
        let attribute = field(5, &[named, packed, hidden].concat());
        let graph = field(1, &attribute);
        let opset =
            field(8, &OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }.encode_to_vec());
        let forged = [field(7, &graph), opset].concat();
        let parsed = ModelProto::decode(forged.as_slice()).unwrap();
        assert_eq!(parsed.encoded_len(), forged.len(), "lengths alone do not tell");
        assert!(read_own(&forged).unwrap_err().to_string().contains("does not write"));
    }
}
