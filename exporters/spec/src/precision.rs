//! The arithmetic that graphs are written in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::per_component::PerComponent;
use crate::{ComponentKind, DType};

/// Precision of graphs: the types of weights, products and activations. The graph decides it, with a
/// `Cast` at every change; no engine may choose another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floats throughout.
    #[default]
    Fp32,
    /// 16-bit IEEE floats, with float32 islands.
    Fp16,
    /// bfloat16, with float32 islands.
    Bf16,
    /// As `torch.autocast(float16)` computes: products in fp16, everything between them in float32.
    Fp16Autocast,
    /// As `torch.autocast(bfloat16)` computes: products in bfloat16, everything between them in float32.
    Bf16Autocast,
    /// [`Bf16Autocast`](Self::Bf16Autocast) for engines without bfloat16: the same numbers, held in float32, and every
    /// rounding a computation of its own.
    Bf16AutocastExplicit,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Fp32,
        Self::Fp16,
        Self::Bf16,
        Self::Fp16Autocast,
        Self::Bf16Autocast,
        Self::Bf16AutocastExplicit,
    ];

    /// The word in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp16Autocast => "fp16-autocast",
            Self::Bf16Autocast => "bf16-autocast",
            Self::Bf16AutocastExplicit => "bf16-autocast-explicit",
        }
    }

    /// Type of the matrices of linear layers, of products, their results and KV caches.
    pub fn dtype(self) -> DType {
        match self {
            Self::Fp32 | Self::Bf16AutocastExplicit => DType::F32,
            Self::Fp16 | Self::Fp16Autocast => DType::F16,
            Self::Bf16 | Self::Bf16Autocast => DType::BF16,
        }
    }

    /// Type of what lies between products: embeddings, the residual stream, weights of norms.
    pub fn stream(self) -> DType {
        if self.is_autocast() { DType::F32 } else { self.dtype() }
    }

    /// The type whose numbers products take and give, in whatever type they are held.
    pub fn rounds_to(self) -> DType {
        if self == Self::Bf16AutocastExplicit { DType::BF16 } else { self.dtype() }
    }

    /// Whether only products are rounded.
    pub fn is_autocast(self) -> bool {
        matches!(self, Self::Fp16Autocast | Self::Bf16Autocast | Self::Bf16AutocastExplicit)
    }

    /// The precision whose numbers these are: the form of a graph does not change them.
    pub fn numbers(self) -> Self {
        if self == Self::Bf16AutocastExplicit { Self::Bf16Autocast } else { self }
    }

    /// The precision of the graphs of one component: autocast covers the transformers, the tokenizer runs in float32.
    pub fn of_component(self, component: &str) -> Self {
        if self.is_autocast() && component == ComponentKind::Vq.name() { Self::Fp32 } else { self }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Precision of a system's graphs: that of the transformer that draws, and of each component that has another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precisions {
    #[serde(rename = "precision")]
    main: Precision,
    #[serde(rename = "component_precisions", default, skip_serializing_if = "BTreeMap::is_empty")]
    own: BTreeMap<ComponentKind, Precision>,
}

impl Precisions {
    /// One for all but these; those that would compute the same without it have none of their own.
    pub fn new(main: Precision, own: impl IntoIterator<Item = (ComponentKind, Precision)>) -> Self {
        let differs = |(kind, own): &(ComponentKind, Precision)| {
            own.of_component(kind.name()) != main.of_component(kind.name())
        };
        Self { main, own: own.into_iter().filter(differs).collect() }
    }

    /// That of the transformer that draws, and of every component without one of its own.
    pub fn main(&self) -> Precision {
        self.main
    }

    /// Those of components that have one of their own.
    pub fn own(&self) -> &BTreeMap<ComponentKind, Precision> {
        &self.own
    }

    /// That of a component.
    pub fn of(&self, component: ComponentKind) -> Precision {
        self.own.get(&component).copied().unwrap_or(self.main)
    }

    /// Each that some component has.
    pub fn all(&self) -> impl Iterator<Item = Precision> {
        std::iter::once(self.main).chain(self.own.values().copied())
    }

    /// The one of all components, where they have one.
    pub fn one(&self) -> Option<Precision> {
        self.own.is_empty().then_some(self.main)
    }

    /// The precisions whose numbers these are: [`Precision::numbers`] of each.
    #[must_use]
    pub fn numbers(&self) -> Self {
        let own = self.own.iter().map(|(kind, precision)| (*kind, precision.numbers()));
        Self { main: self.main.numbers(), own: own.collect() }
    }
}

impl From<Precision> for Precisions {
    fn from(precision: Precision) -> Self {
        Self::new(precision, [])
    }
}

impl std::fmt::Display for Precisions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.main)?;
        if self.own.is_empty() {
            return Ok(());
        }
        let own: Vec<String> = self.own.iter().map(|(kind, own)| format!("{} {own}", kind.name())).collect();
        write!(f, " ({})", own.join(", "))
    }
}

/// The precisions that are asked for, before it is known which components there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedPrecisions(PerComponent<Precision>);

impl AskedPrecisions {
    /// Reads `fp16` (every component) or `entropy=fp32,dpar=fp16`; a component that is not named is fp32.
    ///
    /// # Errors
    /// In words: what is no precision, no component, or autocast of the tokenizer.
    pub fn parse(text: &str) -> Result<Self, String> {
        const WORDS: [Precision; 5] = [
            Precision::Fp32,
            Precision::Fp16,
            Precision::Bf16,
            Precision::Fp16Autocast,
            Precision::Bf16Autocast,
        ];
        let asked = PerComponent::parse(text, "PRECISION", |word| {
            let known = WORDS.into_iter().find(|p| p.name() == word);
            known.ok_or_else(|| {
                format!("`{word}` is none of fp32, fp16, bf16, fp16-autocast and bf16-autocast")
            })
        })?;
        if asked.named(ComponentKind::Vq).is_some_and(Precision::is_autocast) {
            return Err("autocast leaves vq in float32: vq=fp32".to_owned());
        }
        Ok(Self(asked))
    }

    /// The same with [`Precision::Bf16AutocastExplicit`] for [`Precision::Bf16Autocast`].
    #[must_use]
    pub fn explicit(self) -> Self {
        Self(self.0.map(|precision| match precision {
            Precision::Bf16Autocast => Precision::Bf16AutocastExplicit,
            other => other,
        }))
    }

    /// What a system of these components is to have.
    pub fn of(&self, components: &[ComponentKind]) -> Precisions {
        let of = |kind: ComponentKind| self.0.of(kind).unwrap_or_default();
        let drawing = [ComponentKind::Dpar, ComponentKind::Llamagen];
        let main = components.iter().copied().find(|kind| drawing.contains(kind));
        let main = main.map_or(Precision::default(), of);
        Precisions::new(main, components.iter().map(|kind| (*kind, of(*kind))))
    }

    /// Whether everything that is asked for is this.
    pub fn is_all(&self, precision: Precision) -> bool {
        self.0.values().all(|asked| asked == precision)
    }

    /// A component that is named, and that a system of these components does not have.
    pub fn missing(&self, of: &[ComponentKind]) -> Option<ComponentKind> {
        self.0.missing(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ComponentKind::{Dpar, Entropy, Llamagen, Vq};

    #[test]
    fn the_word_is_the_same_in_manifests_and_messages() {
        for precision in Precision::ALL {
            assert_eq!(serde_json::to_value(precision).unwrap(), precision.name());
            assert!(precision.dtype().is_float());
        }
    }

    #[test]
    fn autocast_narrows_products_alone_and_leaves_the_tokenizer() {
        for precision in Precision::ALL {
            assert_eq!(precision.is_autocast(), precision.stream() != precision.rounds_to(), "{precision}");
            let own = precision.of_component("vq");
            assert_eq!(own, if precision.is_autocast() { Precision::Fp32 } else { precision });
            assert_eq!(precision.of_component("dpar"), precision);
            assert_eq!(precision.numbers().rounds_to(), precision.rounds_to());
        }
    }

    #[test]
    fn a_word_is_for_every_component_and_a_list_for_what_it_names() {
        let of =
            |text: &str, kinds: &[ComponentKind]| AskedPrecisions::parse(text).unwrap().of(kinds).to_string();
        let dpar = [Dpar, Entropy, Vq];
        assert_eq!(of("fp16", &dpar), "fp16");
        assert_eq!(of("entropy=fp32,dpar=fp16,vq=fp32", &dpar), "fp16 (entropy fp32, vq fp32)");
        assert_eq!(of("dpar=fp16", &dpar), of("entropy=fp32,dpar=fp16,vq=fp32", &dpar));
        assert_eq!(of("entropy=bf16", &dpar), "fp32 (entropy bf16)");
        // The same in other words is the same.
        assert_eq!(of("entropy=fp16,dpar=fp16,vq=fp16", &dpar), "fp16");
        assert_eq!(of("llamagen=bf16-autocast", &[Llamagen, Vq]), "bf16-autocast");
        let explicit = AskedPrecisions::parse("dpar=bf16-autocast").unwrap().explicit().of(&dpar);
        assert_eq!(explicit.to_string(), "bf16-autocast-explicit (entropy fp32)");
        assert_eq!(explicit.numbers().to_string(), "bf16-autocast (entropy fp32)");
        assert_eq!([explicit.one(), Precisions::default().one()], [None, Some(Precision::Fp32)]);
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        for (text, message) in [
            ("fp8", "`fp8` is none of fp32, fp16"),
            ("", "`` is none of"),
            ("bf16-autocast-explicit", "is none of"),
            ("dpar", "`dpar` is none of"),
            ("dpar=fp16,entropy", "`entropy` is no COMPONENT=PRECISION"),
            ("gpt=fp16", "`gpt` is none of dpar, entropy, llamagen and vq"),
            ("dpar=fp16,dpar=fp32", "dpar is named twice"),
            ("vq=fp16-autocast", "autocast leaves vq in float32"),
        ] {
            let e = AskedPrecisions::parse(text).unwrap_err();
            assert!(e.contains(message), "{text}: {e}");
        }
        let asked = AskedPrecisions::parse("dpar=fp16,vq=fp16").unwrap();
        assert_eq!((asked.missing(&[Dpar]), asked.missing(&[Dpar, Vq])), (Some(Vq), None));
        assert!(asked.is_all(Precision::Fp16) && !asked.is_all(Precision::Fp32));
    }
}
