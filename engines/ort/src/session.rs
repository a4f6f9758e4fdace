//! A prepared graph.

use std::num::NonZero;

use dpar_engine_api::{
    EngineError, EngineErrorKind, GraphFile, Session, Tensor, TensorSlice, TensorView, threads,
};
use dpar_engine_kv::Derived;
use dpar_export_spec::GraphSpec;
use half::{bf16, f16};
use ort::ErrorCode;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session as RawSession, SessionInputValue};
use ort::value::{DynValue, TensorElementType, TensorRef};

use crate::runtime::Runtime;
use crate::{NAME, OrtDevice, OrtOptions, attention};

/// Stack of a thread where nobody says otherwise, as ONNX Runtime does not.
const STACK: usize = 8 << 20;

/// A loaded graph with its options.
pub(crate) struct OrtSession {
    spec: GraphSpec,
    session: RawSession,
}

impl OrtSession {
    pub(crate) fn load(
        runtime: &Runtime,
        graph: GraphFile<'_>,
        derived: Option<Derived<'_>>,
        options: &OrtOptions,
    ) -> Result<Self, EngineError> {
        // On another device only what names the file is the file's fault.
        let files = [ErrorCode::NoSuchFile, ErrorCode::InvalidProtobuf, ErrorCode::InvalidGraph];
        let refuse = |e: ort::Error| {
            if options.device != OrtDevice::Cpu && !files.contains(&e.code()) {
                return options.device.refused(&e).in_graph(&graph.spec.name);
            }
            EngineError::refused(NAME, graph, e.message())
        };
        options.device.check(runtime).map_err(|e| e.in_graph(&graph.spec.name))?;
        check_threads(options.threads).map_err(|e| e.in_graph(&graph.spec.name))?;
        let spec = derived.as_ref().map_or(graph.spec, |(edited, _)| &edited.spec).clone();
        let session = build(runtime, graph, derived, options).map_err(refuse)?;
        Ok(Self { spec, session })
    }
}

/// ONNX Runtime waits forever for a thread that the system refuses.
fn check_threads(threads: Option<usize>) -> Result<(), EngineError> {
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get));
    // The calling thread works too.
    threads::try_start(threads.saturating_sub(1), STACK).map_err(|e| {
        let message = format!("{threads} threads could not be started: {e}");
        EngineError::new(EngineErrorKind::Setting, NAME, message).hint("ask for fewer threads")
    })
}

/// Loads the file, or what was derived from it with the caches that its operators use.
fn build(
    runtime: &Runtime,
    graph: GraphFile<'_>,
    derived: Option<Derived<'_>>,
    options: &OrtOptions,
) -> ort::Result<RawSession> {
    let builder = RawSession::builder(&runtime.environment)?.with_no_environment_execution_providers()?;
    let mut builder = options
        .device
        .given_to(builder, runtime, options.threads, Some(graph.spec))?
        // A pattern is kept for every shape ever seen, and decoding makes a new shape at each step.
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_parallel_execution(false)?
        .with_inter_threads(1)?
        .with_deterministic_compute(true)?
        // Left alone, it turns a float matrix that is made of whole numbers into a product with 8-bit activations. Graphs that
        // allow it say so themselves; for others, in float32.
        .with_config_entry("session.qdq_matmulnbits_accuracy_level", "1")?
        // The sessions of a bundle take turns: the threads of the one that is done must not spin on.
        .with_config_entry("session.force_spinning_stop", "1")?
        .with_log_id(&graph.spec.name)?
        .with_log_level(LogLevel::Warning)?;
    if options.device != OrtDevice::Cpu {
        builder = builder.with_disable_cpu_fallback()?;
    }
    if let Some(threads) = options.threads {
        builder = builder.with_intra_threads(threads.max(1))?;
    }
    let Some((edited, cache)) = derived else { return builder.commit_from_file(graph.path) };
    // The weights lie beside the file.
    let folder = graph.path.parent().map_or(".", |p| if p.as_str().is_empty() { "." } else { p.as_str() });
    builder
        .with_config_entry("session.model_external_initializers_file_folder_path", folder)?
        .with_operators(attention::domain(cache)?)?
        .commit_from_memory(&edited.model)
}

impl Session for OrtSession {
    fn spec(&self) -> &GraphSpec {
        &self.spec
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let spec = &self.spec;
        let fail = |kind, message: String| EngineError::new(kind, NAME, message).in_graph(&spec.name);
        let borrowed = inputs
            .iter()
            .map(|(name, view)| Ok((*name, borrow(view)?)))
            .collect::<ort::Result<Vec<(&str, SessionInputValue<'_>)>>>()
            .map_err(|e| fail(EngineErrorKind::Input, e.message().to_owned()))?;
        let values =
            self.session.run(borrowed).map_err(|e| fail(EngineErrorKind::Run, e.message().to_owned()))?;
        let take = |port: &dpar_export_spec::Port| {
            let value = values.get(&port.name).ok_or_else(|| "it did not come back".to_owned());
            value
                .and_then(|v| host_tensor(v).map_err(|e| e.message().to_owned()))
                .map_err(|e| fail(EngineErrorKind::Output, format!("output `{}`: {e}", port.name)))
        };
        spec.outputs.iter().map(take).collect()
    }
}

/// The caller's memory as an input: no copy, also where an axis is 0.
fn borrow<'v>(view: &TensorView<'v>) -> ort::Result<SessionInputValue<'v>> {
    let shape = view.shape();
    match view.data() {
        TensorSlice::F32(data) => TensorRef::from_array_view((shape.to_vec(), data)).map(Into::into),
        TensorSlice::F16(data) => TensorRef::from_array_view((shape.to_vec(), data)).map(Into::into),
        TensorSlice::BF16(data) => TensorRef::from_array_view((shape.to_vec(), data)).map(Into::into),
        TensorSlice::I64(data) => TensorRef::from_array_view((shape.to_vec(), data)).map(Into::into),
    }
}

/// The one copy that an output costs.
fn host_tensor(value: &DynValue) -> ort::Result<Tensor> {
    let sizes = |shape: &ort::value::Shape| -> Vec<usize> {
        shape.iter().map(|&n| usize::try_from(n).unwrap_or_default()).collect()
    };
    match value.dtype().tensor_type() {
        Some(TensorElementType::Int64) => {
            let (shape, data) = value.try_extract_tensor::<i64>()?;
            Ok(Tensor::i64(sizes(shape), data.to_vec()))
        }
        Some(TensorElementType::Float16) => {
            let (shape, data) = value.try_extract_tensor::<f16>()?;
            Ok(Tensor::f16(sizes(shape), data.to_vec()))
        }
        Some(TensorElementType::Bfloat16) => {
            let (shape, data) = value.try_extract_tensor::<bf16>()?;
            Ok(Tensor::bf16(sizes(shape), data.to_vec()))
        }
        _ => {
            let (shape, data) = value.try_extract_tensor::<f32>()?;
            Ok(Tensor::f32(sizes(shape), data.to_vec()))
        }
    }
}
