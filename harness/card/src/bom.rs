//! The bill of materials: CycloneDX 1.6 with a machine-learning model as its subject.

use serde_json::{Value, json};

use crate::{Card, CitedNumber, CitedReport};

fn sha256(digest: &str) -> Value {
    json!([{ "alg": "SHA-256", "content": digest }])
}

/// A number, with the report it is of as its slice.
fn metric(report: &CitedReport, number: &CitedNumber) -> Value {
    let mut metric = json!({ "type": number.what, "value": number.value, "slice": report.name });
    if let Some([low, high]) = &number.interval_90 {
        metric["confidenceInterval"] = json!({ "lowerBound": low, "upperBound": high });
    }
    metric
}

pub(crate) fn write(card: &Card<'_>) -> Value {
    let (manifest, system) = (card.bundle.manifest(), card.bundle.system());
    let reports = card.reports.iter().map(|r| {
        let comment = format!("report of `dpar-export {}`", r.kind);
        json!({ "type": "quality-metrics", "url": r.name, "comment": comment, "hashes": sha256(&r.sha256) })
    });
    let metrics = card.reports.iter().flat_map(|r| r.numbers.iter().map(move |n| metric(r, n)));
    let mut model = json!({
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "hashes": sha256(card.bundle.manifest_sha256()),
        "externalReferences": reports.collect::<Vec<_>>(),
        "modelCard": {
            "modelParameters": {
                "task": "image generation",
                "architectureFamily": manifest.system.to_string(),
                "inputs": [{ "format": "class label, seed" }],
                "outputs": [{ "format": format!("RGB image, {0} x {0} px", system.image_size) }],
            },
            "quantitativeAnalysis": { "performanceMetrics": metrics.collect::<Vec<_>>() },
        },
    });
    if let Some(license) = &card.license {
        model["licenses"] = json!([{ "license": { "name": license } }]);
    }
    let sources = manifest.sources.iter().map(|s| {
        json!({
            "type": "data", "bom-ref": format!("source:{}:{}", s.role, s.name), "name": s.name,
            "description": format!("{} of the checkpoint", s.role), "hashes": sha256(&s.sha256),
        })
    });
    let files = manifest.files.iter().map(|f| {
        json!({
            "type": "file", "bom-ref": format!("file:{}", f.path), "name": f.path, "hashes": sha256(&f.sha256),
        })
    });
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{
                    "type": "application", "name": manifest.tool.name, "version": manifest.tool.version,
                }],
            },
            "component": model,
        },
        "components": sources.chain(files).collect::<Vec<_>>(),
    })
}

/// The reports that a bill of materials cites, by name and SHA-256.
pub(crate) fn cited(bom: &[u8]) -> Vec<(String, String)> {
    let bom: Value = serde_json::from_slice(bom).unwrap_or_default();
    let references = bom["metadata"]["component"]["externalReferences"].as_array().into_iter().flatten();
    let one =
        |r: &Value| Some((r["url"].as_str()?.to_owned(), r["hashes"][0]["content"].as_str()?.to_owned()));
    references.filter_map(one).collect()
}
