//! A bundle on an engine: the jobs that commands are made of.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dpar_engine_api::{
    Arithmetic, ArithmeticKind, CacheForm, CachedSession, Engine, EngineError, EngineErrorKind, EngineInfo,
    GraphFile, Session,
};
use dpar_export_bundle::{Bundle, Manifest};
use dpar_export_spec::{Dialect, GraphName};

pub use crate::error::{RequestError, RunError};
use crate::generate::{
    Batching, DecodeError, DecodeOptions, Decoder, GraphCalls, Images, Request, StepModel, Stream,
    TeacherForced, prepare_model,
};

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

/// Patch lengths of each image, in memory or as a file has them.
#[derive(Debug, Clone, Copy)]
pub enum PatchLengths<'a> {
    /// One row an image.
    Rows(&'a [Vec<usize>]),
    /// A matrix of so many columns, each row padded with 0 on the right.
    Padded(&'a [i64], usize),
}

impl PatchLengths<'_> {
    fn len(self) -> usize {
        match self {
            Self::Rows(rows) => rows.len(),
            Self::Padded(flat, columns) => flat.len().checked_div(columns).unwrap_or(0),
        }
    }

    /// Of one image, as far as they are lengths.
    fn row(self, image: usize) -> Vec<usize> {
        match self {
            Self::Rows(rows) => rows[image].clone(),
            Self::Padded(flat, columns) => {
                let row = flat[image * columns..][..columns].iter().take_while(|l| **l != 0);
                row.filter_map(|l| usize::try_from(*l).ok()).collect()
            }
        }
    }
}

/// Teacher-forced outputs of a few images at a time, in their order: see [`LoadedBundle::scoring`].
pub struct Scoring<'a> {
    teacher: TeacherForced,
    bundle: &'a Bundle,
    ids: &'a [i64],
    labels: &'a [i64],
    patch_lengths: Option<PatchLengths<'a>>,
    tokens: usize,
    batch: usize,
    done: usize,
}

impl Scoring<'_> {
    /// Images that one call of [`next_images`](Self::next_images) scores; the last may have fewer.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Scores the next images; `None` behind the last, and then all of them were computed from the files that were hashed.
    ///
    /// # Errors
    /// When the engine fails, or gives what cannot be; when a file was changed meanwhile.
    pub fn next_images(&mut self) -> Result<Option<Scores>, RunError> {
        let (from, to) = (self.done, self.labels.len().min(self.done + self.batch));
        if from == to {
            self.bundle.unchanged()?;
            return Ok(None);
        }
        let (tokens, labels) = (self.tokens, &self.labels[from..to]);
        let ids = &self.ids[from * tokens..to * tokens];
        let entropy = self.teacher.entropy(ids, tokens)?;
        check_finite(GraphName::EntropyStep, "entropy", entropy.as_deref().unwrap_or_default())?;
        let patch_lengths = match self.patch_lengths {
            Some(given) => (from..to).map(|image| given.row(image)).collect(),
            None => {
                let rule = self.bundle.patch_rule();
                TeacherForced::patch_lengths(rule, entropy.as_deref(), labels.len(), tokens)
            }
        };
        let logits = self.teacher.logits(ids, tokens, labels, &patch_lengths)?;
        self.done = to;
        Ok(Some(Scores { logits, entropy, patch_lengths }))
    }
}

/// A bundle on an engine that was found to work here. What its jobs return was computed from the files that were hashed
/// when the bundle was opened, or they end with [`BundleError::Changed`]; whoever calls sessions or a model asks
/// [`Bundle::unchanged`] afterwards.
pub struct LoadedBundle<'a> {
    bundle: Holding<'a>,
    engine: Box<dyn Engine>,
    info: EngineInfo,
    arithmetic: Arithmetic,
    forms: Mutex<Forms>,
}

/// How the caches of graphs reach their steps, by the graph's name.
pub type Forms = BTreeMap<String, CacheForm>;

/// What graphs are computed with, in one line: `float32; caches in place`.
pub fn computed(arithmetic: &Arithmetic, caches: &Forms) -> String {
    let mut of: BTreeMap<CacheForm, Vec<&str>> = BTreeMap::new();
    for (graph, form) in caches {
        of.entry(*form).or_default().push(graph);
    }
    let alone = of.len() == 1;
    let named = of.into_iter().map(|(form, graphs)| match alone {
        true => form.as_str().to_owned(),
        false => format!("{} of {}", form.as_str(), graphs.join(", ")),
    });
    let named: Vec<String> = named.collect();
    match named.is_empty() {
        true => arithmetic.text.clone(),
        false => format!("{}; caches {}", arithmetic.text, named.join(" and ")),
    }
}

/// What an engine computes the precisions of a bundle with; of several the kind is the furthest from the graphs' types.
fn arithmetic(engine: &dyn Engine, manifest: &Manifest) -> Result<Arithmetic, EngineError> {
    if let Some(precision) = manifest.precisions().one() {
        return engine.arithmetic(precision);
    }
    let mut all = Arithmetic::new(ArithmeticKind::AsGraph, "");
    for component in &manifest.components {
        let name = component.kind.name();
        let own = engine.arithmetic(manifest.precision_of(name).of_component(name))?;
        let sign = if all.text.is_empty() { "" } else { "; " };
        all.text += &format!("{sign}{name} in {}", own.text);
        all.kind = all.kind.max(own.kind);
    }
    Ok(all)
}

/// The bundle of a scope, or one that lives as long as what is loaded.
enum Holding<'a> {
    Borrowed(&'a Bundle),
    Own(Box<Bundle>),
}

impl std::ops::Deref for Holding<'_> {
    type Target = Bundle;

    fn deref(&self) -> &Bundle {
        match self {
            Self::Borrowed(bundle) => bundle,
            Self::Own(bundle) => bundle,
        }
    }
}

impl LoadedBundle<'static> {
    /// As [`new`](LoadedBundle::new), with a bundle of its own, for callers that have no scope to keep one in.
    ///
    /// # Errors
    /// As [`new`](LoadedBundle::new).
    pub fn owning(bundle: Bundle, engine: Box<dyn Engine>) -> Result<Self, EngineError> {
        LoadedBundle::load(Holding::Own(Box::new(bundle)), engine)
    }
}

impl<'a> LoadedBundle<'a> {
    /// Probes the engine, and asks what it computes the bundle's precision and quantized weights with.
    ///
    /// # Errors
    /// When the engine cannot run here, or not in that precision, or not with such weights.
    pub fn new(bundle: &'a Bundle, engine: Box<dyn Engine>) -> Result<Self, EngineError> {
        Self::load(Holding::Borrowed(bundle), engine)
    }

    fn load(bundle: Holding<'a>, engine: Box<dyn Engine>) -> Result<Self, EngineError> {
        let manifest = bundle.manifest();
        let mut arithmetic = arithmetic(engine.as_ref(), manifest)?;
        for component in &manifest.components {
            if let Some(quantized) = &component.quantized {
                let how = engine.quantized(quantized.weights, quantized.accuracy_level)?;
                let (name, weights) = (component.kind.name(), quantized.weights);
                arithmetic.text += &format!("; {name} with {weights} weights: {}", how.text);
                arithmetic.kind = arithmetic.kind.max(how.kind);
            }
        }
        let info = engine.probe()?;
        Ok(Self { bundle, engine, info, arithmetic, forms: Mutex::default() })
    }

    /// The forms of a graph that the engine takes rather than the portable one, the best first.
    pub fn dialects(&self) -> &'static [Dialect] {
        self.engine.dialects()
    }

    /// Name of the engine, as given to `--engine`.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// What runs.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// What the engine computes the bundle's precision with.
    pub fn arithmetic(&self) -> &Arithmetic {
        &self.arithmetic
    }

    /// How the caches of the graphs that were prepared so far reach their steps.
    pub fn caches(&self) -> Forms {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Prepares one graph.
    ///
    /// # Errors
    /// When the bundle has no such graph or the engine refuses it.
    pub fn prepare(&self, graph: impl AsRef<str>) -> Result<Box<dyn Session>, RunError> {
        let graph = graph.as_ref();
        tracing::info!(graph, engine = self.engine.name(), "preparing");
        self.bundle.with_graph(graph, self.engine.dialects(), |file| Ok(self.engine.prepare(file)?))
    }

    /// Prepares a graph that lies outside the bundle, one derived from it.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub fn prepare_file(&self, file: GraphFile<'_>) -> Result<Box<dyn Session>, RunError> {
        Ok(self.engine.prepare(file)?)
    }

    /// Prepares one graph with its cache, perhaps ahead of its hash.
    fn prepare_ahead(&self, graph: GraphName) -> Result<Box<dyn CachedSession>, RunError> {
        let graph = graph.as_str();
        tracing::info!(graph, engine = self.engine.name(), "preparing");
        let prepare = |file: GraphFile<'_>| Ok::<_, RunError>(self.engine.prepare_cached(file)?);
        let session = self.bundle.with_graph_ahead(graph, self.engine.dialects(), prepare)?;
        Ok(self.noted(graph, session))
    }

    /// Prepares one graph with its cache.
    ///
    /// # Errors
    /// When the bundle has no such graph or the engine refuses it.
    pub fn prepare_cached(&self, graph: impl AsRef<str>) -> Result<Box<dyn CachedSession>, RunError> {
        let graph = graph.as_ref();
        tracing::info!(graph, engine = self.engine.name(), "preparing");
        let prepare = |file: GraphFile<'_>| Ok::<_, RunError>(self.engine.prepare_cached(file)?);
        let session = self.bundle.with_graph(graph, self.engine.dialects(), prepare)?;
        Ok(self.noted(graph, session))
    }

    /// Takes down how the cache of a prepared graph reaches its steps.
    fn noted(&self, graph: &str, session: Box<dyn CachedSession>) -> Box<dyn CachedSession> {
        if let Some(form) = session.form() {
            let mut forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
            forms.insert(graph.to_owned(), form);
        }
        session
    }

    /// Prepares the step graphs.
    ///
    /// # Errors
    /// When a graph is missing or refused.
    pub fn model(&self) -> Result<Box<dyn StepModel>, RunError> {
        let model = prepare_model(self.bundle.system(), &mut |name| self.prepare_ahead(name))?;
        // Before anything runs on weights that may be others.
        self.bundle.unchanged()?;
        Ok(model)
    }

    /// Prepares to decode images as they are submitted. `guided`: whether some may be.
    ///
    /// # Errors
    /// When a graph is missing or refused.
    pub fn decoder(&self, batching: Batching, guided: bool) -> Result<Decoder<'static>, RunError> {
        let system = self.bundle.system();
        let null_class = system.null_class().filter(|_| guided);
        let images = Images { rule: system.patch_rule.clone(), tokens: system.tokens(), null_class };
        Ok(Decoder::new(self.model()?, images, batching))
    }

    /// Decodes images; streams come in the order of the requests.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn decode(
        &self,
        requests: &[Request],
        options: &DecodeOptions,
        batching: impl Into<Batching>,
        progress: Progress<'_>,
    ) -> Result<Vec<Stream>, RunError> {
        self.decode_counted(requests, options, batching.into(), progress).map(|(streams, _)| streams)
    }

    /// As [`decode`](Self::decode), with the calls of each graph.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn decode_counted(
        &self,
        requests: &[Request],
        options: &DecodeOptions,
        batching: Batching,
        progress: Progress<'_>,
    ) -> Result<(Vec<Stream>, Vec<GraphCalls>), RunError> {
        let mut streams = Vec::with_capacity(requests.len());
        let calls = self.decode_each(requests, options, batching, progress, &mut |stream| {
            streams.push(stream);
            Ok::<_, RunError>(())
        })?;
        Ok((streams, calls))
    }

    /// As [`decode_counted`](Self::decode_counted), but gives each stream to `done` when it and those before it are complete,
    /// so that no more are in memory than are under way. They count when this returns without an error.
    ///
    /// # Errors
    /// See [`RunError`]; what `done` returns.
    pub fn decode_each<E: From<RunError>>(
        &self,
        requests: &[Request],
        options: &DecodeOptions,
        batching: Batching,
        progress: Progress<'_>,
        done: &mut dyn FnMut(Stream) -> Result<(), E>,
    ) -> Result<Vec<GraphCalls>, E> {
        /// Why the loop ended.
        enum Stop<E> {
            Loop(DecodeError),
            Caller(E),
        }
        impl<E> From<DecodeError> for Stop<E> {
            fn from(e: DecodeError) -> Self {
                Self::Loop(e)
            }
        }
        let system = self.bundle.system();
        self.check_requests(requests).map_err(RunError::from)?;
        let batching = Batching { rows: batching.rows.min(requests.len()).max(1), ..batching };
        let mut decoder = self.decoder(batching, options.cfg_scale > 1.0)?;
        let total = requests.len() * system.tokens();
        let decoded = decoder.run_each(requests, options, &mut |done| progress(done, total), &mut |stream| {
            done(stream).map_err(Stop::Caller)
        });
        match decoded {
            Ok(()) => {}
            Err(Stop::Loop(e)) => return Err(RunError::from(e).into()),
            Err(Stop::Caller(e)) => return Err(e),
        }
        self.bundle.unchanged().map_err(RunError::from)?;
        Ok(decoder.calls())
    }

    /// Every class must be one of the system's, or its null class.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_requests(&self, requests: &[Request]) -> Result<(), RequestError> {
        let system = self.bundle.system();
        let (classes, null) = (system.num_classes as i64, system.null_class());
        let known = |class: i64| (0..classes).contains(&class) || Some(class) == null;
        match requests.iter().find(|r| !known(r.class)) {
            Some(bad) => Err(RequestError::Class { class: bad.class, image: bad.index, classes, null }),
            None => Ok(()),
        }
    }

    /// Prepares to score `ids` `[N, T]` with class labels `[N]`, `batch` images at a time; `patch_lengths` are derived
    /// where not given. No more than the images at hand are in memory.
    ///
    /// # Errors
    /// When an input does not fit the bundle; see [`RunError`].
    pub fn scoring<'b>(
        &'b self,
        ids: &'b [i64],
        labels: &'b [i64],
        patch_lengths: Option<&'b [Vec<usize>]>,
        batch: usize,
    ) -> Result<Scoring<'b>, RunError> {
        self.scoring_of(ids, labels, patch_lengths.map(PatchLengths::Rows), batch)
    }

    /// As [`scoring`](Self::scoring), with patch lengths that may lie in a file.
    ///
    /// # Errors
    /// As [`scoring`](Self::scoring).
    pub fn scoring_of<'b>(
        &'b self,
        ids: &'b [i64],
        labels: &'b [i64],
        patch_lengths: Option<PatchLengths<'b>>,
        batch: usize,
    ) -> Result<Scoring<'b>, RunError> {
        let system = self.bundle.system();
        let tokens = ids.len().checked_div(labels.len()).unwrap_or(0);
        self.check_score_inputs(ids, labels, tokens, patch_lengths)?;
        let teacher = TeacherForced::prepare(system, &mut |name| self.prepare_ahead(name))?;
        self.bundle.unchanged()?;
        let batch = batch.max(1);
        Ok(Scoring { teacher, bundle: &self.bundle, ids, labels, patch_lengths, tokens, batch, done: 0 })
    }

    /// As [`scoring`](Self::scoring), with the outputs of all images at once: 4·N·T·V bytes of logits.
    ///
    /// # Errors
    /// As [`scoring`](Self::scoring); when a call fails.
    pub fn score(
        &self,
        ids: &[i64],
        labels: &[i64],
        patch_lengths: Option<&[Vec<usize>]>,
        batch: usize,
        progress: Progress<'_>,
    ) -> Result<Scores, RunError> {
        let mut scoring = self.scoring(ids, labels, patch_lengths, batch)?;
        let mut all = Scores { logits: Vec::new(), entropy: None, patch_lengths: Vec::new() };
        while let Some(scores) = scoring.next_images()? {
            all.logits.extend(scores.logits);
            all.patch_lengths.extend(scores.patch_lengths);
            if let Some(entropy) = scores.entropy {
                all.entropy.get_or_insert_with(Vec::new).extend(entropy);
            }
            if !progress(scoring.done, labels.len()) {
                return Err(RunError::Interrupted);
            }
        }
        Ok(all)
    }

    fn check_score_inputs(
        &self,
        ids: &[i64],
        labels: &[i64],
        tokens: usize,
        patch_lengths: Option<PatchLengths<'_>>,
    ) -> Result<(), RunError> {
        let system = self.bundle.system();
        if labels.is_empty() || ids.len() != tokens * labels.len() {
            return Err(RequestError::Counts { tokens: ids.len(), labels: labels.len() }.into());
        }
        let most = system.tokens();
        if !(1..=most).contains(&tokens) {
            return Err(RequestError::Length { tokens, most }.into());
        }
        check_tokens(ids, tokens, system.vocab)?;
        let classes = system.class_labels();
        if let Some((image, label)) = labels.iter().enumerate().find(|(_, c)| !classes.contains(*c)) {
            return Err(RequestError::Label { label: *label, image, end: classes.end }.into());
        }
        let Some(lengths) = patch_lengths else { return Ok(()) };
        let longest = system.longest_patch();
        if lengths.len() != labels.len() {
            return Err(RequestError::PatchRows { rows: lengths.len(), images: labels.len() }.into());
        }
        for image in 0..lengths.len() {
            let row = lengths.row(image);
            // First: no sum of what passes is too large for a number.
            if let Some(length) = row.iter().copied().find(|l| *l > longest) {
                return Err(RequestError::PatchLength { image, length, longest }.into());
            }
            if row.iter().sum::<usize>() != tokens || row.contains(&0) {
                return Err(RequestError::PatchSum { image, tokens }.into());
            }
        }
        Ok(())
    }
}

/// An engine that gives NaN or infinities where numbers are promised has failed.
pub(crate) fn check_finite(graph: GraphName, port: &str, values: &[f32]) -> Result<(), RunError> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(bad) => {
            let message = format!("output `{port}` holds {bad}");
            Err(EngineError::new(EngineErrorKind::Output, "runtime", message).in_graph(graph.as_str()).into())
        }
    }
}

/// Every code of images of `tokens` tokens must be a row of the codebook.
pub(crate) fn check_tokens(ids: &[i64], tokens: usize, vocab: usize) -> Result<(), RunError> {
    match ids.iter().enumerate().find(|(_, t)| !(0..vocab as i64).contains(*t)) {
        Some((at, token)) => {
            let (image, slot) = (at / tokens, at % tokens);
            Err(RequestError::Token { token: *token, image, slot, vocab }.into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_computes_says_how_caches_are_kept() {
        let forms = |of: &[(&str, CacheForm)]| of.iter().map(|(g, f)| ((*g).to_owned(), *f)).collect();
        let text = |of: &[(&str, CacheForm)]| computed(&Arithmetic::float32(), &forms(of));
        assert_eq!(text(&[]), "float32");
        assert_eq!(text(&[("a", CacheForm::InPlace), ("b", CacheForm::InPlace)]), "float32; caches in place");
        assert_eq!(
            text(&[("a", CacheForm::Joined), ("b", CacheForm::InPlace), ("c", CacheForm::Joined)]),
            "float32; caches in place of b and joined of a, c"
        );
    }
}
