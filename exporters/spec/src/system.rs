//! Component specs: every size the exporter needs, as resolved from tensors and configuration.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{EfficientNetSpec, FeaturesSpec, InceptionSpec, PatchRule, PatchRuleError};

/// Largest token grid, image side, table, stack and width that a configuration may claim; far above any model, low enough that
/// no product of sizes overflows.
const MAX_GRID: usize = 1 << 10;
const MAX_SIDE: usize = 1 << 15;
const MAX_ROWS: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;
const MAX_WIDTH: usize = 1 << 20;

fn yes() -> bool {
    true
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_yes(value: &bool) -> bool {
    *value
}

/// What a bundle is: one of the two systems of the paper's table, or a feature network that looks at their images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemKind {
    /// Entropy model, patch encoder, global transformer, patch decoder.
    Dpar,
    /// The class-conditional LlamaGen baseline.
    Llamagen,
    /// A feature extractor: no transformer, no tokens, no patch rule.
    Extractor,
}

impl std::fmt::Display for SystemKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dpar => "dpar",
            Self::Llamagen => "llamagen",
            Self::Extractor => "extractor",
        })
    }
}

/// Writes the one table of components: the word in manifests, which is also the stem of the weight file, and the sizes.
macro_rules! components {
    ($($(#[$doc:meta])* $id:ident $name:literal $sizes:ty;)*) => {
        /// Which component a weight set belongs to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum ComponentKind {
            $($(#[$doc])* #[serde(rename = $name)] $id,)*
        }

        impl ComponentKind {
            /// Lower-case name, also the stem of the component's weight file.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$id => $name,)*
                }
            }
        }

        /// One component with all its sizes.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum ComponentSpec {
            $($(#[$doc])* #[serde(rename = $name)] $id($sizes),)*
        }

        impl ComponentSpec {
            /// Its kind.
            pub fn kind(&self) -> ComponentKind {
                match self {
                    $(Self::$id(_) => ComponentKind::$id,)*
                }
            }

            fn sizes(&self) -> &dyn CheckedSizes {
                match self {
                    $(Self::$id(sizes) => sizes,)*
                }
            }
        }
    };
}

components! {
    /// The DPAR transformer (encoder, global, decoder).
    Dpar "dpar" DparSpec;
    /// The unconditional entropy model.
    Entropy "entropy" GptSpec;
    /// The LlamaGen baseline.
    Llamagen "llamagen" GptSpec;
    /// The VQ tokenizer.
    Vq "vq" VqSpec;
    /// The FID-Inception network.
    Inception "inception" InceptionSpec;
    /// EfficientNet-Lite0.
    EfficientnetLite0 "efficientnet-lite0" EfficientNetSpec;
    /// A feature network given as ONNX.
    Features "features" FeaturesSpec;
}

/// What the sizes of every component are checked for.
trait CheckedSizes {
    /// Each with its name and what a model can have.
    fn ranges(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)>;

    /// Width and heads of a transformer.
    fn heads(&self) -> Option<(usize, usize)> {
        None
    }
}

impl ComponentKind {
    /// Whether it is a feature network, not a part of a system.
    pub fn is_extractor(self) -> bool {
        matches!(self, Self::Inception | Self::EfficientnetLite0 | Self::Features)
    }
}

/// Rotary embedding of patches in the global transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PatchRope {
    /// Row, first column, last column: angles `[r·ω, a·α, b·α, b·α, a·α]`.
    #[serde(rename = "dynamic_4d")]
    Dynamic4d,
    /// Angles `[r·ω, a·β, b·β]`.
    #[serde(rename = "dynamic_3d")]
    Dynamic3d,
    /// 1D over the patch index.
    #[serde(rename = "index")]
    Index,
}

impl PatchRope {
    /// As configurations have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dynamic4d => "dynamic_4d",
            Self::Dynamic3d => "dynamic_3d",
            Self::Index => "index",
        }
    }
}

/// What the decoder's cross-attention holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoderCross {
    /// `wo` and `cross_attn_norm_kv` only: adds wo·RMSNorm_kv(g).
    OutputOnly,
    /// `wq`, `wk`, `wv`, `cross_attn_norm_q` too; softmax over one key is 1, so it adds wo·wv·RMSNorm_kv(g).
    Full,
}

impl DecoderCross {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::OutputOnly => "of wo only",
            Self::Full => "full",
        }
    }
}

/// The DPAR transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DparSpec {
    /// Model width D.
    pub width: usize,
    /// Heads H; `width / heads` is the head width Dh.
    pub heads: usize,
    /// FFN width, from `w1`.
    pub ffn: usize,
    /// Patch encoder layers E.
    pub encoder_layers: usize,
    /// Global transformer layers G.
    pub global_layers: usize,
    /// Patch decoder layers.
    pub decoder_layers: usize,
    /// Rows of `tok_embeddings` and `output`: V, or V + 1 with an end-of-image token.
    pub token_rows: usize,
    /// Whether the class table has a row for the null class.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub null_class: bool,
    /// Rotary embedding of patches.
    pub patch_rope: PatchRope,
    /// Encoder self-attention limited to the token's own patch.
    pub encoder_block_causal: bool,
    /// Variant of the decoder's cross-attention.
    pub decoder_cross: DecoderCross,
}

/// A LlamaGen-style transformer: the entropy model (no classes) or the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GptSpec {
    /// Model width D.
    pub width: usize,
    /// Heads H.
    pub heads: usize,
    /// FFN width, from `w1`.
    pub ffn: usize,
    /// Layers.
    pub layers: usize,
    /// Rows of `tok_embeddings` and `output`.
    pub token_rows: usize,
    /// Whether the class table has a row for the null class (of no meaning without classes).
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub null_class: bool,
}

/// One resolution level of a VQ stack, in execution order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VqLevel {
    /// Index in the checkpoint's `conv_blocks.{index}`.
    pub index: usize,
    /// Output channels.
    pub channels: usize,
    /// Residual blocks.
    pub res_blocks: usize,
    /// An attention block follows each residual block.
    pub attention: bool,
    /// A downsample (encoder) or upsample (decoder) ends the level.
    pub resample: bool,
}

/// The encoder or the decoder of the tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VqStack {
    /// Output channels of `conv_in`.
    pub conv_in: usize,
    /// Levels in execution order.
    pub levels: Vec<VqLevel>,
}

/// The VQ tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VqSpec {
    /// Width of a codebook row.
    pub code_width: usize,
    /// Latent channels z.
    pub z_channels: usize,
    /// Encoder: image to latent.
    pub encoder: VqStack,
    /// Decoder: latent to image.
    pub decoder: VqStack,
}

/// Why a component or a system is none that a checkpoint resolves to.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SystemFault {
    /// A size of a component.
    #[error("`{what}` of `{component}` is {size}, which no model has")]
    Size {
        /// The component.
        component: &'static str,
        /// The size.
        what: &'static str,
        /// What it is.
        size: usize,
    },
    /// A width without whole heads.
    #[error("the heads of `{0}` do not divide its width")]
    Heads(&'static str),
    /// Parts that do not fit each other.
    #[error("{0}")]
    Misfit(&'static str),
    /// Two components of one kind.
    #[error("there are two components `{0}`")]
    ComponentTwice(&'static str),
    /// A feature network in a system.
    #[error("`{0}` is a feature extractor")]
    Extractor(&'static str),
    /// The patch rule.
    #[error(transparent)]
    PatchRule(#[from] PatchRuleError),
}

impl ComponentSpec {
    /// Checks that every size is one that a model can have.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), SystemFault> {
        let (component, sizes) = (self.kind().name(), self.sizes());
        let ranges = sizes.ranges();
        if let Some((what, size, _)) = ranges.into_iter().find(|(_, size, range)| !range.contains(size)) {
            return Err(SystemFault::Size { component, what, size });
        }
        match sizes.heads() {
            Some((width, heads)) if !width.is_multiple_of(heads) => Err(SystemFault::Heads(component)),
            _ => Ok(()),
        }
    }
}

impl CheckedSizes for DparSpec {
    fn ranges(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        vec![
            ("width", self.width, 1..=MAX_WIDTH),
            ("heads", self.heads, 1..=MAX_WIDTH),
            ("ffn", self.ffn, 1..=MAX_WIDTH),
            ("encoder_layers", self.encoder_layers, 1..=MAX_LAYERS),
            ("global_layers", self.global_layers, 0..=MAX_LAYERS),
            ("decoder_layers", self.decoder_layers, 0..=MAX_LAYERS),
            ("token_rows", self.token_rows, 1..=MAX_ROWS),
        ]
    }

    fn heads(&self) -> Option<(usize, usize)> {
        Some((self.width, self.heads))
    }
}

impl CheckedSizes for GptSpec {
    fn ranges(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        vec![
            ("width", self.width, 1..=MAX_WIDTH),
            ("heads", self.heads, 1..=MAX_WIDTH),
            ("ffn", self.ffn, 1..=MAX_WIDTH),
            ("layers", self.layers, 0..=MAX_LAYERS),
            ("token_rows", self.token_rows, 1..=MAX_ROWS),
        ]
    }

    fn heads(&self) -> Option<(usize, usize)> {
        Some((self.width, self.heads))
    }
}

impl CheckedSizes for VqSpec {
    fn ranges(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        let levels = self.encoder.levels.iter().chain(&self.decoder.levels);
        let of = |f: fn(&VqLevel) -> usize| levels.clone().map(f).max().unwrap_or(1);
        let least = levels.clone().map(|l| l.channels).min().unwrap_or(1);
        vec![
            ("code_width", self.code_width, 1..=MAX_WIDTH),
            ("z_channels", self.z_channels, 1..=MAX_WIDTH),
            ("conv_in", self.encoder.conv_in, 1..=MAX_WIDTH),
            ("conv_in", self.decoder.conv_in, 1..=MAX_WIDTH),
            ("levels", levels.clone().count(), 0..=MAX_LAYERS),
            ("channels", of(|l| l.channels), 1..=MAX_WIDTH),
            ("channels", least, 1..=MAX_WIDTH),
            ("index", of(|l| l.index), 0..=MAX_LAYERS),
            ("res_blocks", of(|l| l.res_blocks), 0..=MAX_LAYERS),
        ]
    }
}

impl CheckedSizes for InceptionSpec {
    fn ranges(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        vec![("classes", self.classes, 1..=MAX_ROWS)]
    }
}

impl CheckedSizes for EfficientNetSpec {
    fn ranges(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        vec![("classes", self.classes, 1..=MAX_ROWS), ("input_size", self.input_size, 1..=MAX_SIDE)]
    }
}

impl CheckedSizes for FeaturesSpec {
    fn ranges(&self) -> Vec<(&'static str, usize, RangeInclusive<usize>)> {
        vec![("width", self.width, 1..=MAX_ROWS), ("input_size", self.input_size, 1..=MAX_SIDE)]
    }
}

/// A whole system: what `config.json` in a bundle holds. What its components share stands in it, once; what follows from
/// that is a method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemSpec {
    /// DPAR or the baseline.
    pub kind: SystemKind,
    /// Name from the configuration (`exp_name`, else `model.gpt_model`), or the file stem.
    pub name: String,
    /// Codebook size V: logits have this many columns.
    pub vocab: usize,
    /// Classes without the null class.
    pub num_classes: usize,
    /// Image height and width in pixels.
    pub image_size: usize,
    /// Where patches begin, on which grid of tokens.
    pub patch_rule: PatchRule,
    /// The components, at most one of each kind.
    pub components: Vec<ComponentSpec>,
}

impl SystemSpec {
    /// Checks that the parts fit each other, as they do in every system that was resolved from a checkpoint.
    ///
    /// # Errors
    /// What does not fit.
    pub fn validate(&self) -> Result<(), SystemFault> {
        let fit = |ok: bool, what| if ok { Ok(()) } else { Err(SystemFault::Misfit(what)) };
        fit((1..=MAX_GRID).contains(&self.grid()), "`grid` is out of range")?;
        fit((1..=MAX_SIDE).contains(&self.image_size), "`image_size` is out of range")?;
        fit(self.image_size.is_multiple_of(self.grid()), "`image_size` is no multiple of `grid`")?;
        fit((1..=MAX_ROWS).contains(&self.vocab), "`vocab` is out of range")?;
        fit(self.num_classes <= MAX_ROWS, "`num_classes` is out of range")?;
        self.patch_rule.validate()?;
        let wanted = match self.kind {
            SystemKind::Dpar => self.dpar().is_some() && self.llamagen().is_none(),
            SystemKind::Llamagen => self.llamagen().is_some() && self.dpar().is_none(),
            SystemKind::Extractor => false,
        };
        fit(wanted, "the transformer of this kind of system is missing, or another is there")?;
        let reads_entropy = self.kind == SystemKind::Dpar && self.patch_rule.mode.uses_entropy();
        fit(
            !reads_entropy || self.entropy().is_some(),
            "the patch rule reads entropies, but there is no entropy model",
        )?;
        self.components.iter().enumerate().try_for_each(|(i, component)| {
            let name = component.kind().name();
            let again = self.components[..i].iter().any(|c| c.kind() == component.kind());
            match (again, component.kind().is_extractor()) {
                (true, _) => Err(SystemFault::ComponentTwice(name)),
                (_, true) => Err(SystemFault::Extractor(name)),
                (false, false) => component.validate(),
            }
        })
    }

    /// The class that stands for no class, which guidance runs on; `None` where the class table has none.
    pub fn null_class(&self) -> Option<i64> {
        let has = match (self.dpar(), self.llamagen()) {
            (Some(d), _) => d.null_class,
            (None, Some(g)) => g.null_class,
            (None, None) => false,
        };
        has.then_some(self.num_classes as i64)
    }

    /// Labels that a class embedding has, that of the null class included.
    pub fn class_labels(&self) -> std::ops::Range<i64> {
        0..self.null_class().map_or(self.num_classes as i64, |null| null + 1)
    }

    /// Rows of the class table.
    pub fn class_rows(&self) -> usize {
        self.num_classes + usize::from(self.null_class().is_some())
    }

    /// Tokens per row W.
    pub fn grid(&self) -> usize {
        self.patch_rule.grid
    }

    /// Tokens per image T = W².
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Pixels per token and axis.
    pub fn downsample(&self) -> usize {
        self.image_size / self.grid()
    }

    /// Longest patch that the rule can make.
    pub fn longest_patch(&self) -> usize {
        self.patch_rule.longest_patch(self.tokens())
    }

    /// Patch size of a static rule whose patches have fractional bounds, where their coordinates follow from their index.
    pub fn fractional_size(&self) -> Option<f64> {
        let placed = self.dpar().is_some_and(|d| d.patch_rope != PatchRope::Index);
        self.patch_rule.fractional_size().filter(|_| placed)
    }

    /// Whether the graphs place patches by `patch_index` alone, not by `patch_first` and `patch_last`.
    pub fn places_by_index(&self) -> bool {
        self.dpar().is_some_and(|d| d.patch_rope == PatchRope::Index) || self.fractional_size().is_some()
    }

    /// The DPAR transformer, if this is a DPAR system.
    pub fn dpar(&self) -> Option<&DparSpec> {
        self.components.iter().find_map(|c| match c {
            ComponentSpec::Dpar(d) => Some(d),
            _ => None,
        })
    }

    /// The entropy model, if there is one.
    pub fn entropy(&self) -> Option<&GptSpec> {
        self.components.iter().find_map(|c| match c {
            ComponentSpec::Entropy(g) => Some(g),
            _ => None,
        })
    }

    /// The baseline transformer, if this is a LlamaGen system.
    pub fn llamagen(&self) -> Option<&GptSpec> {
        self.components.iter().find_map(|c| match c {
            ComponentSpec::Llamagen(g) => Some(g),
            _ => None,
        })
    }

    /// The tokenizer, if there is one.
    pub fn vq(&self) -> Option<&VqSpec> {
        self.components.iter().find_map(|c| match c {
            ComponentSpec::Vq(v) => Some(v),
            _ => None,
        })
    }
}
