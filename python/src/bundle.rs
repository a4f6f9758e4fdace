//! An open bundle.

use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{Arithmetic, EngineInfo};
use dpar_export::bundle::{Bundle, Manifest};
use dpar_export::commands::failure::Failure;
use dpar_export::engines::{self, EngineOptions};
use dpar_export::generate::Stream as Drawn;
use dpar_export::loaded::LoadedBundle;
use dpar_export::patches::pad;
use dpar_export::picture::from_u8_nhwc;
use dpar_export_spec::{PatchRule, RuleChange};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray4};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serialize;

use crate::arrays::array;
use crate::decoding::{AskedBatch, Asking, Decoding, OpenBundle};
use crate::errors::{input, raise, work};
use crate::scheduler::{AskedLimits, PyScheduler};
use crate::stream::PyStream;

/// Images that are encoded at a time: enough to amortise a graph's preparation, few enough to bound memory.
const AT_ONCE: usize = 256;

/// Logits, entropy, patch lengths: those that the system has.
type ScoreArrays = (Py<PyAny>, Option<Py<PyAny>>, Option<Py<PyAny>>);

/// A bundle on an engine.
#[pyclass(frozen, name = "Bundle", module = "dpar_export._native")]
pub(crate) struct PyBundle {
    open: Mutex<Option<Arc<OpenBundle>>>,
}

/// What an engine is told, and the numbers of the patch rule.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Settings {
    engine: Option<String>,
    threads: Option<usize>,
    device: Option<String>,
    ort_lib: Option<String>,
    ep_lib: Option<String>,
    trt_lib: Option<String>,
    cuda_graphs: bool,
    runtime_cache: Option<String>,
    threshold: Option<f32>,
    max_patch_length: Option<usize>,
    patch_size: Option<f64>,
}

impl Settings {
    fn options(&self) -> Result<EngineOptions, Failure> {
        let device = self.device.as_deref().map(str::parse).transpose();
        let path = |text: &Option<String>| text.as_ref().map(Utf8PathBuf::from);
        Ok(EngineOptions {
            threads: self.threads,
            ort_library: path(&self.ort_lib),
            ep_library: path(&self.ep_lib),
            trt_library: path(&self.trt_lib),
            device: device.map_err(|e: String| input(format!("device: {e}"), None))?,
            cuda_graphs: self.cuda_graphs,
            runtime_cache: path(&self.runtime_cache),
            // In place where that can be.
            caches: None,
        })
    }
}

/// What Python asks of an open bundle. Written as it is: on the way through a JSON value, float32 numbers would become others.
#[derive(Serialize)]
struct BundleFacts<'a> {
    folder: &'a Utf8Path,
    manifest: &'a Manifest,
    manifest_sha256: &'a str,
    engine: &'a EngineInfo,
    arithmetic: &'a Arithmetic,
    patch_rule: &'a PatchRule,
    name: &'a str,
    num_classes: usize,
    null_class: Option<i64>,
    vocab: usize,
    tokens: usize,
    grid_width: usize,
    image_size: usize,
    longest_patch: usize,
}

/// Opens a bundle folder, checking its hashes, and loads it on an engine.
#[pyfunction]
pub(crate) fn open(py: Python<'_>, folder: String, settings: Settings) -> PyResult<PyBundle> {
    let opened = work(py, |_| {
        let name = settings.engine.as_deref().unwrap_or(engines::DEFAULT_ENGINE);
        if engines::find(name).is_none() {
            let names: Vec<&str> = engines::names().collect();
            return Err(input(format!("there is no engine {name}, but {}", names.join(", ")), None));
        }
        let engine = engines::create(name, &settings.options()?)?;
        let rule = RuleChange {
            threshold: settings.threshold,
            max_patch_length: settings.max_patch_length,
            patch_size: settings.patch_size,
        };
        let bundle = Bundle::open(folder.as_str().into())?.with_rule(&rule)?;
        Ok(OpenBundle::new(LoadedBundle::owning(bundle, engine)?))
    })?;
    Ok(PyBundle { open: Mutex::new(Some(Arc::new(opened))) })
}

impl PyBundle {
    fn held(&self) -> std::sync::MutexGuard<'_, Option<Arc<OpenBundle>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, py: Python<'_>) -> PyResult<Arc<OpenBundle>> {
        let closed = || {
            let failure = input("the bundle is closed", Some("open it again with dpar_export.open"));
            raise(py, &failure, failure.cause.exit(false))
        };
        self.held().clone().ok_or_else(closed)
    }
}

#[pymethods]
impl PyBundle {
    /// Forgets the bundle and frees what is in use by no stream.
    fn close(&self, py: Python<'_>) {
        let held = self.held().take();
        py.detach(|| drop(held));
    }

    /// Whether it is closed.
    #[getter]
    fn closed(&self) -> bool {
        self.held().is_none()
    }

    /// What is known of it, as JSON.
    fn facts(&self, py: Python<'_>) -> PyResult<String> {
        let open = self.open(py)?;
        let (runtime, bundle) = (&open.runtime, open.runtime.bundle());
        let system = bundle.system();
        let facts = BundleFacts {
            folder: bundle.folder(),
            manifest: bundle.manifest(),
            manifest_sha256: bundle.manifest_sha256(),
            engine: runtime.info(),
            arithmetic: runtime.arithmetic(),
            patch_rule: bundle.patch_rule(),
            name: &system.name,
            num_classes: system.num_classes,
            null_class: system.null_class(),
            vocab: system.vocab,
            tokens: system.tokens(),
            grid_width: system.grid(),
            image_size: system.image_size,
            longest_patch: system.longest_patch(),
        };
        serde_json::to_string(&facts).map_err(|e| PyRuntimeError::new_err(e.to_string()))
    }

    /// Decodes images: a dictionary of arrays.
    fn generate<'py>(
        &self,
        py: Python<'py>,
        asking: Asking,
        batch: usize,
        schedule: String,
    ) -> PyResult<Bound<'py, PyDict>> {
        let open = self.open(py)?;
        let batch = AskedBatch { batch, schedule };
        let (streams, pixels, calls) = work(py, |asked| {
            let go_on = || asked.go_on();
            let mut decoding = Decoding::begin(&open, &asking, &batch)?;
            let streams = decoding.run(&go_on)?;
            let ids = Drawn::ids(&streams);
            let pixels = match &mut decoding.vq {
                Some(vq) => Some(open.pixels(vq, &ids, &go_on)?),
                None => None,
            };
            let calls = decoding.calls();
            decoding.end(&open);
            open.runtime.bundle().unchanged()?;
            Ok(((streams, ids), pixels, calls))
        })?;
        let (streams, ids) = streams;
        let system = open.runtime.bundle().system();
        let (n, t, size) = (streams.len(), system.tokens(), system.image_size);
        let (lengths, columns) = pad(streams.iter().map(|s| s.patch_lengths.as_slice()));
        let steps: Vec<i64> = streams.iter().map(|s| s.steps() as i64).collect();
        let classes: Vec<i64> = streams.iter().map(|s| s.request.class).collect();
        let indices: Vec<u64> = streams.iter().map(|s| s.request.index).collect();
        let floats = |of: fn(&Drawn) -> &[f32]| -> Vec<f32> {
            streams.iter().flat_map(|s| of(s).iter().copied()).collect()
        };
        let out = PyDict::new(py);
        out.set_item("tokens", array(py, ids, &[n, t])?)?;
        out.set_item("patch_lengths", array(py, lengths, &[n, columns])?)?;
        out.set_item("entropy", array(py, floats(|s| &s.entropy), &[n, t])?)?;
        out.set_item("margin", array(py, floats(|s| &s.margin), &[n, t])?)?;
        out.set_item("steps", array(py, steps, &[n])?)?;
        out.set_item("class_labels", array(py, classes, &[n])?)?;
        out.set_item("indices", array(py, indices, &[n])?)?;
        let images = pixels.map(|pixels| array(py, pixels, &[n, size, size, 3])).transpose()?;
        out.set_item("images", images)?;
        out.set_item("calls", serde_json::json!(calls).to_string())?;
        Ok(out)
    }

    /// Begins to decode images; the stream yields what each step came to.
    fn stream(&self, py: Python<'_>, asking: Asking, batch: usize, schedule: String) -> PyResult<PyStream> {
        let open = self.open(py)?;
        let batch = AskedBatch { batch, schedule };
        let decoding = work(py, |_| Decoding::begin(&open, &asking, &batch))?;
        Ok(PyStream::new(open, decoding))
    }

    /// Starts a scheduler that several threads may ask for images.
    fn scheduler(&self, py: Python<'_>, limits: AskedLimits) -> PyResult<PyScheduler> {
        let open = self.open(py)?;
        work(py, |_| PyScheduler::start(&open, &limits))
    }

    /// Teacher-forced outputs: logits, entropy, patch lengths.
    #[pyo3(signature = (tokens, labels, lengths, batch))]
    fn score<'py>(
        &self,
        py: Python<'py>,
        tokens: PyReadonlyArray2<'py, i64>,
        labels: PyReadonlyArray1<'py, i64>,
        lengths: Option<Vec<Vec<usize>>>,
        batch: usize,
    ) -> PyResult<ScoreArrays> {
        let open = self.open(py)?;
        let (n, t) = tokens.as_array().dim();
        // Others may write into the arrays while the interpreter is free.
        let tokens: Vec<i64> = tokens.as_array().iter().copied().collect();
        let labels: Vec<i64> = labels.as_array().iter().copied().collect();
        let scores = work(py, |asked| {
            let go_on = &mut |_, _| asked.go_on();
            Ok(open.runtime.score(&tokens, &labels, lengths.as_deref(), batch, go_on)?)
        })?;
        let system = open.runtime.bundle().system();
        let (padded, columns) = pad(scores.patch_lengths.iter().map(Vec::as_slice));
        let patches = system.dpar().map(|_| array(py, padded, &[n, columns])).transpose()?;
        let entropy = scores.entropy.map(|e| array(py, e, &[n, t])).transpose()?;
        Ok((array(py, scores.logits, &[n, t, system.vocab])?, entropy, patches))
    }

    /// Codes i64 [N, T] as pixels u8 [N, H, W, 3].
    fn decode<'py>(&self, py: Python<'py>, tokens: PyReadonlyArray2<'py, i64>) -> PyResult<Py<PyAny>> {
        let open = self.open(py)?;
        let system = open.runtime.bundle().system();
        let (n, t) = tokens.as_array().dim();
        let ids: Vec<i64> = tokens.as_array().iter().copied().collect();
        let pixels = work(py, |asked| {
            if t != system.tokens() {
                return Err(input(format!("tokens is [N, {}], not [{n}, {t}]", system.tokens()), None));
            }
            let mut vq = open.take_vq()?;
            let pixels = open.pixels(&mut vq, &ids, &|| asked.go_on())?;
            open.keep_vq(vq);
            open.runtime.bundle().unchanged()?;
            Ok(pixels)
        })?;
        let size = system.image_size;
        array(py, pixels, &[n, size, size, 3])
    }

    /// Pixels u8 [N, H, W, 3] as codes i64 [N, T].
    fn encode_pixels<'py>(
        &self,
        py: Python<'py>,
        images: PyReadonlyArray4<'py, u8>,
        batch: usize,
    ) -> PyResult<Py<PyAny>> {
        let (n, height, width, channels) = images.as_array().dim();
        let pixels: Vec<u8> = images.as_array().iter().copied().collect();
        let floats = |from: usize, to: usize| {
            let image = height * width * channels;
            from_u8_nhwc(&pixels[from * image..to * image], to - from, height, width)
        };
        self.encode(py, [n, height, width, channels], batch, &floats)
    }

    /// Images f32 [N, 3, H, W] in [-1, 1] as codes i64 [N, T].
    fn encode_floats<'py>(
        &self,
        py: Python<'py>,
        images: PyReadonlyArray4<'py, f32>,
        batch: usize,
    ) -> PyResult<Py<PyAny>> {
        let (n, channels, height, width) = images.as_array().dim();
        let values: Vec<f32> = images.as_array().iter().copied().collect();
        let floats = |from: usize, to: usize| {
            let image = height * width * channels;
            values[from * image..to * image].to_vec()
        };
        self.encode(py, [n, height, width, channels], batch, &floats)
    }
}

impl PyBundle {
    /// `floats` gives images `from..to` as `[n, 3, H, W]`.
    fn encode(
        &self,
        py: Python<'_>,
        [n, height, width, channels]: [usize; 4],
        batch: usize,
        floats: &(dyn Fn(usize, usize) -> Vec<f32> + Sync),
    ) -> PyResult<Py<PyAny>> {
        let open = self.open(py)?;
        let system = open.runtime.bundle().system();
        let codes = work(py, |asked| {
            let size = system.image_size;
            if [height, width, channels] != [size, size, 3] {
                let message = format!(
                    "images are {size} × {size} RGB, not {height} × {width} with {channels} channels"
                );
                return Err(input(message, None));
            }
            let mut codes = Vec::with_capacity(n * system.tokens());
            // Whole batches, so that each is the one that it would be without pieces.
            let step = batch.max(1) * (AT_ONCE / batch.max(1)).max(1);
            for from in (0..n).step_by(step) {
                let images = floats(from, n.min(from + step));
                codes.extend(open.runtime.codes(&images, batch, &mut |_, _| asked.go_on())?);
            }
            Ok(codes)
        })?;
        array(py, codes, &[n, system.tokens()])
    }
}
