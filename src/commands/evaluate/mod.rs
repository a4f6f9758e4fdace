//! `evaluate`: from images, or from a bundle that draws them, to `metrics.json`; resumable, in shards.

mod args;
mod output;
mod source;

use std::cell::Cell;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_inputs::limits;
use dpar_export_metrics::{Compute, Moments, Rows, Variant};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::failure::{Exit, Failure};
use super::metrics::{compute, text};
use super::paths::apart;
use super::printer::{Printer, fixed, signed};
use super::{engine_options, with_runtime};
use crate::arrays::{ArrayFile, ArrayRef, Mapped, write_atomic, write_npz};
use crate::bundle;
use crate::engines;
use crate::evaluate::EvaluateError;
use crate::evaluate::activations::{Activations, DIGEST, RESIZE, Table, moments_of};
use crate::evaluate::compare::{Comparison, compare};
use crate::evaluate::images::ImageSet;
use crate::evaluate::measure::{Side, measure};
use crate::evaluate::protocol::{MetricsFile, Protocol, ReferenceId, SCHEMA, Samples};
use crate::evaluate::report::{Metric, Network, Settings};
use crate::evaluate::store::{Chunk, Purpose, Store};
use crate::features::{ExtractorOptions, FeatureExtractor};
use crate::generate::sampler::SamplerOptions;
use crate::generate::{DecodeOptions, Request};
pub(crate) use args::EvaluateArgs;
use output::hold;
use source::{Source, TakeChunk};

/// What an output folder holds.
const METRICS: &str = "metrics.json";
const COMPARISON: &str = "comparison.json";
const STATISTICS: &str = "statistics.npz";
const SAMPLES: &str = "samples";
const REFERENCE: &str = "reference";

pub(super) fn run(args: &EvaluateArgs, printer: Printer) -> Result<Exit, Failure> {
    let draw = &args.draw;
    if let Some(samples) = args.compare.as_deref().map(samples_of) {
        apart(&args.output, &[("the other evaluation", samples.as_path())])?;
    }
    let Some(path) = &draw.bundle else {
        let path =
            args.samples.as_ref().ok_or_else(|| Failure::usage("no --samples and no --bundle", None))?;
        let source = Source::Images(ImageSet::open(path, args.limit.and_then(|n| usize::try_from(n).ok()))?);
        let job = Job::new(args, printer)?;
        job.check(&source)?;
        let _lock = hold(&args.output, args.resume)?;
        return job.run(&source).map_err(resumable);
    };
    let sampler = SamplerOptions {
        method: draw.sampler.into(),
        temperature: draw.temperature,
        top_k: draw.top_k,
        top_p: draw.top_p,
        greedy: draw.greedy,
    };
    sampler.validate().map_err(|e| Failure::usage(e.to_string(), None))?;
    let options = DecodeOptions {
        cfg_scale: draw.cfg_scale,
        cfg_interval: draw.cfg_interval.flatten(),
        sampler,
        seed: draw.seed,
    };
    with_runtime(path, &args.engine, |runtime| {
        // Asked first: decoding thousands of images to find no tokenizer would waste hours.
        runtime.bundle().with_graph("vq_decode", |_| Ok::<_, Failure>(()))?;
        let classes = runtime.bundle().system().num_classes;
        let requests = Request::all_seeded(draw.seed, draw.num.unwrap_or_default(), classes);
        let batch = usize::from(args.engine.batch);
        let source = Source::Bundle { runtime, requests, options, batch };
        let job = Job::new(args, printer)?;
        job.check(&source)?;
        let _lock = hold(&args.output, args.resume)?;
        job.run(&source).map_err(resumable)
    })
}

fn resumable(failure: Failure) -> Failure {
    failure.when_interrupted("go on with the same command line and --resume")
}

/// An evaluation with its network.
struct Job<'a> {
    args: &'a EvaluateArgs,
    printer: Printer,
    compute: Compute,
    extractor: FeatureExtractor,
    network: Network,
    settings: Settings,
}

/// The reference, opened.
enum Given {
    Images(ImageSet),
    Stored(Box<Activations>, Option<ImageSet>),
}

/// The reference: statistics, features of its images, what it is.
struct Reference {
    pool: Option<Moments>,
    spatial: Option<Moments>,
    rows: Option<Features>,
    id: ReferenceId,
}

/// Features of every image.
enum Features {
    Table(Table),
    Mapped(Mapped, usize),
}

impl Features {
    fn rows(&self) -> Result<Rows<'_>, EvaluateError> {
        match self {
            Self::Table(table) => table.rows("features"),
            Self::Mapped(mapped, width) => Rows::new("features", mapped.f32().unwrap_or_default(), *width)
                .map_err(EvaluateError::metric("features")),
        }
    }
}

impl<'a> Job<'a> {
    fn new(args: &'a EvaluateArgs, printer: Printer) -> Result<Self, Failure> {
        let compute = compute(args.engine.threads)?;
        let engine = engines::create(&args.engine.engine, &engine_options(&args.engine))?;
        let asked = args.protocol.variant();
        let options = ExtractorOptions {
            // A bundle says how its images are prepared; a plain file leaves it to the variant.
            resize: asked.filter(|_| args.extractor.is_file()).map(Variant::resize),
            batch: usize::from(args.engine.batch),
            threads: compute.threads(),
            input_size: args.input_size,
        };
        let extractor = FeatureExtractor::open(&args.extractor, engine, &options)?;
        let identity = extractor.identity();
        if let Some(asked) = asked
            && asked.resize() != identity.resize
        {
            let (path, own, wanted) = (&args.extractor, identity.resize.name(), asked.resize().name());
            let message = format!("{path} resizes by {own}, --variant {asked} by {wanted}");
            let hint = format!("leave out --variant, or export the extractor with --resize {wanted}");
            return Err(Failure::usage(message, Some(&hint)));
        }
        let (network, variant) = Network::of(identity);
        if let (Some(asked), true) = (asked, identity.is_fid() && !network.inception) {
            let message = format!("{} has its own normalisation, --variant {asked} another", args.extractor);
            let hint = "leave out --variant, or export the extractor without --mean and --std";
            return Err(Failure::usage(message, Some(hint)));
        }
        let settings = args.protocol.settings(args.metric_seed, variant.unwrap_or_default());
        Ok(Self { args, printer, compute, extractor, network, settings })
    }

    /// What can be wrong is found before hours of work: the reference, the labels, the other evaluation.
    fn check(&self, source: &Source<'_>) -> Result<(), Failure> {
        let reference = self.open_reference()?;
        let counts = match &reference {
            Given::Images(set) => [source.count(), set.count()],
            Given::Stored(..) => [source.count(); 2],
        };
        for (n, what) in counts.into_iter().zip(["samples", "the reference"]) {
            if n < 2 {
                let message = format!("{what}: {n} images, at least 2 are needed");
                return Err(Failure::usage(message, Some("a covariance needs as many")));
            }
        }
        source.sampling()?;
        if let Some(path) = &self.args.compare {
            // All but the reference, which is known after it was looked at.
            let other = read_metrics(path)?.protocol;
            like(path, &self.protocol(source, other.reference.clone())?, &other)?;
        }
        Ok(())
    }

    fn run(mut self, source: &Source<'_>) -> Result<Exit, Failure> {
        let total = source.count();
        let range = match self.args.shard {
            Some(shard) => shard.range(total, self.chunk()),
            None => (0, total),
        };
        let folder = self.args.output.join(SAMPLES);
        let mut samples = Store::open(
            &folder,
            self.purpose((&source.content(), source.stamp()), total, range, source.generated().is_some())?,
        )?;
        if self.args.merge.is_empty() {
            self.fill(&mut samples, "evaluating", source.size(), &mut |range, chunk, decoding, f| {
                source.chunks(range, chunk, decoding, f)
            })?;
        } else {
            self.merge(&mut samples)?;
        }
        if let Some(shard) = self.args.shard {
            let (n, count) = (samples.count(), shard.count);
            let output = &self.args.output;
            let text = || format!("{output}: {n} of {total} images; merge all {count} shards with --merge");
            let value =
                json!({ "output": output, "images": n, "of": total, "shard": shard.index, "shards": count });
            self.printer.result(text, &value)?;
            return Ok(Exit::Pass);
        }
        let reference = self.reference()?;
        self.finish(source, &samples, &reference)
    }

    fn chunk(&self) -> usize {
        usize::from(self.args.chunk)
    }

    fn purpose(
        &self,
        (content, stamp): (&Value, &str),
        total: usize,
        range: (usize, usize),
        steps: bool,
    ) -> Result<Purpose, Failure> {
        let key = json!({
            "images": content, "extractor": self.extractor.identity(), "chunk": self.chunk(),
            "batch": self.args.engine.batch, "tool": env!("CARGO_PKG_VERSION"),
        });
        let key = hex::encode(Sha256::digest(serde_json::to_vec(&key)?));
        let (total, from, to) = (total as u64, range.0 as u64, range.1 as u64);
        let (stamp, widths) = (stamp.to_owned(), self.extractor.widths());
        Ok(Purpose { key, stamp, total, from, to, widths, steps })
    }

    /// Looks at the images that the store does not hold yet.
    fn fill(
        &mut self,
        store: &mut Store,
        what: &str,
        size: (usize, usize),
        chunks: Chunks<'_>,
    ) -> Result<(), Failure> {
        let (from, to) = (store.purpose().from, store.purpose().to);
        let bar = self.printer.progress(what, "images");
        // The rate is that of this run, not of the one that was interrupted.
        bar.start(store.count() as usize);
        let total = (to - from) as usize;
        let image = (size.0 * size.1 * 3).max(1);
        let next = ((from + store.count()) as usize, to as usize);
        let (extractor, compute, chunk) = (&mut self.extractor, &self.compute, usize::from(self.args.chunk));
        let (mut looked, mut seconds) = (0, 0.0);
        // Images that are done, and how far the bar is: it does not go back from a chunk's images to their features.
        let (whole, shown) = (Cell::new(store.count() as usize), Cell::new(0));
        let show = |at: usize| {
            shown.set(shown.get().max(at));
            bar.advance(shown.get(), total)
        };
        chunks(next, chunk, &|n| show(whole.get() + n), &mut |pixels, steps| {
            let done = whole.get();
            let started = std::time::Instant::now();
            let found = extractor.run(pixels, size, &mut |n, _| show(done + n))?;
            looked += found.count;
            seconds += started.elapsed().as_secs_f64();
            let chunk = Chunk {
                features: found.features,
                spatial: found.spatial,
                logits: found.logits,
                steps: steps.map(<[u32]>::to_vec),
            };
            store.add(pixels.len() / image, pixels, &chunk, compute)?;
            whole.set(store.count() as usize);
            if show(whole.get()) { Ok(()) } else { Err(EvaluateError::Interrupted) }
        })?;
        tracing::info!(images = looked, seconds, "{what}: features taken");
        if store.count() != (to - from) {
            let message = format!("{} of {} images were there", store.count(), to - from);
            return Err(Failure::usage(message, None));
        }
        Ok(())
    }

    fn merge(&self, samples: &mut Store) -> Result<(), Failure> {
        let mut shards = Vec::new();
        for folder in &self.args.merge {
            shards.push(Store::read(&folder.join(SAMPLES))?);
        }
        shards.sort_by_key(|s| s.purpose().from);
        for shard in shards.iter().filter(|s| s.count() > 0) {
            // Merged already, before an interruption.
            if shard.purpose().to > samples.count() || shard.purpose().from >= samples.count() {
                samples.append(shard, &self.compute)?;
            }
        }
        if samples.count() != samples.purpose().total {
            let (there, total) = (samples.count(), samples.purpose().total);
            let message = format!("the shards hold {there} of {total} images");
            return Err(Failure::usage(message, Some("merge every shard once, and finished")));
        }
        Ok(())
    }

    /// Opens the reference and holds it against the network.
    fn open_reference(&self) -> Result<Given, Failure> {
        let path = &self.args.reference;
        let stored = !path.is_dir() && {
            let file = ArrayFile::open(path)?;
            file.contains("mu") || file.contains("pool_3")
        };
        if !stored {
            return Ok(Given::Images(ImageSet::open(path, None)?));
        }
        let found = Activations::read(path)?;
        let identity = self.extractor.identity();
        let other = "give the reference as images, or the network it was made with";
        if found.network != self.network {
            let (a, b) = (&found.network.name, &self.network.name);
            let message = format!("{path} holds features of {a}, --extractor is {b}");
            return Err(Failure::usage(message, Some(other)));
        }
        found
            .prepared_by([Some(&identity.digest), Some(identity.resize.name())])
            .map_err(|e| Failure::usage(format!("{path}: {e} of --extractor"), Some(other)))?;
        let (width, pool) = (self.extractor.widths()[0], found.pool.as_ref().map(Table::width));
        if let Some(there) = found.pool_moments.as_ref().map(Moments::width).or(pool)
            && there != width
        {
            let message = format!("{path} has {there} features, --extractor {width}");
            return Err(Failure::usage(message, None));
        }
        let set = (found.pool.is_none() && found.images).then(|| ImageSet::open(path, None)).transpose()?;
        Ok(Given::Stored(Box::new(found), set))
    }

    fn reference(&mut self) -> Result<Reference, Failure> {
        let path = self.args.reference.clone();
        let (found, set) = match self.open_reference()? {
            Given::Stored(found, set) => (found, set),
            Given::Images(set) => {
                let store = self.reference_images(&set)?;
                let width = store.purpose().widths[0];
                return Ok(Reference {
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
        let of = |moments: &Option<Moments>, table: &Option<Table>, what| match (moments, table) {
            (Some(moments), _) => Ok(Some(moments.clone())),
            (None, table) => table.as_ref().map(|t| moments_of(t, what, &self.compute)).transpose(),
        };
        let pool = of(&found.pool_moments, &found.pool, "pool_3")?;
        let spatial = of(&found.spatial_moments, &found.spatial, "spatial")?;
        let width = self.extractor.widths()[0];
        let rows = match (found.pool, set) {
            (Some(table), _) => Some(Features::Table(table)),
            (None, Some(set)) => Some(Features::Mapped(self.reference_images(&set)?.pool()?, width)),
            (None, None) => None,
        };
        let images = rows.as_ref().map(|f| f.rows().map(|r| r.count() as u64)).transpose()?;
        let id = ReferenceId { stored_statistics: true, sha256: bundle::digest(&path)?.1, images };
        Ok(Reference { pool, spatial, rows, id })
    }

    fn reference_images(&mut self, set: &ImageSet) -> Result<Store, Failure> {
        let files = (&json!(set.content()), set.stamp());
        let purpose = self.purpose(files, set.count(), (0, set.count()), false)?;
        let mut store = Store::open(&self.args.output.join(REFERENCE), purpose)?;
        self.fill(&mut store, "reference", set.size(), &mut |range, chunk, _, f| {
            set.chunks(range, chunk, &mut |pixels| f(pixels, None))
        })?;
        Ok(store)
    }

    fn finish(&self, source: &Source<'_>, samples: &Store, reference: &Reference) -> Result<Exit, Failure> {
        let settings = self.settings;
        let (pool, logits) = (samples.pool()?, samples.logits()?);
        let [width, _, classes] = samples.purpose().widths;
        let (moments, spatial) = (samples.moments(&self.compute)?, samples.spatial_moments(&self.compute)?);
        let fail = || EvaluateError::metric("features");
        let side = Side {
            pool_moments: Some(&moments),
            spatial_moments: spatial.as_ref(),
            pool: Some(Rows::new("features", pool.f32().unwrap_or_default(), width).map_err(fail())?),
            logits: match &logits {
                Some(mapped) => {
                    Some(Rows::new("logits", mapped.f32().unwrap_or_default(), classes).map_err(fail())?)
                }
                None => None,
            },
        };
        let other = Side {
            pool_moments: reference.pool.as_ref(),
            spatial_moments: reference.spatial.as_ref(),
            pool: reference.rows.as_ref().map(Features::rows).transpose()?,
            logits: None,
        };
        let bar = self.printer.progress("metrics", "steps");
        let report =
            measure(side, other, &self.network, &settings, &self.compute, &mut |what| bar.step(what))?;
        drop(bar);
        self.write_statistics(&moments, spatial.as_ref())?;
        let file = MetricsFile {
            schema: SCHEMA,
            protocol: self.protocol(source, reference.id.clone())?,
            samples: Samples {
                pixels_sha256: samples.pixels_sha256()?,
                generated: source.generated(),
                mean_steps: samples.mean_steps()?,
            },
            report,
        };
        let mut bytes = serde_json::to_vec_pretty(&file)?;
        bytes.push(b'\n');
        self.write(METRICS, &bytes)?;
        let comparison = match (&self.args.compare, &reference.pool) {
            (Some(other), Some(moments)) => Some(self.compare(other, &file, samples, moments)?),
            _ => None,
        };
        let mut value = serde_json::to_value(&file)?;
        if let Some(comparison) = &comparison {
            value["comparison"] = serde_json::to_value(comparison)?;
        }
        let words = || {
            let mut out = text(&file.report, &self.network, &settings);
            if let Some(c) = &comparison {
                out.line(format_args!(
                    "difference {} ({} here, {} there), 90 % interval {} to {}, margin {:.4}: {}",
                    signed(c.difference, 4),
                    fixed(c.here, 4),
                    fixed(c.there, 4),
                    signed(c.interval_90[0], 4),
                    signed(c.interval_90[1], 4),
                    c.margin,
                    c.verdict
                ));
            }
            if let Some(steps) = file.samples.mean_steps {
                out.line(format_args!("{steps:.4} steps of the large transformer an image"));
            }
            out.line(format_args!("{}: {} images", self.args.output.join(METRICS), samples.count()));
            out
        };
        self.printer.result(words, &value)?;
        Ok(comparison.map_or(Exit::Pass, |c| c.verdict.into()))
    }

    fn protocol(&self, source: &Source<'_>, reference: ReferenceId) -> Result<Protocol, Failure> {
        Ok(Protocol {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            network: self.network.clone(),
            extractor: serde_json::to_value(self.extractor.identity())?,
            settings: self.settings,
            images: source.count() as u64,
            image_size: [source.size().0, source.size().1],
            sampling: source.sampling()?,
            reference,
        })
    }

    /// Writes a file of the output folder.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), EvaluateError> {
        let path = self.args.output.join(name);
        write_atomic(&path, bytes).map_err(EvaluateError::io(&path))
    }

    /// The samples' statistics, in the layout of a reference file.
    fn write_statistics(&self, pool: &Moments, spatial: Option<&Moments>) -> Result<(), Failure> {
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
        Ok(write_npz(&self.args.output.join(STATISTICS), &arrays)?)
    }

    fn compare(
        &self,
        path: &Utf8Path,
        own: &MetricsFile,
        samples: &Store,
        reference: &Moments,
    ) -> Result<Comparison, Failure> {
        let other = read_metrics(path)?;
        like(path, &own.protocol, &other.protocol)?;
        let folder = samples_of(path);
        let store = Store::read(&folder)?;
        if store.pixels_sha256()? != other.samples.pixels_sha256 {
            return Err(Failure::usage(format!("{folder} does not hold the samples of {path}"), None));
        }
        let metric = if self.network.inception { Metric::Fid } else { Metric::FrechetDistance };
        let value = |file: &MetricsFile| file.report.metrics.get(&metric).map(|m| m.value);
        let (Some(here), Some(there)) = (value(own), value(&other)) else {
            return Err(Failure::usage("no Fréchet distance to compare", None));
        };
        let found =
            compare((samples, here), (&store, there), reference, self.args.metric_seed, &self.compute)?;
        let mut bytes = serde_json::to_vec_pretty(&found)?;
        bytes.push(b'\n');
        self.write(COMPARISON, &bytes)?;
        Ok(found)
    }
}

/// The store of the samples of a `metrics.json`.
fn samples_of(path: &Utf8Path) -> Utf8PathBuf {
    path.with_file_name(SAMPLES)
}

fn read_metrics(path: &Utf8Path) -> Result<MetricsFile, Failure> {
    let text = dpar_export_inputs::read_to_string(path, limits::TEXT)?;
    serde_json::from_str(&text)
        .map_err(|e| Failure::usage(format!("{path} is no metrics.json of this version: {e}"), None))
}

/// Refuses to compare numbers of different protocols.
fn like(path: &Utf8Path, own: &Protocol, other: &Protocol) -> Result<(), Failure> {
    let unlike = own.differences(other);
    if unlike.is_empty() {
        return Ok(());
    }
    let message = format!("{path} was made by another protocol: {}", unlike.join(", "));
    Err(Failure::usage(message, Some("compare evaluations with equal options and references")))
}

/// Calls its last argument with the pixels of consecutive chunks of a range of images.
/// The one before is told of the decoding.
type Chunks<'a> = &'a mut dyn FnMut(
    (usize, usize),
    usize,
    &dyn Fn(usize) -> bool,
    &mut TakeChunk<'_>,
) -> Result<(), EvaluateError>;
