//! A loaded engine. Device code: compiled and reviewed where there is no GPU; `tests/gpu.rs` runs it where one is.

#![allow(unsafe_code, reason = "hands device memory to the library")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{
    CachePort, EngineError, EngineErrorKind, EngineFile, FilePort, GraphFile, Session, Tensor, TensorData,
    TensorSlice, TensorView, bind_axes, check_ports,
};
use dpar_export_spec::text::list;
use dpar_export_spec::{DType, GraphSpec};
use trtx::{
    CudaEngine, ExecutionContext, ExecutionContextAllocationStrategy, LayerInformationFormat, Runtime,
    RuntimeConfig, TensorIOMode, TensorLocation,
};

use crate::buffers::{Buffers, element_bytes};
use crate::build::dims;
use crate::cuda::{CudaDevice, CudaError, CudaStream};
use crate::flavour::{self, Diagnosis};
use crate::log::{Collector, errors};
use crate::ports::file_port;
use crate::{NAME, Profile, ShapeKernels, cache_file, log};

/// The next step for an engine that this machine or library does not take.
const REBUILD_HINT: &str = "build the engine again with this library, and with this device's compute capability or \
    none";

/// One optimization profile in use: its context and its buffers.
struct Slot {
    context: ExecutionContext<'static>,
    buffers: Buffers,
}

/// A deserialised engine and what it needs. Dropped in the order of the fields: contexts before the configuration
/// and the engine, the engine before the runtime.
pub(crate) struct TrtSession {
    spec: GraphSpec,
    /// Known profiles in the order of the engine; empty where they are not known.
    profiles: Vec<Profile>,
    /// By index of the profile; made when a call first needs it.
    slots: BTreeMap<usize, Slot>,
    /// Ports that have no buffers here.
    elsewhere: BTreeSet<String>,
    config: Rc<RuntimeConfig<'static>>,
    cache: Option<(Utf8PathBuf, flavour::Cache)>,
    engine: CudaEngine<'static>,
    _runtime: Runtime<'static>,
    stream: CudaStream,
    device: Arc<CudaDevice>,
}

// SAFETY: the parts that are not `Send` by themselves are handles into TensorRT, which may be used from any thread as
// long as it is one at a time, and the `Rc`, all of whose clones are inside this value. `run_unchecked` takes
// `&mut self` and makes the device current in the calling thread.
unsafe impl Send for TrtSession {}

/// Inputs and outputs of a call that are on the device already, or stay there.
#[derive(Default)]
pub(crate) struct Resident<'a> {
    /// Port, shape and first byte of each input.
    pub(crate) inputs: Vec<(&'a str, Vec<usize>, *mut c_void)>,
    /// Index and first byte of each output; there is room for the shape that the call's axes give it.
    pub(crate) outputs: Vec<(usize, *mut c_void)>,
}

/// Puts work on the stream behind a graph.
pub(crate) type Enqueue<'a> = &'a mut dyn FnMut(&CudaStream) -> Result<(), CudaError>;

/// Options of a session.
pub(crate) struct SessionOptions<'a> {
    pub(crate) cuda_graphs: bool,
    pub(crate) kernels: ShapeKernels,
    pub(crate) cache_dir: Option<&'a Utf8Path>,
}

/// A runtime and an engine in it. Bind them by this pattern: names are dropped last first, the fields of an unnamed pair in
/// order, and the engine must go before its runtime.
fn deserialize(
    name: Option<&str>,
    path: &Utf8Path,
    bytes: &[u8],
) -> Result<(Runtime<'static>, CudaEngine<'static>), EngineError> {
    let place = |e: EngineError| match name {
        Some(name) => e.in_graph(name),
        None => e,
    };
    let logger = log::logger()?;
    let collector = Collector::start();
    let mut runtime = Runtime::new(logger).map_err(|e| {
        let message = errors(&collector.take()).unwrap_or_else(|| e.to_string());
        place(EngineError::new(EngineErrorKind::Unavailable, NAME, message))
    })?;
    match runtime.deserialize_cuda_engine(bytes) {
        Ok(engine) => Ok((runtime, engine)),
        Err(e) => {
            let said = errors(&collector.take()).unwrap_or_else(|| e.to_string());
            let (kind, reason, hint) = judge(flavour::diagnose(&runtime, bytes), &said);
            Err(place(EngineError::new(kind, NAME, format!("{path}: {reason}: {said}")).hint(hint)))
        }
    }
}

/// What a refused engine means for the user.
fn judge(why: Diagnosis, said: &str) -> (EngineErrorKind, &'static str, &'static str) {
    use EngineErrorKind::{Damaged, Graph, Unavailable};
    let driver = "update the NVIDIA driver";
    if why.malformed || said.contains("Serialization assertion") {
        (Damaged, "the engine is damaged", "build the engine again")
    } else if why.version {
        (Unavailable, "the engine was built by another version of TensorRT-RTX", REBUILD_HINT)
    } else if why.device {
        (Unavailable, "the engine was not built for this device", REBUILD_HINT)
    } else if said.contains("cudaError 35") || why.driver {
        (Unavailable, "the NVIDIA driver is missing or too old", driver)
    } else if why.memory {
        (Unavailable, "the engine does not fit the device's memory", "use a device with more memory")
    } else if why.cuda {
        (Unavailable, "CUDA does not work on this machine", driver)
    } else {
        (Graph, "the engine does not load", REBUILD_HINT)
    }
}

/// Layers of an engine as TensorRT's inspector gives them, in JSON.
pub(crate) fn inspect(device: &CudaDevice, path: &Utf8Path, bytes: &[u8]) -> Result<String, EngineError> {
    let fail = |message: String| EngineError::new(EngineErrorKind::Run, NAME, format!("{path}: {message}"));
    device.make_current().map_err(|e| fail(e.to_string()))?;
    let (_runtime, engine) = deserialize(None, path, bytes)?;
    let inspector = engine.create_engine_inspector().map_err(|e| fail(e.to_string()))?;
    inspector.engine_information(LayerInformationFormat::kJSON).map_err(|e| fail(e.to_string()))
}

impl TrtSession {
    pub(crate) fn load(
        graph: GraphFile<'_>,
        file: &EngineFile,
        bytes: &[u8],
        device: &Arc<CudaDevice>,
        options: &SessionOptions<'_>,
    ) -> Result<Self, EngineError> {
        let spec = graph.spec;
        let fail = |kind, message: String| {
            EngineError::new(kind, NAME, format!("{}: {message}", file.path)).in_graph(&spec.name)
        };
        let cuda = |e: CudaError| fail(EngineErrorKind::Run, e.to_string());
        let native = |e: trtx::Error| fail(EngineErrorKind::Run, e.to_string());
        device.make_current().map_err(cuda)?;
        let (runtime, mut engine) = deserialize(Some(&spec.name), &file.path, bytes)?;
        let (inputs, outputs) = engine_ports(&engine).map_err(native)?;
        check_ports(NAME, spec, &inputs, &outputs)?;
        for port in inputs.iter().chain(&outputs) {
            if engine.tensor_location(&port.name).map_err(native)? != TensorLocation::kDEVICE {
                let message =
                    format!("`{}` must lie in host memory, which this engine does not do", port.name);
                return Err(fail(EngineErrorKind::Graph, message));
            }
        }
        let count = usize::try_from(engine.nb_optimization_profiles().map_err(native)?).unwrap_or_default();
        if !file.profiles.is_empty() && file.profiles.len() != count {
            let message = format!("it has {count} profiles, {} are listed for it", file.profiles.len());
            return Err(fail(EngineErrorKind::Graph, message).hint("build the engine again"));
        }
        let mut config = engine.create_runtime_config().map_err(native)?;
        // A profile's scratch memory is its own largest, not the largest of all profiles.
        config.set_execution_context_allocation_strategy(
            ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE,
        );
        flavour::choose_kernels(&mut config, options.kernels);
        if options.cuda_graphs {
            flavour::record_graphs(&mut config).map_err(native)?;
        }
        let cache = options.cache_dir.map(|dir| dir.join(format!("{}.cache", spec.name)));
        let cache =
            cache.map(|path| Ok((path.clone(), flavour::open_cache(&mut config, &path)?))).transpose();
        let cache = cache.map_err(native)?;
        let stream = CudaStream::new(device).map_err(cuda)?;
        Ok(Self {
            spec: spec.clone(),
            profiles: file.profiles.clone(),
            slots: BTreeMap::new(),
            elsewhere: BTreeSet::new(),
            config: Rc::new(config),
            cache,
            engine,
            _runtime: runtime,
            stream,
            device: Arc::clone(device),
        })
    }

    pub(crate) fn fail(&self, kind: EngineErrorKind, message: String) -> EngineError {
        EngineError::new(kind, NAME, message).in_graph(&self.spec.name)
    }

    pub(crate) fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    pub(crate) fn stream(&self) -> &CudaStream {
        &self.stream
    }

    pub(crate) fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// Every call gives the places of these tensors, so they get no buffers here.
    pub(crate) fn keep_on_device(&mut self, ports: &[CachePort]) {
        for port in ports {
            self.elsewhere.insert(port.past.name.clone());
            self.elsewhere.insert(self.spec.outputs[port.fresh].name.clone());
        }
    }

    pub(crate) fn make_current(&self) -> Result<(), EngineError> {
        self.device.make_current().map_err(|e| self.fail(EngineErrorKind::Run, e.to_string()))
    }

    /// An error with what TensorRT said about it.
    fn fail_with(&self, kind: EngineErrorKind, what: &str, collector: &Collector) -> EngineError {
        let said = errors(&collector.take()).map(|s| format!(": {s}")).unwrap_or_default();
        self.fail(kind, format!("{what}{said}"))
    }

    /// Indices of the profiles that take these sizes, in the order of the engine.
    fn candidates(&self, axes: &BTreeMap<String, usize>) -> Result<Vec<usize>, EngineError> {
        if self.profiles.is_empty() {
            let count = self.engine.nb_optimization_profiles().unwrap_or(1);
            return Ok((0..usize::try_from(count).unwrap_or(1).max(1)).collect());
        }
        let fit: Vec<usize> = (0..self.profiles.len()).filter(|i| self.profiles[*i].takes(axes)).collect();
        if fit.is_empty() {
            let sizes: Vec<String> = axes.iter().map(|(name, n)| format!("{name} {n}")).collect();
            let names: Vec<&str> = self.profiles.iter().map(|p| p.name.as_str()).collect();
            let message = format!("no profile of the engine takes {}; it has {}", list(sizes), list(names));
            let hint = "build the engine with a profile that covers these sizes";
            return Err(self.fail(EngineErrorKind::Input, message).hint(hint));
        }
        Ok(fit)
    }

    /// The context and buffers of a profile.
    fn open_slot(&mut self, index: usize, collector: &Collector) -> Result<(), EngineError> {
        if self.slots.contains_key(&index) {
            return Ok(());
        }
        let context = self.engine.create_execution_context_with_config(Rc::clone(&self.config));
        let mut context =
            context.map_err(|_| self.fail_with(EngineErrorKind::Run, "no execution context", collector))?;
        let number = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: the stream is valid and belongs to the current device.
        if !unsafe { context.set_optimization_profile_async(number, self.stream.raw()) } {
            let what = format!("profile {index} cannot be used");
            return Err(self.fail_with(EngineErrorKind::Run, &what, collector));
        }
        self.stream.synchronize().map_err(|e| self.fail(EngineErrorKind::Run, e.to_string()))?;
        let buffers = Buffers::new(&self.device, &self.spec, self.profiles.get(index), &self.elsewhere)
            .map_err(|e| self.fail(EngineErrorKind::Run, e.to_string()))?;
        self.slots.insert(index, Slot { context, buffers });
        Ok(())
    }

    /// Runs with the first profile that takes the sizes. Outputs come in the order of the graph, without those that
    /// stay on the device. `store` puts on the stream what is to follow the graph there.
    pub(crate) fn run_with(
        &mut self,
        axes: &BTreeMap<String, usize>,
        inputs: &[(&str, TensorView<'_>)],
        resident: &Resident<'_>,
        store: Enqueue<'_>,
    ) -> Result<Vec<Option<Tensor>>, EngineError> {
        let collector = Collector::start();
        let mut refused = None;
        for index in self.candidates(axes)? {
            match self.run_in(index, axes, inputs, resident, &mut *store, &collector) {
                Err(e) if e.kind == EngineErrorKind::Input => refused = Some(e),
                other => return other,
            }
        }
        Err(refused.unwrap_or_else(|| self.fail(EngineErrorKind::Input, "the engine has no profile".into())))
    }

    /// Runs with one profile; `Err(Input)` before anything is copied if the profile does not take the shapes.
    fn run_in(
        &mut self,
        index: usize,
        axes: &BTreeMap<String, usize>,
        inputs: &[(&str, TensorView<'_>)],
        resident: &Resident<'_>,
        store: Enqueue<'_>,
        collector: &Collector,
    ) -> Result<Vec<Option<Tensor>>, EngineError> {
        self.open_slot(index, collector)?;
        let Self { spec, slots, stream, .. } = self;
        let name = spec.name.clone();
        let fail = |kind, message: String| EngineError::new(kind, NAME, message).in_graph(&name);
        let run = |message: String| fail(EngineErrorKind::Run, message);
        let native = |e: trtx::Error| match errors(&collector.take()) {
            Some(said) => run(format!("{e}: {said}")),
            None => run(e.to_string()),
        };
        let Some(Slot { context, buffers }) = slots.get_mut(&index) else {
            return Err(run(format!("profile {index} was not opened")));
        };
        let given = inputs.iter().map(|(port, view)| (*port, view.shape()));
        for (port, shape) in given.chain(resident.inputs.iter().map(|(port, shape, _)| (*port, &shape[..]))) {
            context.set_input_shape(port, &dims(shape)).map_err(|_| {
                let said = errors(&collector.take()).map(|s| format!(": {s}")).unwrap_or_default();
                fail(EngineErrorKind::Input, format!("the engine does not take `{port}` as {shape:?}{said}"))
            })?;
        }
        // Buffers that are too small are replaced before any copy is under way.
        for (port, view) in inputs {
            let buffer = buffers.reserve(port, view_bytes(view)).map_err(|e| run(e.to_string()))?;
            // SAFETY: the buffer holds the input, and lives until it is replaced here or dropped with the slot.
            unsafe { context.set_tensor_address(port, buffer.raw()) }.map_err(native)?;
        }
        for (port, _, address) in &resident.inputs {
            // SAFETY: the caller has the input there.
            unsafe { context.set_tensor_address(port, *address) }.map_err(native)?;
        }
        let mut outputs = Vec::with_capacity(spec.outputs.len());
        let mut shapes = Vec::with_capacity(spec.outputs.len());
        for (i, port) in spec.outputs.iter().enumerate() {
            let shape = context.tensor_shape(&port.name).map_err(native)?;
            let rank = usize::try_from(shape.nbDims).unwrap_or_default().min(shape.d.len());
            let sizes: Option<Vec<usize>> =
                shape.d[..rank].iter().map(|n| usize::try_from(*n).ok()).collect();
            let unknown = || {
                let message = format!("`{}` has no shape before the graph has run", port.name);
                fail(EngineErrorKind::Output, message)
            };
            let sizes = sizes.ok_or_else(unknown)?;
            shapes.push(sizes.clone());
            if let Some((_, address)) = resident.outputs.iter().find(|(output, _)| *output == i) {
                // SAFETY: the caller has room there for the shape that the axes promise, which is checked below.
                unsafe { context.set_tensor_address(&port.name, *address) }.map_err(native)?;
                outputs.push(None);
                continue;
            }
            let host = HostOutput::new(port.dtype, sizes).ok_or_else(unknown)?;
            let buffer = buffers.reserve(&port.name, host.bytes()).map_err(|e| run(e.to_string()))?;
            // SAFETY: as for the inputs.
            unsafe { context.set_tensor_address(&port.name, buffer.raw()) }.map_err(native)?;
            outputs.push(Some(host));
        }
        let pairs = spec.outputs.iter().zip(shapes.iter().map(Vec::as_slice));
        bind_axes(spec, pairs, EngineErrorKind::Output, axes.clone())?;
        let enqueued = enqueue(spec, context, buffers, stream, inputs, &mut outputs, store);
        // Also after a failure: copies may be under way from and to memory that is about to go.
        let finished = stream.synchronize();
        enqueued.map_err(|e| match errors(&collector.take()) {
            Some(said) => run(format!("{e}: {said}")),
            None => run(e.to_string()),
        })?;
        finished.map_err(|e| run(e.to_string()))?;
        Ok(outputs.into_iter().map(|o| o.map(HostOutput::into_tensor)).collect())
    }

    /// Writes what was compiled for this device, for the next process.
    fn save_cache(&self) {
        let Some((path, cache)) = &self.cache else { return };
        let bytes = flavour::cache_bytes(cache).map_err(|e| e.to_string());
        let written = bytes.and_then(|bytes| cache_file::store(path, &bytes).map_err(|e| e.to_string()));
        if let Err(e) = written {
            tracing::warn!("the runtime cache of `{}` is not kept: {e}", self.spec.name);
        }
    }
}

/// Copies in, runs, copies out; the caller synchronises the stream whatever comes back.
fn enqueue(
    spec: &GraphSpec,
    context: &mut ExecutionContext<'static>,
    buffers: &Buffers,
    stream: &CudaStream,
    inputs: &[(&str, TensorView<'_>)],
    outputs: &mut [Option<HostOutput>],
    store: Enqueue<'_>,
) -> Result<(), CudaError> {
    for (port, view) in inputs {
        let buffer = buffers.get(port)?;
        // SAFETY: the caller's memory is borrowed until the stream has been synchronised.
        unsafe {
            match view.data() {
                TensorSlice::F32(data) => stream.upload(buffer, data)?,
                TensorSlice::F16(data) => stream.upload(buffer, data)?,
                TensorSlice::BF16(data) => stream.upload(buffer, data)?,
                TensorSlice::I64(data) => stream.upload(buffer, data)?,
            }
        }
    }
    // SAFETY: the stream is valid, and every port has an address with room for its shape.
    unsafe { context.enqueue_v3(stream.raw()) }.map_err(|e| e.to_string())?;
    store(stream)?;
    for (port, host) in spec.outputs.iter().zip(outputs) {
        let Some(host) = host else { continue };
        let buffer = buffers.get(&port.name)?;
        // SAFETY: the vectors are neither read nor moved until the stream has been synchronised.
        unsafe {
            match host {
                HostOutput(_, TensorData::F32(data)) => stream.download(data, buffer)?,
                HostOutput(_, TensorData::F16(data)) => stream.download(data, buffer)?,
                HostOutput(_, TensorData::BF16(data)) => stream.download(data, buffer)?,
                HostOutput(_, TensorData::I64(data)) => stream.download(data, buffer)?,
            }
        }
    }
    Ok(())
}

fn engine_ports(engine: &CudaEngine<'_>) -> trtx::Result<(Vec<FilePort>, Vec<FilePort>)> {
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for i in 0..engine.nb_io_tensors()? {
        let name = engine.io_tensor_name(i)?;
        let (dtype, dims) = (engine.tensor_data_type(&name)?, engine.tensor_shape(&name)?);
        let is_input = engine.tensor_io_mode(&name)? == TensorIOMode::kINPUT;
        let side = if is_input { &mut inputs } else { &mut outputs };
        side.push(file_port(name, dtype, Some(dims)));
    }
    Ok((inputs, outputs))
}

fn view_bytes(view: &TensorView<'_>) -> usize {
    view.data().len() * view.dtype().bytes()
}

/// Host memory of an output, and its shape.
struct HostOutput(Vec<usize>, TensorData);

impl HostOutput {
    fn new(dtype: DType, shape: Vec<usize>) -> Option<Self> {
        let elements = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d))?;
        elements.checked_mul(element_bytes(dtype)?)?;
        Some(Self(shape, TensorData::zeros(dtype, elements)?))
    }

    fn bytes(&self) -> usize {
        let data = self.1.as_slice();
        data.len() * data.dtype().bytes()
    }

    fn into_tensor(self) -> Tensor {
        Tensor::new(self.0, self.1)
    }
}

impl Session for TrtSession {
    fn spec(&self) -> &GraphSpec {
        &self.spec
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let pairs = inputs.iter().filter_map(|(n, v)| self.spec.input(n).map(|p| (p, v.shape())));
        let axes = bind_axes(&self.spec, pairs, EngineErrorKind::Input, BTreeMap::new())?;
        self.make_current()?;
        let outputs = self.run_with(&axes, inputs, &Resident::default(), &mut |_| Ok(()))?;
        Ok(outputs.into_iter().flatten().collect())
    }
}

impl Drop for TrtSession {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        self.save_cache();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_engine_is_explained() {
        let none = Diagnosis::default();
        let (kind, reason, _) = judge(none, "Error Code 1: Cuda Runtime (... (cudaError 35: too old))");
        assert_eq!((kind, reason), (EngineErrorKind::Unavailable, "the NVIDIA driver is missing or too old"));
        let (kind, ..) =
            judge(none, "Serialization assertion plan.header.size == blobSize failed. (cudaError 35)");
        assert_eq!(kind, EngineErrorKind::Damaged);
        let (kind, reason, hint) = judge(Diagnosis { device: true, ..none }, "");
        assert_eq!(kind, EngineErrorKind::Unavailable);
        assert!(reason.contains("this device") && hint.contains("compute capability"));
        assert_eq!(judge(Diagnosis { version: true, ..none }, "").0, EngineErrorKind::Unavailable);
        assert_eq!(judge(Diagnosis { malformed: true, ..none }, "").0, EngineErrorKind::Damaged);
        assert_eq!(judge(none, "").0, EngineErrorKind::Graph);
    }

    #[test]
    fn host_outputs_have_the_shape_that_was_asked_for() {
        let output = HostOutput::new(DType::I64, vec![2, 3]).unwrap();
        assert_eq!(output.bytes(), 48);
        assert_eq!(output.into_tensor(), Tensor::i64([2, 3], vec![0; 6]));
        assert!(HostOutput::new(DType::F32, vec![usize::MAX, 2]).is_none());
        assert!(HostOutput::new(DType::F32, vec![usize::MAX / 2]).is_none());
    }

    /// The library's own words on a machine without a driver; with one, the whole engine loads.
    #[cfg(not(feature = "enterprise"))]
    #[test]
    fn the_library_refuses_damage_and_a_missing_driver() {
        use dpar_export_spec::{AxisRange, Dim, Port};
        let axis = |name: &str, max| AxisRange { name: name.into(), min: 1, opt: 1, max };
        let port = |name: &str, width| {
            Port::new(name, DType::F32, vec![Dim::axis("batch"), Dim::axis("tokens"), Dim::Fixed(width)])
        };
        let spec = GraphSpec {
            name: "head".into(),
            component: "step".into(),
            inputs: vec![port("hidden", 16)],
            outputs: vec![port("logits", 32)],
            axes: vec![axis("batch", 4), axis("tokens", 8)],
        };
        let path = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures/head.onnx");
        let builder = crate::EngineBuilder::open(None).unwrap();
        let graph = GraphFile::new(&spec, &path);
        let bytes = builder.build(crate::BuildRequest::new(graph)).unwrap().bytes;

        let refused = |bytes: &[u8]| match deserialize(Some("head"), "e".into(), bytes) {
            Ok((_runtime, _engine)) => panic!("the engine loads"),
            Err(e) => e,
        };
        let e = refused(&bytes[..bytes.len() - 1]);
        assert_eq!((e.kind, e.graph.as_deref()), (EngineErrorKind::Damaged, Some("head")));
        assert!(e.message.starts_with("e: the engine is damaged: ") && e.hint.is_some(), "{e}");
        if crate::cuda::driver().is_ok() {
            let (_runtime, _engine) = deserialize(None, "e".into(), &bytes).unwrap();
            return;
        }
        let e = refused(&bytes);
        assert_eq!(e.kind, EngineErrorKind::Unavailable, "{e}");
        assert!(
            e.message.contains("driver is missing or too old") && e.message.contains("cudaError 35"),
            "{e}"
        );
    }
}
