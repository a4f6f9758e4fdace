//! A whole evaluation: samples, a reference and a network become the files of an output folder; resumable, in shards.
//!
//! ```no_run
//! use dpar_engine_table::{self as engines, EngineOptions};
//! use dpar_export_evaluate::evaluate::images::{ImageSet, Reading};
//! use dpar_export_evaluate::evaluate::job::{Job, JobOptions, JobOutcome, SampleSource};
//! use dpar_export_evaluate::features::{ExtractorOptions, FeatureExtractor};
//! use dpar_export_metrics::Compute;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = engines::create("tract", &EngineOptions::default())?;
//! let extractor = FeatureExtractor::open("inception".into(), engine, &ExtractorOptions::default())?;
//! let job = Job::new(extractor, Compute::new(2)?, JobOptions::new("reference.npz".into(), "out".into()))?;
//! let samples = SampleSource::Images(ImageSet::open("samples".into(), Reading::default())?);
//! if let JobOutcome::Whole(evaluation) = job.run(&samples, &mut |_, _, _| true)? {
//!     assert!(!evaluation.file.report.metrics.is_empty());
//! }
//! # Ok(())
//! # }
//! ```

mod comparison;
mod folder;
mod parts;
mod shard;
mod source;

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_files::arrays::{ArrayRef, Mapped, write_atomic, write_npz};
use dpar_export_inputs::limits;
use dpar_export_metrics::{Compute, KidProtocol, Moments, PrMode, Rows, Variant};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::activations::{ActivationTable, DIGEST, RESIZE, moments_of};
use super::apart::apart;
pub use super::compare::FrechetComparison;
pub use super::drawn::Drawn;
use super::images::{ImageSet, Reading};
use super::look::{Pictures, look};
use super::measure::{PARTS, Side, measure};
use super::protocol::{MetricsFile, Protocol, ReferenceId, SCHEMA, SamplesId};
use super::reference::Given;
use super::report::{MetricReport, MetricSettings, Network};
use super::store::{Purpose, Store};
use super::{EvaluateError, InputKind};
use crate::features::FeatureExtractor;
use crate::{Step, WorkPhase};
use comparison::{EarlierLooks, OtherEvaluation};
pub use parts::{JobId, StoredPart};
pub use shard::Shard;
pub use source::SampleSource;

/// What an output folder holds.
const METRICS: &str = "metrics.json";
const COMPARISON: &str = "comparison.json";
const STATISTICS: &str = "statistics.npz";
const SAMPLES: &str = "samples";
const REFERENCE: &str = "reference";

/// Which of the samples are evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SamplePart {
    /// All.
    Whole,
    /// A part, whose features another call joins with the others'.
    Shard(Shard),
    /// All, from the output folders of every shard.
    Merge(Vec<Utf8PathBuf>),
}

/// What is asked of an evaluation.
#[derive(Debug, Clone)]
pub struct JobOptions {
    /// A set of images, activations or statistics.
    pub reference: Utf8PathBuf,
    /// How a folder of reference images is read.
    pub reading: Reading,
    /// The output folder. Its `lock` is held while the job runs.
    pub output: Utf8PathBuf,
    /// Whether to go on where an earlier run ended.
    pub resume: bool,
    /// Which of the samples.
    pub part: SamplePart,
    /// `metrics.json` of another evaluation under the same protocol.
    pub compare: Option<Utf8PathBuf>,
    /// Looks at the comparison while images come; the first that decides ends the evaluation. `None` = all images.
    pub until: Option<usize>,
    /// Resamples of a second bootstrap of the comparison, in which both distances are computed again.
    pub resamples: Option<usize>,
    /// Images between two savings of the state, at least 1.
    pub chunk: usize,
    /// Whose protocol; `None` = that of the network's resize.
    pub variant: Option<Variant>,
    /// Arithmetic of Precision and Recall.
    pub pr_mode: PrMode,
    /// Subsets of KID. Their seed is also that of a comparison's bootstrap.
    pub kid: KidProtocol,
}

impl JobOptions {
    /// All samples against `reference`, a new output folder, guided-diffusion's numbers.
    pub fn new(reference: Utf8PathBuf, output: Utf8PathBuf) -> Self {
        Self {
            reference,
            reading: Reading::default(),
            output,
            resume: false,
            part: SamplePart::Whole,
            compare: None,
            until: None,
            resamples: None,
            chunk: 256,
            variant: None,
            pr_mode: PrMode::F32,
            kid: KidProtocol::default(),
        }
    }
}

/// What came out.
#[derive(Debug)]
pub enum JobOutcome {
    /// The features of a part are stored.
    Shard(StoredPart),
    /// The numbers.
    Whole(Box<Evaluation>),
    /// The comparison was decided before all images were there; there are no numbers of all.
    Decided(Box<DecidedComparison>),
}

/// An evaluation that is done.
#[derive(Debug)]
pub struct Evaluation {
    /// What `metrics.json` holds.
    pub file: MetricsFile,
    /// Its path.
    pub path: Utf8PathBuf,
    /// The comparison that was asked for.
    pub comparison: Option<FrechetComparison>,
}

/// A comparison that was decided before all images were there.
#[derive(Debug)]
pub struct DecidedComparison {
    /// What `comparison.json` holds.
    pub comparison: FrechetComparison,
    /// Its path.
    pub path: Utf8PathBuf,
    /// Images that were looked at.
    pub images: u64,
    /// Images that there would have been.
    pub of: u64,
}

/// An evaluation with its network.
pub struct Job {
    options: JobOptions,
    compute: Arc<Compute>,
    extractor: FeatureExtractor,
    network: Network,
    settings: MetricSettings,
    /// The looks of a comparison that took all images to be decided.
    looked: Option<EarlierLooks>,
}

/// The reference: statistics, features of its images, what it is.
struct ReferenceNumbers {
    pool: Option<Moments>,
    spatial: Option<Moments>,
    rows: Option<Features>,
    id: ReferenceId,
}

/// Features of every image.
enum Features {
    Table(ActivationTable),
    Mapped(Mapped, usize),
}

impl Features {
    fn rows(&self) -> Result<Rows<'_>, EvaluateError> {
        match self {
            Self::Table(table) => table.rows("features"),
            Self::Mapped(mapped, width) => mapped_rows("features", mapped, *width),
        }
    }
}

fn mapped_rows<'a>(what: &'static str, mapped: &'a Mapped, width: usize) -> Result<Rows<'a>, EvaluateError> {
    Rows::new(what, mapped.f32().unwrap_or_default(), width).map_err(EvaluateError::metric("features"))
}

/// The samples' numbers and what they are made of.
struct SampleNumbers {
    report: MetricReport,
    pool: Moments,
    spatial: Option<Moments>,
}

impl Job {
    /// Binds what is asked to a network.
    ///
    /// # Errors
    /// When the network prepares images in another way than the variant that is asked for.
    pub fn new(
        extractor: FeatureExtractor,
        compute: Compute,
        options: JobOptions,
    ) -> Result<Self, EvaluateError> {
        let (identity, path) = (extractor.identity(), extractor.path());
        let unlike = |message, hint: &str| EvaluateError::input(InputKind::Network, message, Some(hint));
        let (network, variant) = Network::of(extractor.spec());
        if let Some(asked) = options.variant {
            let (own, wanted) = (identity.resize.name(), asked.resize().name());
            if own != wanted {
                let message = format!("{path} resizes by {own}, --variant {asked} by {wanted}");
                let hint = format!("leave out --variant, or export the extractor with --resize {wanted}");
                return Err(unlike(message, &hint));
            }
            if extractor.spec().is_inception() && !network.inception {
                let message = format!("{path} has its own normalisation, --variant {asked} another");
                let hint = "leave out --variant, or export the extractor without --mean and --std";
                return Err(unlike(message, hint));
            }
        }
        let variant = options.variant.or(variant).unwrap_or_default();
        let settings = MetricSettings { variant, pr_mode: options.pr_mode, kid: Some(options.kid) };
        Ok(Self { options, compute: Arc::new(compute), extractor, network, settings, looked: None })
    }

    /// Runs the evaluation and writes the files of the output folder.
    ///
    /// # Errors
    /// When inputs do not fit together, which is found before anything is written; when a picture, the network or the disk
    /// fails, or `step` says stop, which leaves a folder that is gone on with.
    pub fn run(mut self, source: &SampleSource<'_>, step: Step<'_>) -> Result<JobOutcome, EvaluateError> {
        let other = self.check(source)?;
        let output = self.options.output.clone();
        let shards = match self.options.part.clone() {
            SamplePart::Shard(shard) => {
                return Ok(JobOutcome::Shard(self.part(source, shard, &output, step)?));
            }
            SamplePart::Merge(shards) => Some(shards),
            SamplePart::Whole => None,
        };
        let _lock = folder::hold(&output, self.options.resume)?;
        let purpose = self.samples_purpose(source, (0, source.count()), false)?;
        let mut samples = Store::open(&output.join(SAMPLES), purpose)?;
        match shards {
            Some(shards) => self.merge(&mut samples, &shards)?,
            None if self.options.until.is_some() => return self.until(source, samples, other, step),
            None => self.fill(&mut samples, WorkPhase::Samples, source, step)?,
        }
        let reference = self.reference(step)?;
        self.finish(source, samples, reference, step)
    }

    /// What can be wrong is found before hours of work: the reference, the labels, the other evaluation, which comes back.
    fn check(&self, source: &SampleSource<'_>) -> Result<Option<OtherEvaluation>, EvaluateError> {
        self.check_planned()?;
        let reference = Given::open(&self.options.reference, self.options.reading, &self.extractor)?;
        for set in [source.images(), reference.images()].into_iter().flatten() {
            set.tell();
        }
        let counts = match &reference {
            Given::Images(set) => [source.count(), set.count()],
            Given::Stored(..) => [source.count(); 2],
        };
        for (n, what) in counts.into_iter().zip(["samples", "the reference"]) {
            if n < 2 {
                let message = format!("{what}: {n} images, at least 2 are needed");
                let hint = Some("a covariance needs as many");
                return Err(EvaluateError::input(InputKind::Images, message, hint));
            }
        }
        source.sampling()?;
        let Some(path) = &self.options.compare else { return Ok(None) };
        // All but the reference, which is known after it was looked at.
        let other = read_metrics(path)?.protocol;
        like(path, &self.protocol(source, other.reference.clone())?, &other)?;
        self.other(path).map(Some)
    }

    fn chunk(&self) -> usize {
        self.options.chunk.max(1)
    }

    /// Of a store of the samples `range`, which is a `part` of all or is gone on with until it has all.
    fn samples_purpose(
        &self,
        source: &SampleSource<'_>,
        range: (usize, usize),
        part: bool,
    ) -> Result<Purpose, EvaluateError> {
        let files = (&source.content(), source.stamp());
        let purpose = self.purpose(files, source.count(), range)?;
        Ok(Purpose { steps: source.generated().is_some(), part, ..purpose })
    }

    fn purpose(
        &self,
        (content, stamp): (&Value, &str),
        total: usize,
        range: (usize, usize),
    ) -> Result<Purpose, EvaluateError> {
        let key = json!({
            "images": content, "extractor": self.extractor.identity(), "chunk": self.chunk(),
            "batch": self.extractor.batch(), "tool": env!("CARGO_PKG_VERSION"),
        });
        let key = serde_json::to_vec(&key).map_err(EvaluateError::json("the key of the store"))?;
        let key = hex::encode(Sha256::digest(key));
        let (total, from, to) = (total as u64, range.0 as u64, range.1 as u64);
        let (stamp, widths) = (stamp.to_owned(), self.extractor.widths());
        Ok(Purpose { key, stamp, total, from, to, widths, steps: false, part: false })
    }

    /// Looks at the images that the store does not hold yet.
    fn fill(
        &mut self,
        store: &mut Store,
        phase: WorkPhase,
        pictures: &dyn Pictures,
        step: Step<'_>,
    ) -> Result<(), EvaluateError> {
        let to = store.purpose().to;
        self.fill_until(store, to, phase, pictures, step)?;
        if store.count() != (to - store.purpose().from) {
            let message = format!("{} of {} images were there", store.count(), to - store.purpose().from);
            return Err(EvaluateError::input(InputKind::Images, message, None));
        }
        Ok(())
    }

    /// Looks at the images up to `end` that the store does not hold yet.
    fn fill_until(
        &mut self,
        store: &mut Store,
        end: u64,
        phase: WorkPhase,
        pictures: &dyn Pictures,
        step: Step<'_>,
    ) -> Result<(), EvaluateError> {
        let (from, to, done) = (store.purpose().from, store.purpose().to, store.count());
        let (chunk, compute) = (self.chunk(), Arc::clone(&self.compute));
        let next = ((from + done) as usize, end as usize);
        let mut at = |n| step(phase, done as usize + n, (to - from) as usize);
        if !at(0) {
            return Err(EvaluateError::Interrupted);
        }
        if next.0 >= next.1 {
            return Ok(());
        }
        look(pictures, next, chunk, &mut self.extractor, &mut at, &mut |looked| {
            store.add(looked.pixels, &looked.found, looked.steps, &compute)
        })
    }

    fn merge(&self, samples: &mut Store, folders: &[Utf8PathBuf]) -> Result<(), EvaluateError> {
        let mut shards = Vec::new();
        for folder in folders {
            shards.push((folder, Store::read(&folder.join(SAMPLES))?));
        }
        shards.retain(|(_, s)| s.purpose().to > s.purpose().from);
        shards.sort_by_key(|(_, s)| s.purpose().from);
        for pair in shards.windows(2) {
            let [(first, a), (second, b)] = pair else { continue };
            if b.purpose().from < a.purpose().to {
                let message = format!(
                    "{first} has the images {} to {}, {second} those from {}: the same images twice",
                    a.purpose().from,
                    a.purpose().to,
                    b.purpose().from
                );
                let hint = Some("merge every shard once, and finished");
                return Err(EvaluateError::input(InputKind::Store, message, hint));
            }
        }
        for (_, shard) in &shards {
            samples.merge(shard, &self.compute)?;
        }
        if samples.count() != samples.purpose().total {
            let (there, total) = (samples.count(), samples.purpose().total);
            let message = format!("the shards hold {there} of {total} images");
            let hint = Some("merge every shard once, and finished");
            return Err(EvaluateError::input(InputKind::Store, message, hint));
        }
        Ok(())
    }

    fn reference(&mut self, step: Step<'_>) -> Result<ReferenceNumbers, EvaluateError> {
        let path = self.options.reference.clone();
        let (found, set) = match Given::open(&path, self.options.reading, &self.extractor)? {
            Given::Stored(found, set) => (found, set),
            Given::Images(set) => {
                let store = self.reference_images(&set, step)?;
                let width = store.purpose().widths[0];
                return Ok(ReferenceNumbers {
                    pool: Some(store.moments(&self.compute)?),
                    spatial: store.spatial_moments(&self.compute)?,
                    id: ReferenceId {
                        stored_statistics: false,
                        sha256: store.pixels_sha256()?,
                        images: Some(store.count()),
                    },
                    rows: Some(Features::Mapped(store.pool()?, width)),
                });
            }
        };
        let of = |moments: &Option<Moments>, table: &Option<ActivationTable>, what| match (moments, table) {
            (Some(moments), _) => Ok(Some(moments.clone())),
            (None, table) => table.as_ref().map(|t| moments_of(t, what, &self.compute)).transpose(),
        };
        let pool = of(&found.pool_moments, &found.pool, "pool_3")?;
        let spatial = of(&found.spatial_moments, &found.spatial, "spatial")?;
        let width = self.extractor.widths()[0];
        let rows = match (found.pool, set) {
            (Some(table), _) => Some(Features::Table(table)),
            (None, Some(set)) => Some(Features::Mapped(self.reference_images(&set, step)?.pool()?, width)),
            (None, None) => None,
        };
        let images = rows.as_ref().map(|f| f.rows().map(|r| r.count() as u64)).transpose()?;
        let sha256 = dpar_export_bundle::digest(&path).map_err(dpar_export_decode::loaded::RunError::from)?.1;
        let stored_statistics = found.pool_moments.is_some();
        Ok(ReferenceNumbers { pool, spatial, rows, id: ReferenceId { stored_statistics, sha256, images } })
    }

    fn reference_images(&mut self, set: &ImageSet, step: Step<'_>) -> Result<Store, EvaluateError> {
        let files = (&json!(set.content()), set.stamp());
        let purpose = self.purpose(files, set.count(), (0, set.count()))?;
        let mut store = Store::open(&self.options.output.join(REFERENCE), purpose)?;
        self.fill(&mut store, WorkPhase::Reference, set, step)?;
        Ok(store)
    }

    fn finish(
        &self,
        source: &SampleSource<'_>,
        samples: Store,
        reference: ReferenceNumbers,
        step: Step<'_>,
    ) -> Result<JobOutcome, EvaluateError> {
        let (network, settings, compute) = (self.network.clone(), self.settings, Arc::clone(&self.compute));
        let parts = PARTS + usize::from(self.options.compare.is_some());
        let work = move |next: &mut dyn FnMut(&'static str) -> bool| -> Result<_, EvaluateError> {
            let numbers = numbers(&samples, &reference, &network, &settings, &compute, next)?;
            Ok((numbers, samples, reference))
        };
        let (numbers, samples, reference) = apart(parts, work, step)?;
        // The one of an earlier run would stand beside numbers that it is not about.
        let old = self.options.output.join(COMPARISON);
        match fs_err::remove_file(&old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(EvaluateError::io(&old)(e)),
            _ => {}
        }
        self.write_statistics(&numbers.pool, numbers.spatial.as_ref())?;
        let file = MetricsFile {
            schema: SCHEMA,
            protocol: self.protocol(source, reference.id)?,
            samples: SamplesId {
                pixels_sha256: samples.pixels_sha256()?,
                generated: source.generated(),
                converted: source.converted().then(|| "rgb".to_owned()),
                mean_steps: samples.mean_steps()?,
            },
            report: numbers.report,
        };
        let path = self.write(METRICS, &file)?;
        let comparison = match (&self.options.compare, reference.pool) {
            (Some(other), Some(moments)) => Some(self.compare(other, &file, samples, moments, parts, step)?),
            _ => None,
        };
        Ok(JobOutcome::Whole(Box::new(Evaluation { file, path, comparison })))
    }

    fn protocol(&self, source: &SampleSource<'_>, reference: ReferenceId) -> Result<Protocol, EvaluateError> {
        let extractor = serde_json::to_value(self.extractor.identity());
        Ok(Protocol {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            network: self.network.clone(),
            extractor: extractor.map_err(EvaluateError::json("the protocol"))?,
            settings: self.settings,
            images: source.count() as u64,
            image_size: [source.size().0, source.size().1],
            sampling: source.sampling()?,
            reference,
        })
    }

    /// Writes a report of the output folder.
    fn write(&self, name: &'static str, value: &impl serde::Serialize) -> Result<Utf8PathBuf, EvaluateError> {
        let path = self.options.output.join(name);
        let mut bytes = serde_json::to_vec_pretty(value).map_err(EvaluateError::json(name))?;
        bytes.push(b'\n');
        write_atomic(&path, &bytes).map_err(EvaluateError::io(&path))?;
        Ok(path)
    }

    /// The samples' statistics, in the layout of a reference file.
    fn write_statistics(&self, pool: &Moments, spatial: Option<&Moments>) -> Result<(), EvaluateError> {
        let d = pool.width();
        let (vector, matrix) = ([d], [d, d]);
        let mut arrays = vec![
            ("mu", ArrayRef::f64(&vector, pool.mean())),
            ("sigma", ArrayRef::f64(&matrix, pool.covariance())),
        ];
        let s = spatial.map_or(0, Moments::width);
        let (vector_s, matrix_s) = ([s], [s, s]);
        if let Some(spatial) = spatial {
            arrays.push(("mu_s", ArrayRef::f64(&vector_s, spatial.mean())));
            arrays.push(("sigma_s", ArrayRef::f64(&matrix_s, spatial.covariance())));
        }
        let name = self.network.name.as_bytes();
        let length = [name.len()];
        if !self.network.inception {
            arrays.push(("extractor", ArrayRef::u8(&length, name)));
        }
        let identity = self.extractor.identity();
        let (digest, resize) = (identity.digest.as_bytes(), identity.resize.name().as_bytes());
        let (digest_length, resize_length) = ([digest.len()], [resize.len()]);
        arrays.push((DIGEST, ArrayRef::u8(&digest_length, digest)));
        arrays.push((RESIZE, ArrayRef::u8(&resize_length, resize)));
        Ok(write_npz(&self.options.output.join(STATISTICS), &arrays)?)
    }
}

fn numbers(
    samples: &Store,
    reference: &ReferenceNumbers,
    network: &Network,
    settings: &MetricSettings,
    compute: &Compute,
    next: &mut dyn FnMut(&'static str) -> bool,
) -> Result<SampleNumbers, EvaluateError> {
    let (features, logits) = (samples.pool()?, samples.logits()?);
    let [width, _, classes] = samples.purpose().widths;
    let (pool, spatial) = (samples.moments(compute)?, samples.spatial_moments(compute)?);
    let side = Side {
        pool_moments: Some(&pool),
        spatial_moments: spatial.as_ref(),
        pool: Some(mapped_rows("features", &features, width)?),
        logits: logits.as_ref().map(|mapped| mapped_rows("logits", mapped, classes)).transpose()?,
    };
    let other = Side {
        pool_moments: reference.pool.as_ref(),
        spatial_moments: reference.spatial.as_ref(),
        pool: reference.rows.as_ref().map(Features::rows).transpose()?,
        logits: None,
    };
    let report = measure(side, other, network, settings, compute, next)?;
    Ok(SampleNumbers { report, pool, spatial })
}

/// The store of the samples of a `metrics.json`.
pub fn samples_of(path: &Utf8Path) -> Utf8PathBuf {
    path.with_file_name(SAMPLES)
}

fn read_metrics(path: &Utf8Path) -> Result<MetricsFile, EvaluateError> {
    let text = dpar_export_inputs::read_to_string(path, limits::TEXT).map_err(EvaluateError::io(path))?;
    let unlike = |why: &dyn std::fmt::Display| {
        let message = format!("{path} is no metrics.json of this version: {why}");
        EvaluateError::input(InputKind::Report, message, None)
    };
    let file: MetricsFile = serde_json::from_str(&text).map_err(|e| unlike(&e))?;
    match file.schema {
        SCHEMA => Ok(file),
        other => Err(unlike(&format!("it has schema {other}, this version reads {SCHEMA}"))),
    }
}

/// Refuses to compare numbers of different protocols.
fn like(path: &Utf8Path, own: &Protocol, other: &Protocol) -> Result<(), EvaluateError> {
    let unlike = own.differences(other);
    if unlike.is_empty() {
        return Ok(());
    }
    let message = format!("{path} was made by another protocol: {}", unlike.join(", "));
    let hint = Some("compare evaluations with equal options and references");
    Err(EvaluateError::input(InputKind::Report, message, hint))
}
