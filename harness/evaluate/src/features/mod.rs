//! Images to activations: a feature extractor on an engine.
//!
//! ```no_run
//! use dpar_engine_table::{self as engines, EngineOptions};
//! use dpar_export_evaluate::features::{ExtractorOptions, FeatureExtractor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = engines::create("tract", &EngineOptions::default())?;
//! let mut extractor = FeatureExtractor::open("inception".into(), engine, &ExtractorOptions::default())?;
//! let images = vec![0_u8; 4 * 32 * 32 * 3]; // [4, 32, 32, 3]
//! let activations = extractor.run(&images, (32, 32), &mut |_, _| true)?;
//! assert_eq!(activations.features.len(), 4 * activations.width);
//! # Ok(())
//! # }
//! ```

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{Engine, EngineError, EngineErrorKind, EngineInfo, GraphFile, Session, TensorView};
use dpar_export_bundle::{
    BundleError, ExtractorBundle, ExtractorSpec, ForeignExtractor, Normalise, port_width,
};
use dpar_export_decode::loaded::{Progress, RunError};
use dpar_export_metrics::{Compute, Resize, Resizer};
use dpar_export_spec::GraphSpec;
use serde::{Deserialize, Serialize};

use crate::error::{EvaluateError, InputKind};

/// How an extractor is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtractorOptions {
    /// Another resize rule than the bundle's.
    pub resize: Option<Resize>,
    /// Side of the input, for an ONNX file that leaves it open.
    pub input_size: Option<usize>,
    /// Images in one call of the network.
    pub batch: usize,
    /// Threads that resize images; the engine has its own.
    pub threads: usize,
}

impl Default for ExtractorOptions {
    /// The bundle's rule, batches of 8, one thread.
    fn default() -> Self {
        Self { resize: None, input_size: None, batch: 8, threads: 1 }
    }
}

/// What activations depend on besides the images: part of every protocol fingerprint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractorIdentity {
    /// Name of the network.
    pub name: String,
    /// Name of the Fréchet distance on its features: `FID`, or `Fréchet distance on …`.
    pub distance: String,
    /// SHA-256 of the bundle's `manifest.json`, or of the ONNX file where there is no bundle.
    pub digest: String,
    /// Side of the input in pixels.
    pub input_size: usize,
    /// How images are resized.
    pub resize: Resize,
    /// Normalisation; `None` = the resize rule's own.
    pub normalise: Option<Normalise>,
    /// The engine that runs it, with its version.
    pub engine: String,
    /// Where it runs: `cpu`, or device and provider.
    pub device: String,
}

/// Where an engine runs, as far as results depend on it: not the number of the device. On the processor it is `cpu`
/// alone: an engine has one provider there, whose name may list what the machine can do.
pub fn device(info: &EngineInfo) -> String {
    if info.device == "cpu" {
        return info.device.clone();
    }
    let (kind, rest) = info.device.split_once(':').unwrap_or((&info.device, ""));
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{kind}{rest}, {}", info.provider)
}

/// Activations of N images, row-major.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Activations {
    /// Number of images N.
    pub count: usize,
    /// Values per image in `features`.
    pub width: usize,
    /// `[N, width]`.
    pub features: Vec<f32>,
    /// `[N, spatial width]`, where the network has spatial features.
    pub spatial: Option<Vec<f32>>,
    /// `[N, classes]`, where the network has logits.
    pub logits: Option<Vec<f32>>,
}

impl Activations {
    /// Adds the images of `other` behind these.
    ///
    /// # Errors
    /// When they come from a network of other outputs.
    pub fn append(&mut self, other: Self) -> Result<(), EvaluateError> {
        if self.count == 0 {
            *self = other;
            return Ok(());
        }
        let same = self.width == other.width
            && self.spatial.is_some() == other.spatial.is_some()
            && self.logits.is_some() == other.logits.is_some();
        if !same {
            return Err(input("activations of two different networks"));
        }
        self.count += other.count;
        self.features.extend(other.features);
        for (own, more) in [(&mut self.spatial, other.spatial), (&mut self.logits, other.logits)] {
            if let (Some(own), Some(more)) = (own, more) {
                own.extend(more);
            }
        }
        Ok(())
    }
}

/// What a network was read from.
enum NetworkSource {
    Bundle(ExtractorBundle),
    File(ForeignExtractor),
}

impl NetworkSource {
    fn unchanged(&self) -> Result<(), BundleError> {
        match self {
            Self::Bundle(bundle) => bundle.unchanged(),
            Self::File(file) => file.unchanged(),
        }
    }
}

/// A feature network that was prepared on an engine.
pub struct FeatureExtractor {
    spec: ExtractorSpec,
    path: Utf8PathBuf,
    source: NetworkSource,
    identity: ExtractorIdentity,
    info: EngineInfo,
    session: Box<dyn Session>,
    batch: usize,
    compute: Compute,
    /// Made for the size of the last images.
    resizer: Option<((usize, usize), Resizer)>,
}

impl FeatureExtractor {
    /// Opens an extractor bundle (every hash is checked), or an `.onnx` file with one image input and one [N, F]
    /// output, and prepares it on the engine.
    ///
    /// # Errors
    /// When the bundle does not match its manifest or is none, when the engine is not available or refuses the graph.
    pub fn open(
        path: &Utf8Path,
        engine: Box<dyn Engine>,
        options: &ExtractorOptions,
    ) -> Result<Self, EvaluateError> {
        if path.extension() == Some("onnx") && path.is_file() {
            let resize = options.resize.unwrap_or_default();
            let foreign = ForeignExtractor::read(path, options.input_size, resize, None).map_err(failed)?;
            let (spec, digest) = (foreign.spec.clone(), foreign.sha256.clone());
            let from = (path, NetworkSource::File(foreign.clone()));
            let made = foreign.with_graph(|file| Self::prepare(spec, digest, from, file, engine, options));
            return made.map_err(EvaluateError::Extractor);
        }
        let bundle = ExtractorBundle::open(path).map_err(failed)?;
        if options.input_size.is_some_and(|s| s != bundle.spec().input_size) {
            let side = bundle.spec().input_size;
            return Err(input(format!("{path} looks at images of {side} pixels, as it was exported")));
        }
        let (spec, digest) = (bundle.spec().clone(), bundle.manifest_sha256().to_owned());
        let from = (path, NetworkSource::Bundle(bundle.clone()));
        let made = bundle.with_graph(|file| Self::prepare(spec, digest, from, file, engine, options));
        made.map_err(EvaluateError::Extractor)
    }

    fn prepare(
        spec: ExtractorSpec,
        digest: String,
        (path, source): (&Utf8Path, NetworkSource),
        file: GraphFile<'_>,
        engine: Box<dyn Engine>,
        options: &ExtractorOptions,
    ) -> Result<Self, RunError> {
        let info = engine.probe()?;
        tracing::info!(graph = file.spec.name, engine = info.engine, "preparing");
        let session = engine.prepare(file)?;
        let spec = ExtractorSpec { resize: options.resize.unwrap_or(spec.resize), ..spec };
        let identity = ExtractorIdentity {
            name: spec.name.clone(),
            distance: spec.distance_name(),
            digest,
            input_size: spec.input_size,
            resize: spec.resize,
            normalise: spec.normalise,
            engine: format!("{} {}", info.engine, info.version),
            device: device(&info),
        };
        let compute = Compute::new(options.threads)?;
        let batch = options.batch.max(1);
        let path = path.to_owned();
        Ok(Self { spec, path, source, identity, info, session, batch, compute, resizer: None })
    }

    /// The bundle, or the file.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Images in one call of the network.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What the activations depend on.
    pub fn identity(&self) -> &ExtractorIdentity {
        &self.identity
    }

    /// What it is, with the resize rule that is used.
    pub fn spec(&self) -> &ExtractorSpec {
        &self.spec
    }

    /// What runs.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Values per image of `features`, `spatial` and `logits`; 0 where the network has none.
    pub fn widths(&self) -> [usize; 3] {
        let graph = self.session.spec();
        let ports = &self.spec.ports;
        [Some(&ports.features), ports.spatial.as_ref(), ports.logits.as_ref()]
            .map(|name| name.and_then(|n| port_width(graph, n)).unwrap_or(0))
    }

    /// Activations of images u8 [N, H, W, 3] of `size` (H, W), in batches. Memory: a batch of network inputs and the
    /// activations.
    ///
    /// # Errors
    /// When the images are not whole, the engine fails or gives numbers that are not finite, or `progress` says stop.
    pub fn run(
        &mut self,
        images: &[u8],
        size: (usize, usize),
        progress: Progress<'_>,
    ) -> Result<Activations, EvaluateError> {
        let resizer = match self.resizer.take() {
            Some((known, resizer)) if known == size => resizer,
            _ => Resizer::new(self.spec.resize, size, (self.spec.input_size, self.spec.input_size))
                .map_err(EvaluateError::metric("images"))?,
        };
        let result = self.run_with(&resizer, images, progress);
        self.resizer = Some((size, resizer));
        result
    }

    fn run_with(
        &mut self,
        resizer: &Resizer,
        images: &[u8],
        progress: Progress<'_>,
    ) -> Result<Activations, EvaluateError> {
        let (from, to) = (resizer.input_len(), resizer.output_len());
        if !images.len().is_multiple_of(from) {
            return Err(input(format!("{} bytes are no whole images of {from}", images.len())));
        }
        let side = self.spec.input_size;
        let n = images.len() / from;
        let mut all = Activations { width: self.widths()[0], ..Activations::default() };
        let mut input = Vec::new();
        for chunk in images.chunks(from * self.batch) {
            let rows = chunk.len() / from;
            input.resize(rows * to, 0.0);
            resizer.run(chunk, &mut input, &self.compute).map_err(EvaluateError::metric("images"))?;
            if let Some(normalise) = self.spec.normalise {
                renormalise(&mut input, side * side, self.spec.resize, normalise);
            }
            let view = TensorView::f32([rows, 3, side, side], &input);
            all.append(self.call(rows, view)?)?;
            if !progress(all.count, n) {
                return Err(EvaluateError::Interrupted);
            }
        }
        Ok(all)
    }

    /// Activations of inputs that are resized and normalised already, f32 [rows, 3, side, side].
    ///
    /// # Errors
    /// When the engine fails or gives numbers that are not finite, or the network's files changed since they were hashed.
    pub fn call(&mut self, rows: usize, view: TensorView<'_>) -> Result<Activations, EvaluateError> {
        let outputs = self.session.run(&[(&self.spec.ports.image, view)]).map_err(failed)?;
        self.source.unchanged().map_err(failed)?;
        let graph = self.session.spec();
        let take = |name: &str| -> Result<Vec<f32>, EvaluateError> {
            let at = graph.output_index(name);
            let values = at.and_then(|i| outputs.get(i)).and_then(|t| t.as_f32()).unwrap_or_default();
            match values.iter().find(|v| !v.is_finite()) {
                None => Ok(values.to_vec()),
                Some(bad) => Err(failed(not_finite(graph, name, *bad))),
            }
        };
        let ports = &self.spec.ports;
        Ok(Activations {
            count: rows,
            width: port_width(graph, &ports.features).unwrap_or(0),
            features: take(&ports.features)?,
            spatial: ports.spatial.as_deref().map(take).transpose()?,
            logits: ports.logits.as_deref().map(take).transpose()?,
        })
    }
}

/// Of the network, or of the images that are shown to it.
fn input(message: impl Into<String>) -> EvaluateError {
    EvaluateError::input(InputKind::Network, message, None)
}

fn failed(e: impl Into<RunError>) -> EvaluateError {
    EvaluateError::Extractor(e.into())
}

fn not_finite(graph: &GraphSpec, port: &str, value: f32) -> EngineError {
    let message = format!("output `{port}` holds {value}");
    let e = EngineError::new(EngineErrorKind::Output, "feature extractor", message).in_graph(&graph.name);
    e.hint("no feature is taken from such a network: look at its weights")
}

/// From the resize rule's own normalisation to another: v = a·x + b, x as [`Resize::normalise`] gives it.
fn renormalise(values: &mut [f32], plane: usize, resize: Resize, to: Normalise) {
    // Where x = 0 and x = 1 lie in 0..255: x = (v − 128)/128, or 2·v/255 − 1.
    let (zero, one) = match resize {
        Resize::Tf1Bilinear | Resize::PilBicubic => (128.0, 256.0),
        Resize::HalfPixelBilinear => (127.5, 255.0),
    };
    for (i, plane) in values.chunks_exact_mut(plane).enumerate() {
        let (mean, std) = (to.mean[i % 3], to.std[i % 3]);
        let (scale, shift) = ((one - zero) / std, (zero - mean) / std);
        plane.iter_mut().for_each(|v| *v = *v * scale + shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normalisation_replaces_the_resize_rules_own() {
        for resize in [Resize::Tf1Bilinear, Resize::HalfPixelBilinear, Resize::PilBicubic] {
            // What the resize makes of 0, 10 and 255 in each channel, one pixel a plane.
            let unit = |v: f32| if resize == Resize::HalfPixelBilinear { v / 255.0 } else { v };
            for v in [0.0, 10.0, 255.0_f32] {
                let mut x = [resize.normalise(unit(v)); 6];
                renormalise(
                    &mut x,
                    1,
                    resize,
                    Normalise { mean: [127.0, 0.0, 10.0], std: [128.0, 1.0, 2.0] },
                );
                let want = [(v - 127.0) / 128.0, v, (v - 10.0) / 2.0];
                for (found, want) in x.iter().zip(want.iter().cycle()) {
                    assert!((found - want).abs() < 1e-4, "{resize:?} {v}: {x:?}");
                }
            }
        }
    }
}
