//! Which files a written graph refers to.

use std::collections::BTreeSet;

use prost::Message;

use crate::proto::ModelProto;

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// The external-data files that a graph of this exporter refers to, as the graph names them.
///
/// # Errors
/// When the bytes are no ONNX model, or hold anything that this exporter does not write: a reference could hide
/// there (in a subgraph, a function, a sparse tensor).
pub fn external_files(model: &[u8]) -> Result<BTreeSet<String>, String> {
    let parsed = ModelProto::decode(model).map_err(|e| format!("it is no ONNX model: {e}"))?;
    // Unknown fields are dropped by decoding, so a model that has some is longer than what is written again.
    if parsed.encoded_len() != model.len() {
        return Err("it holds fields that this exporter does not write".to_owned());
    }
    let mut files = BTreeSet::new();
    for tensor in parsed.graph.iter().flat_map(|g| &g.initializer) {
        // Of two locations one reader takes the first, and another the last.
        let mut keys = BTreeSet::new();
        if let Some(twice) = tensor.external_data.iter().find(|e| !keys.insert(e.key.as_deref())) {
            let key = twice.key.as_deref().unwrap_or_default();
            return Err(format!("a weight says `{key}` of its external data twice"));
        }
        let location = tensor.external_data.iter().find(|e| e.key.as_deref() == Some("location"));
        match location.and_then(|e| e.value.clone()) {
            Some(file) => {
                files.insert(file);
            }
            None if tensor.data_location == Some(EXTERNAL) || !tensor.external_data.is_empty() => {
                return Err("a weight is external and names no file".to_owned());
            }
            None => {}
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{GraphProto, StringStringEntryProto, TensorProto};

    fn model(entries: &[(&str, &str)], location: Option<i32>) -> Vec<u8> {
        let entry = |(k, v): &(&str, &str)| StringStringEntryProto {
            key: Some((*k).to_owned()),
            value: Some((*v).to_owned()),
        };
        let tensor = TensorProto {
            external_data: entries.iter().map(entry).collect(),
            data_location: location,
            ..TensorProto::default()
        };
        let graph = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    #[test]
    fn references_are_found_and_hiding_places_refused() {
        let found = external_files(&model(&[("location", "../x"), ("offset", "0")], Some(EXTERNAL)));
        assert_eq!(found.unwrap(), BTreeSet::from(["../x".to_owned()]));
        assert!(external_files(&model(&[], None)).unwrap().is_empty());
        assert!(external_files(&model(&[], Some(EXTERNAL))).unwrap_err().contains("names no file"));
        assert!(external_files(&model(&[("offset", "0")], None)).unwrap_err().contains("names no file"));
        for key in ["location", "offset"] {
            let twice = [("location", "x"), ("offset", "0"), (key, "../x")];
            let e = external_files(&model(&twice, Some(EXTERNAL))).unwrap_err();
            assert!(e.contains(&format!("`{key}`")) && e.contains("twice"), "{e}");
        }
        // Field 25 of a model: functions, which this exporter does not write.
        let hidden = [model(&[], None), vec![0xca, 0x01, 0x00]].concat();
        assert!(external_files(&hidden).unwrap_err().contains("does not write"));
        assert!(external_files(&[0xff; 9]).unwrap_err().contains("no ONNX model"));
    }
}
