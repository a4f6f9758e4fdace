//! `config.yaml` of an experiment folder: the keys that matter, everything else ignored.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{PatchMode, PatchRope, PatchRule};
use serde::Deserialize;

use crate::{CheckpointError, ErrorKind};

/// Longest accepted text file (configuration, rename rules) in bytes.
const MAX_TEXT: u64 = 4 << 20;

/// A configuration with the place it was read from.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) path: Utf8PathBuf,
    pub(crate) exp_name: Option<String>,
    pub(crate) model: Model,
    pub(crate) dataset: Dataset,
    pub(crate) patcher: Patcher,
    pub(crate) training: Training,
}

#[derive(Debug, Default, Deserialize)]
struct Raw {
    exp_name: Option<String>,
    model: Option<Model>,
    dataset: Option<Dataset>,
    patcher: Option<Patcher>,
    training: Option<Training>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Model {
    pub(crate) gpt_model: Option<String>,
    pub(crate) gpt_type: Option<String>,
    pub(crate) cls_token_num: Option<u64>,
    pub(crate) codebook_size: Option<u64>,
    pub(crate) codebook_embed_dim: Option<u64>,
    pub(crate) downsample_size: Option<u64>,
    pub(crate) vq_ckpt: Option<String>,
    pub(crate) embedding_type: Option<String>,
    pub(crate) encoder_block_causal: Option<bool>,
    pub(crate) predict_eoi_token: Option<bool>,
    pub(crate) n_head: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Dataset {
    pub(crate) image_size: Option<u64>,
    pub(crate) num_classes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Patcher {
    pub(crate) patching_mode: Option<String>,
    pub(crate) threshold: Option<f64>,
    pub(crate) max_patch_length: Option<u64>,
    pub(crate) block_size: Option<u64>,
    pub(crate) patch_size: Option<f64>,
    pub(crate) monotonicity: Option<bool>,
    pub(crate) entropy_model_checkpoint_config: Option<String>,
    pub(crate) entropy_model_checkpoint: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Training {
    pub(crate) use_ca_rope: Option<bool>,
}

impl Config {
    /// Reads a configuration file.
    pub(crate) fn read(path: &Utf8Path) -> Result<Self, CheckpointError> {
        Self::parse(&read_text(path, "the configuration")?, path)
    }

    /// Parses configuration text; `path` is where relative paths in it start and what errors name.
    pub(crate) fn parse(text: &str, path: &Utf8Path) -> Result<Self, CheckpointError> {
        // A file of comments only is an empty configuration.
        let raw: Option<Raw> = serde_saphyr::from_str(text).map_err(|e| {
            CheckpointError::in_file(ErrorKind::Config { key: None, problem: e.to_string() }, path)
        })?;
        let raw = raw.unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            exp_name: raw.exp_name.filter(|n| !n.trim().is_empty()),
            model: raw.model.unwrap_or_default(),
            dataset: raw.dataset.unwrap_or_default(),
            patcher: raw.patcher.unwrap_or_default(),
            training: raw.training.unwrap_or_default(),
        })
    }

    /// The file name, for messages that name two places.
    pub(crate) fn label(&self) -> &str {
        self.path.file_name().unwrap_or("the configuration")
    }

    /// A path that the configuration names: relative ones start at the configuration's own folder.
    pub(crate) fn resolve(&self, path: Option<&str>) -> Option<Utf8PathBuf> {
        let path = path.map(str::trim).filter(|p| !p.is_empty())?;
        Some(self.path.parent().unwrap_or(Utf8Path::new("")).join(path))
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
        match self.model.gpt_type.as_deref() {
            None => {}
            Some(t) if t == gpt_type => {}
            Some(other) => return Err(self.unsupported("model.gpt_type", other, known)),
        }
        match self.model.cls_token_num {
            Some(n) if n != cls_tokens => Err(self.error(
                "model.cls_token_num",
                format!("must be {cls_tokens} for gpt_type {gpt_type}, not {n}"),
            )),
            _ => Ok(()),
        }
    }

    /// Tokens per row: `image_size / downsample_size`; `None` when neither key is there.
    pub(crate) fn grid(&self) -> Result<Option<Grid>, CheckpointError> {
        let (image, factor) = match (self.dataset.image_size, self.model.downsample_size) {
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
        match self.model.embedding_type.as_deref() {
            None => Ok(PatchRope::Index),
            Some("dynamic_4d") => Ok(PatchRope::Dynamic4d),
            Some("dynamic_3d") => Ok(PatchRope::Dynamic3d),
            Some(other) => {
                Err(self.unsupported("model.embedding_type", other, &["dynamic_4d", "dynamic_3d", "null"]))
            }
        }
    }

    /// The patch rule of the `patcher` section on a grid of `grid` tokens per row.
    pub(crate) fn patch_rule(&self, grid: usize) -> Result<PatchRule, CheckpointError> {
        const MODES: &[&str] = &["entropy_row_boundary", "entropy", "static", "token"];
        let p = &self.patcher;
        let mode = match p.patching_mode.as_deref() {
            Some("entropy_row_boundary") => PatchMode::EntropyRowBoundary,
            Some("entropy") => PatchMode::Entropy,
            Some("static") => PatchMode::Static,
            Some("token") => PatchMode::Token,
            Some(other) => return Err(self.unsupported("patcher.patching_mode", other, MODES)),
            None => return Err(self.error("patcher.patching_mode", "is needed for a DPAR checkpoint")),
        };
        if let Some(w) = p.block_size.filter(|w| *w != grid as u64) {
            return Err(self.disagreement(
                format!("says patcher.block_size {w}"),
                format!("dataset.image_size / model.downsample_size gives {grid} tokens per row"),
            ));
        }
        let rule = PatchRule {
            mode,
            threshold: p.threshold.map(|t| t as f32),
            max_patch_length: p.max_patch_length.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            grid,
            patch_size: p.patch_size,
            monotonicity: p.monotonicity.unwrap_or(false),
        };
        rule.validate().map_err(|e| CheckpointError::in_file(ErrorKind::PatchRule(e), &self.path))?;
        Ok(rule)
    }

    /// Refuses what no engine here can do.
    pub(crate) fn check_training(&self) -> Result<(), CheckpointError> {
        if self.training.use_ca_rope == Some(true) {
            return Err(self.unsupported("training.use_ca_rope", "true", &["false"]));
        }
        Ok(())
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
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| {
            let problem = format!("{what} is not UTF-8 text");
            CheckpointError::in_file(ErrorKind::Config { key: None, problem }, path)
        }),
    }
}
