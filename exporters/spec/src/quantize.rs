//! Weight-only quantization: how it is asked for, and what it made of a component.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ComponentKind, GraphName, Precision};

/// What a quantized weight is held in: a whole number that is multiplied with the scale of its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightBits {
    /// 8 bits, −127 to 127.
    Int8,
    /// 4 bits, −8 to 7.
    Int4,
}

impl WeightBits {
    /// The word in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bits of a weight.
    pub fn bits(self) -> usize {
        match self {
            Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// The code of weight 0: codes are unsigned.
    pub fn zero(self) -> u8 {
        1 << (self.bits() - 1)
    }

    /// Columns that share a scale where nothing else is asked for.
    fn usual_block(self) -> usize {
        match self {
            Self::Int8 => BLOCKS[1],
            Self::Int4 => BLOCKS[0],
        }
    }
}

impl std::fmt::Display for WeightBits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Columns of a matrix that may share a scale.
const BLOCKS: [usize; 2] = [32, 128];

/// Matrices with fewer elements (64 KiB of float32) stay as they are: there is nothing to gain.
const SMALL: usize = 1 << 14;

/// How the matrices of a component are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blocks {
    /// What a weight is held in.
    pub bits: WeightBits,
    /// Columns that share a scale: 32 or 128.
    pub block: usize,
}

impl Blocks {
    /// Columns that share a scale in a matrix `[rows, columns]`: those asked for where they divide its columns, else the
    /// smallest block. `None` where that does not either, or the matrix is small: it stays as it is.
    pub fn of(self, rows: usize, columns: usize) -> Option<usize> {
        let fits = [self.block, BLOCKS[0]].into_iter().find(|block| columns.is_multiple_of(*block));
        fits.filter(|_| rows.saturating_mul(columns) >= SMALL)
    }

    /// `int8`, `int4`, or either with its block: `int8:32`.
    fn parse(word: &str) -> Result<Self, String> {
        let (name, block) = word.split_once(':').map_or((word, None), |(name, block)| (name, Some(block)));
        let kinds = [WeightBits::Int8, WeightBits::Int4];
        let bits = kinds.into_iter().find(|k| k.name() == name);
        let bits = bits.ok_or_else(|| format!("`{name}` is none of int8, int4 and none"))?;
        let block = match block.map(|b| (b, b.parse())) {
            None => bits.usual_block(),
            Some((_, Ok(block))) if BLOCKS.contains(&block) => block,
            Some((text, _)) => {
                return Err(format!("blocks have {} or {} columns, not `{text}`", BLOCKS[0], BLOCKS[1]));
            }
        };
        Ok(Self { bits, block })
    }
}

impl std::fmt::Display for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in blocks of {}", self.bits, self.block)
    }
}

/// Which components of a system are quantized, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quantize {
    /// Every transformer that is not named.
    every: Option<Blocks>,
    /// Those that are named.
    named: BTreeMap<ComponentKind, Option<Blocks>>,
}

/// The components with linear layers.
const TRANSFORMERS: [ComponentKind; 3] =
    [ComponentKind::Dpar, ComponentKind::Entropy, ComponentKind::Llamagen];

impl Quantize {
    /// Reads `int8` (every transformer) or `entropy=int8,dpar=int4:32,vq=none`.
    ///
    /// # Errors
    /// In words: what is no kind, no block, no component, or a component without linear layers.
    pub fn parse(text: &str) -> Result<Self, String> {
        let kind = |word: &str| match word {
            "none" => Ok(None),
            word => Blocks::parse(word).map(Some),
        };
        if !text.contains(['=', ',']) {
            return Ok(Self { every: kind(text)?, named: BTreeMap::new() });
        }
        let mut named = BTreeMap::new();
        for part in text.split(',') {
            let (component, word) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is no COMPONENT=KIND"))?;
            let known = TRANSFORMERS.into_iter().chain([ComponentKind::Vq]).find(|k| k.name() == component);
            let component =
                known.ok_or_else(|| format!("`{component}` is none of dpar, entropy, llamagen and vq"))?;
            let kind = kind(word)?;
            if component == ComponentKind::Vq && kind.is_some() {
                return Err("the layers of vq are convolutions, which stay as they are: vq=none".to_owned());
            }
            if named.insert(component, kind).is_some() {
                return Err(format!("{} is named twice", component.name()));
            }
        }
        Ok(Self { every: None, named })
    }

    /// How a component is quantized.
    pub fn of(&self, component: ComponentKind) -> Option<Blocks> {
        match self.named.get(&component) {
            Some(named) => *named,
            None => self.every.filter(|_| TRANSFORMERS.contains(&component)),
        }
    }

    /// Whether any component is.
    pub fn any(&self) -> bool {
        self.every.is_some() || self.named.values().any(Option::is_some)
    }

    /// A component that is named, and that a system of these components does not have.
    pub fn missing(&self, of: &[ComponentKind]) -> Option<ComponentKind> {
        self.named.keys().find(|named| !of.contains(named)).copied()
    }
}

/// What an export makes of a checkpoint's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// Arithmetic of the graphs.
    pub precision: Precision,
    /// Which weights are quantized: with [`Precision::Fp32`] only.
    pub quantize: Quantize,
}

impl From<Precision> for Form {
    fn from(precision: Precision) -> Self {
        Self { precision, quantize: Quantize::default() }
    }
}

/// What quantization made of a component: in its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantized {
    /// What its weights are held in.
    pub weights: WeightBits,
    /// Columns that were asked to share a scale.
    pub block: usize,
    /// Opset of its portable graphs.
    pub opset: i64,
    /// The accuracy level of products in its packed graphs: 4 lets an engine round activations to 8 bits.
    pub accuracy_level: i64,
    /// How many matrices are in blocks of which size.
    pub matrices: BTreeMap<usize, usize>,
    /// Matrices that stay as they are: they are small, or no block divides their columns.
    pub kept: Vec<String>,
    /// Bytes of the quantized matrices in float32.
    pub bytes_before: u64,
    /// Bytes of their codes, scales and zero points.
    pub bytes_after: u64,
}

impl Quantized {
    /// Whether an export can have made this: of some matrices, in blocks that there are, and no more than sums hold.
    pub fn can_be(&self) -> bool {
        const MOST_MATRICES: usize = 1 << 20;
        const MOST_BYTES: u64 = 1 << 50;
        !self.matrices.is_empty()
            && BLOCKS.contains(&self.block)
            && self
                .matrices
                .iter()
                .all(|(block, n)| BLOCKS.contains(block) && (1..=MOST_MATRICES).contains(n))
            && [self.bytes_before, self.bytes_after].iter().all(|bytes| *bytes <= MOST_BYTES)
    }

    /// Whether it would have taken a matrix `[rows, columns]`.
    pub fn takes(&self, rows: usize, columns: usize) -> bool {
        Blocks { bits: self.weights, block: self.block }.of(rows, columns).is_some()
    }
}

impl std::fmt::Display for Quantized {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let matrices: Vec<String> =
            self.matrices.iter().map(|(block, n)| format!("{n} in blocks of {block}")).collect();
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "{}, {} matrices ({}), {} as they are, {:.1} MB of float32 are {:.1} MB, accuracy level {}",
            self.weights,
            self.matrices.values().sum::<usize>(),
            matrices.join(", "),
            self.kept.len(),
            megabytes(self.bytes_before),
            megabytes(self.bytes_after),
            self.accuracy_level
        )
    }
}

/// The numbers that a system's graphs compute with: what tolerances depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Numbers {
    /// Arithmetic of the graphs.
    pub precision: Precision,
    /// The coarsest weights of its components, where some are quantized.
    pub weights: Option<WeightBits>,
    /// Those of the entropy model, which entropies and boundaries over given tokens depend on alone.
    pub entropy: Option<WeightBits>,
    /// Those of the transformer that draws, which logits over given tokens and patches depend on alone.
    pub drawing: Option<WeightBits>,
}

impl Numbers {
    /// Of components with such weights.
    pub fn new(precision: Precision, weights: impl IntoIterator<Item = (ComponentKind, WeightBits)>) -> Self {
        let mut numbers = Self::from(precision);
        for (component, weights) in weights {
            numbers.weights = numbers.weights.max(Some(weights));
            match component {
                ComponentKind::Entropy => numbers.entropy = Some(weights),
                _ if TRANSFORMERS.contains(&component) => numbers.drawing = Some(weights),
                _ => {}
            }
        }
        numbers
    }

    /// What the graph of that name computes with: the weights of its component. Of a graph that is none of these nothing is
    /// known: the coarsest.
    #[must_use]
    pub fn of_graph(self, graph: &str) -> Self {
        use GraphName as G;
        let weights = match GraphName::of(graph) {
            Some(G::EntropyStep) => self.entropy,
            Some(
                G::Start
                | G::EncoderStep
                | G::PatchEmbed
                | G::GlobalStep
                | G::DecoderStep
                | G::Score
                | G::LlamagenStep,
            ) => self.drawing,
            // They have no linear layers.
            Some(G::VqDecode | G::VqEncode | G::Inception | G::EfficientnetLite0 | G::Features) => None,
            None => self.weights,
        };
        Self { weights, ..self }
    }
}

impl From<Precision> for Numbers {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.weights {
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
    fn a_graph_has_the_weights_of_its_component() {
        let numbers = Numbers::new(Precision::Fp32, [(Dpar, WeightBits::Int4), (Entropy, WeightBits::Int8)]);
        let of = |graph: GraphName| numbers.of_graph(graph.as_str()).weights;
        assert_eq!(of(GraphName::EntropyStep), Some(WeightBits::Int8));
        assert_eq!([GraphName::Score, GraphName::PatchEmbed].map(of), [Some(WeightBits::Int4); 2]);
        assert_eq!([GraphName::VqDecode, GraphName::VqEncode].map(of), [None; 2]);
        assert_eq!(numbers.of_graph("another").weights, numbers.weights);
    }

    #[test]
    fn a_word_is_for_every_transformer_and_a_list_for_what_it_names() {
        let all = Quantize::parse("int8").unwrap();
        let int8 = Blocks { bits: WeightBits::Int8, block: 128 };
        assert_eq!(
            [Dpar, Entropy, Llamagen, Vq].map(|k| all.of(k)),
            [Some(int8), Some(int8), Some(int8), None]
        );
        let some = Quantize::parse("entropy=int8:32,dpar=int4,vq=none").unwrap();
        let found = [Dpar, Entropy, Llamagen, Vq].map(|k| some.of(k).map(|b| b.to_string()));
        let word = |text: &str| Some(text.to_owned());
        assert_eq!(found, [word("int4 in blocks of 32"), word("int8 in blocks of 32"), None, None]);
        assert_eq!((some.missing(&[Dpar, Entropy]), some.missing(&[Dpar, Entropy, Vq])), (Some(Vq), None));
        assert!(all.any() && some.any() && !Quantize::parse("none").unwrap().any());
        assert!(!Quantize::parse("dpar=none").unwrap().any());
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        for (text, message) in [
            ("int2", "`int2` is none of"),
            ("", "`` is none of"),
            ("int8:64", "32 or 128 columns, not `64`"),
            ("dpar", "`dpar` is none of"),
            ("dpar=int8,entropy", "`entropy` is no COMPONENT=KIND"),
            ("gpt=int8", "`gpt` is none of"),
            ("dpar=int8,dpar=int4", "dpar is named twice"),
            ("vq=int8", "convolutions"),
        ] {
            let e = Quantize::parse(text).unwrap_err();
            assert!(e.contains(message), "{text}: {e}");
        }
    }

    #[test]
    fn a_matrix_takes_the_block_that_divides_it_and_a_small_one_none() {
        let asked = Blocks { bits: WeightBits::Int8, block: 128 };
        assert_eq!(asked.of(2304, 768), Some(128));
        assert_eq!(asked.of(576, 192), Some(32));
        assert_eq!(asked.of(1024, 40), None);
        assert_eq!((asked.of(64, 128), asked.of(128, 128)), (None, Some(128)));
    }
}
