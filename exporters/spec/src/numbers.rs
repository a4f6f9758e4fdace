//! What a system's graphs compute with: what tolerances depend on.

use std::collections::BTreeMap;

use crate::quantize::TRANSFORMERS;
use crate::{ComponentKind, GraphName, Precision, Precisions, WeightBits};

/// The numbers that a system's graphs compute with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Arithmetic of the graphs.
    pub precision: Precisions,
    /// What the weights of each quantized component are held in.
    weights: BTreeMap<ComponentKind, WeightBits>,
}

/// The numbers that the graphs of one component compute with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ComponentNumbers {
    /// Their arithmetic.
    pub precision: Precision,
    /// What its weights are held in, where they are quantized.
    pub weights: Option<WeightBits>,
}

impl Numbers {
    /// Of components with such weights.
    pub fn new(
        precision: impl Into<Precisions>,
        weights: impl IntoIterator<Item = (ComponentKind, WeightBits)>,
    ) -> Self {
        Self { precision: precision.into(), weights: weights.into_iter().collect() }
    }

    /// The coarsest weights of its components, where some are quantized.
    pub fn weights(&self) -> Option<WeightBits> {
        self.weights.values().max().copied()
    }

    /// Those of the entropy model, which entropies and boundaries over given tokens depend on alone.
    pub fn entropy(&self) -> ComponentNumbers {
        self.of(ComponentKind::Entropy)
    }

    /// Those of the transformer that draws, which logits over given tokens and patches depend on alone.
    pub fn drawing(&self) -> ComponentNumbers {
        let coarsest = [ComponentKind::Dpar, ComponentKind::Llamagen].map(|k| self.weights.get(&k).copied());
        ComponentNumbers { precision: self.precision.main(), weights: coarsest.into_iter().flatten().max() }
    }

    /// Those of the tokenizer, which images of given codes depend on alone.
    pub fn tokenizer(&self) -> ComponentNumbers {
        self.of(ComponentKind::Vq)
    }

    fn of(&self, component: ComponentKind) -> ComponentNumbers {
        let precision = self.precision.of(component).of_component(component.name());
        ComponentNumbers { precision, weights: self.weights.get(&component).copied() }
    }

    /// What the graph of that name computes with: the numbers of its component, as if all had them. Of a graph that is none of
    /// these nothing is known: all of them.
    #[must_use]
    pub fn of_graph(&self, graph: &str) -> Self {
        use GraphName as G;
        let own = match GraphName::of(graph) {
            Some(G::EntropyStep) => self.entropy(),
            Some(
                G::Start
                | G::EncoderStep
                | G::PatchEmbed
                | G::GlobalStep
                | G::DecoderStep
                | G::Score
                | G::LlamagenStep,
            ) => self.drawing(),
            Some(G::VqDecode | G::VqEncode | G::Inception | G::EfficientnetLite0 | G::Features) => {
                self.tokenizer()
            }
            None => return self.clone(),
        };
        let weights = own.weights.into_iter().flat_map(|bits| TRANSFORMERS.map(|kind| (kind, bits)));
        Self::new(own.precision, weights)
    }

    /// The same, whatever form the graphs round in: [`Precision::numbers`].
    #[must_use]
    pub fn in_any_form(&self) -> Self {
        Self { precision: self.precision.numbers(), weights: self.weights.clone() }
    }

    /// The same as if no weights were quantized.
    #[must_use]
    pub fn floats(&self) -> Self {
        self.precision.clone().into()
    }
}

impl From<Precisions> for Numbers {
    fn from(precision: Precisions) -> Self {
        Self::new(precision, [])
    }
}

impl From<Precision> for Numbers {
    fn from(precision: Precision) -> Self {
        Precisions::from(precision).into()
    }
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.weights() {
            None => write!(f, "{}", self.precision),
            Some(weights) => write!(f, "{} with {weights} weights", self.precision),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ComponentKind::{Dpar, Entropy, Llamagen, Vq};

    #[test]
    fn a_graph_has_the_numbers_of_its_component() {
        let numbers = Numbers::new(Precision::Fp32, [(Dpar, WeightBits::Int4), (Entropy, WeightBits::Int8)]);
        let of = |graph: GraphName| numbers.of_graph(graph.as_str()).weights();
        assert_eq!(of(GraphName::EntropyStep), Some(WeightBits::Int8));
        assert_eq!([GraphName::Score, GraphName::PatchEmbed].map(of), [Some(WeightBits::Int4); 2]);
        assert_eq!([GraphName::VqDecode, GraphName::VqEncode].map(of), [None; 2]);
        assert_eq!(numbers.of_graph("another"), numbers);
        let precision = Precisions::new(Precision::Fp16, [(Entropy, Precision::Fp32)]);
        let numbers = Numbers::from(precision);
        let of = |graph: GraphName| numbers.of_graph(graph.as_str()).to_string();
        let found = [GraphName::EntropyStep, GraphName::GlobalStep, GraphName::VqDecode].map(of);
        assert_eq!(found, ["fp32", "fp16", "fp16"]);
        let autocast = Numbers::from(Precision::Bf16Autocast);
        let vq = autocast.of_graph(GraphName::VqEncode.as_str());
        assert_eq!(
            (vq.precision.one(), autocast.tokenizer().precision),
            (Some(Precision::Fp32), Precision::Fp32)
        );
    }

    #[test]
    fn what_is_mixed_is_said() {
        let precision = Precisions::new(Precision::Fp16, [(Vq, Precision::Fp32), (Entropy, Precision::Fp32)]);
        let numbers = Numbers::new(precision, [(Entropy, WeightBits::Int8)]);
        assert_eq!(numbers.to_string(), "fp16 (entropy fp32, vq fp32) with int8 weights");
        assert_eq!(numbers.floats().to_string(), "fp16 (entropy fp32, vq fp32)");
        assert_eq!(
            Numbers::new(Precision::Fp32, [(Llamagen, WeightBits::Int4)]).to_string(),
            "fp32 with int4 weights"
        );
    }
}
