//! The graphs in `fixtures/`, small and made by `generate.py` beside them: what an engine is tested on before it
//! meets an exported graph.

use std::collections::BTreeMap;

use camino::Utf8Path;
use dpar_engine_api::Tensor;
use dpar_export_spec::{DType, GraphSpec, Port};
use serde::Deserialize;

use crate::{CheckFailure, GraphCase, Inputs, KnownOutputs};

/// Names of the graphs in `fixtures/`.
pub const FIXTURES: [&str; 3] = ["attention_step", "head", "conv_decode"];

#[derive(Deserialize)]
struct Document {
    spec: GraphSpec,
    bounds: BTreeMap<String, usize>,
    reference: Known,
}

#[derive(Deserialize)]
struct Known {
    inputs: BTreeMap<String, FixtureArray>,
    outputs: BTreeMap<String, FixtureArray>,
}

#[derive(Deserialize)]
struct FixtureArray {
    shape: Vec<usize>,
    data: Vec<f64>,
}

/// A graph of `fixtures/` with its known result.
///
/// # Errors
/// When its files cannot be read.
pub fn fixture(name: &str) -> Result<GraphCase, CheckFailure> {
    let folder = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let text = fs_err::read_to_string(folder.join(format!("{name}.json"))).map_err(|e| e.to_string())?;
    let document: Document = serde_json::from_str(&text).map_err(|e| format!("{name}.json: {e}"))?;
    let tensor = |port: &Port, arrays: &BTreeMap<String, FixtureArray>| {
        let array = arrays.get(&port.name).ok_or_else(|| format!("{name}.json has no `{}`", port.name))?;
        // Stored as decimal text: every float32 and every small integer is exact in a float64.
        Ok::<_, CheckFailure>(match port.dtype {
            DType::I64 => {
                Tensor::i64(array.shape.clone(), array.data.iter().map(|v| *v as i64).collect::<Vec<_>>())
            }
            _ => Tensor::f32(array.shape.clone(), array.data.iter().map(|v| *v as f32).collect::<Vec<_>>()),
        })
    };
    let spec = document.spec;
    let known = KnownOutputs {
        inputs: Inputs(
            spec.inputs
                .iter()
                .map(|p| Ok((p.name.clone(), tensor(p, &document.reference.inputs)?)))
                .collect::<Result<_, CheckFailure>>()?,
        ),
        outputs: spec
            .outputs
            .iter()
            .map(|p| tensor(p, &document.reference.outputs))
            .collect::<Result<_, CheckFailure>>()?,
    };
    let mut case = GraphCase::new(spec, folder.join(format!("{name}.onnx")));
    case.bounds = document.bounds;
    case.references.push(known);
    Ok(case)
}
