//! Weight-only quantization: how it is asked for, and what it made of a component.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::per_component::PerComponent;
use crate::{ComponentKind, Precision, Precisions};

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

/// What engines may round in products with quantized weights that they read themselves: the accuracy level of `MatMulNBits`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub enum AccuracyLevel {
    /// 1: nothing, sums are float32.
    Float32,
    /// 4: the other factor, to 8 bits a block.
    #[default]
    Int8,
}

impl AccuracyLevel {
    /// The number in graphs, manifests and on the command line.
    pub fn number(self) -> i64 {
        match self {
            Self::Float32 => 1,
            Self::Int8 => 4,
        }
    }

    /// Reads `1` or `4`.
    ///
    /// # Errors
    /// In words: what another level would mean.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<i64>() {
            Ok(number) => Self::try_from(number),
            Err(_) => Err(format!("`{text}` is none of 1 and 4")),
        }
    }
}

impl TryFrom<i64> for AccuracyLevel {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match number {
            1 => Ok(Self::Float32),
            4 => Ok(Self::Int8),
            0 => Err("0 leaves it to the engine what it rounds, and nothing would say what it did: 1 is float32, 4 rounds \
                      activations to 8 bits"
                .to_owned()),
            2 | 3 => Err(format!(
                "{number} asks for products in a half type, which no engine here has for such weights: 1 or 4"
            )),
            _ => Err(format!("`{number}` is none of 1 and 4")),
        }
    }
}

impl From<AccuracyLevel> for i64 {
    fn from(level: AccuracyLevel) -> Self {
        level.number()
    }
}

/// Which components of a system are quantized, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quantize {
    blocks: PerComponent<Option<Blocks>>,
}

/// The components with linear layers.
pub(crate) const TRANSFORMERS: [ComponentKind; 3] =
    [ComponentKind::Dpar, ComponentKind::Entropy, ComponentKind::Llamagen];

impl Quantize {
    /// Reads `int8` (every transformer) or `entropy=int8,dpar=int4:32,vq=none`.
    ///
    /// # Errors
    /// In words: what is no kind, no block, no component, or a component without linear layers.
    pub fn parse(text: &str) -> Result<Self, String> {
        let blocks = PerComponent::parse(text, "KIND", |word| match word {
            "none" => Ok(None),
            word => Blocks::parse(word).map(Some),
        })?;
        if blocks.named(ComponentKind::Vq).flatten().is_some() {
            return Err("the layers of vq are convolutions, which stay as they are: vq=none".to_owned());
        }
        Ok(Self { blocks })
    }

    /// How a component is quantized.
    pub fn of(&self, component: ComponentKind) -> Option<Blocks> {
        self.blocks.of(component).flatten().filter(|_| TRANSFORMERS.contains(&component))
    }

    /// Whether any component is.
    pub fn any(&self) -> bool {
        self.blocks.values().any(|blocks| blocks.is_some())
    }

    /// A component that is named, and that a system of these components does not have.
    pub fn missing(&self, of: &[ComponentKind]) -> Option<ComponentKind> {
        self.blocks.missing(of)
    }
}

/// What an export makes of a checkpoint's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// Arithmetic of the graphs.
    pub precision: Precisions,
    /// Which weights are quantized: those of components in [`Precision::Fp32`] only.
    pub quantize: Quantize,
    /// What engines may round in products with them.
    pub accuracy: AccuracyLevel,
}

impl From<Precisions> for Form {
    fn from(precision: Precisions) -> Self {
        Self { precision, ..Self::default() }
    }
}

impl From<Precision> for Form {
    fn from(precision: Precision) -> Self {
        Precisions::from(precision).into()
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
    /// The accuracy level of products in its packed graphs.
    pub accuracy_level: AccuracyLevel,
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
            self.accuracy_level.number()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ComponentKind::{Dpar, Entropy, Llamagen, Vq};

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
    fn an_accuracy_level_is_one_that_says_what_is_rounded() {
        let levels = ["1", "4"].map(|text| AccuracyLevel::parse(text).unwrap().number());
        assert_eq!((levels, AccuracyLevel::default().number()), ([1, 4], 4));
        for (text, message) in
            [("0", "leaves it to the engine"), ("2", "half type"), ("5", "none of 1 and 4"), ("x", "none of")]
        {
            let e = AccuracyLevel::parse(text).unwrap_err();
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
