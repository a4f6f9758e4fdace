//! Execution providers: where ONNX Runtime runs a graph, with no way back to the CPU.

use dpar_engine_api::library::check_whole;
use dpar_engine_api::{EngineError, EngineErrorKind};
use dpar_export_spec::{AxisRange, GraphSpec};
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use crate::NAME;
use crate::plugin::PlugInDevice;
use crate::runtime::Runtime;
use crate::shapes::profile;

/// The next step where a provider is not there.
const PROVIDER_HINT: &str = "set ORT_DYLIB_PATH (or `--ort-lib`) to the libonnxruntime of a GPU build that has this \
    provider, with its libonnxruntime_providers_*.so beside it and its CUDA libraries on the loader's path; or run with \
    `--device cpu`";

/// How the names of the providers' own libraries begin.
const PROVIDERS: &str = "libonnxruntime_providers_";

/// What ONNX Runtime says when a provider leaves nodes to the CPU and that is not allowed.
const HANDED_BACK: &str = "fallback to CPU EP has been explicitly disabled";

/// Where ONNX Runtime runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OrtDevice {
    /// The processor.
    #[default]
    Cpu,
    /// ONNX Runtime's own CUDA kernels on the device of this index.
    Cuda(u16),
    /// TensorRT on the device of this index.
    TensorRt(u16),
    /// TensorRT-RTX on the device of this index.
    NvRtx(u16),
    /// Where a provider in a library of its own runs.
    PlugIn(PlugInDevice),
}

impl OrtDevice {
    /// The execution provider's name, as ONNX Runtime has it; of a plug-in, the library that has it.
    pub fn provider(&self) -> &str {
        match self {
            Self::Cpu => ep::CPU::NAME,
            Self::Cuda(_) => ep::CUDA::NAME,
            Self::TensorRt(_) => ep::TensorRT::NAME,
            Self::NvRtx(_) => ep::NVRTX::NAME,
            Self::PlugIn(at) => at.library.as_str(),
        }
    }

    /// The device, e.g. `cuda:0`.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Cuda(index) | Self::TensorRt(index) | Self::NvRtx(index) => format!("cuda:{index}"),
            Self::PlugIn(at) => at.hardware.to_string(),
        }
    }

    /// A session's options with the provider and its settings; a failure to register it is an error. `spec` gives the shapes that
    /// TensorRT builds its engines for.
    pub(crate) fn given_to(
        &self,
        builder: SessionBuilder,
        runtime: &Runtime,
        threads: Option<usize>,
        spec: Option<&GraphSpec>,
    ) -> ort::Result<SessionBuilder> {
        if let Self::PlugIn(at) = self {
            let found = at.find(runtime).map_err(|e| ort::Error::new(e.message))?;
            let settings = found.settings(threads, spec);
            return Ok(builder.with_devices([found.device], Some(&settings))?);
        }
        Ok(builder.with_execution_providers(self.dispatch(spec).as_slice())?)
    }

    /// One of ONNX Runtime's own.
    fn dispatch(&self, spec: Option<&GraphSpec>) -> Option<ExecutionProviderDispatch> {
        let shapes = |size: fn(&AxisRange) -> usize| spec.map(|spec| profile(spec, size)).unwrap_or_default();
        let provider = match *self {
            Self::PlugIn(_) => return None,
            // No arena: it keeps the peak of each of the half dozen sessions of a bundle.
            Self::Cpu => ep::CPU::default().with_arena_allocator(false).build(),
            // TF32 would round what the graph says is float32.
            Self::Cuda(index) => {
                ep::CUDA::default().with_device_id(i32::from(index)).with_tf32(false).build()
            }
            Self::TensorRt(index) => {
                let provider = ep::TensorRT::default().with_device_id(i32::from(index));
                match spec {
                    None => provider.build(),
                    // Without them an engine would be built again for every new shape, so at every decoding step.
                    Some(_) => provider
                        .with_profile_min_shapes(shapes(|a| a.min))
                        .with_profile_opt_shapes(shapes(|a| a.opt))
                        .with_profile_max_shapes(shapes(|a| a.max))
                        .build(),
                }
            }
            Self::NvRtx(index) => {
                let provider = ep::NVRTX::default().with_device_id(u32::from(index));
                match spec {
                    None => provider.build(),
                    Some(_) => provider
                        .with_profile_min_shapes(shapes(|a| a.min))
                        .with_profile_opt_shapes(shapes(|a| a.opt))
                        .with_profile_max_shapes(shapes(|a| a.max))
                        .build(),
                }
            }
        };
        Some(provider.error_on_failure())
    }

    /// Whether the library has the provider, and whether it loads: everything that can be known without a graph.
    pub(crate) fn check(&self, runtime: &Runtime) -> Result<(), EngineError> {
        let there = match self {
            Self::Cpu => return Ok(()),
            Self::PlugIn(at) => return at.find(runtime).map(|_| ()),
            Self::Cuda(_) => ep::CUDA::is_available(),
            Self::TensorRt(_) => ep::TensorRT::is_available(),
            Self::NvRtx(_) => ep::NVRTX::is_available(),
        };
        let place = format!("ONNX Runtime {} (`{}`)", runtime.version, runtime.path);
        match there {
            Ok(true) => {}
            Ok(false) => {
                return Err(self.unavailable(format!("{place} was built without {}", self.provider())));
            }
            Err(e) => {
                return Err(self.unavailable(format!("{place} does not list its providers: {}", e.message())));
            }
        }
        // They lie beside it, and are loaded when they are registered.
        let beside =
            runtime.path.parent().and_then(|p| p.read_dir_utf8().ok()).into_iter().flatten().flatten();
        for file in beside.filter(|f| f.file_name().starts_with(PROVIDERS)) {
            check_whole(file.path())
                .map_err(|e| self.unavailable(format!("`{}` cannot be loaded: {e}", file.path())))?;
        }
        let registered =
            Session::builder(&runtime.environment).and_then(|b| self.given_to(b, runtime, None, None));
        registered.map(|_| ()).map_err(|e| self.refused(&e))
    }

    /// The provider did not take the session.
    pub(crate) fn refused(&self, e: &ort::Error<impl Sized>) -> EngineError {
        let provider = self.provider();
        if e.message().contains(HANDED_BACK) {
            let message = format!("{provider} leaves nodes of the graph to the CPU: {}", e.message());
            return EngineError::new(EngineErrorKind::Unavailable, NAME, message)
                .hint("run the whole graph elsewhere: `--device cuda`, or `--device cpu`");
        }
        self.unavailable(format!("{provider} does not work on {}: {}", self.name(), e.message()))
    }

    fn unavailable(&self, message: String) -> EngineError {
        EngineError::new(EngineErrorKind::Unavailable, NAME, message).hint(PROVIDER_HINT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_say_what_they_are() {
        for (device, provider, name) in [
            (OrtDevice::default(), "CPUExecutionProvider", "cpu"),
            (OrtDevice::Cuda(1), "CUDAExecutionProvider", "cuda:1"),
            (OrtDevice::TensorRt(0), "TensorrtExecutionProvider", "cuda:0"),
            (OrtDevice::NvRtx(2), "NvTensorRTRTXExecutionProvider", "cuda:2"),
        ] {
            assert_eq!((device.provider(), device.name().as_str()), (provider, name));
        }
    }

    /// The processor's own library: it has no other provider, and a session that may not use the processor says so in
    /// the words that are looked for.
    #[test]
    fn a_library_without_the_provider_and_nodes_left_to_the_cpu_are_told_apart() {
        let runtime = crate::runtime::start(None).unwrap_or_else(|e| panic!("{e}"));
        OrtDevice::Cpu.check(&runtime).unwrap();
        for device in [OrtDevice::Cuda(0), OrtDevice::TensorRt(0), OrtDevice::NvRtx(0)] {
            let Err(e) = device.check(&runtime) else { panic!("this library is for the processor only") };
            assert_eq!(e.kind, EngineErrorKind::Unavailable);
            assert!(e.message.contains(device.provider()) && e.message.contains("built without"), "{e}");
            assert!(e.hint.as_deref().is_some_and(|h| h.contains("ORT_DYLIB_PATH")));
        }
        let graph = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/fixtures/head.onnx");
        let builder = Session::builder(&runtime.environment).unwrap();
        let refused = builder.with_disable_cpu_fallback().unwrap().commit_from_file(graph).unwrap_err();
        let e = OrtDevice::Cuda(0).refused(&refused);
        assert!(e.message.contains("CUDAExecutionProvider leaves nodes of the graph to the CPU"), "{e}");
    }
}
