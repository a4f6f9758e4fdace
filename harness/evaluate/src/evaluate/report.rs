//! Numbers with the names of their definitions.

use std::collections::BTreeMap;

use dpar_export_bundle::Normalise;
use dpar_export_metrics::{KidProtocol, PrMode, Resize, Variant};
use serde::{Deserialize, Serialize};

use crate::features::ExtractorIdentity;

/// Names of FID-Inception.
const INCEPTION: [&str; 4] = ["inception", "fid-inception", "inception-2015-12-05", "inception-v3-compat"];

/// The feature network of a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whether it is FID-Inception: only its Fréchet distance is an FID.
    pub inception: bool,
}

impl Network {
    /// FID-Inception.
    pub fn inception() -> Self {
        Self { name: INCEPTION[0].to_owned(), inception: true }
    }

    /// By the name that a file of activations gives.
    pub fn named(name: &str) -> Self {
        if INCEPTION.contains(&name.to_ascii_lowercase().as_str()) {
            return Self::inception();
        }
        Self { name: name.to_owned(), inception: false }
    }

    /// A network that is not FID-Inception, whatever it is called.
    pub fn other(name: &str) -> Self {
        let name =
            if Self::named(name).inception { format!("{name} (another network)") } else { name.to_owned() };
        Self { name, inception: false }
    }

    /// The network of an extractor, and the variant whose FID its preparation gives. FID-Inception with a normalisation
    /// that no variant has is another network.
    pub fn of(extractor: &ExtractorIdentity) -> (Self, Option<Variant>) {
        if !extractor.is_fid() {
            return (Self::other(&extractor.name), None);
        }
        let own = match extractor.resize {
            Resize::Tf1Bilinear | Resize::PilBicubic => Normalise { mean: [128.0; 3], std: [128.0; 3] },
            Resize::HalfPixelBilinear => Normalise { mean: [127.5; 3], std: [127.5; 3] },
        };
        match extractor.normalise {
            Some(n) if n != own => {
                let name = format!("{} normalised by mean {:?}, std {:?}", INCEPTION[0], n.mean, n.std);
                (Self { name, inception: false }, None)
            }
            _ => {
                let variant = Variant::ALL.into_iter().find(|v| v.resize() == extractor.resize);
                (Self::inception(), variant)
            }
        }
    }
}

/// How numbers are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whose protocol.
    pub variant: Variant,
    /// Arithmetic of Precision and Recall.
    pub pr_mode: PrMode,
    /// Subsets of KID; `None` = only that of all images.
    pub kid: Option<KidProtocol>,
}

/// A metric. The order is that of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Fréchet distance on FID-Inception's pooled features.
    Fid,
    /// Fréchet distance on another network's features.
    FrechetDistance,
    /// Fréchet distance on spatial features.
    Sfid,
    /// Inception Score.
    InceptionScore,
    /// Precision.
    Precision,
    /// Recall.
    Recall,
    /// KID of all images.
    Kid,
    /// KID over subsets.
    KidSubsets,
}

/// A number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Name of the metric by its definition.
    pub name: String,
    /// The definition in words.
    pub definition: String,
    /// The number.
    pub value: f64,
    /// Standard error over the samples, where the statistics give one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub standard_error: Option<f64>,
    /// Two-sided 90 % interval.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interval_90: Option<[f64; 2]>,
    /// What else there is: counts, parts, splits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub details: BTreeMap<String, serde_json::Value>,
}

/// The numbers of a set of images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// By metric.
    pub metrics: BTreeMap<Metric, Measured>,
    /// Metrics that could not be computed, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub not_computed: BTreeMap<Metric, String>,
}

impl Report {
    /// Adds a number.
    pub(super) fn add(&mut self, metric: Metric, measured: Measured) {
        self.metrics.insert(metric, measured);
    }

    /// Says more about why metrics of single images were not computed.
    pub fn reason(&mut self, reason: &str) {
        for metric in [Metric::Precision, Metric::Recall, Metric::Kid, Metric::KidSubsets] {
            if let Some(text) = self.not_computed.get_mut(&metric) {
                *text = format!("{text}; {reason}");
            }
        }
    }

    /// Notes that a metric was not computed.
    pub(super) fn skip(&mut self, metric: Metric, reason: impl Into<String>) {
        self.not_computed.insert(metric, reason.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fid_is_the_distance_of_fid_inception_with_a_known_preparation_only() {
        let extractor = |distance: &str, resize, normalise| ExtractorIdentity {
            name: "inception".to_owned(),
            distance: distance.to_owned(),
            digest: String::new(),
            input_size: 299,
            resize,
            normalise,
            engine: String::new(),
            device: "cpu".to_owned(),
        };
        for variant in [Variant::GuidedDiffusion, Variant::PytorchFid, Variant::CleanFid] {
            let found = Network::of(&extractor("FID", variant.resize(), None));
            assert_eq!(found, (Network::inception(), Some(variant)));
        }
        // Another network that is called like it.
        let (network, variant) =
            Network::of(&extractor("Fréchet distance on inception", Resize::Tf1Bilinear, None));
        assert!(!network.inception && variant.is_none());
        assert!(!Network::named(&network.name).inception, "its statistics are not FID-Inception's");
        let normalise = Normalise { mean: [128.0; 3], std: [128.0; 3] };
        let own = Network::of(&extractor("FID", Resize::Tf1Bilinear, Some(normalise)));
        assert_eq!(own, (Network::inception(), Some(Variant::GuidedDiffusion)));
        let other = Network::of(&extractor("FID", Resize::HalfPixelBilinear, Some(normalise))).0;
        assert!(!other.inception && !Network::named(&other.name).inception);
    }
}
