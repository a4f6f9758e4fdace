//! Execution providers: where ONNX Runtime runs a graph, with no way back to the CPU.

use dpar_engine_api::library::check_whole;
use dpar_engine_api::{EngineError, EngineErrorKind};
use dpar_export_spec::{AxisRange, Dim, GraphSpec, Port};
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;

use crate::NAME;
use crate::runtime::Runtime;

/// The next step where a provider is not there.
const PROVIDER_HINT: &str = "set ORT_DYLIB_PATH (or `--ort-lib`) to the libonnxruntime of a GPU build that has this \
    provider, with its libonnxruntime_providers_*.so beside it and its CUDA libraries on the loader's path; or run with \
    `--device cpu`";

/// How the names of the providers' own libraries begin.
const PROVIDERS: &str = "libonnxruntime_providers_";

/// What ONNX Runtime says when a provider leaves nodes to the CPU and that is not allowed.
const HANDED_BACK: &str = "fallback to CPU EP has been explicitly disabled";

/// Where ONNX Runtime runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
}

impl OrtDevice {
    /// The execution provider's name, as ONNX Runtime has it.
    pub fn provider(self) -> &'static str {
        match self {
            Self::Cpu => ep::CPU::NAME,
            Self::Cuda(_) => ep::CUDA::NAME,
            Self::TensorRt(_) => ep::TensorRT::NAME,
            Self::NvRtx(_) => ep::NVRTX::NAME,
        }
    }

    /// The device, e.g. `cuda:0`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Cuda(index) | Self::TensorRt(index) | Self::NvRtx(index) => format!("cuda:{index}"),
        }
    }

    /// The provider with its settings; a failure to register it is an error. `spec` gives the shapes that TensorRT
    /// builds its engines for.
    pub(crate) fn dispatch(self, spec: Option<&GraphSpec>) -> ExecutionProviderDispatch {
        let shapes = |size: fn(&AxisRange) -> usize| spec.map(|spec| profile(spec, size)).unwrap_or_default();
        let provider = match self {
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
        provider.error_on_failure()
    }

    /// Whether the library has the provider, and whether it loads: everything that can be known without a graph.
    pub(crate) fn check(self, runtime: &Runtime) -> Result<(), EngineError> {
        let there = match self {
            Self::Cpu => return Ok(()),
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
        let registered = Session::builder(&runtime.environment)
            .and_then(|b| Ok(b.with_execution_providers([self.dispatch(None)])?));
        registered.map(|_| ()).map_err(|e| self.refused(&e))
    }

    /// The provider did not take the session.
    pub(crate) fn refused(self, e: &ort::Error<impl Sized>) -> EngineError {
        let provider = self.provider();
        if e.message().contains(HANDED_BACK) {
            let message = format!("{provider} leaves nodes of the graph to the CPU: {}", e.message());
            return EngineError::new(EngineErrorKind::Unavailable, NAME, message)
                .hint("run the whole graph elsewhere: `--device cuda`, or `--device cpu`");
        }
        self.unavailable(format!("{provider} does not work on {}: {}", self.name(), e.message()))
    }

    fn unavailable(self, message: String) -> EngineError {
        EngineError::new(EngineErrorKind::Unavailable, NAME, message).hint(PROVIDER_HINT)
    }
}

/// Shapes of all inputs at one point of the axis ranges, as the providers take them: `tokens:1x1,mask:1x1x1x1`.
fn profile(spec: &GraphSpec, size: impl Fn(&AxisRange) -> usize) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Axis(_) | Dim::Sum(..) => dim.axes().iter().filter_map(|a| spec.axis(a)).map(&size).sum(),
    };
    let shape = |port: &Port| {
        let sizes: Vec<String> = port.dims.iter().map(|d| dim(d).to_string()).collect();
        format!("{}:{}", port.name, sizes.join("x"))
    };
    spec.inputs.iter().map(shape).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_export_spec::DType;

    #[test]
    fn shapes_are_written_as_the_providers_take_them() {
        let axis = |name: &str, min, opt, max| AxisRange { name: name.into(), min, opt, max };
        let spec = GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![
                Port::new("tokens", DType::I64, vec![Dim::axis("batch"), Dim::axis("tokens")]),
                Port::new("mask", DType::F32, vec![Dim::Fixed(1), Dim::sum("past", "tokens")]),
            ],
            outputs: vec![],
            axes: vec![axis("batch", 1, 8, 512), axis("tokens", 1, 1, 64), axis("past", 0, 32, 64)],
        };
        assert_eq!(profile(&spec, |a| a.min), "tokens:1x1,mask:1x1");
        assert_eq!(profile(&spec, |a| a.opt), "tokens:8x1,mask:1x33");
        assert_eq!(profile(&spec, |a| a.max), "tokens:512x64,mask:1x128");
    }

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
