//! Numbers with the names of their definitions.

use std::collections::BTreeMap;

use dpar_export_bundle::{ExtractorSpec, names_inception};
use dpar_export_metrics::{KidProtocol, PrMode, Variant};
use serde::{Deserialize, Serialize};

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
        Self { name: "inception".to_owned(), inception: true }
    }

    /// By the name that a file of activations gives.
    pub fn named(name: &str) -> Self {
        if names_inception(name) {
            Self::inception()
        } else {
            Self { name: name.to_owned(), inception: false }
        }
    }

    /// The network of an extractor, and the variant whose FID its preparation gives.
    pub fn of(extractor: &ExtractorSpec) -> (Self, Option<Variant>) {
        let network = Self { name: extractor.network_name(), inception: extractor.is_fid() };
        let variant = Variant::ALL.into_iter().find(|v| network.inception && v.resize() == extractor.resize);
        (network, variant)
    }
}

/// How numbers are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricSettings {
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
pub struct MetricReport {
    /// By metric.
    pub metrics: BTreeMap<Metric, Measured>,
    /// Metrics that could not be computed, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub not_computed: BTreeMap<Metric, String>,
}

impl MetricReport {
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
    use dpar_export_bundle::{ExtractorPorts, Normalise};
    use dpar_export_metrics::Resize;
    use dpar_export_spec::{ComponentSpec, EfficientNetSpec, InceptionSpec, SystemKind};

    use super::*;

    fn extractor(component: ComponentSpec, resize: Resize, normalise: Option<Normalise>) -> ExtractorSpec {
        let (image, features) = ("image".to_owned(), "pool_3".to_owned());
        ExtractorSpec {
            kind: SystemKind::Extractor,
            name: "inception".to_owned(),
            component,
            input_size: 299,
            resize,
            normalise,
            ports: ExtractorPorts { image, features, spatial: None, logits: None },
        }
    }

    #[test]
    fn fid_is_the_distance_of_fid_inception_with_a_known_preparation_only() {
        let inception = |resize, normalise| {
            extractor(ComponentSpec::Inception(InceptionSpec { classes: 1008 }), resize, normalise)
        };
        for variant in [Variant::GuidedDiffusion, Variant::PytorchFid, Variant::CleanFid] {
            let spec = inception(variant.resize(), None);
            assert_eq!(Network::of(&spec), (Network::inception(), Some(variant)));
            assert_eq!((spec.is_fid(), spec.distance_name()), (true, "FID".to_owned()));
        }
        // Another network that is called like it.
        let lite = ComponentSpec::EfficientnetLite0(EfficientNetSpec { classes: 1000, input_size: 299 });
        let other = extractor(lite, Resize::Tf1Bilinear, None);
        let (network, variant) = Network::of(&other);
        assert!(!network.inception && variant.is_none());
        assert!(!Network::named(&network.name).inception, "its statistics are not FID-Inception's");
        assert_eq!(other.distance_name(), "Fréchet distance on inception (another network)");
        let normalise = Normalise { mean: [128.0; 3], std: [128.0; 3] };
        let own = Network::of(&inception(Resize::Tf1Bilinear, Some(normalise)));
        assert_eq!(own, (Network::inception(), Some(Variant::GuidedDiffusion)));
        // Its weights alone do not make an FID, whoever asks: a report, a gate, the published table.
        let bytes = Normalise { mean: [0.0; 3], std: [255.0; 3] };
        for (resize, normalise) in [(Resize::HalfPixelBilinear, normalise), (Resize::Tf1Bilinear, bytes)] {
            let spec = inception(resize, Some(normalise));
            let (network, variant) = Network::of(&spec);
            assert!(!network.inception && variant.is_none() && !Network::named(&network.name).inception);
            assert!(!spec.is_fid() && spec.is_inception());
            assert_eq!(spec.distance_name(), format!("Fréchet distance on {}", network.name));
        }
    }
}
