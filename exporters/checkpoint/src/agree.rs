//! Tensors against configuration, and components against each other.

use camino::Utf8Path;
use dpar_export_spec::PatchRope;

use crate::config::{Config, Grid};
use crate::expect::vq::VqDims;
use crate::known::{self, LayerCounts, Size};
use crate::{CheckpointError, ErrorKind};

/// The sizes of one transformer, with the configuration they must agree with.
pub(crate) struct TransformerSizes<'c> {
    pub(crate) config: Option<&'c Config>,
    /// Name of the weight file.
    pub(crate) label: &'c str,
    pub(crate) file: &'c Utf8Path,
    pub(crate) width: usize,
    pub(crate) layers: LayerCounts,
    /// Whether there is a row for the end of an image, where `predict_eoi_token` says so at all.
    pub(crate) eoi: Option<bool>,
}

/// What a class table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Classes {
    /// Without the null class.
    pub(crate) number: usize,
    /// Whether the last row is known to be the null class.
    pub(crate) null: bool,
}

/// Rows of a class table with the 1000 classes of ImageNet and the null class.
const IMAGENET_ROWS: usize = 1001;

/// A codebook size and the statement it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vocab {
    pub(crate) size: usize,
    /// Who says so, for messages.
    pub(crate) source: String,
}

impl TransformerSizes<'_> {
    /// Heads H: `model.n_head`, else those of the published model, else one per 64 of the width. Checks the head width:
    /// rotary pairs need a multiple of 4, `dynamic_3d` of 8 and `dynamic_4d` of 16.
    pub(crate) fn heads(&self, rope: Option<PatchRope>) -> Result<usize, CheckpointError> {
        let known = self.known()?;
        let given = match self.config {
            Some(c) => c.n_head()?.map(|n| (c, n)),
            None => None,
        };
        if let (Some(known), Some((config, n))) = (known, given)
            && n != known.heads as u64
        {
            let says = format!("says model.n_head {n}");
            let word = config.gpt_model()?.unwrap_or_default();
            return Err(
                config.disagreement(says, format!("model.gpt_model {word} has {} heads", known.heads))
            );
        }
        let width = self.width;
        let (heads, from) = if let Some((_, n)) = given {
            (usize::try_from(n).unwrap_or(usize::MAX), "model.n_head")
        } else if let Some(n) = known.map(|k| k.heads).or_else(|| known::heads_of(width, self.layers)) {
            (n, "the published model")
        } else if width.is_multiple_of(64) {
            (width / 64, "one per 64 of the width")
        } else {
            let problem =
                format!("width {width} is not a multiple of 64, so the number of heads must be given");
            return Err(self.bad(problem).with_hint("add `model.n_head` to the configuration"));
        };
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(self.bad(format!("width {width} is not divisible by {heads} heads ({from})")));
        }
        let head = width / heads;
        let (need, what) = match rope {
            Some(PatchRope::Dynamic4d) => (16, "dynamic_4d patch embedding"),
            Some(PatchRope::Dynamic3d) => (8, "dynamic_3d patch embedding"),
            Some(PatchRope::Index) | None => (4, "token rotary embedding"),
        };
        if !head.is_multiple_of(need) {
            return Err(self.bad(format!(
                "head width {head} (width {width}, {heads} heads: {from}) is not a multiple of {need}, which {what} needs"
            )));
        }
        Ok(heads)
    }

    /// The published size the configuration names, after checking that the tensors have it.
    fn known(&self) -> Result<Option<Size>, CheckpointError> {
        let Some(config) = self.config else { return Ok(None) };
        let Some(word) = config.gpt_model()? else { return Ok(None) };
        let Some(known) = known::by_name(&word) else { return Ok(None) };
        if known.width == self.width && known.layers == self.layers {
            return Ok(Some(known));
        }
        let found = Size { width: self.width, heads: 0, layers: self.layers };
        Err(config.disagreement(
            format!("says model.gpt_model {word} ({known})"),
            format!("the tensors in {} have {found}", self.label),
        ))
    }

    /// Codebook size V from the rows of the token table, one less with an end-of-image token.
    pub(crate) fn vocab(&self, rows: usize) -> Result<Vocab, CheckpointError> {
        let eoi = self.eoi.unwrap_or(false);
        let why = self.eoi.map_or_else(String::new, |eoi| format!(" (predict_eoi_token is {eoi})"));
        if let Some(config) = self.config
            && let Some(v) = config.codebook_size()?
            && v.checked_add(u64::from(eoi)) != Some(rows as u64)
        {
            return Err(config
                .disagreement(
                    format!("says model.codebook_size {v}"),
                    format!("tensor tok_embeddings.weight in {} has {rows} rows{why}", self.label),
                )
                .tensor_named("tok_embeddings.weight"));
        }
        let size = rows.saturating_sub(usize::from(eoi));
        if size == 0 {
            return Err(self.bad("the codebook is empty".to_owned()));
        }
        Ok(Vocab { size, source: format!("{} in {}", "tok_embeddings.weight", self.label) })
    }

    /// As [`Self::vocab`], and equal to the main model's.
    pub(crate) fn vocab_like(&self, rows: usize, main: &Vocab) -> Result<Vocab, CheckpointError> {
        let own = self.vocab(rows)?;
        if own.size == main.size {
            return Ok(own);
        }
        let first = format!("{} has a codebook of {}", own.source, own.size);
        let second = format!("{} has one of {}", main.source, main.size);
        Err(CheckpointError::in_file(ErrorKind::Disagreement { first, second }, self.file)
            .tensor_named("tok_embeddings.weight"))
    }

    /// The classes of a table of that many rows. Where the configuration does not say how many there are, the last row is
    /// known to be the null class only if the table is ImageNet's, or the file is a published one, which has no configuration.
    pub(crate) fn classes(&self, rows: usize) -> Result<Classes, CheckpointError> {
        const TABLE: &str = "cls_embedding.embedding_table.weight";
        let given = match self.config {
            Some(c) => c.num_classes()?.map(|n| (c, n)),
            None => None,
        };
        let dropped = self.config.map(Config::no_class_dropout).transpose()?.unwrap_or(false);
        let null = !dropped && (given.is_some() || self.config.is_none() || rows == IMAGENET_ROWS);
        if let Some((config, n)) = given
            && n.checked_add(u64::from(null)) != Some(rows as u64)
        {
            let need =
                if null { "one per class and the null class" } else { "one per class; class dropout is 0" };
            return Err(config
                .disagreement(
                    format!("says dataset.num_classes {n}"),
                    format!("tensor {TABLE} in {} has {rows} rows ({need})", self.label),
                )
                .tensor_named(TABLE));
        }
        match rows.checked_sub(usize::from(null)) {
            None | Some(0) => {
                Err(self.bad(format!("{TABLE} has {rows} rows; one per class and the null class are needed")))
            }
            Some(number) => Ok(Classes { number, null }),
        }
    }

    fn bad(&self, problem: String) -> CheckpointError {
        CheckpointError::in_file(ErrorKind::Sizes(problem), self.file)
    }
}

/// The tokenizer against the configuration, the main model's codebook and the grid.
pub(crate) fn check_vq(
    config: Option<&Config>,
    dims: &VqDims,
    label: &str,
    file: &Utf8Path,
    vocab: &Vocab,
    grid: Grid,
) -> Result<(), CheckpointError> {
    const CODEBOOK: &str = "quantize.embedding.weight";
    let disagree = |first: String, second: String, tensor: &str| {
        CheckpointError::in_file(ErrorKind::Disagreement { first, second }, file).tensor_named(tensor)
    };
    if dims.codebook != vocab.size {
        return Err(disagree(
            format!("tensor {CODEBOOK} in {label} has {} rows", dims.codebook),
            format!("{} has a codebook of {}", vocab.source, vocab.size),
            CODEBOOK,
        ));
    }
    if let Some(config) = config
        && let Some(n) = config.codebook_embed_dim()?
        && n != dims.code_width as u64
    {
        return Err(config
            .disagreement(
                format!("says model.codebook_embed_dim {n}"),
                format!("tensor {CODEBOOK} in {label} has rows of {}", dims.code_width),
            )
            .tensor_named(CODEBOOK));
    }
    if dims.downsample() != grid.factor {
        let first = match config {
            Some(c) => format!("{} says model.downsample_size {}", c.label(), grid.factor),
            None => format!("a published LlamaGen model has downsampling {}", grid.factor),
        };
        let second = format!(
            "the encoder in {label} has {} downsampling levels, which is {}",
            dims.encoder.levels.len() - 1,
            dims.downsample()
        );
        return Err(disagree(first, second, "encoder.conv_blocks"));
    }
    Ok(())
}
