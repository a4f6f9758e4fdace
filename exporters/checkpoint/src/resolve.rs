//! `load`: from paths to components whose sizes, names, values and configurations agree.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{
    ComponentKind, ComponentSpec, DparSpec, GptSpec, Hinted, PatchRule, RuleChange, SystemKind, SystemSpec,
    VqSpec,
};

use crate::agree::{self, Classes, TransformerSizes, Vocab};
use crate::config::{Config, Grid};
use crate::expect;
use crate::known::LayerCounts;
use crate::locate::{Located, locate};
use crate::rules::Rules;
use crate::weights::{Bare, CanonicalTensors, WeightSet, renamed};
use crate::{CheckpointError, ErrorKind, TensorFile};

/// Where to find what the checkpoint itself does not say. All paths are used as given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadOptions {
    /// The entropy model: an experiment folder or a weight file. Without it the configuration's
    /// `patcher.entropy_model_checkpoint` and `..._config` are used.
    pub entropy: Option<Utf8PathBuf>,
    /// The VQ tokenizer's weight file. Without it the configuration's `model.vq_ckpt` is used.
    pub vq: Option<Utf8PathBuf>,
    /// The epoch of the main checkpoint, instead of `final` or the newest.
    pub epoch: Option<u64>,
    /// Rename rules, see [`crate::load`].
    pub map: Option<Utf8PathBuf>,
    /// The main checkpoint's configuration, instead of `config.yaml` in its folder.
    pub config: Option<Utf8PathBuf>,
    /// The key of the main checkpoint's state dict in a `.pt` that holds several (`ema`), keys in keys joined by dots.
    pub weights: Option<String>,
    /// Other numbers for the patch rule than the configuration's.
    pub rule: RuleChange,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// What it is: a component (`dpar`, `entropy`, `llamagen`, `vq`), its configuration (`dpar-config`, …), or `map`.
    pub role: String,
    /// Where it is on this machine.
    pub path: Utf8PathBuf,
    /// Its name for a manifest: relative, `/`-separated, the same on every machine.
    pub name: String,
    /// The key of the state dict that was read, where the file holds several or it was asked for.
    pub weights: Option<String>,
}

/// One component: its sizes and its weights.
#[derive(Debug, Clone)]
pub struct LoadedComponent {
    /// All sizes.
    pub spec: ComponentSpec,
    /// All tensors.
    pub weights: WeightSet,
}

/// A whole system, checked.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the exporter and the decoding loop need to know.
    pub system: SystemSpec,
    /// The components in the order dpar, entropy, llamagen, vq.
    pub components: Vec<LoadedComponent>,
    /// Every file that was read.
    pub sources: Vec<SourceFile>,
    /// The patch rule as the configuration has it, where the options changed it.
    pub configured_rule: Option<PatchRule>,
    /// What was taken for granted or taken off on the way, one sentence each; for people.
    pub notes: Vec<String>,
}

/// Image size and downsampling of the published 256-pixel LlamaGen files, which come without a configuration.
const PUBLISHED: (usize, Grid) = (16384, Grid { width: 16, image: 256, factor: 16 });

/// Loads a checkpoint: an experiment folder, or a single LlamaGen weight file.
///
/// The kind is decided by the tensors: with `local_encoder.*` it is DPAR, else with a class table LlamaGen. All sizes
/// come from tensors; a configuration that disagrees is an error. Every weight is scanned for NaN and infinities.
///
/// - **Experiment folder**: `config.yaml` and `checkpoints/final`, or the newest `checkpoints/epoch_%08d`, with
///   `model.safetensors`, else `model.pt`, else `pytorch_model.bin`, each whole or in shards that an index lists.
/// - **Single file**: its configuration is `options.config`, or that of the experiment folder it lies in
///   (`X/config.yaml` for `X/checkpoints/Y/model.*`). A LlamaGen file needs none when its codebook has 16384 entries
///   and its name has `256` in it: then it is a published 256-pixel file (downsampling 16). Any other one needs
///   `options.config`: the files of 384 pixels have the same tensors. Heads are those of the published model of that width
///   and depth, else one per 64 of the width.
/// - **Entropy model**: needed when the patching mode reads entropies. **VQ tokenizer**: left out when neither the
///   options nor the configuration name one. Relative paths in a configuration start at the configuration's folder.
/// - **Rename rules** (`options.map`): a YAML list; `{i}` is a number, `*` any text, the first rule that fits counts:
///
/// ```yaml
/// - from: transformer.h.{i}.attn.qkv.weight
///   to: layers.{i}.attention.wqkv.weight
/// - {from: enc.*, to: local_encoder.*, component: dpar}
/// - {from: ema.*, drop: true}
/// ```
///
/// # Errors
/// A [`CheckpointError`] that names the file, the tensor where one is to blame, and usually a next step.
pub fn load(checkpoint: &Utf8Path, options: &LoadOptions) -> Result<Loaded, CheckpointError> {
    let rules = options.map.as_deref().map(Rules::read).transpose()?;
    let located = locate(checkpoint, options.epoch)?;
    let config_path = options.config.clone().or_else(|| located.config.clone());
    let config = config_path.as_deref().map(Config::read).transpose()?;
    let file = Arc::new(TensorFile::open_at(&located.weights, options.weights.as_deref())?);
    let kind = detect(&file, rules.as_ref(), config.as_ref())?;
    let mut loader = Loader { options, rules: rules.as_ref(), sources: Vec::new(), notes: Vec::new() };
    loader.add_source(kind, &located, &file, config.as_ref());
    let mut loaded = match kind {
        ComponentKind::Dpar => loader.dpar(&file, &located, config)?,
        ComponentKind::Llamagen => loader.llamagen(&file, &located, config)?,
        ComponentKind::Entropy => {
            let kind = ErrorKind::WrongComponent {
                wanted: "a DPAR or LlamaGen model",
                found: "an unconditional model (an entropy model)",
            };
            return Err(CheckpointError::in_file(kind, &located.weights)
                .with_hint("give the DPAR checkpoint, and this one with `--entropy`"));
        }
        ComponentKind::Vq => {
            let kind =
                ErrorKind::WrongComponent { wanted: "a DPAR or LlamaGen model", found: "a VQ tokenizer" };
            return Err(CheckpointError::in_file(kind, &located.weights)
                .with_hint("give the DPAR or LlamaGen checkpoint, and this one with `--vq`"));
        }
        other => {
            let kind =
                ErrorKind::WrongComponent { wanted: "a DPAR or LlamaGen model", found: "a feature network" };
            return Err(CheckpointError::in_file(kind, &located.weights)
                .with_hint(format!("export it with `--component {}`", other.name())));
        }
    };
    loaded.system.components = loaded.components.iter().map(|c| c.spec.clone()).collect();
    if let Some(rules) = &rules {
        let name = rules.path.file_name().unwrap_or("map").to_owned();
        let path = rules.path.clone();
        loaded.sources.push(SourceFile { role: "map".to_owned(), path, name, weights: None });
    }
    Ok(loaded)
}

/// What a file's tensors are, each kind under its own rename rules.
fn kind_of(file: &TensorFile, rules: Option<&Rules>) -> Option<ComponentKind> {
    let any = |kind, prefix: &str| renamed(file, kind, rules).any(|(name, _)| name.starts_with(prefix));
    if any(ComponentKind::Dpar, "local_encoder.") {
        Some(ComponentKind::Dpar)
    } else if any(ComponentKind::Llamagen, "cls_embedding.") {
        Some(ComponentKind::Llamagen)
    } else if any(ComponentKind::Vq, "quantize.") {
        Some(ComponentKind::Vq)
    } else if any(ComponentKind::Entropy, "tok_embeddings.") && any(ComponentKind::Entropy, "layers.") {
        Some(ComponentKind::Entropy)
    } else if any(ComponentKind::Inception, "Mixed_7c.") {
        Some(ComponentKind::Inception)
    } else if any(ComponentKind::EfficientnetLite0, "_conv_stem.") {
        Some(ComponentKind::EfficientnetLite0)
    } else {
        None
    }
}

/// The kind of the main checkpoint. Tensors decide; where none is recognised the configuration says what to compare with.
fn detect(
    file: &TensorFile,
    rules: Option<&Rules>,
    config: Option<&Config>,
) -> Result<ComponentKind, CheckpointError> {
    if let Some(kind) = kind_of(file, rules) {
        return Ok(kind);
    }
    let (word, kind) = match config {
        Some(c) => (c.gpt_model()?.unwrap_or_default(), c.gpt_type()?.unwrap_or_default()),
        None => Default::default(),
    };
    if word.starts_with("DGPT") {
        return Ok(ComponentKind::Dpar);
    }
    if word.starts_with("GPT") && kind != "ucond" {
        return Ok(ComponentKind::Llamagen);
    }
    let names = file.names().take(5).map(|n| n.chars().take(100).collect()).collect();
    Err(CheckpointError::in_file(ErrorKind::UnknownModel { names }, file.path()))
}

struct Loader<'o> {
    options: &'o LoadOptions,
    rules: Option<&'o Rules>,
    sources: Vec<SourceFile>,
    notes: Vec<String>,
}

impl Loader<'_> {
    /// Lists the files of a component, and says which tensors are read where that is a choice.
    fn add_source(
        &mut self,
        kind: ComponentKind,
        located: &Located,
        file: &TensorFile,
        config: Option<&Config>,
    ) {
        let others = file.other_state_dicts();
        let asked = self.options.weights.is_some() && self.sources.is_empty();
        let weights = (asked || !others.is_empty()).then(|| file.state_dict_key().to_owned());
        let mut add = |role: String, path: &Utf8Path, weights| {
            let name = located.portable(path);
            self.sources.push(SourceFile { role, path: path.to_owned(), name, weights });
        };
        add(kind.name().to_owned(), &located.weights, weights);
        for shard in file.shards() {
            add(format!("{}-shard", kind.name()), shard, None);
        }
        if let Some(config) = config {
            add(format!("{}-config", kind.name()), &config.path, None);
        }
        let label = file.path().file_name().unwrap_or("the weight file");
        if !asked && !others.is_empty() {
            let key = Some(file.state_dict_key()).filter(|k| !k.is_empty());
            let read = key.map_or("the tensors at its top are read".to_owned(), |k| format!("`{k}` is read"));
            let others: Vec<String> = others.iter().map(|k| format!("`{k}`")).collect();
            self.notes.push(format!(
                "{label} holds weights under {} too; {read} (--weights KEY takes others of the main checkpoint)",
                others.join(", ")
            ));
        }
        self.notes.extend(Bare::of(file).note().map(|what| format!("{label}: {what}")));
    }

    fn dpar(
        mut self,
        file: &Arc<TensorFile>,
        located: &Located,
        config: Option<Config>,
    ) -> Result<Loaded, CheckpointError> {
        let Some(config) = config else {
            return Err(no_config(located));
        };
        config.check_type("c2i", 1)?;
        config.check_training()?;
        let eoi = Some(config.predict_eoi()?);
        let named = CanonicalTensors::new(file, ComponentKind::Dpar, self.rules)?;
        let label = named.label().to_owned();
        let (dims, weights) = expect::dpar::resolve(named)?;
        let layers = LayerCounts::Dpar(dims.encoder_layers, dims.global_layers, dims.decoder_layers);
        let sizes = TransformerSizes {
            config: Some(&config),
            label: &label,
            file: &located.weights,
            width: dims.width,
            layers,
            eoi,
        };
        let patch_rope = config.patch_rope()?;
        let heads = sizes.heads(Some(patch_rope))?;
        let vocab = sizes.vocab(dims.token_rows)?;
        let classes = self.classes(&sizes, dims.class_rows)?;
        let num_classes = classes.number;
        let Some(grid) = config.grid()? else {
            return Err(config.error("dataset.image_size", "is needed for the token grid"));
        };
        let (rule, configured_rule) = config.patch_rule(grid.width, &self.options.rule)?;
        self.note_change(&config, &rule, configured_rule.as_ref());
        self.note_doubts(&config, &rule, grid);
        let spec = DparSpec {
            width: dims.width,
            heads,
            ffn: dims.ffn,
            encoder_layers: dims.encoder_layers,
            global_layers: dims.global_layers,
            decoder_layers: dims.decoder_layers,
            token_rows: dims.token_rows,
            null_class: classes.null,
            patch_rope,
            encoder_block_causal: config.block_causal()?,
            decoder_cross: dims.decoder_cross,
        };
        let mut components = vec![LoadedComponent { spec: ComponentSpec::Dpar(spec), weights }];
        if rule.mode.uses_entropy() {
            components.push(self.entropy(&config, &vocab, grid)?);
        } else {
            self.refuse_entropy("this patching mode reads no entropies", located)?;
        }
        components.extend(self.vq(Some(&config), &vocab, grid)?);
        let system =
            self.system(SystemKind::Dpar, located, Some(&config), vocab.size, num_classes, grid, rule)?;
        Ok(Loaded { system, components, sources: self.sources, configured_rule, notes: self.notes })
    }

    fn llamagen(
        mut self,
        file: &Arc<TensorFile>,
        located: &Located,
        config: Option<Config>,
    ) -> Result<Loaded, CheckpointError> {
        let mut eoi = None;
        if let Some(config) = &config {
            config.check_type("c2i", 1)?;
            if config.is_dgpt()? {
                eoi = Some(config.predict_eoi()?);
            }
        }
        self.refuse_entropy("a LlamaGen baseline has no patches", located)?;
        let named = CanonicalTensors::new(file, ComponentKind::Llamagen, self.rules)?;
        let label = named.label().to_owned();
        let (dims, weights) = expect::gpt::resolve(named, true)?;
        // The tensors are all there: this is what the research code builds of that word without local layers.
        if let (Some(config), Some(_)) = (&config, eoi) {
            config.check_without_patches()?;
            config.check_training()?;
        }
        let layers = LayerCounts::Gpt(dims.layers);
        let sizes = TransformerSizes {
            config: config.as_ref(),
            label: &label,
            file: &located.weights,
            width: dims.width,
            layers,
            eoi,
        };
        let heads = sizes.heads(None)?;
        let vocab = sizes.vocab(dims.token_rows)?;
        let classes = self.classes(&sizes, dims.class_rows.unwrap_or(0))?;
        let num_classes = classes.number;
        let grid = match &config {
            Some(config) => config
                .grid()?
                .ok_or_else(|| config.error("dataset.image_size", "is needed for the token grid"))?,
            None if vocab.size == PUBLISHED.0 && has_published_name(&located.weights) => PUBLISHED.1,
            None => return Err(no_config(located)),
        };
        let spec = GptSpec {
            width: dims.width,
            heads,
            ffn: dims.ffn,
            layers: dims.layers,
            token_rows: dims.token_rows,
            null_class: classes.null,
        };
        let mut components = vec![LoadedComponent { spec: ComponentSpec::Llamagen(spec), weights }];
        components.extend(self.vq(config.as_ref(), &vocab, grid)?);
        let rule = PatchRule::per_token(grid.width)
            .changed(&self.options.rule)
            .map_err(|e| CheckpointError::in_file(ErrorKind::PatchRule(e), &located.weights))?;
        let system =
            self.system(SystemKind::Llamagen, located, config.as_ref(), vocab.size, num_classes, grid, rule)?;
        Ok(Loaded { system, components, sources: self.sources, configured_rule: None, notes: self.notes })
    }

    fn refuse_entropy(&self, why: &str, located: &Located) -> Result<(), CheckpointError> {
        if self.options.entropy.is_none() {
            return Ok(());
        }
        let kind = ErrorKind::Option { option: "--entropy", problem: why.to_owned() };
        Err(CheckpointError::in_file(kind, &located.weights).with_hint("leave `--entropy` out"))
    }

    /// Finds, reads and checks the entropy model.
    fn entropy(
        &mut self,
        main: &Config,
        vocab: &Vocab,
        grid: Grid,
    ) -> Result<LoadedComponent, CheckpointError> {
        const HINT: &str = "give it with `--entropy DIR` (its experiment folder or weight file)";
        // What the command line says needs no value in the configuration.
        let given = self.options.entropy.is_some();
        let named_config = if given { main.entropy_config().unwrap_or(None) } else { main.entropy_config()? };
        let existing_config = named_config.clone().filter(|p| p.is_file());
        let located = if let Some(path) = &self.options.entropy {
            locate(path, None).map_err(|e| if e.hint().is_none() { e.with_hint(HINT) } else { e })?
        } else {
            let weights = main.entropy_weights()?;
            let folder = existing_config.as_deref().and_then(Utf8Path::parent).map(Utf8Path::to_owned);
            match (weights, folder) {
                (Some(path), _) if path.exists() => locate(&path, None)?,
                (None, Some(folder)) => locate(&folder, None).map_err(|e| e.with_hint(HINT))?,
                (wanted, _) => {
                    let kind = ErrorKind::MissingComponent {
                        component: "entropy model",
                        wanted: wanted.or(named_config).map(|w| format!("`{w}` does not exist")),
                    };
                    return Err(CheckpointError::in_file(kind, &main.path).with_hint(HINT));
                }
            }
        };
        // The configuration that lies with a file that was given on the command line describes it best.
        let config_path = if given {
            located.config.clone().or(existing_config)
        } else {
            existing_config.or_else(|| located.config.clone())
        };
        if let (None, Some(named)) = (&config_path, &named_config) {
            let wanted = Some(format!("`{named}` does not exist"));
            let kind = ErrorKind::MissingComponent { component: "entropy model's configuration", wanted };
            return Err(CheckpointError::in_file(kind, &main.path).with_hint(HINT));
        }
        let config = config_path.as_deref().map(Config::read).transpose()?;
        let file = Arc::new(TensorFile::open(&located.weights)?);
        let found = match kind_of(&file, self.rules) {
            Some(ComponentKind::Dpar) => Some("a DPAR model"),
            Some(ComponentKind::Llamagen) => Some("a class-conditional model"),
            Some(ComponentKind::Vq) => Some("a VQ tokenizer"),
            Some(ComponentKind::Entropy) | None => None,
            Some(_) => Some("a feature network"),
        };
        if let Some(found) = found {
            let kind = ErrorKind::WrongComponent { wanted: "an unconditional entropy model", found };
            return Err(CheckpointError::in_file(kind, &located.weights).with_hint(HINT));
        }
        self.add_source(ComponentKind::Entropy, &located, &file, config.as_ref());
        if let Some(config) = &config {
            config.check_type("ucond", 0)?;
        }
        let named = CanonicalTensors::new(&file, ComponentKind::Entropy, self.rules)?;
        let label = named.label().to_owned();
        let (dims, weights) = expect::gpt::resolve(named, false)?;
        let layers = LayerCounts::Gpt(dims.layers);
        let sizes = TransformerSizes {
            config: config.as_ref(),
            label: &label,
            file: &located.weights,
            width: dims.width,
            layers,
            eoi: None,
        };
        let heads = sizes.heads(None)?;
        sizes.vocab_like(dims.token_rows, vocab)?;
        if let Some(config) = &config
            && let Some(own_grid) = config.grid()?
            && own_grid.width != grid.width
        {
            return Err(config.disagreement(
                format!("of the entropy model gives {} tokens per row", own_grid.width),
                format!("{} of the main model gives {}", main.label(), grid.width),
            ));
        }
        let spec = GptSpec {
            width: dims.width,
            heads,
            ffn: dims.ffn,
            layers: dims.layers,
            token_rows: dims.token_rows,
            null_class: true,
        };
        Ok(LoadedComponent { spec: ComponentSpec::Entropy(spec), weights })
    }

    /// Finds, reads and checks the tokenizer, if anything names one.
    fn vq(
        &mut self,
        main: Option<&Config>,
        vocab: &Vocab,
        grid: Grid,
    ) -> Result<Option<LoadedComponent>, CheckpointError> {
        const HINT: &str = "give it with `--vq FILE`";
        let configured = match main.filter(|_| self.options.vq.is_none()) {
            Some(c) => c.vq_path()?.map(|p| (c, p)),
            None => None,
        };
        let path = match (&self.options.vq, configured) {
            (Some(path), _) if path.is_file() => path.clone(),
            (Some(path), _) => {
                let kind = ErrorKind::NotFound { what: "the VQ tokenizer's file".to_owned() };
                return Err(CheckpointError::in_file(kind, path).with_hint(HINT));
            }
            (None, Some((_, path))) if path.is_file() => path,
            (None, Some((config, path))) => {
                let wanted = Some(format!("`{path}` does not exist"));
                let kind = ErrorKind::MissingComponent { component: "VQ tokenizer", wanted };
                return Err(CheckpointError::in_file(kind, &config.path).with_hint(HINT));
            }
            (None, None) => return Ok(None),
        };
        let located = Located { weights: path.clone(), config: None, root: None };
        let file = Arc::new(TensorFile::open(&path)?);
        self.add_source(ComponentKind::Vq, &located, &file, None);
        let named = CanonicalTensors::new(&file, ComponentKind::Vq, self.rules)?;
        let label = named.label().to_owned();
        let (dims, weights) = expect::vq::resolve(named)?;
        agree::check_vq(main, &dims, &label, &path, vocab, grid)?;
        let spec = VqSpec {
            code_width: dims.code_width,
            z_channels: dims.z_channels,
            encoder: dims.encoder,
            decoder: dims.decoder,
        };
        Ok(Some(LoadedComponent { spec: ComponentSpec::Vq(spec), weights }))
    }

    /// The classes of a table; says so where no null class is known.
    fn classes(&mut self, sizes: &TransformerSizes<'_>, rows: usize) -> Result<Classes, CheckpointError> {
        let classes = sizes.classes(rows)?;
        if !classes.null {
            self.notes.push(format!(
                "{}: no null class is known (class dropout 0, or no dataset.num_classes): all {rows} rows of the class \
                 table are classes, and guidance will be refused",
                sizes.label
            ));
        }
        Ok(classes)
    }

    /// Says which numbers of the rule are not the configuration's.
    fn note_change(&mut self, config: &Config, rule: &PatchRule, configured: Option<&PatchRule>) {
        let Some(was) = configured else { return };
        let word = |n: Option<String>| n.unwrap_or_else(|| "none".to_owned());
        let text = |r: &PatchRule| {
            [
                ("threshold", word(r.threshold.map(|n| n.to_string()))),
                ("max_patch_length", word(r.max_patch_length.map(|n| n.to_string()))),
                ("patch_size", word(r.patch_size.map(|n| n.to_string()))),
            ]
        };
        for ((key, was), (_, is)) in text(was).into_iter().zip(text(rule)).filter(|(a, b)| a != b) {
            self.notes
                .push(format!("{}: patcher.{key} is {was}; {is} is exported, as asked", config.label()));
        }
    }

    /// Says where a static rule hangs on rounding.
    fn note_doubts(&mut self, config: &Config, rule: &PatchRule, grid: Grid) {
        if let (Some(size), Some(token)) = (rule.patch_size, rule.doubtful_token(grid.width * grid.width)) {
            self.notes.push(format!(
                "{}: patcher.patch_size {size} is no binary fraction and a multiple of it is {token}: whether token \
                 {token} opens a patch depends on rounding, and the research code may decide otherwise",
                config.label()
            ));
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn system(
        &mut self,
        kind: SystemKind,
        located: &Located,
        config: Option<&Config>,
        vocab: usize,
        num_classes: usize,
        grid: Grid,
        patch_rule: PatchRule,
    ) -> Result<SystemSpec, CheckpointError> {
        let mut name = None;
        if let Some(config) = config {
            // A name is a label: what it was made of may be unknown here.
            name = config.exp_name().unwrap_or_else(|e| {
                self.notes.push(format!("{e}; the model is named otherwise"));
                None
            });
            if name.is_none() {
                name = config.gpt_model()?;
            }
        }
        let name = name.unwrap_or_else(|| located.weights.file_stem().unwrap_or("model").to_owned());
        Ok(SystemSpec {
            kind,
            name,
            vocab,
            num_classes,
            image_size: grid.image,
            patch_rule,
            components: Vec::new(),
        })
    }
}

/// The published files of 256 and 384 pixels (`c2i_L_256.pt`, `c2i_L_384.pt`) have the same tensors: only their names
/// tell them apart, and a training checkpoint (`0300000.pt`) says nothing.
fn has_published_name(weights: &Utf8Path) -> bool {
    weights.file_stem().is_some_and(|s| s.contains("256"))
}

fn no_config(located: &Located) -> CheckpointError {
    let kind = ErrorKind::MissingComponent {
        component: "configuration",
        wanted: Some("image size and downsampling cannot be read from tensors".to_owned()),
    };
    CheckpointError::in_file(kind, &located.weights).with_hint("give it with `--config FILE`")
}
