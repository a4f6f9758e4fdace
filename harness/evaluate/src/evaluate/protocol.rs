//! What numbers depend on besides the samples' pixels, and the file that holds both.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::report::{MetricReport, MetricSettings, Network};

/// Version of `metrics.json`.
pub(crate) const SCHEMA: u32 = 1;

/// The protocol fingerprint: numbers with different ones are not compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Version of this tool.
    pub tool_version: String,
    /// The feature network.
    pub network: Network,
    /// What its features depend on: digest, resize, normalisation, engine.
    pub extractor: Value,
    /// How numbers are computed.
    pub settings: MetricSettings,
    /// Number of samples N.
    pub images: u64,
    /// Height and width of the samples in pixels.
    pub image_size: [usize; 2],
    /// How the samples were drawn, where that is known.
    pub sampling: Sampling,
    /// The reference.
    pub reference: ReferenceId,
}

/// How samples were drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The seed.
    pub seed: Option<u64>,
    /// SHA-256 of the class labels, int64 little-endian.
    pub classes_sha256: Option<String>,
}

/// What the samples are compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceId {
    /// Whether stored statistics are used.
    pub stored_statistics: bool,
    /// SHA-256 of the file, or of the images ([`super::store::Store::pixels_sha256`]).
    pub sha256: String,
    /// Number of images whose features Precision, Recall and KID see.
    pub images: Option<u64>,
}

/// The samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplesId {
    /// SHA-256 of the images ([`super::store::Store::pixels_sha256`]).
    pub pixels_sha256: String,
    /// SHA-256 of the manifest of the bundle that generated them, and the options.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generated: Option<Value>,
    /// `rgb` where files of other kinds and pixels were read as RGB with 8 bits a channel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub converted: Option<String>,
    /// Mean steps of the large transformer an image, where they were generated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_steps: Option<f64>,
}

/// `metrics.json`. The same samples and protocol give the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsFile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The fingerprint.
    pub protocol: Protocol,
    /// The samples.
    pub samples: SamplesId,
    /// The numbers.
    #[serde(flatten)]
    pub report: MetricReport,
}

impl Protocol {
    /// The fields in which two protocols differ, with both values.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        match (serde_json::to_value(self), serde_json::to_value(other)) {
            (Ok(a), Ok(b)) => differences("", &a, &b, &mut found),
            _ => found.push("a protocol that cannot be written".to_owned()),
        }
        found
    }
}

fn differences(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let names: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let of =
                    |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or_default();
                differences(&path, &of(left), &of(right), found);
            }
        }
        _ if a != b => found.push(format!("{path} ({a} here, {b} there)")),
        _ => {}
    }
}
