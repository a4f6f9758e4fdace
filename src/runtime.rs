//! A bundle on an engine: the jobs that commands are made of.

use camino::Utf8PathBuf;
use dpar_engine_api::{
    Arithmetic, CachedSession, Engine, EngineError, EngineErrorKind, EngineInfo, GraphFile, Session, Tensor,
    TensorData, TensorView,
};

use crate::arrays::ArrayError;
use crate::bundle::{Bundle, BundleError};
use crate::generate::{
    DecodeError, DecodeOptions, Request, StepModel, Stream, TeacherForced, decode_batch, prepare_model,
};

/// Why a job on a bundle failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The decoding loop.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// An array file.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A file that is not the one that was recorded.
    #[error("{path} does not match {record}: {message}")]
    Integrity {
        /// The file.
        path: Utf8PathBuf,
        /// What recorded it.
        record: String,
        /// What differs.
        message: String,
    },
    /// Preparing images, or computing a metric.
    #[error(transparent)]
    Metric(#[from] dpar_export_metrics::MetricError),
    /// An input that does not fit the bundle.
    #[error("{0}")]
    Input(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Called with (done, total) units of work; returns false to stop.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// Teacher-forced outputs for N images of T tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// `[N, T, V]`: slot t sees the class and x_<t.
    pub logits: Vec<f32>,
    /// `[N, T]` in nats: column j holds e_{j+1}. `None` without an entropy model.
    pub entropy: Option<Vec<f32>>,
    /// Patch lengths of each image.
    pub patch_lengths: Vec<Vec<usize>>,
}

/// A bundle on an engine that was found to work here.
pub struct Runtime<'a> {
    bundle: &'a Bundle,
    engine: Box<dyn Engine>,
    info: EngineInfo,
    arithmetic: Arithmetic,
}

impl<'a> Runtime<'a> {
    /// Probes the engine, and asks what it computes the bundle's precision with.
    ///
    /// # Errors
    /// When the engine cannot run here, or not in that precision.
    pub fn new(bundle: &'a Bundle, engine: Box<dyn Engine>) -> Result<Self, EngineError> {
        let arithmetic = engine.arithmetic(bundle.manifest().precision)?;
        let info = engine.probe()?;
        Ok(Self { bundle, engine, info, arithmetic })
    }

    /// What runs.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// What the engine computes the bundle's precision with.
    pub fn arithmetic(&self) -> &Arithmetic {
        &self.arithmetic
    }

    /// The bundle.
    pub fn bundle(&self) -> &'a Bundle {
        self.bundle
    }

    /// Prepares one graph.
    ///
    /// # Errors
    /// When the bundle has no such graph or the engine refuses it.
    pub fn prepare(&self, graph: &str) -> Result<Box<dyn Session>, RunError> {
        tracing::info!(graph, engine = self.engine.name(), "preparing");
        self.bundle.with_graph(graph, |file| Ok(self.engine.prepare(file)?))
    }

    /// Prepares a graph that lies outside the bundle, one derived from it.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub(crate) fn prepare_file(&self, file: GraphFile<'_>) -> Result<Box<dyn Session>, RunError> {
        Ok(self.engine.prepare(file)?)
    }

    /// Prepares one graph with its cache.
    ///
    /// # Errors
    /// When the bundle has no such graph or the engine refuses it.
    pub fn prepare_cached(&self, graph: &str) -> Result<Box<dyn CachedSession>, RunError> {
        tracing::info!(graph, engine = self.engine.name(), "preparing");
        self.bundle.with_graph(graph, |file| Ok(self.engine.prepare_cached(file)?))
    }

    /// Prepares the step graphs.
    ///
    /// # Errors
    /// When a graph is missing or refused.
    pub fn model(&self) -> Result<Box<dyn StepModel>, RunError> {
        prepare_model(self.bundle.system(), &mut |name| self.prepare_cached(name))
    }

    /// Decodes images in batches of `batch`; streams come in the order of the requests.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn decode(
        &self,
        requests: &[Request],
        options: &DecodeOptions,
        batch: usize,
        progress: Progress<'_>,
    ) -> Result<Vec<Stream>, RunError> {
        let system = self.bundle.system();
        let (classes, null) = (system.num_classes as i64, system.null_class());
        let known = |class: i64| (0..classes).contains(&class) || Some(class) == null;
        if let Some(bad) = requests.iter().find(|r| !known(r.class)) {
            let null = null.map_or("there is no null class".to_owned(), |n| format!("the null class is {n}"));
            return Err(RunError::Input(format!(
                "class {} of image {} is not in 0..{classes} ({null})",
                bad.class, bad.index
            )));
        }
        let mut model = self.model()?;
        let tokens = system.tokens();
        let total = requests.len() * tokens;
        let mut streams = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(batch.max(1)) {
            let done = streams.len() * tokens;
            streams.extend(decode_batch(
                model.as_mut(),
                &system.patch_rule,
                tokens,
                null,
                options,
                chunk,
                &mut |slots| progress(done + slots * chunk.len(), total),
            )?);
        }
        Ok(streams)
    }

    /// Scores `ids` `[N, T]` with class labels `[N]`; `patch_lengths` are derived where not given.
    ///
    /// # Errors
    /// When an input does not fit the bundle; see [`RunError`].
    pub fn score(
        &self,
        ids: &[i64],
        labels: &[i64],
        patch_lengths: Option<&[Vec<usize>]>,
        batch: usize,
        progress: Progress<'_>,
    ) -> Result<Scores, RunError> {
        let system = self.bundle.system();
        let n = labels.len();
        let tokens = ids.len().checked_div(n).unwrap_or(0);
        self.check_score_inputs(ids, labels, tokens, patch_lengths)?;
        let mut teacher = TeacherForced::prepare(system, &mut |name| self.prepare_cached(name))?;
        let mut scores = Scores {
            logits: Vec::with_capacity(ids.len() * system.vocab),
            entropy: None,
            patch_lengths: vec![],
        };
        for (i, (ids, labels)) in
            ids.chunks(batch.max(1) * tokens.max(1)).zip(labels.chunks(batch.max(1))).enumerate()
        {
            let entropy = teacher.entropy(ids, tokens)?;
            check_finite("entropy_step", "entropy", entropy.as_deref().unwrap_or_default())?;
            let first = i * batch.max(1);
            let lengths = match patch_lengths {
                Some(given) => given[first..first + labels.len()].to_vec(),
                None => {
                    TeacherForced::patch_lengths(&system.patch_rule, entropy.as_deref(), labels.len(), tokens)
                }
            };
            scores.logits.extend(teacher.logits(ids, tokens, labels, &lengths)?);
            scores.patch_lengths.extend(lengths);
            if let Some(entropy) = entropy {
                scores.entropy.get_or_insert_with(Vec::new).extend(entropy);
            }
            if !progress(first + labels.len(), n) {
                return Err(RunError::Interrupted);
            }
        }
        Ok(scores)
    }

    fn check_score_inputs(
        &self,
        ids: &[i64],
        labels: &[i64],
        tokens: usize,
        patch_lengths: Option<&[Vec<usize>]>,
    ) -> Result<(), RunError> {
        let system = self.bundle.system();
        let input = |message: String| Err(RunError::Input(message));
        if labels.is_empty() || ids.len() != tokens * labels.len() {
            return input(format!("{} tokens for {} class labels", ids.len(), labels.len()));
        }
        if !(1..=system.tokens()).contains(&tokens) {
            return input(format!("{tokens} tokens per image; the model takes 1 to {}", system.tokens()));
        }
        check_tokens(ids, system.vocab)?;
        let last = system.null_class().unwrap_or(system.num_classes as i64 - 1);
        if let Some(bad) = labels.iter().find(|c| !(0..=last).contains(*c)) {
            return input(format!("class label {bad} is not in 0..={last}"));
        }
        let Some(lengths) = patch_lengths else { return Ok(()) };
        let longest = system.dpar().map_or(1, |d| d.longest_patch);
        if lengths.len() != labels.len() {
            return input(format!("{} rows of patch_lengths for {} images", lengths.len(), labels.len()));
        }
        for (i, row) in lengths.iter().enumerate() {
            if row.iter().sum::<usize>() != tokens || row.contains(&0) {
                return input(format!("patch_lengths of image {i} do not sum to {tokens} tokens"));
            }
            if let Some(l) = row.iter().find(|l| **l > longest) {
                return input(format!("image {i} has a patch of {l} tokens; the longest is {longest}"));
            }
        }
        Ok(())
    }

    /// Decodes codes `ids` `[N, T]` to images `[N, 3, H, W]`, about [−1, 1].
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn images(&self, ids: &[i64], batch: usize, progress: Progress<'_>) -> Result<Vec<f32>, RunError> {
        let tokens = self.bundle.system().tokens();
        check_tokens(ids, self.bundle.system().vocab)?;
        if !ids.len().is_multiple_of(tokens) {
            return Err(RunError::Input(format!("{} codes are no multiple of {tokens}", ids.len())));
        }
        let mut session = self.prepare("vq_decode")?;
        let n = ids.len() / tokens;
        let mut images = Vec::new();
        for chunk in ids.chunks(tokens * batch.max(1)) {
            let rows = chunk.len() / tokens;
            let view = TensorView::i64([rows, tokens], chunk);
            if let Some(TensorData::F32(out)) = run_one(session.as_mut(), "tokens", view)? {
                check_finite("vq_decode", "image", &out)?;
                images.extend(out);
            }
            if !progress(images.len() / self.image_len(), n) {
                return Err(RunError::Interrupted);
            }
        }
        Ok(images)
    }

    /// Encodes images `[N, 3, H, W]` in [−1, 1] to codes `[N, T]`.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn codes(&self, images: &[f32], batch: usize, progress: Progress<'_>) -> Result<Vec<i64>, RunError> {
        let size = self.bundle.system().image_size;
        let len = self.image_len();
        if !images.len().is_multiple_of(len) {
            return Err(RunError::Input(format!("{} values are no multiple of {len}", images.len())));
        }
        let mut session = self.prepare("vq_encode")?;
        let n = images.len() / len;
        let mut codes = Vec::new();
        for (i, chunk) in images.chunks(len * batch.max(1)).enumerate() {
            let rows = chunk.len() / len;
            let view = TensorView::f32([rows, 3, size, size], chunk);
            if let Some(TensorData::I64(out)) = run_one(session.as_mut(), "image", view)? {
                codes.extend(out);
            }
            if !progress((i * batch.max(1) + rows).min(n), n) {
                return Err(RunError::Interrupted);
            }
        }
        Ok(codes)
    }

    fn image_len(&self) -> usize {
        let size = self.bundle.system().image_size;
        3 * size * size
    }
}

/// An engine that gives NaN or infinities where numbers are promised has failed.
fn check_finite(graph: &str, port: &str, values: &[f32]) -> Result<(), RunError> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(bad) => {
            let message = format!("output `{port}` holds {bad}");
            Err(EngineError::new(EngineErrorKind::Output, "runtime", message).in_graph(graph).into())
        }
    }
}

/// Every code must be a row of the codebook.
fn check_tokens(ids: &[i64], vocab: usize) -> Result<(), RunError> {
    match ids.iter().find(|t| !(0..vocab as i64).contains(*t)) {
        Some(bad) => Err(RunError::Input(format!("token {bad} is not in 0..{vocab}"))),
        None => Ok(()),
    }
}

fn run_one(
    session: &mut dyn Session,
    name: &str,
    view: TensorView<'_>,
) -> Result<Option<TensorData>, EngineError> {
    Ok(session.run(&[(name, view)])?.into_iter().next().map(Tensor::into_data))
}
