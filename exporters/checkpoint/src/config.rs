//! `config.yaml` of an experiment folder: the keys that matter, everything else ignored.

use std::borrow::Cow;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{PatchMode, PatchRope, PatchRule, RuleChange};

use crate::tree::ConfigNode;
use crate::{CheckpointError, ErrorKind};

/// Longest accepted text file (configuration, rename rules) in bytes.
const MAX_TEXT: u64 = 4 << 20;

/// A configuration with the place it was read from. A key is looked at where it is read, and nowhere else.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) path: Utf8PathBuf,
    root: ConfigNode,
}

/// Keys that the research code passes on as they are, so that Python's truth decides, not a word.
const BLOCK_CAUSAL: &str = "model.encoder_block_causal";
const PREDICT_EOI: &str = "model.predict_eoi_token";
const CA_ROPE: &str = "training.use_ca_rope";
const EMBEDDING: &str = "model.embedding_type";

impl Config {
    /// Reads a configuration file.
    pub(crate) fn read(path: &Utf8Path) -> Result<Self, CheckpointError> {
        Self::parse(&read_text(path, "the configuration")?, path)
    }

    /// Parses configuration text; `path` is where relative paths in it start and what errors name.
    pub(crate) fn parse(text: &str, path: &Utf8Path) -> Result<Self, CheckpointError> {
        // As YAML 1.1 has it, which the research code reads.
        let options = serde_saphyr::options! {
            legacy_octal_numbers: true,
            non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough
        };
        let root: ConfigNode = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
            CheckpointError::in_file(ErrorKind::Config { key: None, problem: e.to_string() }, path)
        })?;
        // A file of comments only is an empty configuration.
        if !matches!(root, ConfigNode::Null | ConfigNode::Map(_)) {
            let problem = format!("holds {root} where sections of keys should be");
            return Err(CheckpointError::in_file(ErrorKind::Config { key: None, problem }, path));
        }
        Ok(Self { path: path.to_owned(), root })
    }

    fn node(&self, key: &str) -> Result<Option<Cow<'_, ConfigNode>>, CheckpointError> {
        self.root.at(key).map_err(|problem| self.error(key, problem))
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        take: impl Fn(&ConfigNode) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(node) = self.node(key)? else { return Ok(None) };
        take(&node).map(Some).ok_or_else(|| self.error(key, format!("must be {wanted}, not {node}")))
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        self.typed(key, "a whole number from 0 on", |n| u64::try_from(n.integer()?).ok())
    }

    fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.typed(key, "a number", ConfigNode::number)
    }

    fn text(&self, key: &str) -> Result<Option<String>, CheckpointError> {
        self.typed(key, "text", |n| match n {
            ConfigNode::Str(s) => Some(s.clone()),
            _ => None,
        })
    }

    /// A key that is read by truth: 0, 1 and truth values; a word only where it says what its truth is.
    fn truth(&self, key: &str) -> Result<bool, CheckpointError> {
        let Some(node) = self.node(key)? else { return Ok(false) };
        match (node.boolean(), node.as_ref()) {
            (Some(said), _) if said == node.truth() => Ok(said),
            (said, ConfigNode::Str(_)) => {
                let said = said.map_or("no truth value".to_owned(), |s| s.to_string());
                let problem = format!(
                    "the text {node} says {said}, and the research code takes it for {}, as any text",
                    node.truth()
                );
                Err(self.error(key, problem).with_hint("write true or false without quotes"))
            }
            _ => Err(self.error(key, format!("must be true or false, not {node}"))),
        }
    }

    /// `model.gpt_model`.
    pub(crate) fn gpt_model(&self) -> Result<Option<String>, CheckpointError> {
        self.text("model.gpt_model")
    }

    /// Whether the research code builds its patch model, by its word for it.
    pub(crate) fn is_dgpt(&self) -> Result<bool, CheckpointError> {
        Ok(self.gpt_model()?.is_some_and(|word| word.contains("DGPT")))
    }

    /// `model.gpt_type`.
    pub(crate) fn gpt_type(&self) -> Result<Option<String>, CheckpointError> {
        self.text("model.gpt_type")
    }

    /// `exp_name`, any scalar, if it is not blank.
    pub(crate) fn exp_name(&self) -> Result<Option<String>, CheckpointError> {
        let name = self.typed("exp_name", "a name", |n| match n {
            ConfigNode::List(_) | ConfigNode::Map(_) => None,
            scalar => Some(scalar.text()),
        })?;
        Ok(name.filter(|n| !n.trim().is_empty()))
    }

    /// `model.n_head`.
    pub(crate) fn n_head(&self) -> Result<Option<u64>, CheckpointError> {
        self.integer("model.n_head")
    }

    /// `model.codebook_size`.
    pub(crate) fn codebook_size(&self) -> Result<Option<u64>, CheckpointError> {
        self.integer("model.codebook_size")
    }

    /// `model.codebook_embed_dim`.
    pub(crate) fn codebook_embed_dim(&self) -> Result<Option<u64>, CheckpointError> {
        self.integer("model.codebook_embed_dim")
    }

    /// `dataset.num_classes`.
    pub(crate) fn num_classes(&self) -> Result<Option<u64>, CheckpointError> {
        self.integer("dataset.num_classes")
    }

    /// Whether labels were never dropped in training, so that the class table has no null class.
    pub(crate) fn no_class_dropout(&self) -> Result<bool, CheckpointError> {
        Ok(self.number("model.class_dropout_prob")?.is_some_and(|p| p <= 0.0))
    }

    /// `model.encoder_block_causal`.
    pub(crate) fn block_causal(&self) -> Result<bool, CheckpointError> {
        self.truth(BLOCK_CAUSAL)
    }

    /// `model.predict_eoi_token`, which counts for the patch model only.
    pub(crate) fn predict_eoi(&self) -> Result<bool, CheckpointError> {
        self.truth(PREDICT_EOI)
    }

    /// Path of the VQ tokenizer.
    pub(crate) fn vq_path(&self) -> Result<Option<Utf8PathBuf>, CheckpointError> {
        self.file("model.vq_ckpt")
    }

    /// Paths of the entropy model's weights and of its configuration.
    pub(crate) fn entropy_weights(&self) -> Result<Option<Utf8PathBuf>, CheckpointError> {
        self.file("patcher.entropy_model_checkpoint")
    }

    /// See [`Self::entropy_weights`].
    pub(crate) fn entropy_config(&self) -> Result<Option<Utf8PathBuf>, CheckpointError> {
        self.file("patcher.entropy_model_checkpoint_config")
    }

    /// A path that the configuration names: relative ones start at the configuration's own folder.
    fn file(&self, key: &str) -> Result<Option<Utf8PathBuf>, CheckpointError> {
        let path = self.text(key)?;
        let path = path.as_deref().map(str::trim).filter(|p| !p.is_empty());
        Ok(path.map(|p| self.path.parent().unwrap_or(Utf8Path::new("")).join(p)))
    }

    /// The file name, for messages that name two places.
    pub(crate) fn label(&self) -> &str {
        self.path.file_name().unwrap_or("the configuration")
    }

    /// An error about one key.
    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) -> CheckpointError {
        let kind = ErrorKind::Config { key: Some(key.to_owned()), problem: problem.into() };
        CheckpointError::in_file(kind, &self.path)
    }

    /// An error about a value this project does not support.
    fn unsupported(&self, key: &'static str, value: &str, known: &'static [&'static str]) -> CheckpointError {
        let value = value.chars().take(100).collect::<String>().escape_debug().to_string();
        CheckpointError::in_file(ErrorKind::UnsupportedConfig { key, value, known }, &self.path)
    }

    /// Checks `gpt_type` and `cls_token_num` where they are given.
    pub(crate) fn check_type(&self, gpt_type: &'static str, cls_tokens: u64) -> Result<(), CheckpointError> {
        let known: &'static [&'static str] = if cls_tokens == 0 { &["ucond"] } else { &["c2i"] };
        match self.gpt_type()?.as_deref() {
            None => {}
            Some(t) if t == gpt_type => {}
            Some(other) => return Err(self.unsupported("model.gpt_type", other, known)),
        }
        match self.integer("model.cls_token_num")? {
            Some(n) if n != cls_tokens => Err(self.error(
                "model.cls_token_num",
                format!("must be {cls_tokens} for gpt_type {gpt_type}, not {n}"),
            )),
            _ => Ok(()),
        }
    }

    /// Tokens per row: `image_size / downsample_size`; `None` when neither key is there.
    pub(crate) fn grid(&self) -> Result<Option<Grid>, CheckpointError> {
        let (image, factor) =
            match (self.integer("dataset.image_size")?, self.integer("model.downsample_size")?) {
                (None, None) => return Ok(None),
                (None, _) => return Err(self.error("dataset.image_size", "is needed for the token grid")),
                (_, None) => return Err(self.error("model.downsample_size", "is needed for the token grid")),
                (Some(image), Some(factor)) => (image, factor),
            };
        // Far above any image; keeps T = W² and everything derived from it in range.
        const LARGEST: u64 = 1 << 16;
        if factor == 0 || image == 0 || image > LARGEST || !image.is_multiple_of(factor) {
            return Err(self.error(
                "dataset.image_size",
                format!(
                    "{image} is not a positive multiple (up to {LARGEST}) of model.downsample_size {factor}"
                ),
            ));
        }
        Ok(Some(Grid { width: (image / factor) as usize, image: image as usize, factor: factor as usize }))
    }

    /// How patches are embedded for the global transformer.
    pub(crate) fn patch_rope(&self) -> Result<PatchRope, CheckpointError> {
        match self.text(EMBEDDING)?.as_deref() {
            None => Ok(PatchRope::Index),
            Some("dynamic_4d") => Ok(PatchRope::Dynamic4d),
            Some("dynamic_3d") => Ok(PatchRope::Dynamic3d),
            Some(other) => Err(self.unsupported(EMBEDDING, other, &["dynamic_4d", "dynamic_3d", "null"])),
        }
    }

    /// The patch rule of the `patcher` section on a grid of `grid` tokens per row with these changes, and as it was where they
    /// changed it.
    pub(crate) fn patch_rule(
        &self,
        grid: usize,
        change: &RuleChange,
    ) -> Result<(PatchRule, Option<PatchRule>), CheckpointError> {
        const MODES: &[&str] = &["entropy_row_boundary", "entropy", "static", "token"];
        let mode = match self.text("patcher.patching_mode")?.as_deref() {
            Some("entropy_row_boundary") => PatchMode::EntropyRowBoundary,
            Some("entropy") => PatchMode::Entropy,
            Some("static") => PatchMode::Static,
            Some("token") => PatchMode::Token,
            Some(other) => return Err(self.unsupported("patcher.patching_mode", other, MODES)),
            None => return Err(self.error("patcher.patching_mode", "is needed for a DPAR checkpoint")),
        };
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        // Of the modes only this one reads it.
        let row = match mode {
            PatchMode::EntropyRowBoundary => self.integer("patcher.block_size")?.map(size),
            _ => None,
        };
        let monotonicity = self.typed("patcher.monotonicity", "true or false", ConfigNode::boolean)?;
        let rule = PatchRule {
            mode,
            threshold: self.number("patcher.threshold")?.map(|t| t as f32),
            max_patch_length: self.integer("patcher.max_patch_length")?.map(size),
            grid,
            patch_size: self.number("patcher.patch_size")?,
            monotonicity: monotonicity.unwrap_or(false),
            block_size: row.filter(|w| *w != grid),
        };
        let used = rule.changed(change);
        let used = used.map_err(|e| CheckpointError::in_file(ErrorKind::PatchRule(e), &self.path))?;
        let was = (used != rule).then_some(rule);
        Ok((used, was))
    }

    /// Refuses what no engine here can do. Only the patch model reads it.
    pub(crate) fn check_training(&self) -> Result<(), CheckpointError> {
        if self.truth(CA_ROPE)? {
            return Err(self.unsupported(CA_ROPE, "true", &["false"]));
        }
        Ok(())
    }

    /// Refuses a patch model without patch encoder and decoder whose slots turn as patches: it is no LlamaGen.
    pub(crate) fn check_without_patches(&self) -> Result<(), CheckpointError> {
        match self.text(EMBEDDING)?.as_deref() {
            None => Ok(()),
            Some(rope) => Err(self
                .unsupported(EMBEDDING, rope, &["null"])
                .with_hint("a DGPT model without local encoder and decoder turns its slots as patches")),
        }
    }

    /// An error that names this configuration's statement and the one it contradicts.
    pub(crate) fn disagreement(&self, says: String, other: String) -> CheckpointError {
        let first = format!("{} {says}", self.label());
        CheckpointError::in_file(ErrorKind::Disagreement { first, second: other }, &self.path)
    }
}

/// The token grid with the numbers it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Tokens per row W.
    pub(crate) width: usize,
    /// Image height and width in pixels.
    pub(crate) image: usize,
    /// Pixels per token and axis.
    pub(crate) factor: usize,
}

/// Reads a small text file.
pub(crate) fn read_text(path: &Utf8Path, what: &str) -> Result<String, CheckpointError> {
    match dpar_export_inputs::read(path, MAX_TEXT) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(CheckpointError::in_file(ErrorKind::NotFound { what: what.to_owned() }, path))
        }
        Err(e) if e.kind() == std::io::ErrorKind::FileTooLarge => {
            let problem = format!("{what} is larger than {MAX_TEXT} bytes");
            Err(CheckpointError::in_file(ErrorKind::Config { key: None, problem }, path))
        }
        Err(e) => Err(CheckpointError::io(path, e)),
        Ok(bytes) => {
            let wide = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
            let text = std::str::from_utf8(dpar_export_inputs::without_mark(&bytes)).map_err(|_| {
                let found = if wide { "UTF-16 text; save it as UTF-8" } else { "not UTF-8 text" };
                let problem = format!("{what} is {found}");
                CheckpointError::in_file(ErrorKind::Config { key: None, problem }, path)
            })?;
            Ok(text.to_owned())
        }
    }
}
