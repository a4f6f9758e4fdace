//! Component specs: every size the exporter needs, as resolved from tensors and configuration.

use serde::{Deserialize, Serialize};

use crate::{EfficientNetSpec, FeaturesSpec, InceptionSpec, PatchRule};

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

/// Which component a weight set belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentKind {
    /// The DPAR transformer (encoder, global, decoder).
    Dpar,
    /// The unconditional entropy model.
    Entropy,
    /// The LlamaGen baseline.
    Llamagen,
    /// The VQ tokenizer.
    Vq,
    /// The FID-Inception network.
    Inception,
    /// EfficientNet-Lite0.
    #[serde(rename = "efficientnet-lite0")]
    EfficientnetLite0,
    /// A feature network given as ONNX.
    Features,
}

impl ComponentKind {
    /// Lower-case name, also the stem of the component's weight file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dpar => "dpar",
            Self::Entropy => "entropy",
            Self::Llamagen => "llamagen",
            Self::Vq => "vq",
            Self::Inception => "inception",
            Self::EfficientnetLite0 => "efficientnet-lite0",
            Self::Features => "features",
        }
    }

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
    /// Codebook size V: logits have this many columns.
    pub vocab: usize,
    /// Rows of `tok_embeddings` and `output`: V, or V + 1 with an end-of-image token.
    pub token_rows: usize,
    /// Classes without the null class; the null class has this index.
    pub num_classes: usize,
    /// Whether the class table has a row for the null class.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub null_class: bool,
    /// Tokens per row W.
    pub grid: usize,
    /// Rotary embedding of patches.
    pub patch_rope: PatchRope,
    /// Encoder self-attention limited to the token's own patch.
    pub encoder_block_causal: bool,
    /// Variant of the decoder's cross-attention.
    pub decoder_cross: DecoderCross,
    /// Longest patch the rule can make.
    pub longest_patch: usize,
    /// Patch size of a static rule whose patches have fractional bounds: their coordinates follow from their index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fractional_size: Option<f64>,
}

impl DparSpec {
    /// Rows of the class table.
    pub fn class_rows(&self) -> usize {
        self.num_classes + usize::from(self.null_class)
    }

    /// Whether the graphs place patches by `patch_index` alone, not by `patch_first` and `patch_last`.
    pub fn places_by_index(&self) -> bool {
        self.patch_rope == PatchRope::Index || self.fractional_size.is_some()
    }
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
    /// Codebook size V: logits have this many columns.
    pub vocab: usize,
    /// Rows of `tok_embeddings` and `output`.
    pub token_rows: usize,
    /// Classes without the null class; `None` for the unconditional entropy model.
    pub num_classes: Option<usize>,
    /// Whether the class table has a row for the null class (of no meaning without classes).
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub null_class: bool,
    /// Tokens per row W.
    pub grid: usize,
}

impl GptSpec {
    /// Rows of the class table, 0 without one.
    pub fn class_rows(&self) -> usize {
        self.num_classes.map_or(0, |n| n + usize::from(self.null_class))
    }
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
    /// Codebook size V.
    pub codebook: usize,
    /// Width of a codebook row.
    pub code_width: usize,
    /// Latent channels z.
    pub z_channels: usize,
    /// Tokens per row W.
    pub grid: usize,
    /// Pixels per token and axis.
    pub downsample: usize,
    /// Encoder: image to latent.
    pub encoder: VqStack,
    /// Decoder: latent to image.
    pub decoder: VqStack,
}

impl VqSpec {
    /// Image height and width in pixels.
    pub fn image_size(&self) -> usize {
        self.grid * self.downsample
    }
}

/// One component with all its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ComponentSpec {
    /// The DPAR transformer.
    Dpar(DparSpec),
    /// The entropy model.
    Entropy(GptSpec),
    /// The LlamaGen baseline.
    Llamagen(GptSpec),
    /// The VQ tokenizer.
    Vq(VqSpec),
    /// The FID-Inception network.
    Inception(InceptionSpec),
    /// EfficientNet-Lite0.
    #[serde(rename = "efficientnet-lite0")]
    EfficientnetLite0(EfficientNetSpec),
    /// A feature network given as ONNX.
    Features(FeaturesSpec),
}

impl ComponentSpec {
    /// Its kind.
    pub fn kind(&self) -> ComponentKind {
        match self {
            Self::Dpar(_) => ComponentKind::Dpar,
            Self::Entropy(_) => ComponentKind::Entropy,
            Self::Llamagen(_) => ComponentKind::Llamagen,
            Self::Vq(_) => ComponentKind::Vq,
            Self::Inception(_) => ComponentKind::Inception,
            Self::EfficientnetLite0(_) => ComponentKind::EfficientnetLite0,
            Self::Features(_) => ComponentKind::Features,
        }
    }
}

impl ComponentSpec {
    /// Checks that every size is one that a model can have.
    ///
    /// # Errors
    /// The first that is not, in words.
    pub fn validate(&self) -> Result<(), String> {
        let name = self.kind().name();
        let sizes: &[(&str, usize, std::ops::RangeInclusive<usize>)] = match self {
            Self::Dpar(s) => &[
                ("width", s.width, 1..=MAX_WIDTH),
                ("heads", s.heads, 1..=MAX_WIDTH),
                ("ffn", s.ffn, 1..=MAX_WIDTH),
                ("encoder_layers", s.encoder_layers, 1..=MAX_LAYERS),
                ("global_layers", s.global_layers, 0..=MAX_LAYERS),
                ("decoder_layers", s.decoder_layers, 0..=MAX_LAYERS),
                ("token_rows", s.token_rows, 1..=MAX_ROWS),
            ],
            Self::Entropy(s) | Self::Llamagen(s) => &[
                ("width", s.width, 1..=MAX_WIDTH),
                ("heads", s.heads, 1..=MAX_WIDTH),
                ("ffn", s.ffn, 1..=MAX_WIDTH),
                ("layers", s.layers, 0..=MAX_LAYERS),
                ("token_rows", s.token_rows, 1..=MAX_ROWS),
                ("num_classes", s.num_classes.unwrap_or_default(), 0..=MAX_ROWS),
            ],
            Self::Vq(s) => {
                let levels = s.encoder.levels.iter().chain(&s.decoder.levels);
                let of = |f: fn(&VqLevel) -> usize| levels.clone().map(f).max().unwrap_or(1);
                let least = levels.clone().map(|l| l.channels).min().unwrap_or(1);
                &[
                    ("code_width", s.code_width, 1..=MAX_WIDTH),
                    ("z_channels", s.z_channels, 1..=MAX_WIDTH),
                    ("conv_in", s.encoder.conv_in, 1..=MAX_WIDTH),
                    ("conv_in", s.decoder.conv_in, 1..=MAX_WIDTH),
                    ("levels", levels.clone().count(), 0..=MAX_LAYERS),
                    ("channels", of(|l| l.channels), 1..=MAX_WIDTH),
                    ("channels", least, 1..=MAX_WIDTH),
                    ("index", of(|l| l.index), 0..=MAX_LAYERS),
                    ("res_blocks", of(|l| l.res_blocks), 0..=MAX_LAYERS),
                ]
            }
            Self::Inception(s) => &[("classes", s.classes, 1..=MAX_ROWS)],
            Self::EfficientnetLite0(s) => {
                &[("classes", s.classes, 1..=MAX_ROWS), ("input_size", s.input_size, 1..=MAX_SIDE)]
            }
            Self::Features(s) => {
                &[("width", s.width, 1..=MAX_ROWS), ("input_size", s.input_size, 1..=MAX_SIDE)]
            }
        };
        match sizes.iter().find(|(_, size, range)| !range.contains(size)) {
            None => Ok(()),
            Some((what, size, _)) => Err(format!("`{what}` of `{name}` is {size}, which no model has")),
        }
    }
}

/// A whole system: what `config.json` in a bundle holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemSpec {
    /// DPAR or the baseline.
    pub kind: SystemKind,
    /// Name from the configuration (`exp_name`, else `model.gpt_model`), or the file stem.
    pub name: String,
    /// Tokens per row W.
    pub grid: usize,
    /// Codebook size V.
    pub vocab: usize,
    /// Classes without the null class.
    pub num_classes: usize,
    /// Image height and width in pixels.
    pub image_size: usize,
    /// Where patches begin.
    pub patch_rule: PatchRule,
    /// The components, at most one of each kind.
    pub components: Vec<ComponentSpec>,
}

impl SystemSpec {
    /// Checks that the parts fit each other, as they do in every system that was resolved from a checkpoint.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn validate(&self) -> Result<(), String> {
        let fit = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        fit((1..=MAX_GRID).contains(&self.grid), "`grid` is out of range")?;
        fit((1..=MAX_SIDE).contains(&self.image_size), "`image_size` is out of range")?;
        fit(self.image_size.is_multiple_of(self.grid), "`image_size` is no multiple of `grid`")?;
        fit((1..=MAX_ROWS).contains(&self.vocab), "`vocab` is out of range")?;
        fit(self.num_classes <= MAX_ROWS, "`num_classes` is out of range")?;
        fit(self.patch_rule.grid == self.grid, "`patch_rule.grid` is not `grid`")?;
        self.patch_rule.validate().map_err(|e| e.to_string())?;
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
            fit(!again, &format!("there are two components `{name}`"))?;
            component.validate()?;
            let (grid, vocab, classes, width, heads) = match component {
                ComponentSpec::Dpar(d) => (d.grid, d.vocab, Some(d.num_classes), d.width, d.heads),
                ComponentSpec::Entropy(g) => (g.grid, g.vocab, None, g.width, g.heads),
                ComponentSpec::Llamagen(g) => (g.grid, g.vocab, g.num_classes, g.width, g.heads),
                ComponentSpec::Vq(v) => {
                    let ok = v.codebook == self.vocab
                        && v.grid == self.grid
                        && v.downsample.checked_mul(v.grid) == Some(self.image_size);
                    return fit(ok, &format!("`{name}` has other sizes than the system"));
                }
                _ => return fit(false, &format!("`{name}` is a feature extractor")),
            };
            let classes = classes.is_none_or(|c| c == self.num_classes);
            let ok = grid == self.grid && vocab == self.vocab && classes;
            fit(ok, &format!("`{name}` has other sizes than the system"))?;
            fit(
                heads > 0 && width > 0 && width.is_multiple_of(heads),
                &format!("the heads of `{name}` do not divide its width"),
            )
        })?;
        if let Some(d) = self.dpar() {
            let longest = self.patch_rule.longest_patch(self.tokens());
            fit(d.longest_patch == longest, "`longest_patch` is not that of the patch rule")?;
            let size = self.patch_rule.fractional_size().filter(|_| d.patch_rope != PatchRope::Index);
            fit(d.fractional_size == size, "`fractional_size` is not that of the patch rule")?;
        }
        Ok(())
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

    /// Tokens per image T = W².
    pub fn tokens(&self) -> usize {
        self.grid * self.grid
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
